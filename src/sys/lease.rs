//! Read leases: the kernel's own proof that nobody can write a file.
//!
//! `F_SETLEASE(F_RDLCK)` is refused while any writable descriptor or writable shared
//! mapping of the inode exists. fcntl(2), "Leases".
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

/// True if no writable descriptor or mapping of `file` exists anywhere.
///
/// `file` itself must be open `O_RDONLY`. The lease is dropped at once; a process that
/// calls this ignores SIGIO (see [`ignore_lease_breaks`]).
pub fn nobody_can_write(file: impl AsFd) -> bool {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETLEASE takes an integer argument and touches no memory of ours.
    let taken = unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) } == 0;
    if taken {
        // SAFETY: as above. Failing to unlock is impossible for the holder.
        unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
    }
    taken
}

/// Ignores SIGIO, which the kernel sends to a lease holder and whose default ends the process.
pub fn ignore_lease_breaks() {
    // SAFETY: SIG_IGN is a valid disposition and installs no handler.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writable_descriptor_is_noticed() {
        ignore_lease_breaks();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let writer = std::fs::File::create(&path).unwrap();
        let reader = std::fs::File::open(&path).unwrap();
        assert!(!nobody_can_write(&reader));
        drop(writer);
        assert!(nobody_can_write(&reader));
    }
}
