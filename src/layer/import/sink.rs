//! Where content goes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, memfd_create, openat, unlinkat};
use rustix::io::Errno;

use super::intake::FilePart;
use crate::object::{ObjectError, ObjectId, Put, Staging};

/// Takes content and says what it will be called.
pub(super) trait Sink: Sync {
    /// Content in memory.
    fn put_bytes(&self, content: &[u8]) -> Result<Put, ObjectError>;
    /// All that `source` yields.
    fn put_reader(&self, source: &mut dyn Read, len: u64) -> Result<Put, ObjectError>;
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

    fn put_reader(&self, source: &mut dyn Read, len: u64) -> Result<Put, ObjectError> {
        Staging::put_reader(self, source, Some(len))
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

    fn put_reader(&self, source: &mut dyn Read, len: u64) -> Result<Put, ObjectError> {
        if len <= IN_MEMORY_BYTES {
            let mut content = Vec::new();
            source.read_to_end(&mut content).map_err(ObjectError::Source)?;
            return self.put_bytes(&content);
        }
        let mut spool = self.spool().map_err(ObjectError::Source)?;
        let len = io::copy(source, &mut spool).map_err(ObjectError::Source)?;
        self.put_file(spool.as_fd(), len)
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

/// Granularity of [`Put::data_blocks`] in bytes, and its units for one block.
const BLOCK_BYTES: usize = 4096;
const UNITS_PER_BLOCK: u64 = 8;

impl Sink for HashOnly {
    fn put_bytes(&self, content: &[u8]) -> Result<Put, ObjectError> {
        let mut content = content;
        self.put_reader(&mut content, 0)
    }

    fn put_reader(&self, source: &mut dyn Read, _len: u64) -> Result<Put, ObjectError> {
        let mut hasher = blake3::Hasher::new();
        let (mut len_bytes, mut data_blocks) = (0_u64, 0_u64);
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        loop {
            block.clear();
            let wanted = u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX);
            source.take(wanted).read_to_end(&mut block).map_err(ObjectError::Source)?;
            hasher.update(&block);
            len_bytes += u64::try_from(block.len()).unwrap_or(u64::MAX);
            if block.iter().any(|byte| *byte != 0) {
                data_blocks += UNITS_PER_BLOCK;
            }
            if block.len() < BLOCK_BYTES {
                let id = ObjectId::new(hasher.finalize().into());
                return Ok(Put { id, len_bytes, data_blocks, hit: false });
            }
        }
    }

    fn put_file(&self, file: BorrowedFd<'_>, len: u64) -> Result<Put, ObjectError> {
        self.put_reader(&mut FilePart::new(file, 0, len), len)
    }

    fn has(&self, _id: &ObjectId) -> Result<bool, ObjectError> {
        Ok(false)
    }

    fn spool(&self) -> io::Result<File> {
        Ok(memfd_create("mica-spool", MemfdFlags::CLOEXEC)?.into())
    }
}
