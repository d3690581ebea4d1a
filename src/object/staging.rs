//! One import's unfinished objects.
//!
//! Content is hashed before it is written wherever that is possible, so that what the store
//! already has costs no write. A staged object has a number for a name; only publishing gives
//! it its digest. A crash at any point leaves a directory whose flock nobody holds.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, fchmod, flock, fstat, ftruncate, ioctl_ficlone, mkdirat,
    openat, statat, unlinkat,
};
use rustix::io::{Errno, retry_on_intr};
use rustix::rand::{GetRandomFlags, getrandom};

use super::content::{
    Digester, IN_MEMORY_BYTES, Summary, punch_run, summarize, write_run, write_sparse,
};
use super::pins::{self, PINS, read_full};
use super::store::{Shared, open_dir};
use super::sweep::remove_staging;
use super::{ObjectError, ObjectId, crash_point};
use crate::sys::copy::{cannot_share, write_all_at};

/// Mode of every object.
const OBJECT_MODE: Mode = Mode::from_raw_mode(0o444);

/// An import in progress. Many threads may put at once.
///
/// Dropped without [`Staging::finish`], it is abandoned: the directory goes, with the pins.
pub struct Staging {
    pub(super) shared: Arc<Shared>,
    pub(super) name: String,
    /// `staging/<name>/`; its flock says that the import is alive.
    pub(super) dir: OwnedFd,
    pins: OwnedFd,
    next: AtomicU64,
    /// What this import relies on. Never held across a system call.
    pub(super) known: Mutex<HashMap<ObjectId, Known>>,
    /// Serialises publishing.
    pub(super) publishing: Mutex<()>,
    /// Something was relied on since the last time the store was made durable.
    pub(super) unsynced: AtomicBool,
    /// The host lost staged data: nothing more may be published.
    pub(super) lost: AtomicBool,
    /// The host file system has not refused a reflink yet.
    reflink: AtomicBool,
}

/// Where an object that this import put is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// In the staging directory, under this number.
    Staged { number: u64, len_bytes: u64 },
    /// In `objects/`, and pinned.
    Pinned,
}

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
        let mut read = |buffer: &mut [u8], _at| {
            let mut filled = 0;
            while filled < buffer.len() {
                match source.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(filled)
        };
        with_buffer(len_hint, |buffer| {
            let filled = read(buffer, 0).map_err(ObjectError::Source)?;
            if filled < buffer.len() {
                return self.put_bytes(&buffer[..filled]);
            }
            self.stream(buffer, filled, u64::MAX, read)
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
        let read = |buffer: &mut [u8], at| {
            let left = usize::try_from(len.saturating_sub(at)).unwrap_or(usize::MAX);
            let wanted = buffer.len().min(left);
            read_full(source, &mut buffer[..wanted], at)
        };
        with_buffer(Some(len), |buffer| {
            if len <= IN_MEMORY_BYTES as u64 {
                let filled = read(buffer, 0).map_err(ObjectError::Source)?;
                return self.put_bytes(&buffer[..filled]);
            }
            if let Some(put) = self.reflink(source, len, buffer)? {
                return Ok(put);
            }
            let mut digester = Digester::default();
            loop {
                let filled = read(buffer, digester.position()).map_err(ObjectError::Source)?;
                digester.update(&buffer[..filled], |_, _| Ok(())).map_err(ObjectError::Source)?;
                if filled < buffer.len() {
                    break;
                }
            }
            let summary = digester.finish();
            if self.has(&summary)? {
                return Ok(Put::new(&summary, true));
            }
            let filled = read(buffer, 0).map_err(ObjectError::Source)?;
            self.stream(buffer, filled, len, read)
        })
    }

    /// Writes content into the staging directory while hashing it. The first `filled` bytes are
    /// in `buffer`, whose length is a multiple of the block size.
    fn stream(
        &self,
        buffer: &mut [u8],
        mut filled: usize,
        len: u64,
        mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    ) -> Result<Put, ObjectError> {
        let staged = self.stage()?;
        let mut digester = Digester::default();
        loop {
            let piece = &buffer[..filled];
            let base = digester.position();
            digester
                .update(piece, |range, run| write_run(staged.file.as_fd(), piece, base, range, run))
                .map_err(ObjectError::io("write", self.path()))?;
            if filled < buffer.len() || digester.position() >= len {
                break;
            }
            filled = read(buffer, digester.position()).map_err(ObjectError::Source)?;
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
        loop {
            let base = digester.position();
            let filled = read_full(staged.file.as_fd(), buffer, base).map_err(write())?;
            digester
                .update(&buffer[..filled], |range, run| {
                    punch_run(staged.file.as_fd(), base, range, run)
                })
                .map_err(write())?;
            if filled < buffer.len() {
                break;
            }
        }
        let summary = digester.finish();
        if self.has(&summary)? {
            return Ok(Some(Put::new(&summary, true)));
        }
        self.keep(staged, &summary).map(Some)
    }

    /// Whether the content is known, here or in the store; if so it is pinned.
    fn has(&self, summary: &Summary) -> Result<bool, ObjectError> {
        if self.known.lock().contains_key(&summary.id) {
            return Ok(true);
        }
        self.pin_if(&summary.id, |len_bytes| len_bytes == summary.len_bytes)
    }

    /// Pins an object that is in the store with a plausible length.
    fn pin_if(&self, id: &ObjectId, plausible: impl Fn(u64) -> bool) -> Result<bool, ObjectError> {
        // Unlocked first: most of what is not there is not looked for under the lock, and a slow
        // directory read delays nobody.
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

    /// Ends the import: drops its pins and its directory.
    ///
    /// Call it once everything that refers to the objects (the template) is durable. While a
    /// garbage collection runs the pins stay behind, for its successor to remove.
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
    const MOST: usize = IN_MEMORY_BYTES + super::content::BLOCK_BYTES;
    let hint = len_hint.and_then(|len| usize::try_from(len).ok()).unwrap_or(MOST);
    // Not too few either: the hint may be wrong.
    let len =
        hint.max(LEAST).saturating_add(1).next_multiple_of(super::content::BLOCK_BYTES).min(MOST);
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
