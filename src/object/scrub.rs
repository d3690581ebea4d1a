//! Reading objects back from the disk, and setting aside the ones that are damaged.
//!
//! What is damaged goes from `objects/` to `quarantine/` in one rename: from then on it is
//! missing, which every reader notices, instead of being wrong, which none does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, fsync, mkdirat,
    openat, renameat, statx, unlinkat,
};
use rustix::io::Errno;

use super::content::{Digester, Summary};
use super::store::{Shared, open_dir};
use super::{ObjectError, ObjectId, Objects, crash_point};
use crate::sys::sparse::{Piece, Pieces};
use crate::sys::verity::{self, Sealed};

/// Where damaged objects lie, in the store.
const QUARANTINE: &str = "quarantine";

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// Alignment that any device takes for reads past the page cache.
const ALIGNMENT: usize = 4096;

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Its content has another digest.
    Altered {
        /// The name that the content would have.
        found: ObjectId,
    },
    /// The disk does not give its content back.
    Unreadable {
        /// What it answers.
        errno: i32,
    },
    /// It is no regular file.
    NotAFile,
}

/// What was found under one name.
#[derive(Debug)]
pub enum Examined {
    /// The content is what the name says.
    Whole {
        /// Its length.
        len_bytes: u64,
    },
    /// Nothing: it was removed since it was listed.
    Missing,
    /// Something else.
    Damaged(Suspect),
}

/// A damaged object, as it was when it was examined.
#[derive(Debug)]
pub struct Suspect {
    id: ObjectId,
    damage: Damage,
    len_bytes: u64,
    inode: u64,
    changed: (i64, u32),
}

impl Suspect {
    /// What is wrong with it.
    #[must_use]
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    /// Length of what was found, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

/// Reads objects from their disk, past the page cache where the host can: what a container has
/// in memory says nothing about the disk, and what is read for a scrub is of no use to anybody.
pub struct DiskReader {
    buffer: Vec<u8>,
}

impl Default for DiskReader {
    fn default() -> Self {
        Self { buffer: vec![0; PIECE + ALIGNMENT] }
    }
}

impl DiskReader {
    /// A piece of memory that a device can write to.
    fn piece(&mut self) -> &mut [u8] {
        let at = self.buffer.as_ptr().align_offset(ALIGNMENT);
        &mut self.buffer[at..at + PIECE]
    }
}

impl Objects {
    /// Reads one object from the disk and compares its digest with its name. `pace` is told of
    /// every piece read, in bytes, and ends the reading by saying no; the answer is `None` then.
    ///
    /// # Errors
    /// [`ObjectError::Io`] for what is no property of the object.
    pub fn examine(
        &self,
        id: &ObjectId,
        reader: &mut DiskReader,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<Examined>, ObjectError> {
        let path = || self.shared.object_path(id);
        let Some(seen) = self.shared.seen(id)? else { return Ok(Some(Examined::Missing)) };
        if !seen.regular {
            return Ok(Some(Examined::Damaged(seen.suspect(*id, Damage::NotAFile))));
        }
        match self.digest_on_disk(id, reader, pace) {
            Ok(Some(summary)) if summary.id == *id => {
                Ok(Some(Examined::Whole { len_bytes: summary.len_bytes }))
            }
            Ok(Some(summary)) => {
                let damage = Damage::Altered { found: summary.id };
                Ok(Some(Examined::Damaged(seen.suspect(*id, damage))))
            }
            Ok(None) => Ok(None),
            Err(Errno::NOENT) => Ok(Some(Examined::Missing)),
            // EUCLEAN and EBADMSG: the file system's own checksums disagree.
            Err(errno @ (Errno::IO | Errno::UCLEAN | Errno::BADMSG)) => {
                let damage = Damage::Unreadable { errno: errno.raw_os_error() };
                Ok(Some(Examined::Damaged(seen.suspect(*id, damage))))
            }
            Err(errno) => Err(ObjectError::sys("read", path())(errno)),
        }
    }

    fn digest_on_disk(
        &self,
        id: &ObjectId,
        reader: &mut DiskReader,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<Summary>, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let open = |flags| openat(&self.shared.objects, id.path(), flags, Mode::empty());
        let mut file = match open(flags | OFlags::DIRECT) {
            Err(Errno::INVAL) => open(flags)?,
            opened => opened?,
        };
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let mut digester = Digester::default();
        let mut pieces = Pieces::of(file.as_fd(), u64::MAX).map_err(errno)?;
        let buffer = reader.piece();
        loop {
            let piece = match pieces.next(file.as_fd(), buffer) {
                // The host opens past the cache, but does not read so.
                Err(error) if errno_is_inval(&error) && digester.position() == 0 => {
                    file = open(flags)?;
                    pieces.next(file.as_fd(), buffer)
                }
                next => next,
            }
            .map_err(errno)?;
            let Some(piece) = piece else { return Ok(Some(digester.finish())) };
            digester.piece(piece, buffer, |_, _| Ok(())).map_err(errno)?;
            let read = match piece {
                Piece::Data(filled) => u64::try_from(filled).unwrap_or(u64::MAX),
                Piece::Hole(_) => 0,
            };
            if !pace(read) {
                return Ok(None);
            }
        }
    }

    /// The objects whose digests begin with `first`, in order.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn beginning(&self, first: u8) -> Result<Vec<ObjectId>, ObjectError> {
        let mut ids = self.shared.fan_out(first.into())?;
        ids.sort_unstable();
        Ok(ids)
    }

    /// Has the kernel check the content of an object from now on, on a host that can; tells whether
    /// that is new. An object that carries the immutable flag cannot be sealed: it loses the flag for
    /// that moment, and the next hit of an import gives it back if a crash comes between.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn seal(&self, id: &ObjectId) -> Result<bool, ObjectError> {
        let path = || self.shared.object_path(id);
        let Some(found) = self.shared.find(id)? else { return Ok(false) };
        if found.sealed {
            return Ok(false);
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat(&self.shared.objects, id.path(), flags, Mode::empty())
            .map_err(ObjectError::sys("open", path()))?;
        if found.immutable {
            self.shared.mark_immutable(id, false)?;
        }
        let sealed = verity::seal(file.as_fd()).map_err(ObjectError::io("seal", path()));
        if found.immutable {
            self.shared.mark_immutable(id, true)?;
        }
        Ok(sealed? == Sealed::Done)
    }

    /// Moves a damaged object out of the way, durably. Tells whether it was still there as it was
    /// examined: one that was replaced since stays.
    ///
    /// # Errors
    /// [`ObjectError::Io`]; it is in either place then.
    pub fn quarantine(&self, suspect: &Suspect) -> Result<bool, ObjectError> {
        let id = &suspect.id;
        let quarantine = self.quarantine_dir()?;
        // No import may rely on it between the look and the rename.
        let path = self.shared.staging_path();
        let guard = self.shared.pin_lock.exclusive().map_err(ObjectError::io("lock", path))?;
        let seen = self.shared.seen(id)?;
        if seen.is_none_or(|s| (s.inode, s.changed) != (suspect.inode, suspect.changed)) {
            return Ok(false);
        }
        let fail = |action| ObjectError::sys(action, self.shared.object_path(id));
        if suspect.damage != Damage::NotAFile {
            self.shared.mark_immutable(id, false)?;
        }
        crash_point("unlocked for quarantine");
        renameat(&self.shared.objects, id.path(), &quarantine, id.to_string())
            .map_err(fail("set aside"))?;
        crash_point("set aside");
        drop(guard);
        let from = open_dir(self.shared.objects.as_fd(), &id.to_string()[..2]);
        from.and_then(fsync_owned).map_err(fail("make durable the removal of"))?;
        fsync(&quarantine).map_err(fail("make durable the removal of"))?;
        Ok(true)
    }

    /// What lies in quarantine.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn quarantined(&self) -> Result<Vec<ObjectId>, ObjectError> {
        let fail = |action| ObjectError::sys(action, self.shared.path.join(QUARANTINE));
        let dir = match open_dir(self.shared.store.as_fd(), QUARANTINE) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(fail("open")(error)),
        };
        let mut ids = Vec::new();
        for entry in Dir::new(dir).map_err(fail("list"))? {
            let entry = entry.map_err(fail("list"))?;
            ids.extend(
                entry.file_name().to_str().ok().and_then(|name| name.parse::<ObjectId>().ok()),
            );
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Bytes that an object in quarantine takes on the disk; 0 if it is not there.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn quarantined_bytes(&self, id: &ObjectId) -> Result<u64, ObjectError> {
        Ok(self.in_quarantine(id)?.map_or(0, |stat| stat.stx_blocks.saturating_mul(512)))
    }

    /// Removes an object from quarantine: it is whole again in its place, or nobody's. Answers
    /// the bytes that it took on the disk.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn discard(&self, id: &ObjectId) -> Result<u64, ObjectError> {
        let Some(stat) = self.in_quarantine(id)? else { return Ok(0) };
        let is_dir = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
        let how = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let name = id.to_string();
        unlinkat(self.quarantine_dir()?, &name, how)
            .map_err(ObjectError::sys("remove", self.shared.path.join(QUARANTINE).join(&name)))?;
        Ok(stat.stx_blocks.saturating_mul(512))
    }

    fn in_quarantine(&self, id: &ObjectId) -> Result<Option<Statx>, ObjectError> {
        let path = format!("{QUARANTINE}/{id}");
        let mask = StatxFlags::BLOCKS | StatxFlags::TYPE;
        match statx(&self.shared.store, &path, AtFlags::SYMLINK_NOFOLLOW, mask) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(ObjectError::sys("look up", self.shared.path.join(path))(error)),
        }
    }

    /// `quarantine/`, made if need be. Its flock keeps scrubs apart.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn quarantine_dir(&self) -> Result<OwnedFd, ObjectError> {
        let path = self.shared.path.join(QUARANTINE);
        match mkdirat(&self.shared.store, QUARANTINE, Mode::from_raw_mode(0o700)) {
            Ok(()) => fsync(&self.shared.store).map_err(ObjectError::sys("make", &path))?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(ObjectError::sys("make", path)(error)),
        }
        open_dir(self.shared.store.as_fd(), QUARANTINE).map_err(ObjectError::sys("open", path))
    }
}

fn fsync_owned(dir: OwnedFd) -> rustix::io::Result<()> {
    fsync(dir)
}

fn errno_is_inval(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// What a name stands for at a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    regular: bool,
    len_bytes: u64,
    inode: u64,
    changed: (i64, u32),
}

impl Seen {
    fn suspect(self, id: ObjectId, damage: Damage) -> Suspect {
        let Self { len_bytes, inode, changed, .. } = self;
        Suspect { id, damage, len_bytes, inode, changed }
    }
}

impl Shared {
    fn seen(&self, id: &ObjectId) -> Result<Option<Seen>, ObjectError> {
        let mask = StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::INO | StatxFlags::CTIME;
        match statx(&self.objects, id.path(), AtFlags::SYMLINK_NOFOLLOW, mask) {
            Ok(stat) => {
                let StatxTimestamp { tv_sec, tv_nsec, .. } = stat.stx_ctime;
                Ok(Some(Seen {
                    regular: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile,
                    len_bytes: stat.stx_size,
                    inode: stat.stx_ino,
                    changed: (tv_sec, tv_nsec),
                }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(ObjectError::sys("look up", self.object_path(id))(error)),
        }
    }
}
