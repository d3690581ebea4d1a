//! Putting content into an import: hash first, write only what is new.
//!
//! A staged object has a number for a name; only publishing gives it its digest.

use std::cell::RefCell;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{
    AtFlags, Mode, OFlags, fchmod, fstat, ftruncate, ioctl_ficlone, openat, unlinkat,
};

use super::content::{
    BLOCK_BYTES, Digester, IN_MEMORY_BYTES, Summary, digest_file, punch_run, summarize, write_run,
    write_sparse,
};
use super::staging::{Known, Staging, staged_name};
use super::{ObjectError, ObjectId, crash_point};
use crate::sys::copy::cannot_share;
use crate::sys::sparse::{Piece, Pieces, read_full};

/// Mode of every object.
const OBJECT_MODE: Mode = Mode::from_raw_mode(0o444);

/// What became of content that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// The name of the object.
    pub id: ObjectId,
    /// Length of the content.
    pub len_bytes: u64,
    /// `st_blocks` that the content is said to have: 8 units of 512 bytes for each 4 KiB block
    /// that is not all zero (a shorter last block is one too). The same on every host.
    pub data_blocks: u64,
    /// The store, or this import, already had it.
    pub hit: bool,
}

impl Put {
    fn new(summary: &Summary, hit: bool) -> Self {
        let Summary { id, len_bytes, data_blocks } = *summary;
        Self { id, len_bytes, data_blocks, hit }
    }
}

thread_local! {
    /// Content in memory; kept between puts because fresh pages cost more than the hash.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Staging {
    /// Stores content that is in memory.
    ///
    /// # Errors
    /// [`ObjectError::Io`]; nothing is left half made.
    pub fn put_bytes(&self, content: &[u8]) -> Result<Put, ObjectError> {
        let summary = summarize(content).map_err(ObjectError::Source)?;
        if self.has(&summary)? {
            return Ok(Put::new(&summary, true));
        }
        let staged = self.stage()?;
        write_sparse(staged.file.as_fd(), content)
            .map_err(ObjectError::io("write", self.path()))?;
        self.keep(staged, &summary)
    }

    /// Stores all that `source` yields.
    ///
    /// Up to 4 MiB is hashed in memory and written only on a miss; more is written to the
    /// staging directory while it is hashed. `len_hint` is the expected length in bytes.
    ///
    /// # Errors
    /// [`ObjectError::Source`] if reading fails, [`ObjectError::Io`] if storing does; nothing
    /// is left half made.
    pub fn put_reader(
        &self,
        source: &mut dyn Read,
        len_hint: Option<u64>,
    ) -> Result<Put, ObjectError> {
        self.put_sparse(&mut Dense(source), len_hint)
    }

    /// As [`Staging::put_reader`], of a source that knows its holes.
    ///
    /// # Errors
    /// As [`Staging::put_reader`].
    pub fn put_sparse(
        &self,
        source: &mut dyn ReadSparse,
        len_hint: Option<u64>,
    ) -> Result<Put, ObjectError> {
        let mut ended = false;
        let mut next = |buffer: &mut [u8]| {
            let piece = if ended { None } else { next_piece(source, buffer)? };
            ended = matches!(piece, Some(Piece::Data(filled)) if filled < buffer.len());
            Ok(piece)
        };
        with_buffer(len_hint, |buffer| match next(buffer).map_err(ObjectError::Source)? {
            Some(Piece::Data(filled)) if filled < buffer.len() => self.put_bytes(&buffer[..filled]),
            None => self.put_bytes(&[]),
            first @ Some(_) => self.stream(buffer, first, next),
        })
    }

    /// Stores the first `len` bytes of an open file, or fewer if it is shorter.
    ///
    /// More than 4 MiB are reflinked where the host can, else hashed first and copied only on a
    /// miss. The object is always what was read, even if somebody writes to the file meanwhile.
    ///
    /// # Errors
    /// [`ObjectError::Source`] if reading fails, [`ObjectError::Io`] if storing does; nothing
    /// is left half made.
    pub fn put_file(&self, source: BorrowedFd<'_>, len: u64) -> Result<Put, ObjectError> {
        self.put_file_while(source, len, &|| true)
    }

    /// As [`Staging::put_file`], for as long as `proceed` says yes, which is asked every few
    /// megabytes: a sparse file may be longer than anybody wants to wait.
    ///
    /// # Errors
    /// As [`Staging::put_file`]; [`ObjectError::Source`] of kind [`io::ErrorKind::Interrupted`]
    /// when told to end.
    pub fn put_file_while(
        &self,
        source: BorrowedFd<'_>,
        len: u64,
        proceed: &dyn Fn() -> bool,
    ) -> Result<Put, ObjectError> {
        with_buffer(Some(len), |buffer| {
            if len <= IN_MEMORY_BYTES as u64 {
                asked(proceed).map_err(ObjectError::Source)?;
                let wanted = usize::try_from(len).unwrap_or(buffer.len());
                let filled =
                    read_full(source, &mut buffer[..wanted], 0).map_err(ObjectError::Source)?;
                return self.put_bytes(&buffer[..filled]);
            }
            if let Some(put) = self.reflink(source, len, buffer, proceed)? {
                return Ok(put);
            }
            let summary = digest_file(source, len, buffer, proceed).map_err(ObjectError::Source)?;
            if self.has(&summary)? {
                return Ok(Put::new(&summary, true));
            }
            let mut pieces = Pieces::of(source, len).map_err(ObjectError::Source)?;
            let mut next = |buffer: &mut [u8]| {
                asked(proceed)?;
                pieces.next(source, buffer)
            };
            let first = next(buffer).map_err(ObjectError::Source)?;
            self.stream(buffer, first, next)
        })
    }

    /// Writes content into the staging directory while hashing it, piece by piece. The data of
    /// the first one is in `buffer`, whose length is a multiple of the block size.
    fn stream(
        &self,
        buffer: &mut [u8],
        first: Option<Piece>,
        mut next: impl FnMut(&mut [u8]) -> io::Result<Option<Piece>>,
    ) -> Result<Put, ObjectError> {
        let staged = self.stage()?;
        let mut digester = Digester::default();
        let mut piece = first;
        while let Some(this) = piece {
            let base = digester.position();
            digester
                .piece(this, buffer, |range, run| {
                    write_run(staged.file.as_fd(), buffer, base, range, run)
                })
                .map_err(ObjectError::io("write", self.path()))?;
            piece = next(buffer).map_err(ObjectError::Source)?;
        }
        ftruncate(&staged.file, digester.position())
            .map_err(ObjectError::sys("write", self.path()))?;
        let summary = digester.finish();
        if self.has(&summary)? {
            return Ok(Put::new(&summary, true));
        }
        self.keep(staged, &summary)
    }

    /// Clones the file into the staging directory, then hashes the clone, which nobody writes.
    /// `None` where the host cannot.
    fn reflink(
        &self,
        source: BorrowedFd<'_>,
        len: u64,
        buffer: &mut [u8],
        proceed: &dyn Fn() -> bool,
    ) -> Result<Option<Put>, ObjectError> {
        if !self.reflink.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let staged = self.stage()?;
        match ioctl_ficlone(&staged.file, source) {
            Ok(()) => {}
            Err(error) if cannot_share(error) => {
                // Another file system now, or never: either way trying each time is not worth it.
                self.reflink.store(false, Ordering::Relaxed);
                return Ok(None);
            }
            Err(error) => return Err(ObjectError::sys("reflink into", self.path())(error)),
        }
        let write = || ObjectError::io("write", self.path());
        let size = u64::try_from(fstat(&staged.file).map_err(|e| write()(e.into()))?.st_size);
        if size.is_ok_and(|size| size > len) {
            ftruncate(&staged.file, len).map_err(|e| write()(e.into()))?;
        }
        let mut digester = Digester::default();
        let mut pieces = Pieces::of(staged.file.as_fd(), len).map_err(write())?;
        loop {
            asked(proceed).map_err(ObjectError::Source)?;
            let base = digester.position();
            let Some(piece) = pieces.next(staged.file.as_fd(), buffer).map_err(write())? else {
                break;
            };
            digester
                .piece(piece, buffer, |range, run| punch_run(staged.file.as_fd(), base, range, run))
                .map_err(write())?;
        }
        let summary = digester.finish();
        if self.has(&summary)? {
            return Ok(Some(Put::new(&summary, true)));
        }
        self.keep(staged, &summary).map(Some)
    }

    /// A new empty file, gone again unless kept.
    fn stage(&self) -> Result<Staged<'_>, ObjectError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.dir, staged_name(number), flags, OBJECT_MODE)
            .map_err(ObjectError::sys("stage an object in", self.path()))?;
        let staged = Staged { dir: self.dir.as_fd(), number, file, keep: false };
        // Whatever the umask.
        fchmod(&staged.file, OBJECT_MODE)
            .map_err(ObjectError::sys("stage an object in", self.path()))?;
        Ok(staged)
    }

    /// Enters a staged object under its name, unless another thread was faster.
    fn keep(&self, mut staged: Staged<'_>, summary: &Summary) -> Result<Put, ObjectError> {
        let mut known = self.known.lock();
        let hit = known.contains_key(&summary.id);
        if !hit {
            let Summary { id, len_bytes, .. } = *summary;
            known.insert(id, Known::Staged { number: staged.number, len_bytes });
            staged.keep = true;
            crash_point("staged");
            self.unsynced.store(true, Ordering::Relaxed);
        }
        drop(known);
        Ok(Put::new(summary, hit))
    }
}

/// Content that knows its holes.
pub trait ReadSparse: Read {
    /// Passes over zeros that come next and need not be read, and tells how many: a multiple of
    /// 4096, but at the end. 0 where there are none, or nobody knows.
    ///
    /// # Errors
    /// Those of reading.
    fn hole(&mut self) -> io::Result<u64>;
}

/// Content that does not know its holes.
struct Dense<'a>(&'a mut dyn Read);

impl Read for Dense<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl ReadSparse for Dense<'_> {
    fn hole(&mut self) -> io::Result<u64> {
        Ok(0)
    }
}

/// The next piece of `source`: a hole, or as much as fits into `buffer`.
///
/// # Errors
/// Those of reading.
pub fn next_piece(source: &mut dyn ReadSparse, buffer: &mut [u8]) -> io::Result<Option<Piece>> {
    let hole = source.hole()?;
    if hole > 0 {
        return Ok(Some(Piece::Hole(hole)));
    }
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((filled > 0).then_some(Piece::Data(filled)))
}

/// Whether to go on.
fn asked(proceed: &dyn Fn() -> bool) -> io::Result<()> {
    if proceed() { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

/// A staged file that is unlinked when dropped, unless kept.
struct Staged<'a> {
    dir: BorrowedFd<'a>,
    number: u64,
    file: OwnedFd,
    keep: bool,
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.keep {
            // If this fails the file goes with its directory.
            let _unlinked = unlinkat(self.dir, staged_name(self.number), AtFlags::empty());
        }
    }
}

/// Lends this thread's buffer: one byte more than `len_hint`, a multiple of the block size, at
/// most 4 MiB and a block, so that content of up to 4 MiB never fills it.
fn with_buffer<T>(len_hint: Option<u64>, run: impl FnOnce(&mut [u8]) -> T) -> T {
    const LEAST: usize = 64 << 10;
    const MOST: usize = IN_MEMORY_BYTES + BLOCK_BYTES;
    let hint = len_hint.and_then(|len| usize::try_from(len).ok()).unwrap_or(MOST);
    // Not too few either: the hint may be wrong.
    let len = hint.max(LEAST).saturating_add(1).next_multiple_of(BLOCK_BYTES).min(MOST);
    // A put inside a put's own reader finds none and makes one.
    let mut buffer = BUFFER.with(|buffer| {
        buffer.try_borrow_mut().map(|mut b| std::mem::take(&mut *b)).unwrap_or_default()
    });
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let result = run(&mut buffer[..len]);
    BUFFER.with(|kept| {
        if let Ok(mut kept) = kept.try_borrow_mut()
            && kept.len() < buffer.len()
        {
            *kept = buffer;
        }
    });
    result
}
