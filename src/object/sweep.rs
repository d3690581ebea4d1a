//! Sweeping: objects that nothing refers to, and what dead imports left.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Dir, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags, flock, openat, statx,
    unlinkat,
};
use rustix::io::{Errno, retry_on_intr};

use super::pins::{Pinned, subdirectories};
use super::store::{OBJECTS, Shared, open_dir};
use super::{ObjectError, ObjectId, crash_point};
use crate::sys::flags::set_immutable;

/// Objects of each directory removed under one hold of the pin lock: some milliseconds, in which
/// imports wait.
const BATCH: usize = 128;

/// Threads that remove, at most.
const MOST_THREADS: usize = 4;

/// A garbage collection. See [`super::Objects::begin_sweep`] for the order of steps.
///
/// It holds a flock on `objects/` exclusively. An import that ends takes the same lock shared,
/// without waiting, before it removes its directory; where it cannot, it leaves that with the
/// pins, and with the links by which it keeps layers. So a template
/// that is born after the mark still keeps its objects in this sweep.
pub struct Sweep {
    shared: Arc<Shared>,
    dry_run: bool,
    /// In a dry run: staging directories that were dead at the start, whose pins don't count.
    dead: HashSet<CString>,
    /// Staging directories of dead imports removed at the start.
    imports: u64,
    _collecting: OwnedFd,
}

/// What a sweep removed, or in a dry run would remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects removed.
    pub objects: u64,
    /// Bytes that they took on the host.
    pub bytes: u64,
    /// Objects that stay.
    pub kept: u64,
    /// Objects that stay only because a running import relies on them.
    pub pinned: u64,
    /// Staging directories of dead imports removed.
    pub imports: u64,
}

impl Sweep {
    pub(super) fn begin(shared: Arc<Shared>, dry_run: bool) -> Result<Self, ObjectError> {
        let collecting = collecting(&shared, FlockOperation::LockExclusive)?
            .ok_or_else(|| ObjectError::sys("lock", shared.path.join(OBJECTS))(Errno::AGAIN))?;
        let mut dead = HashSet::new();
        let imports = if dry_run {
            dead.extend(dead_imports(&shared)?.into_iter().map(|(name, _)| name));
            u64::try_from(dead.len()).unwrap_or(u64::MAX)
        } else {
            remove_dead_imports(&shared)?
        };
        Ok(Self { shared, dry_run, dead, imports, _collecting: collecting })
    }

    /// Removes the objects that are neither `live` nor pinned.
    ///
    /// # Errors
    /// [`ObjectError::Io`]; what was removed until then is gone, all else is untouched.
    pub fn run(self, live: &dyn Fn(&ObjectId) -> bool) -> Result<Swept, ObjectError> {
        let mut pass = Pass::new(&self);
        for first in 0..=u8::MAX {
            let part = pass.part(first, live)?;
            pass.sweep(vec![part])?;
        }
        Ok(pass.swept)
    }

    /// As [`Sweep::run`], one part of the store after another, so that what is alive need never
    /// be in memory as a whole: `alive` answers with all living objects whose digests begin
    /// with a byte, in order of the digests.
    ///
    /// `proceed` is asked before each of the 256 parts and ends the sweep early by saying no;
    /// what was swept until then is the answer.
    ///
    /// # Errors
    /// What `alive` answers, and as [`Sweep::run`].
    pub fn run_in_parts<E: From<ObjectError>>(
        self,
        mut alive: impl FnMut(u8) -> Result<Vec<ObjectId>, E>,
        proceed: &dyn Fn(u8) -> bool,
    ) -> Result<Swept, E> {
        let mut pass = Pass::new(&self);
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let mut parts = Vec::new();
        for first in 0..=u8::MAX {
            if !proceed(first) {
                break;
            }
            let alive = alive(first)?;
            debug_assert!(alive.is_sorted(), "the living are in order");
            parts.push(pass.part(first, &|id| alive.binary_search(id).is_ok())?);
            if parts.len() >= cores.min(MOST_THREADS) {
                pass.sweep(std::mem::take(&mut parts))?;
            }
        }
        pass.sweep(parts)?;
        Ok(pass.swept)
    }
}

/// One way through the store.
struct Pass<'a> {
    sweep: &'a Sweep,
    pinned: Pinned,
    swept: Swept,
}

/// The dead of one directory.
struct Part {
    /// None: there is no such directory.
    dir: Option<OwnedFd>,
    /// In the order of their inodes: those that are next to each other on the disk go together.
    dead: Vec<ObjectId>,
}

impl<'a> Pass<'a> {
    fn new(sweep: &'a Sweep) -> Self {
        let swept = Swept { imports: sweep.imports, ..Swept::default() };
        Self { sweep, pinned: Pinned::ignoring(sweep.dead.clone()), swept }
    }

    /// The dead among the objects whose digests begin with `first`.
    fn part(&mut self, first: u8, live: &dyn Fn(&ObjectId) -> bool) -> Result<Part, ObjectError> {
        let shared = &self.sweep.shared;
        let prefix = format!("{first:02x}");
        let path = || shared.path.join(OBJECTS).join(&prefix);
        let dir = match open_dir(shared.objects.as_fd(), &*prefix) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Part { dir: None, dead: Vec::new() }),
            Err(error) => return Err(ObjectError::sys("open", path())(error)),
        };
        let mut dead = Vec::new();
        for entry in Dir::read_from(&dir).map_err(ObjectError::sys("list", path()))? {
            let entry = entry.map_err(ObjectError::sys("list", path()))?;
            let name = entry.file_name().to_str().ok();
            match name.and_then(|name| format!("{prefix}{name}").parse::<ObjectId>().ok()) {
                Some(id) if live(&id) => self.swept.kept += 1,
                Some(id) => dead.push((entry.ino(), id)),
                None => {}
            }
        }
        dead.sort_unstable();
        Ok(Part { dir: Some(dir), dead: dead.into_iter().map(|(_, id)| id).collect() })
    }

    /// Removes the dead of several directories, each on a thread of its own: what takes the time
    /// is the host's removing of a file, and in one directory it does that one after the other.
    fn sweep(&mut self, parts: Vec<Part>) -> Result<(), ObjectError> {
        let longest = parts.iter().map(|part| part.dead.len()).max().unwrap_or(0);
        for from in (0..longest).step_by(BATCH) {
            let batch = |part: &'_ Part| from..part.dead.len().min(from + BATCH);
            let batches = parts.iter().filter_map(|part| {
                Some((part.dir.as_ref()?, part.dead.get(batch(part)).filter(|b| !b.is_empty())?))
            });
            self.remove(&batches.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Removes some objects of each directory under one hold of the pin lock.
    fn remove(&mut self, batches: &[(&OwnedFd, &[ObjectId])]) -> Result<(), ObjectError> {
        let shared = &self.sweep.shared;
        let path = || shared.staging_path();
        let _guard = shared.pin_lock.exclusive().map_err(ObjectError::io("lock", path()))?;
        self.pinned
            .refresh(shared.staging.as_fd())
            .map_err(ObjectError::io("read the pins in", path()))?;
        let (pinned, dry_run) = (&self.pinned, self.sweep.dry_run);
        let remove =
            |(dir, ids): (&OwnedFd, &[ObjectId])| remove(shared, dir, ids, pinned, dry_run);
        let Some((mine, others)) = batches.split_first() else { return Ok(()) };
        let all: Vec<Result<Swept, ObjectError>> = std::thread::scope(|scope| {
            let others: Vec<_> =
                others.iter().map(|batch| scope.spawn(|| remove(*batch))).collect();
            let mine = remove(*mine);
            let join = |other: std::thread::ScopedJoinHandle<'_, _>| {
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            std::iter::once(mine).chain(others.into_iter().map(join)).collect()
        });
        for swept in all {
            let swept = swept?;
            self.swept.objects += swept.objects;
            self.swept.bytes += swept.bytes;
            self.swept.kept += swept.kept;
            self.swept.pinned += swept.pinned;
        }
        Ok(())
    }
}

/// Removes objects of one directory, but for those that are pinned.
fn remove(
    shared: &Shared,
    dir: &OwnedFd,
    ids: &[ObjectId],
    pinned: &Pinned,
    dry_run: bool,
) -> Result<Swept, ObjectError> {
    let mut swept = Swept::default();
    let mask = StatxFlags::TYPE | StatxFlags::BLOCKS;
    for id in ids {
        if pinned.contains(id) {
            swept.pinned += 1;
            swept.kept += 1;
            continue;
        }
        let hex = id.to_string();
        let name = hex.get(2..).unwrap_or_default();
        let found = match statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, mask) {
            Ok(found) => found,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(ObjectError::sys("look up", shared.object_path(id))(error)),
        };
        if !dry_run {
            if found.stx_attributes.contains(StatxAttributes::IMMUTABLE) {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                openat(dir, name, flags, Mode::empty())
                    .map_err(io::Error::from)
                    .and_then(|file| set_immutable(file.as_fd(), false))
                    .map_err(ObjectError::io("take its flag from", shared.object_path(id)))?;
            }
            crash_point("unlocked for removal");
            unlinkat(dir, name, AtFlags::empty())
                .map_err(ObjectError::sys("remove", shared.object_path(id)))?;
            crash_point("object removed");
        }
        swept.objects += 1;
        swept.bytes += found.stx_blocks.saturating_mul(512);
    }
    Ok(swept)
}

/// Takes the lock of garbage collections on a descriptor of its own; `None` if it is taken and
/// `operation` does not wait.
fn collecting(shared: &Shared, operation: FlockOperation) -> Result<Option<OwnedFd>, ObjectError> {
    let path = || shared.path.join(OBJECTS);
    let dir = open_dir(shared.objects.as_fd(), c".").map_err(ObjectError::sys("open", path()))?;
    match retry_on_intr(|| flock(&dir, operation)) {
        Ok(()) => Ok(Some(dir)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(ObjectError::sys("lock", path())(error)),
    }
}

/// See [`super::Objects::sweep_staging`].
pub(super) fn sweep_staging(shared: &Shared) -> Result<u64, ObjectError> {
    let Some(_no_collection) = collecting(shared, FlockOperation::NonBlockingLockShared)? else {
        return Ok(0);
    };
    remove_dead_imports(shared)
}

fn remove_dead_imports(shared: &Shared) -> Result<u64, ObjectError> {
    let mut removed = 0;
    // Each is still locked by us here: an import that has just made its directory, and not
    // locked it yet, finds it gone and makes another.
    for (name, dir) in dead_imports(shared)? {
        remove_tree(shared.staging.as_fd(), &name, dir)
            .map_err(ObjectError::io("remove", shared.staging_path()))?;
        removed += 1;
    }
    Ok(removed)
}

/// Staging directories that nobody locks, each locked by us while its descriptor lives.
fn dead_imports(shared: &Shared) -> Result<Vec<(CString, OwnedFd)>, ObjectError> {
    let path = shared.staging_path();
    let mut dead = Vec::new();
    let names = subdirectories(shared.staging.as_fd()).map_err(ObjectError::io("list", &path))?;
    for name in names {
        let dir = match open_dir(shared.staging.as_fd(), &*name) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(ObjectError::sys("open", &path)(error)),
        };
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => dead.push((name, dir)),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(ObjectError::sys("lock", &path)(error)),
        }
    }
    Ok(dead)
}

/// Removes the staging directory of an import that ends. While a garbage collection runs only
/// staged objects go: the pins stay, and so does what else the import keeps alive from there.
pub(super) fn remove_staging(
    shared: &Shared,
    name: &str,
    dir: BorrowedFd<'_>,
) -> Result<(), ObjectError> {
    let path = shared.staging_path().join(name);
    let no_collection = collecting(shared, FlockOperation::NonBlockingLockShared)?;
    let what = if no_collection.is_some() { Contents::All } else { Contents::StagedObjects };
    empty(dir, what).map_err(ObjectError::io("remove", &path))?;
    crash_point("directory emptied");
    if no_collection.is_some() {
        unlinkat(&shared.staging, name, AtFlags::REMOVEDIR)
            .map_err(ObjectError::sys("remove", path))?;
    }
    Ok(())
}

fn remove_tree(parent: BorrowedFd<'_>, name: &CStr, dir: OwnedFd) -> io::Result<()> {
    empty(dir.as_fd(), Contents::All)?;
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Contents {
    All,
    StagedObjects,
}

fn empty(dir: BorrowedFd<'_>, what: Contents) -> io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_staged_object = name.to_bytes().iter().all(u8::is_ascii_digit);
        if name == c"." || name == c".." || (what != Contents::All && !is_staged_object) {
            continue;
        }
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => remove_tree(dir, name, open_dir(dir, name)?)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
