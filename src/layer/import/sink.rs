//! Where content goes.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, memfd_create, openat, unlinkat};
use rustix::io::Errno;

use crate::object::{ObjectError, ObjectId, Put, ReadSparse, Reading, Staging, next_piece};
use crate::sys::copy::write_all_at;
use crate::sys::sparse::{Piece, Pieces};

/// Takes content and says what it will be called.
pub(super) trait Sink: Sync {
    /// Content in memory.
    fn put_bytes(&self, content: &[u8]) -> Result<Put, ObjectError>;
    /// All that `source` yields.
    fn put_sparse(&self, source: &mut dyn ReadSparse, len: u64) -> Result<Put, ObjectError>;
    /// The first `len` bytes of an open file.
    fn put_file(&self, file: BorrowedFd<'_>, len: u64) -> Result<Put, ObjectError>;
    /// Relies on content that may be there already; tells whether it is.
    fn has(&self, id: &ObjectId) -> Result<bool, ObjectError>;
    /// An empty file that vanishes when closed, for a stream that has to be read twice.
    fn spool(&self) -> io::Result<File>;
}

impl Sink for Staging {
    fn put_bytes(&self, content: &[u8]) -> Result<Put, ObjectError> {
        Staging::put_bytes(self, content)
    }

    fn put_sparse(&self, source: &mut dyn ReadSparse, len: u64) -> Result<Put, ObjectError> {
        Staging::put_sparse(self, source, Some(len))
    }

    fn put_file(&self, file: BorrowedFd<'_>, len: u64) -> Result<Put, ObjectError> {
        Staging::put_file(self, file, len)
    }

    fn has(&self, id: &ObjectId) -> Result<bool, ObjectError> {
        self.pin(id)
    }

    fn spool(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        match openat(self.dir(), ".", flags | OFlags::TMPFILE, mode) {
            // Some network file systems have no unnamed files.
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
            result => return Ok(result?.into()),
        }
        let file = openat(self.dir(), "spool", flags | OFlags::CREATE | OFlags::EXCL, mode)?;
        unlinkat(self.dir(), "spool", AtFlags::empty())?;
        Ok(file.into())
    }
}

/// Stages the content that is wanted and only hashes all else.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) staging: &'a Staging,
    pub(super) ids: &'a HashSet<ObjectId>,
}

/// Content up to this many bytes is held in memory until it is known whether it is wanted.
const IN_MEMORY_BYTES: u64 = 4 << 20;

impl Sink for Wanted<'_> {
    fn put_bytes(&self, content: &[u8]) -> Result<Put, ObjectError> {
        if self.ids.contains(&ObjectId::of(content)) {
            return self.staging.put_bytes(content);
        }
        HashOnly.put_bytes(content)
    }

    fn put_sparse(&self, source: &mut dyn ReadSparse, len: u64) -> Result<Put, ObjectError> {
        if len <= IN_MEMORY_BYTES {
            let mut content = Vec::new();
            source.read_to_end(&mut content).map_err(ObjectError::Source)?;
            return self.put_bytes(&content);
        }
        let spool = self.spool().map_err(ObjectError::Source)?;
        let mut buffer = vec![0; PIECE_BYTES];
        let mut at = 0;
        while let Some(piece) = next_piece(source, &mut buffer).map_err(ObjectError::Source)? {
            match piece {
                Piece::Hole(len) => at += len,
                Piece::Data(filled) => {
                    let data = &buffer[..filled];
                    write_all_at(spool.as_fd(), data, at).map_err(ObjectError::Source)?;
                    at += u64::try_from(filled).unwrap_or(u64::MAX);
                }
            }
        }
        spool.set_len(at).map_err(ObjectError::Source)?;
        self.put_file(spool.as_fd(), at)
    }

    fn put_file(&self, file: BorrowedFd<'_>, len: u64) -> Result<Put, ObjectError> {
        let hashed = HashOnly.put_file(file, len)?;
        if self.ids.contains(&hashed.id) { self.staging.put_file(file, len) } else { Ok(hashed) }
    }

    fn has(&self, id: &ObjectId) -> Result<bool, ObjectError> {
        Ok(!self.ids.contains(id) || self.staging.pin(id)?)
    }

    fn spool(&self) -> io::Result<File> {
        self.staging.spool()
    }
}

/// Hashes content and keeps nothing; spools into memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HashOnly;

/// Bytes read at a time.
const PIECE_BYTES: usize = 128 << 10;

/// What was read, as if it had been put.
fn seen(reading: &Reading) -> Put {
    let (id, data_blocks) = reading.finish();
    Put { id, len_bytes: reading.len_bytes(), data_blocks, hit: false }
}

impl Sink for HashOnly {
    fn put_bytes(&self, content: &[u8]) -> Result<Put, ObjectError> {
        let mut reading = Reading::default();
        reading.take(content).map_err(ObjectError::Source)?;
        Ok(seen(&reading))
    }

    fn put_sparse(&self, source: &mut dyn ReadSparse, _len: u64) -> Result<Put, ObjectError> {
        let (mut reading, mut buffer) = (Reading::default(), vec![0; PIECE_BYTES]);
        while let Some(piece) = next_piece(source, &mut buffer).map_err(ObjectError::Source)? {
            reading.take_piece(piece, &buffer).map_err(ObjectError::Source)?;
        }
        Ok(seen(&reading))
    }

    fn put_file(&self, file: BorrowedFd<'_>, len: u64) -> Result<Put, ObjectError> {
        let (mut reading, mut buffer) = (Reading::default(), vec![0; PIECE_BYTES]);
        let mut pieces = Pieces::of(file, len).map_err(ObjectError::Source)?;
        while let Some(piece) = pieces.next(file, &mut buffer).map_err(ObjectError::Source)? {
            reading.take_piece(piece, &buffer).map_err(ObjectError::Source)?;
        }
        Ok(seen(&reading))
    }

    fn has(&self, _id: &ObjectId) -> Result<bool, ObjectError> {
        Ok(false)
    }

    fn spool(&self) -> io::Result<File> {
        Ok(memfd_create("mica-spool", MemfdFlags::CLOEXEC)?.into())
    }
}
