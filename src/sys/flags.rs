//! Inode flags: the immutable flag of `chattr(1)`.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

/// Whether the host file system took a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flagged {
    /// The flag is now as asked.
    Done,
    /// The file system has no such flag, or this process may not change it (CAP_LINUX_IMMUTABLE).
    Refused,
}

/// Sets or clears the immutable flag of the open file.
///
/// `file` may be read-only. A flag that already has the asked value costs one call.
///
/// # Errors
/// Those of `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS`, except the ones that mean [`Flagged::Refused`].
pub fn set_immutable(file: BorrowedFd<'_>, immutable: bool) -> io::Result<Flagged> {
    let before = match ioctl_getflags(file) {
        Ok(flags) => flags,
        Err(error) => return refused(error),
    };
    let mut after = before;
    after.set(IFlags::IMMUTABLE, immutable);
    if after == before {
        return Ok(Flagged::Done);
    }
    match ioctl_setflags(file, after) {
        Ok(()) => Ok(Flagged::Done),
        Err(error) => refused(error),
    }
}

/// Tells whether the open file is immutable; `None` where the file system has no such flag.
///
/// # Errors
/// Those of `FS_IOC_GETFLAGS`, except the ones that mean that there is no flag.
pub fn is_immutable(file: BorrowedFd<'_>) -> io::Result<Option<bool>> {
    match ioctl_getflags(file) {
        Ok(flags) => Ok(Some(flags.contains(IFlags::IMMUTABLE))),
        Err(error) => refused(error).map(|_| None),
    }
}

fn refused(error: Errno) -> io::Result<Flagged> {
    match error {
        Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM => {
            Ok(Flagged::Refused)
        }
        other => Err(other.into()),
    }
}
