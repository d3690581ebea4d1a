//! Read-only file mappings.
//!
//! A mapped file must not shrink while it is mapped (a touched page beyond its end raises
//! SIGBUS). Mica maps only files of its own store that are written once and never again.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

/// Maps the whole of `file` for reading.
///
/// # Errors
/// What `mmap(2)` and `fstat(2)` answer; an empty file is `InvalidInput`.
pub fn map_readonly(file: BorrowedFd<'_>) -> io::Result<memmap2::Mmap> {
    use std::os::fd::AsRawFd;
    let descriptor = file.as_raw_fd();
    // SAFETY: the descriptor is borrowed for the whole call. The mapping is private and
    // read-only; the store never changes a published manifest, which is what keeps the
    // bytes behind the slice constant.
    unsafe { memmap2::Mmap::map(descriptor) }
}
