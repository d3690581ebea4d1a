//! Copying file content inside the kernel: a reflink where it can, extents where it cannot.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, copy_file_range, fstat, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

/// Bytes per read and write where the kernel cannot copy by itself.
const BUFFER_BYTES: usize = 1 << 20;

/// How the content came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Both files share their extents; nothing was copied, and nothing is left to make durable.
    Reflinked,
    /// The data extents were copied; `bytes` does not count the holes.
    Copied {
        /// Bytes copied.
        bytes: u64,
    },
}

/// Makes `dst` hold the first `len` bytes of `src`, holes kept.
///
/// `dst` is empty, or one hole of `len` bytes, and open for writing (not `O_APPEND`); afterwards
/// it is `len` bytes long, also where `src` is shorter. The offset of `src` moves, that of `dst`
/// does not. Not durable on return: see [`Copied`].
///
/// # Errors
/// `ENOSPC`, `EIO` and the like; `dst` then holds a part.
pub fn copy_data(src: BorrowedFd<'_>, dst: BorrowedFd<'_>, len: u64) -> io::Result<Copied> {
    let size = u64::try_from(fstat(src)?.st_size).unwrap_or(0);
    if len > 0 && size == len {
        match ioctl_ficlone(dst, src) {
            // A writer may have changed the length of `src` since.
            Ok(()) => {
                ftruncate(dst, len)?;
                return Ok(Copied::Reflinked);
            }
            Err(error) if cannot_share(error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ftruncate(dst, len)?;
    if size == 0 {
        // Pseudo file systems say 0 of files that do have bytes.
        return Ok(Copied::Copied { bytes: copy_through_memory(src, dst, 0, len)? });
    }
    let mut bytes = 0;
    let mut in_kernel = true;
    let mut offset = 0;
    while let Some((start, end)) = next_data(src, offset, len)? {
        let mut at = start;
        while at < end && in_kernel {
            match copy_in_kernel(src, dst, at, end - at) {
                Ok(0) => break,
                Ok(copied) => at += copied,
                Err(error) if cannot_copy(error) => in_kernel = false,
                Err(error) => return Err(error.into()),
            }
        }
        // Not all came over: another kind of file system, or the source became shorter.
        at = copy_through_memory(src, dst, at, end)?;
        bytes += at - start;
        offset = end;
    }
    Ok(Copied::Copied { bytes })
}

/// Errors of FICLONE that mean: these two files cannot share extents. ioctl_ficlone(2).
pub(crate) fn cannot_share(error: Errno) -> bool {
    matches!(
        error,
        Errno::OPNOTSUPP
            | Errno::NOTTY
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOSYS
            | Errno::PERM
            | Errno::TXTBSY
            | Errno::ISDIR
    )
}

fn cannot_copy(error: Errno) -> bool {
    matches!(
        error,
        Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::TXTBSY
    )
}

/// The next extent with data that starts at `from` or later, cut at `len`.
fn next_data(src: BorrowedFd<'_>, from: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= len {
        return Ok(None);
    }
    let start = match seek(src, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((from, len))),
        Err(error) => return Err(error.into()),
    };
    if start >= len {
        return Ok(None);
    }
    let end = match seek(src, SeekFrom::Hole(start)) {
        Ok(end) => end.min(len),
        Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => len,
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, end)))
}

fn copy_in_kernel(
    src: BorrowedFd<'_>,
    dst: BorrowedFd<'_>,
    at: u64,
    len: u64,
) -> rustix::io::Result<u64> {
    let (mut from, mut to) = (at, at);
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
    let copied = rustix::io::retry_on_intr(|| {
        copy_file_range(src, Some(&mut from), dst, Some(&mut to), len)
    })?;
    u64::try_from(copied).map_err(|_| Errno::OVERFLOW)
}

/// Copies until `end` or the end of `src`; returns the offset it reached.
fn copy_through_memory(
    src: BorrowedFd<'_>,
    dst: BorrowedFd<'_>,
    mut at: u64,
    end: u64,
) -> io::Result<u64> {
    if at >= end {
        return Ok(at);
    }
    let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(BUFFER_BYTES);
    let mut buffer = vec![0; wanted];
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let read = rustix::io::retry_on_intr(|| pread(src, &mut buffer[..wanted], at))?;
        if read == 0 {
            break;
        }
        write_all_at(dst, &buffer[..read], at)?;
        at += u64::try_from(read).map_err(|_| Errno::OVERFLOW)?;
    }
    Ok(at)
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// Those of pwrite(2); a part may have been written.
pub fn write_all_at(dst: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| pwrite(dst, bytes, offset))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += u64::try_from(written).map_err(|_| Errno::OVERFLOW)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn holes_stay_holes_and_the_content_is_the_same() {
        let (src, dst) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        src.write_all_at(&[1; 5000], 1 << 20).unwrap();
        src.write_all_at(&[2; 10], 5 << 20).unwrap();
        src.set_len(8 << 20).unwrap();
        let copied = copy_data(src.as_fd(), dst.as_fd(), 8 << 20).unwrap();
        assert_eq!(content(&src), content(&dst));
        if let Copied::Copied { bytes } = copied {
            assert!(bytes < 100_000, "{bytes}");
        }
        assert!(dst.metadata().unwrap().blocks() * 512 < 200_000);
    }

    #[test]
    fn a_longer_source_is_cut_and_a_shorter_one_ends_in_a_hole() {
        let (src, dst) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        src.write_all_at(&[1; 5000], 0).unwrap();
        copy_data(src.as_fd(), dst.as_fd(), 100).unwrap();
        assert_eq!(content(&dst), vec![1; 100]);
        let dst = tempfile::tempfile().unwrap();
        copy_data(src.as_fd(), dst.as_fd(), 6000).unwrap();
        let mut expected = vec![1; 5000];
        expected.resize(6000, 0);
        assert_eq!(content(&dst), expected);
    }

    #[test]
    fn a_file_of_a_pseudo_file_system_is_copied_through_memory() {
        let src = File::open("/proc/self/cmdline").unwrap();
        let mut expected = Vec::new();
        (&src).read_to_end(&mut expected).unwrap();
        let dst = tempfile::tempfile().unwrap();
        let len = u64::try_from(expected.len()).unwrap();
        copy_data(src.as_fd(), dst.as_fd(), len).unwrap();
        assert_eq!(content(&dst), expected);
    }
}
