//! One import, from its begin to its end: a staging directory, and what it relies on.
//!
//! Alive as long as its flock is held; a crash at any point leaves a directory whose flock
//! nobody holds, for the next sweep.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, mkdirat, openat, statat};
use rustix::io::{Errno, retry_on_intr};
use rustix::rand::{GetRandomFlags, getrandom};

use super::content::Summary;
use super::pins::{self, PINS};
use super::store::{Shared, open_dir};
use super::sweep::remove_staging;
use super::{ObjectError, ObjectId, crash_point};
use crate::sys::copy::write_all_at;

/// An import in progress. Many threads may put at once.
///
/// Dropped without [`Staging::finish`], it is abandoned: the directory goes, with the pins.
pub struct Staging {
    pub(super) shared: Arc<Shared>,
    pub(super) name: String,
    /// `staging/<name>/`; its flock says that the import is alive.
    pub(super) dir: OwnedFd,
    pins: OwnedFd,
    /// Number of the next staged object.
    pub(super) next: AtomicU64,
    /// What this import relies on. Never held across a system call.
    pub(super) known: Mutex<HashMap<ObjectId, Known>>,
    /// Serialises publishing.
    pub(super) publishing: Mutex<()>,
    /// Something was relied on since the last time the store was made durable.
    pub(super) unsynced: AtomicBool,
    /// The host lost staged data: nothing more may be published.
    pub(super) lost: AtomicBool,
    /// Objects of the store that are known to be altered: never a hit, and replaced when their
    /// content is put.
    pub(super) distrusted: Mutex<HashSet<ObjectId>>,
    /// The host file system has not refused a reflink yet.
    pub(super) reflink: AtomicBool,
}

/// Where an object that this import put is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// In the staging directory, under this number.
    Staged { number: u64, len_bytes: u64 },
    /// In `objects/`, and pinned.
    Pinned,
}

impl Staging {
    pub(super) fn begin(shared: Arc<Shared>) -> Result<Self, ObjectError> {
        let path = shared.staging_path();
        loop {
            let mut random = [0; 8];
            retry_on_intr(|| getrandom(&mut random, GetRandomFlags::empty()))
                .map_err(ObjectError::sys("name an import in", &path))?;
            let name = format!("{:016x}", u64::from_ne_bytes(random));
            match mkdirat(&shared.staging, &*name, Mode::from_raw_mode(0o700)) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(ObjectError::sys("make", path.join(name))(error)),
            }
            crash_point("directory made");
            let dir = match open_dir(shared.staging.as_fd(), &*name) {
                Ok(dir) => dir,
                // A sweep took the directory for a dead one before it was locked.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(ObjectError::sys("open", path.join(name))(error)),
            };
            retry_on_intr(|| flock(&dir, FlockOperation::LockExclusive))
                .map_err(ObjectError::sys("lock", path.join(&name)))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
            let pins = match openat(&dir, PINS, flags, Mode::from_raw_mode(0o600)) {
                Ok(pins) => pins,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(ObjectError::sys("make", path.join(name))(error)),
            };
            return Ok(Self {
                shared,
                name,
                dir,
                pins,
                next: AtomicU64::new(0),
                known: Mutex::default(),
                distrusted: Mutex::default(),
                publishing: Mutex::default(),
                unsynced: AtomicBool::new(false),
                lost: AtomicBool::new(false),
                reflink: AtomicBool::new(true),
            });
        }
    }

    /// The staging directory, for what else the import stages. Files in it vanish with it;
    /// names that are numbers, and `pins`, are taken.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Path of the staging directory, for messages.
    pub fn path(&self) -> PathBuf {
        self.shared.staging_path().join(&self.name)
    }

    /// Relies on an object that the store should have; tells whether it does.
    ///
    /// If so, no sweep removes it while this import lives.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn pin(&self, id: &ObjectId) -> Result<bool, ObjectError> {
        if self.known.lock().contains_key(id) {
            return Ok(true);
        }
        self.pin_if(id, |len_bytes| len_bytes > 0 || *id == ObjectId::of(b""))
    }

    /// Takes an object that a check found altered for missing: when its content is put, it is
    /// stored anew, and [`Staging::publish`] puts it in the other's place in one step. Who has
    /// the altered one open keeps that.
    pub fn distrust(&self, id: &ObjectId) {
        self.distrusted.lock().insert(*id);
    }

    /// Whether the content is known, here or in the store; if so it is pinned.
    pub(super) fn has(&self, summary: &Summary) -> Result<bool, ObjectError> {
        if self.known.lock().contains_key(&summary.id) {
            return Ok(true);
        }
        self.pin_if(&summary.id, |len_bytes| len_bytes == summary.len_bytes)
    }

    /// Pins an object that is in the store with a plausible length.
    fn pin_if(&self, id: &ObjectId, plausible: impl Fn(u64) -> bool) -> Result<bool, ObjectError> {
        // Unlocked first: most of what is not there is not looked for under the lock, and a slow
        // directory read delays nobody.
        if self.distrusted.lock().contains(id) {
            return Ok(false);
        }
        let look = || -> Result<Option<_>, ObjectError> {
            Ok(self.shared.find(id)?.filter(|found| found.regular && plausible(found.len_bytes)))
        };
        if look()?.is_none() {
            return Ok(false);
        }
        let found = {
            let _guard = self.lock_pins()?;
            let Some(found) = look()? else { return Ok(false) };
            self.append_pins(std::iter::once(*id))?;
            crash_point("hit pinned");
            found
        };
        if !found.immutable && self.shared.wants_immutable() {
            // A crash came between its rename and its flag.
            self.shared.mark_immutable(id, true)?;
        }
        self.unsynced.store(true, Ordering::Relaxed);
        self.known.lock().insert(*id, Known::Pinned);
        Ok(true)
    }

    pub(super) fn lock_pins(&self) -> Result<pins::PinGuard<'_>, ObjectError> {
        let path = self.shared.staging_path();
        self.shared.pin_lock.shared().map_err(ObjectError::io("lock", path))
    }

    /// Call with the pin lock held.
    pub(super) fn append_pins(
        &self,
        ids: impl Iterator<Item = ObjectId>,
    ) -> Result<(), ObjectError> {
        let lines = pins::lines(ids);
        // Appended at the end whatever the offset says (open(2), O_APPEND; pwrite(2), BUGS).
        write_all_at(self.pins.as_fd(), lines.as_bytes(), 0)
            .map_err(ObjectError::io("write", self.path().join(PINS)))
    }

    /// Ends the import: drops its pins and its directory.
    ///
    /// Call it once everything that refers to the objects (the template) is durable. While a
    /// garbage collection runs all but staged objects stays behind, for its successor to remove.
    ///
    /// # Errors
    /// [`ObjectError::Io`]; what is left is removed by the next sweep.
    pub fn finish(self) -> Result<(), ObjectError> {
        remove_staging(&self.shared, &self.name, self.dir.as_fd())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Already gone after `finish`.
        let there = statat(&self.shared.staging, &*self.name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if there && let Err(error) = remove_staging(&self.shared, &self.name, self.dir.as_fd()) {
            tracing::warn!(path = %self.path().display(), %error, "an abandoned import stays for the next sweep");
        }
    }
}

/// Name of a staged object.
pub(super) fn staged_name(number: u64) -> String {
    number.to_string()
}
