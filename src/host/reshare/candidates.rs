//! Which private files may be worth reading: found by walking upper directories, sifted by size.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use super::{LEAST_BYTES, Member, Skipped};
use crate::catalog::Identity;
use crate::host::roots::ResharePolicy;
use crate::layer::import::Excludes;
use crate::layer::{FileKind, Manifest, ManifestError, TreeIno};
use crate::object::ObjectId;
use crate::private::listing::UpperKind;
use crate::sys::inode;
use crate::sys::sparse::costs_too_much;
use crate::union::upper::{Bytes, Entry, Kept, hides};
use crate::union::{SharedSet, UnionError};

/// Attributes by which overlayfs and Docker mark directories: a container's own, as they are
/// stored in its private layer. What lies below belongs to a container inside.
const NESTED: [&[u8]; 3] = [b"trusted.overlay.overlay.", b"trusted.mica.mica.", b"user.overlay."];

/// Others may read a file, and walk through a directory (inode(7)).
const OTHERS_READ: u32 = 0o004;
const OTHERS_SEARCH: u32 = 0o001;

/// A private file that may be shared.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Which root.
    pub(super) root: usize,
    /// Below it, without a leading slash.
    pub(super) path: Box<[u8]>,
    pub(super) identity: Identity,
    /// Bytes that it takes on the disk.
    pub(super) disk_bytes: u64,
    /// It may also be shared with other containers, not only with templates.
    pub(super) among_roots: bool,
}

/// What holds a file back before it is looked at.
pub(super) struct Filter<'a> {
    pub(super) exclude: &'a Excludes,
    /// Only files that have not changed for so long.
    pub(super) least_age: Option<Duration>,
}

/// A directory on the way down.
struct Place {
    dir: Arc<Kept>,
    origin: Option<TreeIno>,
    path: Vec<u8>,
    /// Whether files without an origin are opened shared here.
    shared: bool,
    /// Others may walk down to here.
    open: bool,
    depth: usize,
}

/// Walks the upper directory of root number `at`.
///
/// # Errors
/// The host's errno; one damaged entry is passed over and counted.
pub(super) fn walk(
    at: usize,
    member: &Member,
    filter: &Filter<'_>,
    skipped: &mut Skipped,
    found: &mut Vec<Candidate>,
) -> Result<(), UnionError> {
    let upper = &member.upper;
    let dev = rustix::fs::fstat(upper.view().upper())?.st_dev;
    let top = upper.root().map_err(|_| UnionError::Host(Errno::IO))?;
    let shared = member.shared.contains(upper.tree(), TreeIno::ROOT)?;
    let open = top.status.mode & OTHERS_SEARCH != 0;
    let (origin, dir) = (top.origin, Arc::new(Kept::new(top.fd, 0)));
    let mut linked = HashSet::new();
    let mut left = vec![Place { dir, origin, path: Vec::new(), shared, open, depth: 0 }];
    while let Some(place) = left.pop() {
        let dir = match place.dir.open(upper) {
            Ok(dir) => dir,
            // Removed meanwhile.
            Err(Errno::STALE | Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        for name in upper.names(&dir)?.iter().filter(|name| !hides(name)) {
            let mut path = place.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name.name);
            if filter.exclude.matches(&path) {
                skipped.excluded += 1;
                continue;
            }
            let entry = match inode::open_path(&dir, &name.name) {
                Ok(fd) => upper.read(fd, place.origin, &name.name),
                Err(Errno::NOENT) => continue,
                Err(errno) => Err(errno.into()),
            };
            let Ok(entry) = entry else {
                skipped.unreadable += 1;
                continue;
            };
            let shared = in_shared_set(upper.tree(), &member.shared, &entry, &place)?;
            match entry.kind {
                FileKind::Directory if is_nested(&entry) => skipped.nested += 1,
                FileKind::Directory => {
                    let depth = place.depth + 1;
                    left.push(Place {
                        origin: entry.origin,
                        open: place.open && entry.status.mode & OTHERS_SEARCH != 0,
                        dir: Arc::new(Kept::new(entry.fd, depth)),
                        path,
                        shared,
                        depth,
                    });
                }
                FileKind::Regular if name.kind == UpperKind::Other => {
                    let readable = place.open && entry.status.mode & OTHERS_READ != 0;
                    let among = member.policy == ResharePolicy::All && shared && readable;
                    let file = Candidate {
                        root: at,
                        path: path.into(),
                        identity: identity(dev, &entry),
                        disk_bytes: entry.status.blocks.saturating_mul(512),
                        among_roots: among,
                    };
                    if let Ok(Bytes::Private) = upper.bytes(&entry)
                        && is_wanted(&file, &entry, filter, skipped)
                        && is_first_name(&entry, &mut linked)
                    {
                        found.push(file);
                    }
                }
                FileKind::Regular
                | FileKind::Symlink
                | FileKind::Fifo
                | FileKind::Socket
                | FileKind::CharDevice
                | FileKind::BlockDevice => {}
            }
        }
    }
    Ok(())
}

fn is_wanted(file: &Candidate, entry: &Entry, filter: &Filter<'_>, skipped: &mut Skipped) -> bool {
    skipped.files += 1;
    if file.identity.size < LEAST_BYTES {
        skipped.small += 1;
        return false;
    }
    if costs_too_much(file.identity.size, file.disk_bytes) {
        skipped.sparse += 1;
        return false;
    }
    // Of one that was copied up with its names these may all be known; who replaces it looks.
    if entry.status.nlink != 1 && entry.origin.is_none() {
        skipped.linked += 1;
        return false;
    }
    if filter.least_age.is_some_and(|least| !is_older(&file.identity, least)) {
        skipped.young += 1;
        return false;
    }
    true
}

/// Whether no other name of the file was seen before.
fn is_first_name(entry: &Entry, linked: &mut HashSet<u64>) -> bool {
    entry.status.nlink == 1 || linked.insert(entry.status.ino)
}

/// Whether files of `entry`, or in it, are opened shared: by the template's path of what was
/// copied up, by the directory of what was born here.
fn in_shared_set(
    tree: &Manifest,
    set: &SharedSet,
    entry: &Entry,
    place: &Place,
) -> Result<bool, ManifestError> {
    match (entry.origin, place.origin) {
        (Some(origin), _) => set.contains(tree, origin),
        (None, Some(parent)) => set.contains(tree, parent),
        (None, None) => Ok(place.shared),
    }
}

fn is_nested(entry: &Entry) -> bool {
    // What cannot be read is left alone.
    inode::xattr_names(&entry.fd).is_ok_and(|names| {
        names.iter().any(|name| NESTED.iter().any(|prefix| name.starts_with(prefix)))
    })
}

fn identity(dev: u64, entry: &Entry) -> Identity {
    let inode::Status { ino, size, mtime, ctime, .. } = entry.status;
    Identity { dev, ino, size, mtime, ctime }
}

fn is_older(identity: &Identity, least: Duration) -> bool {
    let newest = identity.mtime.max(identity.ctime);
    let changed = u64::try_from(newest.0).map(Duration::from_secs).unwrap_or_default();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    now.checked_sub(changed).is_some_and(|age| age >= least)
}

/// Objects that files may be replaced by, those of the sizes that were asked for.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By length in bytes: what templates have, with the 512-byte units of their data.
    pub(super) of_templates: HashMap<u64, HashMap<ObjectId, u64>>,
    /// By length in bytes: what only containers have.
    pub(super) of_roots: HashMap<u64, HashSet<ObjectId>>,
}

impl Known {
    pub(super) fn has_template(&self, size: u64, id: &ObjectId) -> bool {
        self.of_templates.get(&size).is_some_and(|objects| objects.contains_key(id))
    }

    pub(super) fn has_root(&self, size: u64, id: &ObjectId) -> bool {
        self.of_roots.get(&size).is_some_and(|objects| objects.contains(id))
    }

    /// Whether `id` is an object that this file may be replaced by.
    pub(super) fn has_for(&self, file: &Candidate, id: &ObjectId) -> bool {
        let size = file.identity.size;
        self.has_template(size, id) || (file.among_roots && self.has_root(size, id))
    }
}

/// Sorts candidates of one size or beginning into those that may find a partner: an object that
/// `is_known`, or a file of another root.
pub(super) fn with_partner(
    files: Vec<Candidate>,
    is_known: impl Fn(&Candidate) -> bool,
) -> Vec<Candidate> {
    let among: HashSet<usize> =
        files.iter().filter(|file| file.among_roots).map(|file| file.root).collect();
    let partners = among.len() > 1;
    files.into_iter().filter(|file| (partners && file.among_roots) || is_known(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(root: usize, among_roots: bool) -> Candidate {
        let identity = Identity::default();
        Candidate { root, path: b"f"[..].into(), identity, disk_bytes: 0, among_roots }
    }

    #[test]
    fn a_file_needs_an_object_or_a_file_of_another_root() {
        let count = |files, known: bool| with_partner(files, |_| known).len();
        assert_eq!(count(vec![candidate(0, true)], false), 0);
        assert_eq!(count(vec![candidate(0, true), candidate(0, true)], false), 0);
        assert_eq!(count(vec![candidate(0, true), candidate(1, true)], false), 2);
        assert_eq!(count(vec![candidate(0, true), candidate(1, false)], false), 0);
        assert_eq!(count(vec![candidate(0, false)], true), 1);
    }
}
