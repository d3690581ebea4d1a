//! A store as a whole: making it, recognising it, locking it, taking it away.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::sys::durable::{self, Existing};

/// The format that this version makes and the only one it reads.
pub const FORMAT: u32 = 1;

/// The one digest algorithm of that format.
const DIGEST: &str = "blake3-256";

/// The file that makes a directory a store.
pub(super) const META: &str = "meta.json";

/// Features of the format this version knows, beyond the base: none yet.
const KNOWN_FEATURES: &[&str] = &[];

/// The registry of roots.
pub(super) const ROOTS: &str = "roots";

/// What may be done with an opened store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Looking only: allowed also where features unknown to this version are in use that
    /// concern writers alone.
    Read,
    /// Everything.
    Write,
}

/// Why a directory is not usable as a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing is there.
    #[error(
        "there is no store at {path}; `mica template import` makes one, \
         --store or MICA_STORE names another place"
    )]
    Absent {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Something is there, and it is not a store.
    #[error("{path} is not empty and not a store of Mica's; name another directory with --store")]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// The store's format is not this version's.
    #[error(
        "the store at {path} has format {found}, this version of Mica knows format {FORMAT}; \
         use the version that made it"
    )]
    Version {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The store names its objects by another digest.
    #[error("the store at {path} uses the digest {found:?}, this version knows {DIGEST:?} only")]
    Digest {
        /// The store.
        path: PathBuf,
        /// Its digest algorithm.
        found: String,
    },
    /// The store uses something this version does not know.
    #[error(
        "the store at {path} uses {features}, which this version of Mica does not know{allowed}; \
         use a newer version"
    )]
    Features {
        /// The store.
        path: PathBuf,
        /// The unknown features, joined.
        features: String,
        /// What may still be done, as the end of a clause.
        allowed: &'static str,
    },
    /// Work that excludes the wanted one is under way.
    #[error(
        "the store at {path} is in use by an import, a collection, a check or its destruction; \
         try again when that has ended"
    )]
    Busy {
        /// The store.
        path: PathBuf,
    },
    /// meta.json is not what Mica wrote.
    #[error("{path} is damaged; put it back from a backup or from another store: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The system refused.
    #[error("cannot {what} the store at {path}: {source}{remedy}")]
    System {
        /// What was being done.
        what: &'static str,
        /// The store.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What to do, as the end of a clause.
        remedy: &'static str,
    },
}

/// The parts of the format that a store uses beyond its version, by who must know them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// May be ignored by anybody.
    #[serde(default)]
    pub compatible: BTreeSet<String>,
    /// Must be known by writers.
    #[serde(default)]
    pub read_only_compatible: BTreeSet<String>,
    /// Must be known by everybody.
    #[serde(default)]
    pub incompatible: BTreeSet<String>,
}

/// The content of meta.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// See [`FORMAT`].
    pub format: u32,
    /// The algorithm of every digest in the store.
    pub digest: String,
    /// See [`Features`].
    #[serde(default)]
    pub features: Features,
}

/// An existing store that this version may use.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    meta: Meta,
}

/// A lock over the whole store, released when dropped or when the process ends.
#[derive(Debug)]
#[must_use = "the lock lasts as long as this value"]
pub struct StoreLock {
    _meta: OwnedFd,
}

impl Store {
    /// Opens the store at `path`.
    ///
    /// # Errors
    /// Every variant of [`StoreError`]; [`StoreError::Absent`] also for an empty directory.
    pub fn open(path: &Path, access: Access) -> Result<Self, StoreError> {
        let system = |source| system("open", path, source);
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Absent { path: path.to_owned() });
            }
            Err(error) => return Err(system(error)),
        };
        let text = match std::fs::read(path.join(META)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(if is_empty(&path).map_err(system)? {
                    StoreError::Absent { path }
                } else {
                    StoreError::Foreign { path }
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(StoreError::Foreign { path });
            }
            Err(error) => return Err(system(error)),
        };
        let meta = serde_json::from_slice::<Meta>(&text)
            .map_err(|source| StoreError::Damaged { path: path.join(META), source })?;
        check(&path, &meta, access)?;
        Ok(Self { path, meta })
    }

    /// Opens the store at `path` for writing, making it, and its parents, if nothing is there.
    ///
    /// Two that make it at once end up with the same store.
    ///
    /// # Errors
    /// As [`Store::open`], without [`StoreError::Absent`].
    pub fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        match Self::open(path, Access::Write) {
            Err(StoreError::Absent { .. }) => create(path)?,
            opened => return opened,
        }
        Self::open(path, Access::Write)
    }

    /// Where it is, absolute and without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Keeps the store from being destroyed until dropped.
    ///
    /// Held by whatever works on it without being registered in it: imports, garbage
    /// collections, checks. Those keep out of each other's way by locks of their own.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while it is being destroyed, [`StoreError::System`].
    pub fn share(&self) -> Result<StoreLock, StoreError> {
        self.lock(FlockOperation::NonBlockingLockShared)
    }

    /// Keeps everybody else who would [`Store::share`] it out, until dropped.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while anybody shares it, [`StoreError::System`].
    pub fn seize(&self) -> Result<StoreLock, StoreError> {
        self.lock(FlockOperation::NonBlockingLockExclusive)
    }

    /// meta.json is the lock's file: it is never replaced once the store exists.
    fn lock(&self, operation: FlockOperation) -> Result<StoreLock, StoreError> {
        let lock = || {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let meta = rustix::fs::open(self.path.join(META), flags, Mode::empty())?;
            rustix::fs::flock(&meta, operation)?;
            Ok(StoreLock { _meta: meta })
        };
        lock().map_err(|errno| match errno {
            Errno::WOULDBLOCK => StoreError::Busy { path: self.path.clone() },
            errno => system("lock", &self.path, errno.into()),
        })
    }
}

fn create(path: &Path) -> Result<(), StoreError> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // The directory may have been there, or made under a strict umask.
        std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
        let meta =
            Meta { format: FORMAT, digest: DIGEST.to_owned(), features: Features::default() };
        let mut text = serde_json::to_vec_pretty(&meta)?;
        text.push(b'\n');
        let dir = File::open(path)?;
        match durable::write_file(dir.as_fd(), OsStr::new(META), &text, Existing::Keep) {
            // Somebody else made it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            written => written?,
        }
        // Who only looks must not have to make it, on a disk that is full by then.
        match std::fs::create_dir(path.join(ROOTS)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _there => Ok(()),
        }
    };
    make().map_err(|source| system("make", path, source))
}

fn check(path: &Path, meta: &Meta, access: Access) -> Result<(), StoreError> {
    let path = || path.to_owned();
    if meta.format != FORMAT {
        return Err(StoreError::Version { path: path(), found: meta.format });
    }
    if meta.digest != DIGEST {
        return Err(StoreError::Digest { path: path(), found: meta.digest.clone() });
    }
    let unknown = |features: &BTreeSet<String>| {
        let unknown: Vec<&str> = features
            .iter()
            .map(String::as_str)
            .filter(|name| !KNOWN_FEATURES.contains(name))
            .collect();
        (!unknown.is_empty()).then(|| unknown.join(", "))
    };
    if let Some(features) = unknown(&meta.features.incompatible) {
        return Err(StoreError::Features { path: path(), features, allowed: "" });
    }
    if access == Access::Write
        && let Some(features) = unknown(&meta.features.read_only_compatible)
    {
        let allowed = " (it may look, but not change anything)";
        return Err(StoreError::Features { path: path(), features, allowed });
    }
    Ok(())
}

/// Whether a directory holds nothing but what may stand in a fresh store's place.
fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        // A fresh ext4 disk has lost+found; an interrupted creation leaves a staged file.
        if name != "lost+found" && !durable::is_staged(&name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The one place where refusals of the system get their next step.
pub(super) fn system(what: &'static str, path: &Path, source: io::Error) -> StoreError {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
    let remedies = [
        (PermissionDenied, "; run as root, or name another place with --store"),
        (ReadOnlyFilesystem, "; name a writable place with --store"),
        (StorageFull, "; free some space, or name another place with --store"),
    ];
    let known = remedies.iter().find(|(kind, _)| *kind == source.kind());
    let remedy = known.map_or("", |(_, remedy)| remedy);
    StoreError::System { what, path: path.to_owned(), source, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(change: impl FnOnce(&mut Meta)) -> (tempfile::TempDir, PathBuf) {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let path = scratch.path().join("store");
        let mut meta = Store::open_or_create(&path).expect("made").meta().clone();
        change(&mut meta);
        std::fs::write(path.join(META), serde_json::to_vec(&meta).expect("plain"))
            .expect("written");
        (scratch, path)
    }

    #[test]
    fn a_store_is_made_once_and_only_root_may_look_inside() {
        let (_scratch, path) = changed(|_| ());
        let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        let store = Store::open_or_create(&path).expect("opens again");
        assert_eq!(store.meta().format, FORMAT);
        Store::open(&path, Access::Read).expect("opens to look");
    }

    #[test]
    fn nothing_is_made_where_something_else_lies() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        assert!(matches!(
            Store::open(&scratch.path().join("no"), Access::Read),
            Err(StoreError::Absent { .. })
        ));
        std::fs::write(scratch.path().join("letter"), b"dear").expect("written");
        let refused = Store::open_or_create(scratch.path()).expect_err("foreign");
        assert!(matches!(refused, StoreError::Foreign { .. }));
        assert_eq!(std::fs::read_dir(scratch.path()).expect("listed").count(), 1);
        let file = Store::open_or_create(&scratch.path().join("letter")).expect_err("a file");
        assert!(matches!(file, StoreError::Foreign { .. }));
    }

    #[test]
    fn another_format_or_digest_is_refused_by_name() {
        let (_scratch, path) = changed(|meta| meta.format = 7);
        let refused = Store::open(&path, Access::Read).expect_err("unknown format");
        assert!(refused.to_string().contains("has format 7"), "{refused}");
        let (_scratch, path) = changed(|meta| meta.digest = "md5".to_owned());
        let refused = Store::open(&path, Access::Read).expect_err("unknown digest");
        assert!(refused.to_string().contains("\"md5\""), "{refused}");
    }

    #[test]
    fn unknown_features_bar_exactly_those_they_concern() {
        let (_scratch, path) =
            changed(|meta| meta.features.compatible.extend(["hints".to_owned()]));
        Store::open(&path, Access::Write).expect("hints concern nobody");
        let (_scratch, path) =
            changed(|meta| meta.features.read_only_compatible.extend(["packs".to_owned()]));
        Store::open(&path, Access::Read).expect("looking is allowed");
        let refused = Store::open(&path, Access::Write).expect_err("writing is not");
        assert!(refused.to_string().contains("packs"), "{refused}");
        let (_scratch, path) =
            changed(|meta| meta.features.incompatible.extend(["sharded".to_owned()]));
        assert!(matches!(Store::open(&path, Access::Read), Err(StoreError::Features { .. })));
    }

    #[test]
    fn a_damaged_meta_is_a_sentence_and_not_an_empty_store() {
        let (_scratch, path) = changed(|_| ());
        std::fs::write(path.join(META), b"{\"format\": 1, ").expect("written");
        assert!(matches!(Store::open_or_create(&path), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_store_is_seized_only_while_nobody_shares_it() {
        let (_scratch, path) = changed(|_| ());
        let store = Store::open(&path, Access::Write).expect("opens");
        let (one, two) = (store.share().expect("shared"), store.share().expect("shared"));
        drop(one);
        assert!(matches!(store.seize(), Err(StoreError::Busy { .. })));
        drop(two);
        let alone = store.seize().expect("nobody shares it");
        assert!(matches!(store.share(), Err(StoreError::Busy { .. })));
        drop(alone);
        drop(store.share().expect("free again"));
    }
}
