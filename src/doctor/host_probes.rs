//! What the host's kernel and the store's file system can do.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::{Capability, Finding};
use crate::sys::copy::{Copied, copy_data};
use crate::sys::flags::{Flagged, is_immutable, set_immutable};
use crate::sys::handle::FileHandle;
use crate::sys::verity::{Sealed, seal};
use crate::sys::{cache, inode, mount};

/// The mark that is tried: of the namespace that private layers use.
const XATTR: &[u8] = b"trusted.mica.probe";

pub(super) fn try_all(scratch: &Path) -> Vec<Finding> {
    vec![
        Capability::Root.tried(root()),
        Capability::Fuse.tried(fuse()),
        Capability::TrustedXattrs.tried(trusted_xattrs(scratch)),
        Capability::Whiteouts.tried(whiteouts(scratch)),
        Capability::ReadOnlyMount.tried(read_only_mount(scratch)),
        Capability::ImmutableFlag.tried(immutable_flag(scratch)),
        Capability::Reflink.tried(reflink(scratch)),
        Capability::FileHandles.tried(file_handles(scratch)),
        Capability::Cachestat.tried(cachestat(scratch)),
        Capability::Verity.tried(verity(scratch)),
        Capability::Uring.tried(uring()),
    ]
}

fn root() -> io::Result<String> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return Ok("running as root".to_owned());
    }
    Err(io::Error::other(format!("running as user {user}")))
}

fn fuse() -> io::Result<String> {
    File::options().read(true).write(true).open("/dev/fuse")?;
    Ok("/dev/fuse opens".to_owned())
}

fn file(scratch: &Path, name: &str, content: &[u8]) -> io::Result<File> {
    let path = scratch.join(name);
    fs::write(&path, content)?;
    File::options().read(true).write(true).open(path)
}

fn trusted_xattrs(scratch: &Path) -> io::Result<String> {
    let file = file(scratch, "xattr", b"")?;
    inode::set_xattr(&file, XATTR, b"kept", XattrFlags::empty())?;
    match inode::xattr(&file, XATTR)?.as_deref() {
        Some(b"kept") => Ok("written and read back".to_owned()),
        _ => Err(io::Error::other("written, and not there")),
    }
}

fn whiteouts(scratch: &Path) -> io::Result<String> {
    let path = scratch.join("whiteout");
    rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0)?;
    fs::remove_file(path)?;
    Ok("a character device 0:0 was made".to_owned())
}

fn read_only_mount(scratch: &Path) -> io::Result<String> {
    drop(file(scratch, "fixed", b"content")?);
    let clone = mount::detached_readonly(File::open(scratch)?.as_fd())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    match rustix::fs::openat(&clone, "fixed", flags, Mode::empty()) {
        Err(rustix::io::Errno::ROFS) => Ok("a write through it was refused".to_owned()),
        Err(errno) => Err(errno.into()),
        Ok(_) => Err(io::Error::other("a file behind it could be opened for writing")),
    }
}

fn immutable_flag(scratch: &Path) -> io::Result<String> {
    let file = file(scratch, "immutable", b"content")?;
    let set = set_immutable(file.as_fd(), true)?;
    let seen = is_immutable(file.as_fd())?;
    let cleared = set_immutable(file.as_fd(), false)?;
    match (set, seen, cleared) {
        (Flagged::Done, Some(true), Flagged::Done) => Ok("set and cleared".to_owned()),
        _ => Err(io::Error::other("the file system or a missing privilege refuses it")),
    }
}

fn reflink(scratch: &Path) -> io::Result<String> {
    let source = file(scratch, "blocks", &[7; 1 << 16])?;
    let target = file(scratch, "shared-blocks", b"")?;
    match copy_data(source.as_fd(), target.as_fd(), 1 << 16)? {
        Copied::Reflinked => Ok("a copy shares its blocks".to_owned()),
        Copied::Copied { .. } => Err(io::Error::other("this file system copies every block")),
    }
}

fn file_handles(scratch: &Path) -> io::Result<String> {
    let file = file(scratch, "handle", b"")?;
    let found = FileHandle::of(&file)?.open(File::open(scratch)?)?;
    if inode::status(&found)?.ino == inode::status(&file)?.ino {
        Ok("a file was found again".to_owned())
    } else {
        Err(io::Error::other("the handle led to another file"))
    }
}

fn cachestat(scratch: &Path) -> io::Result<String> {
    let file = file(scratch, "cached", &[7; 1 << 16])?;
    cache::cachestat_works(file.as_fd())?;
    Ok("answered".to_owned())
}

fn verity(scratch: &Path) -> io::Result<String> {
    drop(file(scratch, "sealed", b"content")?);
    match seal(File::open(scratch.join("sealed"))?.as_fd())? {
        Sealed::Done => Ok("a file was sealed".to_owned()),
        Sealed::Refused(errno) => Err(errno.into()),
    }
}

fn uring() -> io::Result<String> {
    let enabled = fs::read_to_string("/sys/module/fuse/parameters/enable_uring")?;
    if enabled.trim() != "Y" {
        return Err(io::Error::other("the kernel has it, switched off"));
    }
    Ok("switched on".to_owned())
}
