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

/// Takes the pages of `map` out of this process's memory until they are touched again.
///
/// The page cache keeps them, so touching one costs a minor fault, for 64 KiB at a time
/// (`fault_around_bytes`): huge pages would bring 2 MiB back at once.
///
/// # Errors
/// What `madvise(2)` answers.
pub fn let_go(map: &memmap2::Mmap) -> io::Result<()> {
    // Kernels without transparent huge pages do not know the advice and do not need it.
    let _unknown = map.advise(memmap2::Advice::NoHugePage);
    // SAFETY: the pages are those of a file and were never written here (`map_readonly`), so
    // what comes back is what went.
    unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_let_go_comes_back() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 20_000]).unwrap();
        let map = map_readonly(file.as_fd()).unwrap();
        assert!(map.iter().all(|byte| *byte == 7));
        let_go(&map).unwrap();
        assert!(map.iter().all(|byte| *byte == 7));
    }
}
