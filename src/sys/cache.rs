#![allow(unsafe_code)]
//! How much of a file the page cache holds.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::fstat;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

/// `cachestat(2)`, Linux 6.5; the number is the same on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

#[repr(C)]
struct CachestatRange {
    offset: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Counts the bytes of `file` that are in the page cache, in whole pages.
///
/// Asks `cachestat(2)`, and `mincore(2)` where that is missing. Neither brings pages in.
///
/// # Errors
/// Those of the two calls; `mincore` answers truthfully only to the owner of the file.
pub fn resident_bytes(file: BorrowedFd<'_>) -> io::Result<u64> {
    match cachestat(file) {
        Ok(stat) => Ok(stat.cached.saturating_mul(page_bytes())),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => by_mincore(file),
        Err(error) => Err(error),
    }
}

/// Whether `cachestat(2)` itself answers about `file`.
///
/// # Errors
/// `ENOSYS` before Linux 6.5.
pub fn cachestat_works(file: BorrowedFd<'_>) -> io::Result<()> {
    cachestat(file).map(drop)
}

fn page_bytes() -> u64 {
    u64::try_from(page_size()).unwrap_or(4096)
}

fn cachestat(file: BorrowedFd<'_>) -> io::Result<Cachestat> {
    let range = CachestatRange { offset: 0, len: 0 };
    let mut stat = Cachestat::default();
    // SAFETY: both structures have the layout of the kernel's `struct cachestat_range` and
    // `struct cachestat` and outlive the call.
    let status = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0_u32)
    };
    if status == 0 { Ok(stat) } else { Err(io::Error::last_os_error()) }
}

/// A mapping that is gone when dropped.
struct Mapping {
    start: *mut c_void,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `mmap` returned and nothing else refers to it.
        let unmapped = unsafe { munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok(), "unmapping a mapping of our own: {unmapped:?}");
    }
}

fn by_mincore(file: BorrowedFd<'_>) -> io::Result<u64> {
    let len = usize::try_from(fstat(file)?.st_size).unwrap_or(0);
    if len == 0 {
        return Ok(0);
    }
    // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours;
    // it is never read through.
    let start =
        unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0)? };
    let mapping = Mapping { start, len };
    let mut pages = vec![0_u8; len.div_ceil(page_size())];
    // SAFETY: the mapping is `len` bytes long and the vector has one byte for each of its pages.
    let status = unsafe { libc::mincore(mapping.start, mapping.len, pages.as_mut_ptr()) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    let resident = pages.iter().filter(|page| **page & 1 == 1).count();
    Ok(u64::try_from(resident).unwrap_or(u64::MAX).saturating_mul(page_bytes()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn pages_just_written_are_resident() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3 * page_size() + 1]).unwrap();
        assert_eq!(resident_bytes(file.as_fd()).unwrap(), 4 * page_bytes());
    }

    #[test]
    fn mincore_and_cachestat_agree() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(by_mincore(file.as_fd()).unwrap(), 0);
        file.write_all(&vec![7; 5 * page_size()]).unwrap();
        assert_eq!(by_mincore(file.as_fd()).unwrap(), 5 * page_bytes());
    }
}
