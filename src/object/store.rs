//! The writable side of the store: begin an import, look, verify.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags, mkdirat, openat, statx,
};
use rustix::io::Errno;

use super::content::{IN_MEMORY_BYTES, digest_file};
use super::pins::PinLock;
use super::staging::Staging;
use super::sweep::Sweep;
use super::{Locks, ObjectError, ObjectId};
use crate::sys::flags::{Flagged, set_immutable};

pub(super) const OBJECTS: &str = "objects";
pub(super) const STAGING: &str = "staging";
pub(super) const FAN_OUT: u16 = 256;

/// The writable side of the object store, for import, garbage collection and scrub.
///
/// A process that serves a mount never holds one: it has an [`super::ObjectReader`].
#[derive(Clone)]
pub struct Objects {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) store: OwnedFd,
    pub(super) objects: OwnedFd,
    pub(super) staging: OwnedFd,
    pub(super) pin_lock: PinLock,
    /// The immutable flag is wanted, and the host has not refused it yet.
    immutable: AtomicBool,
}

/// What a scrub found out about one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The content has the digest that the name says.
    Whole {
        /// Its length.
        len_bytes: u64,
        /// It carries the immutable flag.
        immutable: bool,
    },
    /// There is no such object.
    Missing,
    /// The content is not what the name says.
    Altered {
        /// What the content would have to be called.
        found: ObjectId,
        /// Its length.
        len_bytes: u64,
    },
}

/// One object in a listing of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub id: ObjectId,
    /// Length of the content.
    pub len_bytes: u64,
    /// Bytes that it takes on the host.
    pub allocated_bytes: u64,
}

/// What `statx` says of a name in `objects/`.
pub(super) struct Found {
    pub(super) len_bytes: u64,
    pub(super) allocated_bytes: u64,
    pub(super) regular: bool,
    pub(super) immutable: bool,
    /// The kernel checks its content (fs-verity).
    pub(super) sealed: bool,
}

impl Objects {
    /// Opens the object store below `store`, making `objects/` and `staging/` if they are missing.
    ///
    /// # Errors
    /// [`ObjectError::Io`] if `store` is not a directory that this process may use.
    pub fn open(store: &Path) -> Result<Self, ObjectError> {
        Self::open_with_locks(store, Locks::ALL)
    }

    /// As [`Objects::open`], with a lock left off, for the tests of the others.
    #[doc(hidden)]
    pub fn open_with_locks(store: &Path, locks: Locks) -> Result<Self, ObjectError> {
        let dir = open_dir(CWD, store).map_err(ObjectError::sys("open", store))?;
        let subdirectory = |name: &str| {
            let path = store.join(name);
            match mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(ObjectError::sys("make", path)(error)),
            }
            open_dir(dir.as_fd(), name).map_err(ObjectError::sys("open", path))
        };
        let shared = Shared {
            path: store.to_owned(),
            objects: subdirectory(OBJECTS)?,
            staging: subdirectory(STAGING)?,
            pin_lock: PinLock::new(subdirectory(STAGING)?),
            store: dir,
            immutable: AtomicBool::new(locks.immutable),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Starts an import: a staging directory that counts as alive until it is dropped.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn begin(&self) -> Result<Staging, ObjectError> {
        Staging::begin(Arc::clone(&self.shared))
    }

    /// Removes the staging directories of imports that died; returns how many.
    ///
    /// Does nothing while a garbage collection runs, which has done it itself.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn sweep_staging(&self) -> Result<u64, ObjectError> {
        super::sweep::sweep_staging(&self.shared)
    }

    /// Starts a garbage collection: **first** call this, then mark what is alive, then
    /// [`Sweep::run`].
    ///
    /// From here until the [`Sweep`] is dropped no import that finishes takes its pins along,
    /// so what is marked afterwards, or pinned, is all that is alive. Waits for a collection
    /// that is running. A dry run removes nothing.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn begin_sweep(&self, dry_run: bool) -> Result<Sweep, ObjectError> {
        Sweep::begin(Arc::clone(&self.shared), dry_run)
    }

    /// Whether an object of that name is there. An empty file under the name of anything but
    /// the empty object does not count.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn contains(&self, id: &ObjectId) -> Result<bool, ObjectError> {
        let found = self.shared.find(id)?;
        Ok(found.is_some_and(|f| f.regular && (f.len_bytes > 0 || *id == ObjectId::of(b""))))
    }

    /// Reads an object from one end to the other and compares its digest with its name.
    ///
    /// # Errors
    /// [`ObjectError::Io`] if it cannot be read.
    pub fn verify(&self, id: &ObjectId) -> Result<Verdict, ObjectError> {
        let path = self.shared.object_path(id);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match openat(&self.shared.objects, id.path(), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Verdict::Missing),
            Err(error) => return Err(ObjectError::sys("open", path)(error)),
        };
        let mut buffer = vec![0; IN_MEMORY_BYTES];
        let summary = digest_file(file.as_fd(), u64::MAX, &mut buffer, &|| true)
            .map_err(ObjectError::io("read", &path))?;
        if summary.id != *id {
            return Ok(Verdict::Altered { found: summary.id, len_bytes: summary.len_bytes });
        }
        let immutable = self.shared.find(id)?.is_some_and(|found| found.immutable);
        Ok(Verdict::Whole { len_bytes: summary.len_bytes, immutable })
    }

    /// Lists every object, in order of its digest's first byte. Names that are no digests are
    /// left out.
    pub fn iter(&self) -> impl Iterator<Item = Result<Stored, ObjectError>> + '_ {
        (0..FAN_OUT).flat_map(move |fan_out| match self.shared.fan_out(fan_out) {
            Ok(ids) => {
                let stored = ids.into_iter().filter_map(|id| match self.shared.find(&id) {
                    Ok(Some(found)) => Some(Ok(Stored {
                        id,
                        len_bytes: found.len_bytes,
                        allocated_bytes: found.allocated_bytes,
                    })),
                    // Swept since.
                    Ok(None) => None,
                    Err(error) => Some(Err(error)),
                });
                Box::new(stored) as Box<dyn Iterator<Item = _>>
            }
            Err(error) => Box::new(std::iter::once(Err(error))),
        })
    }
}

impl Shared {
    pub(super) fn object_path(&self, id: &ObjectId) -> PathBuf {
        self.path.join(OBJECTS).join(id.path())
    }

    pub(super) fn staging_path(&self) -> PathBuf {
        self.path.join(STAGING)
    }

    /// Looks a name up in `objects/`.
    pub(super) fn find(&self, id: &ObjectId) -> Result<Option<Found>, ObjectError> {
        let mask = StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::BLOCKS;
        match statx(&self.objects, id.path(), AtFlags::SYMLINK_NOFOLLOW, mask) {
            Ok(stat) => Ok(Some(Found {
                len_bytes: stat.stx_size,
                allocated_bytes: stat.stx_blocks.saturating_mul(512),
                regular: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile,
                immutable: stat.stx_attributes.contains(StatxAttributes::IMMUTABLE),
                sealed: stat.stx_attributes.contains(StatxAttributes::VERITY),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(ObjectError::sys("look up", self.object_path(id))(error)),
        }
    }

    /// Sets or clears the immutable flag of an object, where that is wanted and possible.
    pub(super) fn mark_immutable(&self, id: &ObjectId, immutable: bool) -> Result<(), ObjectError> {
        if immutable && !self.immutable.load(Ordering::Relaxed) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flagged = openat(&self.objects, id.path(), flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| set_immutable(file.as_fd(), immutable))
            .map_err(ObjectError::io("set the immutable flag of", self.object_path(id)))?;
        if immutable && flagged == Flagged::Refused {
            self.immutable.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether new objects get the immutable flag, as far as is known.
    pub(super) fn wants_immutable(&self) -> bool {
        self.immutable.load(Ordering::Relaxed)
    }

    /// The objects whose digest starts with byte `fan_out`.
    pub(super) fn fan_out(&self, fan_out: u16) -> Result<Vec<ObjectId>, ObjectError> {
        let prefix = format!("{fan_out:02x}");
        let path = || self.path.join(OBJECTS).join(&prefix);
        let dir = match open_dir(self.objects.as_fd(), &*prefix) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(ObjectError::sys("open", path())(error)),
        };
        let mut ids = Vec::new();
        for entry in Dir::new(dir).map_err(ObjectError::sys("list", path()))? {
            let entry = entry.map_err(ObjectError::sys("list", path()))?;
            let name = entry.file_name().to_str().ok();
            ids.extend(name.and_then(|name| format!("{prefix}{name}").parse::<ObjectId>().ok()));
        }
        Ok(ids)
    }
}

/// Opens a directory for listing and for `*at` calls.
pub(super) fn open_dir(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}
