//! Shortening the log of references, which only grows while a root is mounted.
//!
//! A line counts as long as a file refers to its object, or shows its inode number. Which do is
//! read from the marks of every file, under the lock of the private layer: nobody changes them
//! meanwhile but its holder.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::listing::{UpperKind, read_upper};
use super::marks::{MarkError, Marks};
use super::refs::{self, LINE_BYTES, Reference};
use super::{PrivateLayer, marks};
use crate::object::ObjectId;
use crate::sys::handle::FileHandle;
use crate::sys::inode;

/// A log shorter than this is left alone, in lines.
pub(crate) const LEAST_LINES: u64 = 64;

/// How many lines counted when it was last looked: an attribute of the log.
const COUNTED: &[u8] = b"trusted.mica.counted";

impl PrivateLayer {
    /// Takes out of the log of references what no file refers to any more, if it has doubled since
    /// the last look; returns the objects that files refer to, if it was looked for them.
    ///
    /// Nothing else may change the layer meanwhile. Gives up after `patience`, and where a mark
    /// cannot be read: what that refers to is unknown. A cut leaves the log as it was or shorter.
    ///
    /// # Errors
    /// The host's errno; the log is as it was.
    pub fn tidy_references(&self, patience: Duration) -> Result<Option<HashSet<ObjectId>>, Errno> {
        let log = match inode::open_path(&self.dir, refs::NAME.as_bytes()) {
            Ok(log) => log,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let lines = inode::status(&log)?.size / LINE_BYTES as u64;
        let counted = inode::xattr(&log, COUNTED)?;
        let counted = counted.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        if lines < LEAST_LINES.max(counted.unwrap_or(0).saturating_mul(2)) {
            return Ok(None);
        }
        let Some(used) = self.used(Instant::now() + patience)? else { return Ok(None) };
        let covered: HashSet<ObjectId> = refs::read(&self.dir, refs::NAME)
            .map_err(errno)?
            .into_iter()
            .filter(|line| used.numbers.contains(&line.ino))
            .map(|line| line.object)
            .collect();
        let keep = |line: &Reference| {
            used.numbers.contains(&line.ino)
                || (used.objects.contains(&line.object) && !covered.contains(&line.object))
        };
        refs::compact(&self.dir, refs::NAME, &keep).map_err(errno)?;
        // Only saves looking again; a cut may take it.
        let log = inode::open_path(&self.dir, refs::NAME.as_bytes())?;
        let lines = inode::status(&log)?.size / LINE_BYTES as u64;
        if let Err(errno) = marks::set(&log, COUNTED, &lines.to_le_bytes()) {
            tracing::debug!(%errno, "the log of references will be looked at again");
        }
        Ok(Some(used.objects))
    }

    fn used(&self, deadline: Instant) -> Result<Option<Used>, Errno> {
        let mut used = Used::default();
        let mut left = vec![Unread::of(inode::open_path(&self.upper, b".")?)];
        left.push(Unread::of(inode::open_path(&self.index, b".")?));
        while let Some(dir) = left.pop() {
            let dir = dir.open(&self.upper)?;
            for entry in read_upper(&dir)? {
                if Instant::now() > deadline {
                    tracing::info!("there are too many private files to look through now");
                    return Ok(None);
                }
                if entry.kind == UpperKind::Whiteout {
                    continue;
                }
                let fd = inode::open_path(&dir, &entry.name)?;
                match Marks::read(&fd) {
                    Ok(marks) => {
                        used.objects.extend(marks.object.map(|object| object.id));
                        used.numbers.extend(marks.ino);
                    }
                    Err(MarkError::Host(errno)) => return Err(errno),
                    Err(MarkError::Damaged(mark)) => {
                        tracing::info!(mark, "a damaged mark keeps the log of references");
                        return Ok(None);
                    }
                }
                if entry.kind == UpperKind::Directory {
                    left.push(Unread::of(fd));
                }
            }
        }
        Ok(Some(used))
    }
}

/// What lines count for.
#[derive(Default)]
struct Used {
    objects: HashSet<ObjectId>,
    numbers: HashSet<u64>,
}

/// A directory to be read. A container makes as many as it likes, so they are kept as handles.
enum Unread {
    Handle(FileHandle),
    /// On a host without handles.
    Open(OwnedFd),
}

impl Unread {
    fn of(fd: OwnedFd) -> Self {
        match FileHandle::of(&fd) {
            Ok(handle) => Self::Handle(handle),
            Err(_) => Self::Open(fd),
        }
    }

    fn open(self, mount: impl AsFd) -> Result<OwnedFd, Errno> {
        match self {
            Self::Handle(handle) => handle.open(mount),
            Self::Open(fd) => Ok(fd),
        }
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
