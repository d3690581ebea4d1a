//! Taking away: a root's record, or the whole store.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::error::HostError;
use super::roots::{RootRecord, Roots};
use super::scrub::NOTES;
use super::store::{META, Store};
use super::unmount;
use crate::object::Objects;

/// What destroying a store takes away, or took away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Objects.
    pub objects: u64,
    /// Bytes that they took.
    pub bytes: u64,
    /// Private directories that can never be mounted again; they are not touched.
    pub orphans: Vec<PathBuf>,
    /// What lies in the store's directory and is none of Mica's; it stays.
    pub left: Vec<PathBuf>,
}

/// The parts of a store, in the order in which they go: names before what they name, so
/// that a destruction that is cut short leaves nothing that refers to something gone.
/// objects/ comes with its own sweep, and meta.json last: until then it is still a store.
const PARTS: &[&str] = &[
    "node",
    "templates",
    "index",
    "trees",
    "layers",
    "containers",
    "sharing.json",
    "roots",
    "staging",
    "quarantine",
    "objects",
    NOTES,
];

/// Removes `store` and all that Mica keeps in it. A dry run only counts.
///
/// # Errors
/// [`HostError::StoreInUse`] while one of its roots is mounted,
/// [`super::StoreError::Busy`] while an import or a collection runs.
pub fn destroy(store: Store, dry_run: bool) -> Result<Destroyed, HostError> {
    let roots = Roots::open(&store)?;
    unmount::let_end(&roots)?;
    let locked = roots.lock()?;
    let records = roots.list()?;
    let mounted = records.iter().filter(|record| record.living().is_some());
    let mounted: Vec<String> = mounted.map(|record| record.name.clone()).collect();
    if !mounted.is_empty() {
        return Err(HostError::StoreInUse { store: store.path().to_owned(), roots: mounted });
    }
    let alone = store.seize()?;
    let objects = Objects::open(store.path())?;
    let path = store.path();
    let mut destroyed = Destroyed {
        orphans: records.into_iter().filter_map(|record| record.private).collect(),
        ..Destroyed::default()
    };
    let names = fs::read_dir(path).map_err(HostError::system("list", path))?;
    for entry in names {
        let entry = entry.map_err(HostError::system("list", path))?;
        let name = entry.file_name();
        if name != META && !PARTS.iter().any(|part| name == *part) {
            destroyed.left.push(entry.path());
        }
    }
    if !dry_run {
        // Before the objects: from here on nothing has a name any more.
        remove_tree(&path.join("templates"))?;
    }
    let swept = objects.begin_sweep(dry_run)?.run(&|_| false)?;
    (destroyed.objects, destroyed.bytes) = (swept.objects, swept.bytes);
    if dry_run {
        return Ok(destroyed);
    }
    for part in PARTS {
        remove_tree(&path.join(part))?;
    }
    let meta = path.join(META);
    fs::remove_file(&meta).map_err(HostError::system("remove", &meta))?;
    if destroyed.left.is_empty() {
        match fs::remove_dir(path) {
            // A mountpoint, or the place may not be changed: an empty directory is fine.
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::ResourceBusy | io::ErrorKind::PermissionDenied
                ) =>
            {
                return Err(HostError::system("remove", path)(error));
            }
            _gone => {}
        }
    }
    drop((alone, locked));
    Ok(destroyed)
}

/// Takes the record of an unmounted root away, so that it no longer counts as a reference.
///
/// # Errors
/// [`HostError::RootMounted`]; [`HostError::RootKept`] while its private directory exists,
/// unless forced.
pub fn forget(
    store: &Store,
    wanted: &std::ffi::OsStr,
    force: bool,
    dry_run: bool,
) -> Result<RootRecord, HostError> {
    let roots = Roots::open(store)?;
    unmount::let_end(&roots)?;
    let locked = roots.lock()?;
    let record = roots.find(wanted)?;
    if record.living().is_some()
        && let Some(mount) = &record.mount
    {
        let mountpoint = mount.mountpoint.clone();
        return Err(HostError::RootMounted { name: record.name, mountpoint });
    }
    if let Some(private) = &record.private
        && private.exists()
        && !force
    {
        return Err(HostError::RootKept { name: record.name, private: private.clone() });
    }
    if !dry_run {
        locked.remove(&record)?;
    }
    Ok(record)
}

/// Removes a directory with all that is in it, or a file.
fn remove_tree(path: &std::path::Path) -> Result<(), HostError> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostError::system("remove", path)(error))
        }
        _gone => Ok(()),
    }
}
