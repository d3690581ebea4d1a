//! fs-verity: sealing a file so that the kernel checks every block it reads (fsverity.rst).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// What became of a wish to seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// The kernel checks the file's content from now on.
    Done,
    /// This kernel, or this file system, does not know it.
    Refused(Errno),
}

/// `struct fsverity_enable_arg` of linux/fsverity.h.
#[repr(C)]
#[derive(Default)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// `_IOW('f', 133, struct fsverity_enable_arg)`.
const ENABLE: u32 = 0x4080_6685;
const SHA256: u32 = 1;

/// Seals the open file: descriptor read-only, nobody else may have it open for writing, and it
/// must not be immutable. A file that is sealed already stays so.
///
/// # Errors
/// Those of `FS_IOC_ENABLE_VERITY`, but for the ones that mean [`Sealed::Refused`].
pub fn seal(file: BorrowedFd<'_>) -> io::Result<Sealed> {
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: SHA256,
        block_size: 4096,
        ..Default::default()
    };
    // SAFETY: the argument is a valid fsverity_enable_arg for its whole size, which the request
    // number carries; the kernel keeps no pointer to it.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), ENABLE.into(), &raw const argument) };
    if answer == 0 {
        return Ok(Sealed::Done);
    }
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        Some(Errno::EXIST) => Ok(Sealed::Done),
        Some(errno @ (Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM)) => {
            Ok(Sealed::Refused(errno))
        }
        _ => Err(error),
    }
}
