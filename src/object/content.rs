//! Content as the store sees it: hashed, and split into 4 KiB blocks of which the zero ones
//! become holes.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;

use super::ObjectId;
use crate::sys::copy::write_all_at;
use crate::sys::sparse::{Piece, Pieces};

/// Granularity of holes.
pub(super) const BLOCK_BYTES: usize = 4096;

/// Up to here content is hashed in memory before anything is written.
pub(super) const IN_MEMORY_BYTES: usize = 4 << 20;

/// From here on the hash of one file is computed on several threads.
const PARALLEL_BYTES: usize = 1 << 20;

/// Units of `st_blocks` in one block.
const UNITS_PER_BLOCK: u64 = 8;

/// Never written, so the kernel backs all of it with one page.
static ZEROS: [u8; 4 << 20] = [0; 4 << 20];

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
        self.hash(piece);
        self.data_blocks += runs(piece, on_run)?;
        self.len_bytes += u64::try_from(piece.len()).map_err(|_| Errno::OVERFLOW)?;
        Ok(())
    }

    /// Takes so many zeros, as if they had come as a piece.
    ///
    /// BLAKE3 hashes the number of a chunk with it, so each one has to be hashed: what is saved
    /// is reading them, and looking for what else there is.
    pub(super) fn zeros(&mut self, len: u64) {
        let mut left = len;
        while left > 0 {
            let some = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            self.hash(&ZEROS[..some]);
            left -= u64::try_from(some).unwrap_or(left);
        }
        self.len_bytes += len;
    }

    /// Takes the next piece of a file; the data of one is in `buffer`.
    pub(super) fn piece(
        &mut self,
        piece: Piece,
        buffer: &[u8],
        on_run: impl FnMut(Range<usize>, Run) -> io::Result<()>,
    ) -> io::Result<()> {
        match piece {
            Piece::Data(filled) => self.update(&buffer[..filled], on_run),
            Piece::Hole(len) => {
                self.zeros(len);
                Ok(())
            }
        }
    }

    fn hash(&mut self, piece: &[u8]) {
        if piece.len() >= PARALLEL_BYTES {
            self.hasher.update_rayon(piece);
        } else {
            self.hasher.update(piece);
        }
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

    /// Takes the next piece of a file; the data of one is in `buffer`.
    ///
    /// # Errors
    /// `EOVERFLOW` for more than an address space.
    pub fn take_piece(&mut self, piece: Piece, buffer: &[u8]) -> io::Result<()> {
        self.0.piece(piece, buffer, |_, _| Ok(()))
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

/// Digests the first `len` bytes of a file, holes unread, for as long as `proceed` says yes.
///
/// # Errors
/// Those of reading; [`io::ErrorKind::Interrupted`] when told to end.
pub(super) fn digest_file(
    file: BorrowedFd<'_>,
    len: u64,
    buffer: &mut [u8],
    proceed: &dyn Fn() -> bool,
) -> io::Result<Summary> {
    let mut digester = Digester::default();
    let mut pieces = Pieces::of(file, len)?;
    loop {
        if !proceed() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let Some(piece) = pieces.next(file, buffer)? else { return Ok(digester.finish()) };
        digester.piece(piece, buffer, |_, _| Ok(()))?;
    }
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

    #[test]
    fn holes_hash_as_the_zeros_they_are() {
        const MIB: u64 = 1 << 20;
        // Around chunks, blocks, pieces and powers of two of them; at even and odd places.
        let holes = [1, 1023, 1024, 4096, 4097, MIB - 1, MIB, MIB + 1, 4 * MIB, 9 * MIB + 4095];
        for hole in holes {
            for (before, after) in [(0, 0), (0, 1), (4096, 0), (5 * 4096, 4095), (3 << 19, 70_000)]
            {
                let mut content = vec![7; before];
                content.resize(before + usize::try_from(hole).unwrap(), 0);
                content.resize(content.len() + after, 9);
                let mut digester = Digester::default();
                digester.update(&content[..before], |_, _| Ok(())).unwrap();
                digester.zeros(hole);
                digester.update(&content[content.len() - after..], |_, _| Ok(())).unwrap();
                let found = digester.finish();
                assert_eq!(found.id, ObjectId::of(&content), "{before} {hole} {after}");
                assert_eq!(found.len_bytes, content.len() as u64);
            }
        }
    }

    #[test]
    fn a_file_of_holes_and_data_has_the_digest_of_its_content() {
        const MIB: u64 = 1 << 20;
        let parts = [(0, 3), (2 * MIB + 5, 9000), (5 * MIB, 1), (9 * MIB - 3, 70_000)];
        for mask in 0..16_u32 {
            for len in [10 * MIB, 12 * MIB + 4097] {
                let file = tempfile::tempfile().unwrap();
                file.set_len(len).unwrap();
                let mut content = vec![0; usize::try_from(len).unwrap()];
                for (at, count) in parts
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| mask & (1 << at) != 0)
                    .map(|(_, part)| *part)
                {
                    let data = vec![5; count];
                    file.write_all_at(&data, at).unwrap();
                    let at = usize::try_from(at).unwrap();
                    content[at..at + count].copy_from_slice(&data);
                }
                let expected = summarize(&content).unwrap();
                let mut buffer = vec![1; 1 << 18];
                let found = digest_file(file.as_fd(), u64::MAX, &mut buffer, &|| true).unwrap();
                assert_eq!(found, expected, "{mask:04b} {len}");
            }
        }
        let stopped =
            digest_file(tempfile::tempfile().unwrap().as_fd(), 1, &mut [0; 4096], &|| false);
        assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::Interrupted);
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
