#![allow(unsafe_code)]
//! Mounts without a path: detached clones.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::mount::{OpenTreeFlags, open_tree};

/// Clones the mount at `dir`, rooted there, makes the clone read-only and returns its root.
///
/// The clone has no path and belongs to no mount namespace; it lives as long as the descriptor
/// (and the files opened through it). A file reached through it cannot be opened for writing,
/// not through `/proc/self/fd` either (`EROFS`).
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOSYS` before Linux 5.12.
pub fn detached_readonly(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let tree = detached(dir)?;
    set_attributes(
        tree.as_fd(),
        libc::AT_EMPTY_PATH,
        libc::mount_attr {
            // NOATIME too: relatime would try at every read, in vain, to write an old access time.
            attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME,
            attr_clr: libc::MOUNT_ATTR__ATIME,
            propagation: 0,
            userns_fd: 0,
        },
    )?;
    Ok(tree)
}

/// Clones the mount at `dir` into a detached one whose owners are mapped by the user
/// namespace behind `user_namespace`, and returns its root.
///
/// # Errors
/// `EINVAL` when its file system knows no idmapped mounts (FUSE: before Linux 6.12, or when
/// its server did not agree), `EPERM` without CAP_SYS_ADMIN or for the initial namespace.
pub fn detached_idmapped(
    dir: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let tree = detached(dir)?;
    let userns_fd = u64::try_from(user_namespace.as_raw_fd())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    set_attributes(
        tree.as_fd(),
        libc::AT_EMPTY_PATH,
        libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd,
        },
    )?;
    Ok(tree)
}

/// Sets attributes of the mount at `place`, such as `MOUNT_ATTR_NODEV`, and of all beneath it.
///
/// # Errors
/// What mount_setattr(2) answers.
pub fn add_attributes(place: BorrowedFd<'_>, attr_set: u64) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_attributes(place, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, attributes)
}

fn detached(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(dir, c"", flags)?)
}

fn set_attributes(
    tree: BorrowedFd<'_>,
    flags: c_int,
    attributes: libc::mount_attr,
) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated and `attributes` is valid for its whole stated size;
    // the kernel keeps neither pointer.
    let status = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    use rustix::io::Errno;

    use super::*;

    /// Needs root.
    #[test]
    fn a_file_reached_through_the_clone_cannot_be_opened_for_writing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        let fd =
            openat(CWD, dir.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let clone = detached_readonly(fd.as_fd()).unwrap();
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        assert_eq!(openat(&clone, "file", flags, Mode::empty()).unwrap_err(), Errno::ROFS);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&clone, "file", flags, Mode::empty()).unwrap();
        let through_proc = format!("/proc/self/fd/{}", file.as_raw_fd());
        let again = openat(CWD, through_proc, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        assert_eq!(again.unwrap_err(), Errno::ROFS);
    }
}
