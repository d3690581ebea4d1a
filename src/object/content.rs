//! Content as the store sees it: hashed, and split into 4 KiB blocks of which the zero ones
//! become holes.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;

use super::ObjectId;
use crate::sys::copy::write_all_at;

/// Granularity of holes.
pub(super) const BLOCK_BYTES: usize = 4096;

/// Up to here content is hashed in memory before anything is written.
pub(super) const IN_MEMORY_BYTES: usize = 4 << 20;

/// From here on the hash of one file is computed on several threads.
const PARALLEL_BYTES: usize = 1 << 20;

/// Units of `st_blocks` in one block.
const UNITS_PER_BLOCK: u64 = 8;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Hash and block count of content that arrives in pieces.
///
/// Every piece but the last is a multiple of [`BLOCK_BYTES`] long.
#[derive(Default)]
pub(super) struct Digester {
    hasher: blake3::Hasher,
    len_bytes: u64,
    data_blocks: u64,
}

/// What is known of content once all of it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) id: ObjectId,
    pub(super) len_bytes: u64,
    /// 512-byte units in blocks that are not all zero.
    pub(super) data_blocks: u64,
}

impl Digester {
    /// Takes the next piece. `on_run` sees each run of zero or of other blocks, as offsets
    /// in the piece.
    pub(super) fn update(
        &mut self,
        piece: &[u8],
        on_run: impl FnMut(Range<usize>, Run) -> io::Result<()>,
    ) -> io::Result<()> {
        if piece.len() >= PARALLEL_BYTES {
            self.hasher.update_rayon(piece);
        } else {
            self.hasher.update(piece);
        }
        self.data_blocks += runs(piece, on_run)?;
        self.len_bytes += u64::try_from(piece.len()).map_err(|_| Errno::OVERFLOW)?;
        Ok(())
    }

    /// Where the next piece starts.
    pub(super) fn position(&self) -> u64 {
        self.len_bytes
    }

    pub(super) fn finish(&self) -> Summary {
        Summary {
            id: ObjectId::new(self.hasher.finalize().into()),
            len_bytes: self.len_bytes,
            data_blocks: self.data_blocks,
        }
    }
}

/// Names content that arrives in pieces; every piece but the last is a multiple of 4096 bytes long.
#[derive(Default)]
pub struct Reading(Digester);

impl Reading {
    /// Takes the next piece; one of a mebibyte or more is hashed on several threads.
    ///
    /// # Errors
    /// `EOVERFLOW` for more than an address space.
    pub fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        self.0.update(piece, |_, _| Ok(()))
    }

    /// Length of what was taken, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.0.position()
    }

    /// The name of all that was taken, and its 512-byte units in blocks that are not all zero.
    #[must_use]
    pub fn finish(&self) -> (ObjectId, u64) {
        let summary = self.0.finish();
        (summary.id, summary.data_blocks)
    }
}

/// Summary of content that is in memory as a whole.
pub(super) fn summarize(content: &[u8]) -> io::Result<Summary> {
    let mut digester = Digester::default();
    digester.update(content, |_, _| Ok(()))?;
    Ok(digester.finish())
}

/// What a run of blocks is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    Zero,
    Data,
}

/// Splits `piece` into maximal runs; returns its `st_blocks` units with data.
fn runs(
    piece: &[u8],
    mut on_run: impl FnMut(Range<usize>, Run) -> io::Result<()>,
) -> io::Result<u64> {
    let mut units = 0;
    let mut run: Option<(usize, Run)> = None;
    let mut at = 0;
    for block in piece.chunks(BLOCK_BYTES) {
        let kind = if block == &ZEROS[..block.len()] { Run::Zero } else { Run::Data };
        if kind == Run::Data {
            units += UNITS_PER_BLOCK;
        }
        match run {
            Some((_, before)) if before == kind => {}
            Some((start, before)) => {
                on_run(start..at, before)?;
                run = Some((at, kind));
            }
            None => run = Some((at, kind)),
        }
        at += block.len();
    }
    if let Some((start, kind)) = run {
        on_run(start..at, kind)?;
    }
    Ok(units)
}

/// Writes content that is in memory as a whole into an empty file, zero blocks as holes.
pub(super) fn write_sparse(file: BorrowedFd<'_>, content: &[u8]) -> io::Result<()> {
    let mut hole_at_end = false;
    runs(content, |range, run| {
        hole_at_end = run == Run::Zero;
        write_run(file, content, 0, range, run)
    })?;
    if hole_at_end {
        ftruncate(file, u64::try_from(content.len()).map_err(|_| Errno::OVERFLOW)?)?;
    }
    Ok(())
}

/// Writes one run of `piece`, which starts at `base` of the file, unless it is zero.
pub(super) fn write_run(
    file: BorrowedFd<'_>,
    piece: &[u8],
    base: u64,
    range: Range<usize>,
    run: Run,
) -> io::Result<()> {
    match run {
        Run::Zero => Ok(()),
        Run::Data => {
            let offset = base + u64::try_from(range.start).map_err(|_| Errno::OVERFLOW)?;
            write_all_at(file, &piece[range], offset)
        }
    }
}

/// Makes one zero run of a reflinked file a hole. A file system that cannot is left alone.
pub(super) fn punch_run(
    file: BorrowedFd<'_>,
    base: u64,
    range: Range<usize>,
    run: Run,
) -> io::Result<()> {
    if run == Run::Data {
        return Ok(());
    }
    let offset = base + u64::try_from(range.start).map_err(|_| Errno::OVERFLOW)?;
    let len = u64::try_from(range.len()).map_err(|_| Errno::OVERFLOW)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, offset, len) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_partial_last_block_counts_as_one_unless_it_is_zero() {
        let units = |content: &[u8]| summarize(content).unwrap().data_blocks;
        assert_eq!(units(b""), 0);
        assert_eq!(units(b"x"), 8);
        assert_eq!(units(&[0; 10]), 0);
        assert_eq!(units(&[1; 4097]), 16);
        let mut content = vec![0; 3 * BLOCK_BYTES];
        content[BLOCK_BYTES] = 1;
        assert_eq!(units(&content), 8);
    }

    proptest! {
        #[test]
        fn pieces_and_holes_never_change_the_content(
            blocks in proptest::collection::vec(0_u8..3, 0..12),
            tail in 0_usize..BLOCK_BYTES,
            piece_blocks in 1_usize..5,
        ) {
            let mut content: Vec<u8> =
                blocks.iter().flat_map(|byte| [*byte; BLOCK_BYTES]).collect();
            content.extend(std::iter::repeat_n(1, tail));
            let whole = summarize(&content).unwrap();
            prop_assert_eq!(whole.id, ObjectId::of(&content));

            let mut digester = Digester::default();
            let streamed = tempfile::tempfile().unwrap();
            for piece in content.chunks(piece_blocks * BLOCK_BYTES) {
                let base = digester.position();
                digester
                    .update(piece, |range, run| {
                        write_run(streamed.as_fd(), piece, base, range, run)
                    })
                    .unwrap();
            }
            ftruncate(&streamed, digester.position()).unwrap();
            prop_assert_eq!(digester.finish(), whole);

            let file = tempfile::tempfile().unwrap();
            write_sparse(file.as_fd(), &content).unwrap();
            for file in [&file, &streamed] {
                let mut back = vec![9; content.len()];
                file.read_exact_at(&mut back, 0).unwrap();
                prop_assert_eq!(&back, &content);
                prop_assert_eq!(file.metadata().unwrap().len(), whole.len_bytes);
                prop_assert!(file.metadata().unwrap().blocks() <= whole.data_blocks);
            }
        }
    }
}
