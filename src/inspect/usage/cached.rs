//! Pages that a mounted root caches for itself, counted without reading a byte of it.
//!
//! Only inodes that the kernel knows can have pages, and `RESOLVE_CACHED` (openat2(2)) tells
//! them apart without asking the mount process. Of those, a file is opened if its reads go
//! through the root's own cache: such an open copies nothing up, registers no backing and
//! keeps the pages as they are. Files that pass through to an object or a private file have
//! their pages there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::super::upper::{Bytes, Entry, Found, Upper};
use crate::layer::{FileKind, Inode, Manifest, TreeIno};
use crate::sys::cache::resident_bytes;
use crate::union::{SharedSet, UnionError};

/// What was counted of one root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Bytes in its own cache.
    pub(super) bytes: u64,
    /// Files that were asked about.
    pub(super) files: u64,
    /// Files that would not be opened.
    pub(super) refused: u64,
}

/// A mounted root, as far as its cache goes.
pub(super) struct Mounted<'a> {
    pub(super) mountpoint: &'a Path,
    pub(super) tree: &'a Manifest,
    /// Its changes; none in a read-only root.
    pub(super) upper: Option<&'a Upper>,
    /// What is opened straight to objects; none where nothing passes through.
    pub(super) shared: Option<&'a SharedSet>,
}

/// A directory on the way: as the root shows it, and what it is made of.
struct Place {
    shown: OwnedFd,
    private: Option<Entry>,
    below: Option<TreeIno>,
}

impl Mounted<'_> {
    /// Counts the pages.
    ///
    /// # Errors
    /// When the mountpoint cannot be opened. What happens to single files counts as refused.
    pub(super) fn count(&self) -> io::Result<Counted> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let shown = openat(CWD, self.mountpoint, flags, Mode::empty())?;
        let private = self.upper.and_then(|upper| upper.root().ok());
        let mut todo = vec![Place { shown, private, below: Some(TreeIno::ROOT) }];
        let mut counted = Counted::default();
        while let Some(place) = todo.pop() {
            for name in self.names(&place) {
                let Some(known) = known(place.shown.as_fd(), &name) else { continue };
                // Damaged entries are not shown, so nothing of them is cached.
                let Ok(found) = self.find(&place, &name) else { continue };
                match found {
                    Found::Absent { .. } => {}
                    Found::Tree(inode) if inode.kind == FileKind::Directory => {
                        todo.push(Place { shown: known, private: None, below: Some(inode.ino) });
                    }
                    Found::Private(entry) if entry.kind == FileKind::Directory => {
                        let below = entry.origin;
                        todo.push(Place { shown: known, private: Some(*entry), below });
                    }
                    Found::Tree(inode) => {
                        if self.caches(&inode, inode.ino) {
                            count_file(place.shown.as_fd(), &name, &mut counted);
                        }
                    }
                    Found::Private(entry) => {
                        if self.caches_private(&entry) {
                            count_file(place.shown.as_fd(), &name, &mut counted);
                        }
                    }
                }
            }
        }
        Ok(counted)
    }

    fn names(&self, place: &Place) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        if let Some(dir) = place.below.and_then(|ino| self.tree.inode(ino).ok()) {
            names.extend(self.tree.entries(&dir).flatten().map(|entry| entry.name.to_vec()));
        }
        if let (Some(upper), Some(private)) = (self.upper, &place.private) {
            let listed = upper.names(&private.fd).unwrap_or_default();
            names.extend(listed.into_iter().map(|entry| entry.name.to_vec()));
            names.sort_unstable();
            names.dedup();
        }
        names
    }

    fn find(&self, place: &Place, name: &[u8]) -> Result<Found, UnionError> {
        let absent = Found::Absent { hidden: None };
        match (self.upper, &place.private, place.below) {
            (Some(upper), Some(private), _) => upper.child(private, name),
            (Some(upper), None, Some(below)) => upper.tree_child(&self.tree.inode(below)?, name),
            (None, _, Some(below)) => {
                let dir = self.tree.inode(below)?;
                match self.tree.lookup(&dir, name)?.and_then(|entry| entry.ino) {
                    Some(ino) => Ok(Found::Tree(self.tree.inode(ino)?)),
                    None => Ok(absent),
                }
            }
            (_, None, None) | (None, Some(_), None) => Ok(absent),
        }
    }

    /// Whether an object that is shown by tree inode `ino` is read through the root's cache.
    fn caches(&self, inode: &Inode, ino: TreeIno) -> bool {
        inode.kind == FileKind::Regular
            && self
                .shared
                .is_none_or(|shared| shared.contains(self.tree, ino).is_ok_and(|shared| !shared))
    }

    /// Whether a private entry is read through the root's cache: its own bytes only where
    /// nothing passes through, an object's as in the tree.
    fn caches_private(&self, entry: &Entry) -> bool {
        if entry.kind != FileKind::Regular {
            return false;
        }
        match self.upper.map(|upper| upper.bytes(entry)) {
            Some(Ok(Bytes::Private)) => self.shared.is_none(),
            Some(Ok(Bytes::Object { .. })) => match (self.shared, entry.origin) {
                (Some(shared), Some(origin)) => {
                    shared.contains(self.tree, origin).is_ok_and(|shared| !shared)
                }
                // Its place decides, which only the mount process knows.
                (Some(_), None) => false,
                (None, _) => true,
            },
            Some(Err(_)) | None => false,
        }
    }
}

/// The inode under a name, if the kernel knows it without asking the mount process.
fn known(dir: BorrowedFd<'_>, name: &[u8]) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(dir, name, flags, Mode::empty(), ResolveFlags::CACHED).ok()
}

fn count_file(dir: BorrowedFd<'_>, name: &[u8], counted: &mut Counted) {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat2(dir, name, flags, Mode::empty(), ResolveFlags::CACHED) {
        Ok(file) => match resident_bytes(file.as_fd()) {
            Ok(bytes) => {
                counted.bytes += bytes;
                counted.files += 1;
            }
            Err(_) => counted.refused += 1,
        },
        // It was forgotten just now: then it has no pages.
        Err(Errno::AGAIN | Errno::NOENT) => {}
        Err(_) => counted.refused += 1,
    }
}
