//! The index itself: a sled database that is opened, asked and closed.
//!
//! ```text
//! index/      its flock (exclusive) says: in use
//! index/db/   sled 0.34
//!   default   "format" → FORMAT; "stamp" → digest of the sorted layers it covers
//!   layers    layer(32) → nothing
//!   objects   object(32) layer(32) → length in bytes, u64 little-endian
//! ```
//! sled 0.34 panics where it meets some kinds of damage, and locks the database for itself; so
//! all calls run under `catch_unwind`, and our own lock comes first.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat, stat};
use rustix::io::Errno;

use super::answer::{LayerSize, Sizes, read, sum_up};
use crate::layer::{LayerId, Layers, LayersError};
use crate::object::{Digest, ObjectId};

/// Version of the keys and values.
const FORMAT: &[u8] = b"mica-index-1";

/// Memory that sled may use for what it reads, in bytes.
const CACHE_BYTES: u64 = 32 << 20;

/// How often a lock that is taken is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// What became of a question to the index.
pub(super) enum Indexed<T> {
    /// It answered.
    Answer(T),
    /// It is in use, or cannot be made: the manifests have to answer.
    Unavailable,
}

/// What can go wrong while the index is open.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    #[error("the index is broken")]
    Broken(#[from] sled::Error),
    #[error("the index has another format")]
    Format,
    #[error("the index has a key or value of the wrong length")]
    Malformed,
    #[error("the index made sled panic")]
    Panicked,
    #[error(transparent)]
    Layers(#[from] LayersError),
}

/// Opens the index, brings it up to date, asks it and closes it.
///
/// A broken one is deleted and built again, once. Waits at most `patience` for its lock.
pub(super) fn with_index<T>(
    path: &Path,
    layers: &Layers,
    patience: Duration,
    query: impl Fn(&Reader<'_>) -> Result<T, IndexError>,
) -> Result<Indexed<T>, LayersError> {
    let deadline = Instant::now() + patience;
    let lock = match lock(path, deadline) {
        Ok(Some(lock)) => lock,
        Ok(None) => return Ok(Indexed::Unavailable),
        Err(error) => {
            tracing::info!(path = %path.display(), %error, "no index");
            return Ok(Indexed::Unavailable);
        }
    };
    let answer = ask(path, layers, deadline, &query);
    drop(lock);
    answer
}

/// Deletes the index and builds it again; `false` if it is in use.
pub(super) fn rebuild(
    path: &Path,
    layers: &Layers,
    patience: Duration,
) -> Result<bool, LayersError> {
    let deadline = Instant::now() + patience;
    let Ok(Some(_lock)) = lock(path, deadline) else { return Ok(false) };
    if let Err(error) = delete(path) {
        tracing::info!(path = %path.display(), %error, "the index cannot be deleted");
        return Ok(false);
    }
    Ok(matches!(ask(path, layers, deadline, &|_| Ok(()))?, Indexed::Answer(())))
}

fn ask<T>(
    path: &Path,
    layers: &Layers,
    deadline: Instant,
    query: &impl Fn(&Reader<'_>) -> Result<T, IndexError>,
) -> Result<Indexed<T>, LayersError> {
    let mut rebuilt = false;
    loop {
        let run = AssertUnwindSafe(|| {
            let index = Index::open(path)?;
            let reader = index.catch_up(layers)?;
            query(&reader)
        });
        // Unwind safe: everything the closure changes is deleted if it panics.
        let error = match catch_unwind(run).unwrap_or(Err(IndexError::Panicked)) {
            Ok(answer) => return Ok(Indexed::Answer(answer)),
            Err(IndexError::Layers(error)) => return Err(error),
            Err(error) => error,
        };
        if in_use(&error) && Instant::now() < deadline {
            // sled lets go of its own lock a moment after it was closed.
            std::thread::sleep(RETRY);
            continue;
        }
        if rebuilt || in_use(&error) {
            tracing::info!(path = %path.display(), %error, "no index");
            return Ok(Indexed::Unavailable);
        }
        tracing::info!(path = %path.display(), %error, "the index is built again");
        if let Err(error) = delete(path) {
            tracing::info!(path = %path.display(), %error, "the index cannot be deleted");
            return Ok(Indexed::Unavailable);
        }
        rebuilt = true;
    }
}

/// sled says that its file is locked with an error of no kind of its own.
fn in_use(error: &IndexError) -> bool {
    matches!(error, IndexError::Broken(sled::Error::Io(error))
        if error.to_string().contains("could not acquire lock"))
}

/// Locks `index/`, making it if it is missing; `None` if it is in use until `deadline`.
fn lock(path: &Path, deadline: Instant) -> io::Result<Option<OwnedFd>> {
    loop {
        match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match openat(CWD, path, flags, Mode::empty()) {
            Ok(dir) => dir,
            // Deleted since; a link that leads nowhere will never be there.
            Err(Errno::NOENT) if Instant::now() < deadline => continue,
            Err(error) => return Err(error.into()),
        };
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(RETRY);
                continue;
            }
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Deleted and made again while we waited: then this lock locks nothing.
        let (ours, there) = (fstat(&dir)?, stat(path));
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)) {
            return Ok(Some(dir));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

fn database(path: &Path) -> PathBuf {
    path.join("db")
}

fn delete(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(database(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

struct Index {
    db: sled::Db,
    layers: sled::Tree,
    objects: sled::Tree,
}

impl Index {
    fn open(path: &Path) -> Result<Self, IndexError> {
        let db = sled::Config::new()
            .path(database(path))
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            // No thread that flushes: closing does.
            .flush_every_ms(None)
            .open()?;
        match db.get("format")? {
            Some(format) if format == FORMAT => {}
            None if !db.was_recovered() => {
                db.insert("format", FORMAT)?;
            }
            None | Some(_) => return Err(IndexError::Format),
        }
        let (layers, objects) = (db.open_tree("layers")?, db.open_tree("objects")?);
        Ok(Self { db, layers, objects })
    }

    /// Brings the index to where `layers/` is now.
    fn catch_up(&self, layers: &Layers) -> Result<Reader<'_>, IndexError> {
        let mut truth: BTreeSet<LayerId> = layers.layers()?.into_iter().map(|l| l.id).collect();
        let mut unreadable = BTreeSet::new();
        if self.db.get("stamp")?.is_none_or(|found| found != stamp(&truth).as_bytes()) {
            let mut covered = BTreeSet::new();
            for key in self.layers.iter().keys() {
                covered.insert(LayerId::new(digest(&key?)?));
            }
            self.remove(&covered.difference(&truth).copied().collect())?;
            for layer in truth.difference(&covered).copied().collect::<Vec<_>>() {
                match read(layers, &layer) {
                    Ok(Some(manifest)) => self.insert(&layer, &manifest)?,
                    Ok(None) => {
                        truth.remove(&layer);
                    }
                    Err(()) => {
                        unreadable.insert(layer);
                    }
                }
            }
            truth.retain(|layer| !unreadable.contains(layer));
            self.db.insert("stamp", stamp(&truth).as_bytes())?;
            self.db.flush()?;
        }
        Ok(Reader { index: self, truth, unreadable })
    }

    fn insert(&self, layer: &LayerId, manifest: &crate::layer::Manifest) -> Result<(), IndexError> {
        let mut batch = sled::Batch::default();
        for held in manifest.objects() {
            batch.insert(&row_key(&held.id, layer)[..], &held.size.to_le_bytes());
        }
        self.objects.apply_batch(batch)?;
        // Last: a layer that is listed here is covered as a whole.
        self.layers.insert(layer.digest().as_bytes(), &[])?;
        Ok(())
    }

    fn remove(&self, gone: &BTreeSet<LayerId>) -> Result<(), IndexError> {
        if gone.is_empty() {
            return Ok(());
        }
        for layer in gone {
            self.layers.remove(layer.digest().as_bytes())?;
        }
        let mut batch = sled::Batch::default();
        for key in self.objects.iter().keys() {
            let key = key?;
            if gone.contains(&row(&key)?.1) {
                batch.remove(key);
            }
        }
        self.objects.apply_batch(batch)?;
        Ok(())
    }
}

/// Names a set of layers: the generation of `layers/` that the index covers.
fn stamp(layers: &BTreeSet<LayerId>) -> Digest {
    let bytes: Vec<u8> = layers.iter().flat_map(|layer| *layer.digest().as_bytes()).collect();
    Digest::of(&bytes)
}

/// An index that is up to date.
pub(super) struct Reader<'a> {
    index: &'a Index,
    /// The readable layers of the store. Rows of others are left from a crash.
    truth: BTreeSet<LayerId>,
    unreadable: BTreeSet<LayerId>,
}

impl Reader<'_> {
    /// The layers that hold `object`, and those that cannot be read.
    pub(super) fn layers_with(
        &self,
        object: &ObjectId,
    ) -> Result<(BTreeSet<LayerId>, BTreeSet<LayerId>), IndexError> {
        let mut found = BTreeSet::new();
        for key in self.index.objects.scan_prefix(object.digest().as_bytes()).keys() {
            let (_, layer) = row(&key?)?;
            if self.truth.contains(&layer) {
                found.insert(layer);
            }
        }
        Ok((found, self.unreadable.clone()))
    }

    /// What each layer weighs.
    pub(super) fn sizes(&self) -> Result<Sizes, IndexError> {
        let mut failed = None;
        let rows = self.index.objects.iter().map_while(|entry| {
            let row = entry.map_err(IndexError::from).and_then(|(key, value)| {
                let (object, layer) = row(&key)?;
                let len = <[u8; 8]>::try_from(&*value).map_err(|_| IndexError::Malformed)?;
                Ok((object, layer, u64::from_le_bytes(len)))
            });
            row.map_err(|error| failed = Some(error)).ok()
        });
        let rows = rows.filter(|(_, layer, _)| self.truth.contains(layer));
        let layers: std::collections::BTreeMap<LayerId, LayerSize> =
            sum_up(self.truth.iter().copied(), rows);
        match failed {
            Some(error) => Err(error),
            None => Ok(Sizes { layers, unreadable: self.unreadable.clone() }),
        }
    }
}

fn row_key(object: &ObjectId, layer: &LayerId) -> [u8; 64] {
    let mut key = [0; 64];
    let (first, second) = key.split_at_mut(32);
    first.copy_from_slice(object.digest().as_bytes());
    second.copy_from_slice(layer.digest().as_bytes());
    key
}

fn row(key: &[u8]) -> Result<(ObjectId, LayerId), IndexError> {
    let (object, layer) = key.split_at_checked(32).ok_or(IndexError::Malformed)?;
    Ok((ObjectId::new(digest(object)?), LayerId::new(digest(layer)?)))
}

fn digest(bytes: &[u8]) -> Result<Digest, IndexError> {
    <[u8; 32]>::try_from(bytes).map(Digest::from_bytes).map_err(|_| IndexError::Malformed)
}
