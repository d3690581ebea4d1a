//! Reading a file from its start to its end without reading its holes.
//!
//! One call makes a hole of terabytes, on any disk: who reads files of others must neither read
//! holes nor hash what is nothing else (see [`costs_too_much`]).

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, fdatasync, fstat, seek};
use rustix::io::{Errno, pread, retry_on_intr};

/// Granularity of everything but the end of a file, in bytes.
const BLOCK_BYTES: u64 = 4096;
/// Holes of fewer bytes, and files that have fewer in all, are read.
const LEAST_BYTES: u64 = 1 << 20;
/// Most bytes of a hole that are told at once, so that who reads can be stopped in between.
const MOST_BYTES: u64 = 1 << 30;

/// Most bytes of holes that are hashed in one go for somebody who waits: about a minute of work.
///
/// `/var/log/lastlog` has 292 bytes for each number that a user may have: here up to 941 million.
pub const MOST_HOLE_BYTES: u64 = 256 << 30;

/// What comes next in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes that are zero, and were not read.
    Hole(u64),
    /// So many bytes, which are in the buffer.
    Data(usize),
}

/// Goes through a file once.
///
/// Every piece but the last is a multiple of 4096 bytes long, if the buffer is.
#[derive(Debug)]
pub struct Pieces {
    /// Whether there are holes worth looking for.
    hunts: bool,
    at: u64,
    /// Bytes up to here are data, or holes too short to tell.
    data_until: u64,
    end: u64,
    ended: bool,
}

impl Pieces {
    /// Of the first `len` bytes of `file`, or of all if it is shorter.
    ///
    /// # Errors
    /// Those of fstat(2) and fdatasync(2).
    pub fn of(file: BorrowedFd<'_>, len: u64) -> io::Result<Self> {
        let stat = fstat(file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let hunts = size.saturating_sub(allocated) >= LEAST_BYTES;
        if hunts {
            // A FUSE server that is asked for holes does not know of pages that a mapping made
            // dirty.
            fdatasync(file)?;
        }
        Ok(Self { hunts, at: 0, data_until: 0, end: len, ended: false })
    }

    /// Where the next piece starts.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next piece; `None` at the end. The offset of `file` moves.
    ///
    /// # Errors
    /// Those of lseek(2) and pread(2).
    pub fn next(&mut self, file: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Piece>> {
        let hole = self.pass_hole(file)?;
        if hole > 0 {
            return Ok(Some(Piece::Hole(hole)));
        }
        let filled = self.read(file, buffer)?;
        Ok((filled > 0).then_some(Piece::Data(filled)))
    }

    /// Passes over a hole that begins here, or over a part of it; tells how long that is.
    ///
    /// # Errors
    /// Those of lseek(2).
    pub fn pass_hole(&mut self, file: BorrowedFd<'_>) -> io::Result<u64> {
        if !self.hunts || self.ended || self.at < self.data_until || self.at >= self.end {
            return Ok(0);
        }
        let hole = self.hole(file)?;
        self.at += hole;
        Ok(hole)
    }

    /// Reads on, holes or not; less than `buffer` takes means the end.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn read(&mut self, file: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = if self.ended { 0 } else { buffer.len().min(left) };
        let filled = read_full(file, &mut buffer[..wanted], self.at)?;
        self.ended |= filled < wanted;
        self.at += u64::try_from(filled).map_err(|_| Errno::OVERFLOW)?;
        Ok(filled)
    }

    /// Length of the hole here, if it is worth telling.
    fn hole(&mut self, file: BorrowedFd<'_>) -> io::Result<u64> {
        let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0).min(self.end);
        let data = match seek(file, SeekFrom::Data(self.at)) {
            Ok(data) => data.min(size),
            // Nothing but a hole up to the end, or the end.
            Err(Errno::NXIO) => size,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.hunts = false;
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        let mut hole = data.saturating_sub(self.at).min(MOST_BYTES);
        if data < self.end {
            hole -= hole % BLOCK_BYTES;
        }
        if hole >= LEAST_BYTES {
            return Ok(hole);
        }
        // What is left of a hole that was told in parts, and the data behind it.
        self.data_until = match seek(file, SeekFrom::Hole(data)) {
            Ok(hole) => hole.next_multiple_of(BLOCK_BYTES),
            Err(Errno::NXIO) => self.end,
            Err(error) => return Err(error.into()),
        };
        self.data_until = self.data_until.max(self.at + 1);
        Ok(0)
    }
}

/// Fills `buffer` from `offset` on; fewer bytes mean the end of the file.
///
/// # Errors
/// Those of pread(2).
pub fn read_full(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let at = offset + u64::try_from(filled).map_err(|_| Errno::OVERFLOW)?;
        match retry_on_intr(|| pread(file, &mut buffer[filled..], at))? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Bytes of holes in a file of so many bytes that takes so many on its disk.
#[must_use]
pub fn hole_bytes(len: u64, allocated: u64) -> u64 {
    len.saturating_sub(allocated)
}

/// Whether hashing a file costs out of all proportion to what it takes on its disk.
///
/// Holes need not be read, but hashed: BLAKE3 numbers its chunks, so that no two of them hash
/// alike. Where somebody else decides how long files are, what is hashed has to be bounded by
/// what they paid for.
#[must_use]
pub fn costs_too_much(len: u64, allocated: u64) -> bool {
    const FREE_BYTES: u64 = 1 << 20;
    const RATIO: u64 = 64;
    len > allocated.saturating_mul(RATIO).saturating_add(FREE_BYTES)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// What a file is said to be: its bytes, and how many of them were not read.
    fn seen(file: &std::fs::File, len: u64, buffer: usize) -> (Vec<u8>, u64) {
        let (mut content, mut skipped) = (Vec::new(), 0);
        let mut pieces = Pieces::of(file.as_fd(), len).unwrap();
        let mut buffer = vec![9; buffer];
        while let Some(piece) = pieces.next(file.as_fd(), &mut buffer).unwrap() {
            assert_eq!(content.len() % 4096, 0, "only the last piece may be odd");
            match piece {
                Piece::Hole(hole) => {
                    content.resize(content.len() + usize::try_from(hole).unwrap(), 0);
                    skipped += hole;
                }
                Piece::Data(filled) => content.extend_from_slice(&buffer[..filled]),
            }
            assert_eq!(pieces.position(), content.len() as u64);
        }
        (content, skipped)
    }

    #[test]
    fn whatever_the_holes_the_content_is_the_same() {
        let odd = [(0, 5), (3 * MIB + 77, 1), (9 * MIB - 1, 2), (14 * MIB, 70_000)];
        for (parts, len) in [
            (&odd[..], 20 * MIB + 5),
            (&odd[..], 14 * MIB + 70_000),
            (&odd[1..2], 3 * MIB + 78),
            (&[], 5 * MIB + 1),
            (&[], 0),
            (&odd[..1], 5),
        ] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len).unwrap();
            let mut content = vec![0; usize::try_from(len).unwrap()];
            for (at, count) in parts {
                let data: Vec<u8> =
                    (0..*count).map(|byte| u8::try_from(byte % 251 + 1).unwrap()).collect();
                file.write_all_at(&data, *at).unwrap();
                let at = usize::try_from(*at).unwrap();
                content[at..at + data.len()].copy_from_slice(&data);
            }
            for buffer in [4096, 1 << 20] {
                for cut in [len, u64::MAX, len / 2, len.saturating_sub(1)] {
                    let expected = &content[..usize::try_from(cut.min(len)).unwrap()];
                    let (found, skipped) = seen(&file, cut, buffer);
                    assert!(found == expected, "{parts:?} {len} cut at {cut}, read by {buffer}");
                    if cut >= len && len > 4 * MIB {
                        assert!(skipped > len / 2, "read {} of {len}", len - skipped);
                    }
                }
            }
        }
    }

    #[test]
    fn a_hole_of_terabytes_takes_no_time() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 40).unwrap();
        file.write_all_at(b"x", 4 << 40).unwrap();
        let mut pieces = Pieces::of(file.as_fd(), u64::MAX).unwrap();
        let mut buffer = vec![0; 4096];
        let (mut holes, mut data) = (0, 0);
        while let Some(piece) = pieces.next(file.as_fd(), &mut buffer).unwrap() {
            match piece {
                Piece::Hole(hole) => holes += hole,
                Piece::Data(filled) => data += filled as u64,
            }
        }
        assert_eq!((holes + data, data), (8 << 40, 4096));
    }

    #[test]
    fn what_is_on_the_disk_may_be_hashed_and_empty_terabytes_may_not() {
        for (len, allocated) in [(0, 0), (4096, 4096), (1 << 40, 1 << 40), (300 << 10, 8 << 10)] {
            assert!(!costs_too_much(len, allocated), "{len} {allocated}");
        }
        for (len, allocated) in [(8 << 40, 0), (8 << 40, 1 << 20), (2 << 20, 0)] {
            assert!(costs_too_much(len, allocated), "{len} {allocated}");
        }
    }
}
