//! Which objects private layers refer to: what keeps them from being collected.
//!
//! A private directory has its own log of them, which goes where it goes; the registry keeps a
//! second one beside the root's record, so that a root whose disk is not there keeps counting.
//! Both are written before any reference is made. A collection reads both.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::error::HostError;
use super::roots::{RootRecord, Roots};
use super::store::Store;
use crate::object::ObjectId;
use crate::private::refs::{self, Reference};
use crate::private::{LEAST_LINES, PrivateLayer};

/// How long a root at rest is locked to be looked through: less than a mount waits for it.
const TIDY_PATIENCE: Duration = Duration::from_millis(1500);

/// Notes in the registry that files of a root are about to refer to these objects; durable on
/// return.
///
/// # Errors
/// [`HostError::System`]; then none may.
pub(super) fn note(
    roots: &Roots,
    record: &RootRecord,
    objects: impl Iterator<Item = ObjectId>,
) -> Result<(), HostError> {
    // The number that a file shows is the private layer's own business.
    let entries: Vec<Reference> = objects.map(|object| Reference { object, ino: 0 }).collect();
    let name = Roots::references_name(&record.id);
    refs::append(roots.dir(), &name, &entries).map_err(HostError::system("write", name))
}

/// As [`note`], for several roots at once: what it costs is waiting for the disk, which takes as long
/// for one.
///
/// # Errors
/// [`HostError::System`]; then no file of any of them may.
pub(super) fn note_all(
    roots: &Roots,
    notes: &[(RootRecord, Vec<ObjectId>)],
) -> Result<(), HostError> {
    if let [(record, objects)] = notes {
        return note(roots, record, objects.iter().copied());
    }
    let mut written = false;
    for (record, objects) in notes {
        let entries: Vec<Reference> =
            objects.iter().map(|object| Reference { object: *object, ino: 0 }).collect();
        let name = Roots::references_name(&record.id);
        let appended = refs::append_undurably(roots.dir(), &name, &entries)
            .map_err(HostError::system("write", name))?;
        written |= appended.is_some();
    }
    if written {
        // Logs and their names. An error since `roots` was opened is told here (syncfs(2)).
        rustix::fs::syncfs(roots.dir())
            .map_err(|errno| HostError::system("make durable", "roots")(errno))?;
    }
    Ok(())
}

/// Drops from the registry's log what no file of a root refers to any more: `objects` are all that
/// do. Whoever calls this holds the lock of the private directory, and has since before it looked.
pub(super) fn tidied(roots: &Roots, record: &RootRecord, objects: &HashSet<ObjectId>) {
    let name = Roots::references_name(&record.id);
    match refs::compact(roots.dir(), &name, &|line| objects.contains(&line.object)) {
        Ok(gone) => tracing::debug!(gone, root = %record.name, "dropped references to objects"),
        Err(error) => {
            tracing::warn!(%error, name, "the log of references stays as long as it is");
        }
    }
}

/// Shortens the logs of every root that is at rest, as far as that is worth it.
///
/// # Errors
/// [`HostError::System`] if the registry cannot be read; a root that cannot be looked at is left.
pub(super) fn tidy(store: &Store) -> Result<(), HostError> {
    let roots = Roots::open(store)?;
    for record in roots.list()? {
        let Some(private) = &record.private else { continue };
        let long = std::fs::metadata(private.join(refs::NAME))
            .is_ok_and(|log| log.len() >= LEAST_LINES * refs::LINE_BYTES as u64);
        if !long || record.living().is_some() {
            continue;
        }
        // In use, or not there: another time.
        let Ok(Some(stack)) = PrivateLayer::recorded_stack(private) else { continue };
        let Ok(layer) = PrivateLayer::open(private, &stack) else { continue };
        match layer.tidy_references(TIDY_PATIENCE) {
            Ok(Some(objects)) => tidied(&roots, &record, &objects),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, root = %record.name, "its log stays as it is"),
        }
    }
    Ok(())
}

/// Copies what the private directory of a root refers to into the registry, as far as that does
/// not know it: the directory may have come from elsewhere.
///
/// # Errors
/// [`HostError::System`].
pub(super) fn adopt(store: &Store, record: &RootRecord) -> Result<(), HostError> {
    let Some(private) = &record.private else { return Ok(()) };
    let roots = Roots::open(store)?;
    let known: HashSet<ObjectId> = of_record(&roots, record)?.collect();
    let new: HashSet<ObjectId> =
        of_private(private)?.into_iter().filter(|object| !known.contains(object)).collect();
    note(&roots, record, new.into_iter())
}

/// Every object that some registered root refers to.
///
/// # Errors
/// [`HostError::System`] if a log cannot be read: what it names is unknown then.
pub fn of_all(store: &Store) -> Result<HashSet<ObjectId>, HostError> {
    let roots = Roots::open(store)?;
    let mut objects = HashSet::new();
    for record in roots.list()? {
        objects.extend(of_record(&roots, &record)?);
        if let Some(private) = &record.private {
            objects.extend(of_private(private)?);
        }
    }
    Ok(objects)
}

/// Every object that `record` is known to refer to.
///
/// # Errors
/// [`HostError::System`] if a log cannot be read.
pub(super) fn of_root(roots: &Roots, record: &RootRecord) -> Result<HashSet<ObjectId>, HostError> {
    let mut objects: HashSet<ObjectId> = of_record(roots, record)?.collect();
    if let Some(private) = &record.private {
        objects.extend(of_private(private)?);
    }
    Ok(objects)
}

pub(super) fn of_record(
    roots: &Roots,
    record: &RootRecord,
) -> Result<impl Iterator<Item = ObjectId>, HostError> {
    let name = Roots::references_name(&record.id);
    let found = refs::read(roots.dir(), &name).map_err(HostError::system("read", name))?;
    Ok(found.into_iter().map(|reference| reference.object))
}

pub(super) fn of_private(private: &Path) -> Result<Vec<ObjectId>, HostError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match rustix::fs::open(private, flags, Mode::empty()) {
        Ok(dir) => dir,
        // Its disk is not there: what the registry knows has to do.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        Err(errno) => return Err(HostError::system("open", private)(errno)),
    };
    let path = private.join(refs::NAME);
    let found = refs::read(&dir, refs::NAME).map_err(|error| {
        if error.kind() == io::ErrorKind::InvalidData {
            return HostError::References { path };
        }
        HostError::system("read", path)(error)
    })?;
    Ok(found.into_iter().map(|reference| reference.object).collect())
}
