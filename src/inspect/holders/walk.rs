//! Everything that one private layer holds, with what its files last hashed to.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::InspectError;
use super::super::upper::{Bytes, Entry, Kept, Upper, hides};
use crate::catalog::{Glance, Held, Identity, Kept as Row, Stamp};
use crate::layer::{FileKind, LayerPath, TreeIno};
use crate::object::{Digest, ObjectId, identify};
use crate::sys::inode::{self, Status};
use crate::sys::sparse::costs_too_much;
use crate::union::UnionError;

/// A file that changed this shortly ago may change again without its times telling: the clock
/// they are taken from ticks that slowly.
const SETTLED: Duration = Duration::from_millis(50);

/// What was found in one private layer.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) glance: Glance,
    pub(super) kept: Vec<Row>,
    /// Files that were read and hashed.
    pub(super) hashed: u64,
    /// Files that could not be read.
    pub(super) unreadable: u64,
}

/// Walks `upper`. `known` is what an earlier walk found; with `scan` what is not known any
/// more, or never was, is read and hashed.
pub(super) fn walk(upper: &Upper, known: &[Row], scan: bool) -> Result<Walked, InspectError> {
    let by_inode: HashMap<(u64, u64), &Row> = known
        .iter()
        .filter(|kept| matches!(kept.held, Held::Private(Some(_))))
        .map(|kept| ((kept.identity.dev, kept.identity.ino), kept))
        .collect();
    let dev = device(upper).map_err(|errno| InspectError::upper(&LayerPath::root(), errno))?;
    let mut walk =
        Walk { upper, by_inode, scan, dev, seen: HashMap::new(), done: Walked::default() };
    walk.run()?;
    Ok(walk.done)
}

/// What tells an inode in this state.
pub(super) fn identity(dev: u64, status: &Status) -> Identity {
    let Status { ino, size, mtime, ctime, .. } = *status;
    Identity { dev, ino, size, mtime, ctime }
}

/// The device that the upper directory is on.
pub(super) fn device(upper: &Upper) -> Result<u64, Errno> {
    Ok(rustix::fs::fstat(upper.view().upper())?.st_dev)
}

/// Tells a private layer at rest from itself after it was mounted again: every mount tries
/// `work/`, and so leaves its time there. Nothing if it is gone.
pub(super) fn stamp(private: &std::path::Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = private.as_os_str().as_encoded_bytes().to_vec();
    let found = std::fs::symlink_metadata(private.join("work")).ok()?;
    for number in [found.dev(), found.ino()] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for number in [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    Digest::of(&bytes).as_bytes().first_chunk().copied()
}

struct Walk<'a> {
    upper: &'a Upper,
    by_inode: HashMap<(u64, u64), &'a Row>,
    scan: bool,
    dev: u64,
    /// Files met already, under another name.
    seen: HashMap<u64, Held>,
    done: Walked,
}

/// A directory on the way. A container may make as many as it likes, so few of them are open.
struct Place {
    dir: Kept,
    origin: Option<TreeIno>,
    path: Vec<u8>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), InspectError> {
        let root = self.upper.root()?;
        let origin = root.origin;
        let mut todo = vec![Place { dir: Kept::new(root.fd, 0), origin, path: Vec::new() }];
        while let Some(place) = todo.pop() {
            let fail = |source| InspectError::upper(&path_of(&place.path), source);
            let dir = match place.dir.open(self.upper) {
                Ok(dir) => dir,
                // Removed since its name was read.
                Err(Errno::NOENT | Errno::STALE) => continue,
                Err(errno) => return Err(fail(errno)),
            };
            let names = self.upper.names(&*dir).map_err(fail)?;
            for name in names.iter().filter(|name| !hides(name)) {
                let mut path = place.path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&name.name);
                let entry = match self.open(&dir, place.origin, &name.name) {
                    Ok(Some(entry)) => entry,
                    Ok(None) => continue,
                    // Damage: the root answers EIO here.
                    Err(_) => {
                        self.done.unreadable += 1;
                        continue;
                    }
                };
                match entry.kind {
                    FileKind::Directory => {
                        self.directory(place.origin, &name.name, &entry, &path);
                        let (origin, dir) = (entry.origin, Kept::new(entry.fd, todo.len()));
                        todo.push(Place { dir, origin, path });
                    }
                    FileKind::Regular => self.file(&entry, path),
                    FileKind::Symlink
                    | FileKind::Fifo
                    | FileKind::Socket
                    | FileKind::CharDevice
                    | FileKind::BlockDevice => {}
                }
            }
        }
        Ok(())
    }

    fn open(
        &self,
        dir: &OwnedFd,
        origin: Option<TreeIno>,
        name: &[u8],
    ) -> Result<Option<Entry>, UnionError> {
        match inode::open_path(dir, name) {
            Ok(fd) => self.upper.read(fd, origin, name).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Notes a directory that shows something else than the tree has there.
    fn directory(&mut self, parent: Option<TreeIno>, name: &[u8], entry: &Entry, path: &[u8]) {
        let here: Option<TreeIno> = self.upper.below(parent, name).unwrap_or_default();
        if entry.origin == here {
            return;
        }
        self.done.glance.moved += 1;
        if let Some(origin) = entry.origin {
            let identity = identity(self.dev, &entry.status);
            let held = Held::Moved(origin);
            self.done.kept.push(Row { path: path.to_vec(), identity, held });
        }
    }

    fn file(&mut self, entry: &Entry, path: Vec<u8>) {
        let identity = identity(self.dev, &entry.status);
        let held = match self.seen.get(&identity.ino) {
            Some(held) => *held,
            None => {
                let held = match self.upper.bytes(entry) {
                    Ok(Bytes::Object { id, .. }) => Held::Object(id),
                    Ok(Bytes::Private) => {
                        self.done.glance.files += 1;
                        Held::Private(self.content(entry, identity))
                    }
                    Err(_) => {
                        self.done.unreadable += 1;
                        return;
                    }
                };
                self.seen.insert(identity.ino, held);
                held
            }
        };
        self.done.kept.push(Row { path, identity, held });
    }

    fn content(&mut self, entry: &Entry, identity: Identity) -> Option<ObjectId> {
        if identity.size == 0 {
            return Some(ObjectId::of(b""));
        }
        let before = self.by_inode.get(&(identity.dev, identity.ino));
        if let Some(Row { identity: then, held: Held::Private(Some(content)), .. }) = before
            && *then == identity
        {
            return Some(*content);
        }
        // What is nearly all hole stays unknown, and is counted so.
        let allocated = entry.status.blocks.saturating_mul(512);
        if self.scan && !costs_too_much(identity.size, allocated) {
            match hash(&entry.fd, self.dev) {
                Ok(content) => {
                    self.done.hashed += 1;
                    return content;
                }
                Err(_) => self.done.unreadable += 1,
            }
        }
        let glance = &mut self.done.glance;
        if before.is_some() {
            glance.changed += 1
        } else {
            glance.unhashed += 1
        }
        None
    }
}

/// Hashes a private file; nothing if it changed meanwhile.
fn hash(fd: &OwnedFd, dev: u64) -> io::Result<Option<ObjectId>> {
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK;
    let file = std::fs::File::from(inode::reopen(fd.as_fd(), flags)?);
    // What a mapping wrote gets its time when it is written out.
    file.sync_data()?;
    let before = identity(dev, &inode::status(&file)?);
    settle(&before);
    let content = identify(&file)?;
    let after = identity(dev, &inode::status(&file)?);
    Ok((before == after).then_some(content))
}

/// Waits until a change of this file would show in its times.
fn settle(identity: &Identity) {
    let (seconds, nanos) = identity.ctime;
    let changed = u64::try_from(seconds).map(|seconds| Duration::new(seconds, nanos));
    let since = changed.ok().and_then(|changed| (SystemTime::UNIX_EPOCH + changed).elapsed().ok());
    // A time in the future tells nothing, however long one waits.
    if let Some(left) = since.and_then(|since| SETTLED.checked_sub(since)) {
        std::thread::sleep(left);
    }
}

fn path_of(path: &[u8]) -> LayerPath {
    LayerPath::parse(path).unwrap_or_default()
}
