//! Apparent bytes: what the files that a tree or a root shows add up to, each inode once.

use std::collections::{HashMap, HashSet};

use super::super::InspectError;
use super::super::upper::{Bytes, Entry, Upper, hides};
use crate::layer::{FileKind, Inode, LayerPath, Manifest, ManifestError, TreeIno};
use crate::sys::inode;
use crate::union::UnionError;

/// Bytes of the regular files that a tree shows.
pub(super) fn tree_bytes(tree: &Manifest) -> Result<u64, ManifestError> {
    let mut bytes = 0_u64;
    for ino in (1..=tree.len()).filter_map(TreeIno::new) {
        let inode = tree.inode(ino)?;
        if inode.kind == FileKind::Regular && !inode.is_hidden() {
            bytes = bytes.saturating_add(inode.size);
        }
    }
    Ok(bytes)
}

/// Bytes of the regular files that a root shows, of whose tree `whole` are shown untouched.
pub(super) fn root_bytes(upper: &Upper, whole: u64) -> Result<u64, InspectError> {
    let mut shown = Shown { tree: upper.tree(), names: HashMap::new(), less: 0, more: 0 };
    let mut private: HashSet<u64> = HashSet::new();
    let mut todo = vec![upper.root()?];
    let fail = |source: UnionError| InspectError::upper(&LayerPath::root(), source);
    while let Some(dir) = todo.pop() {
        let names = upper.names(&dir.fd).map_err(|errno| fail(errno.into()))?;
        for name in names {
            let below = upper.below(dir.origin, &name.name).map_err(fail)?;
            let entry = if hides(&name) { None } else { open(upper, &dir, &name.name) };
            let merged = entry
                .as_ref()
                .filter(|entry| entry.kind == FileKind::Directory)
                .and_then(|entry| entry.origin);
            if below != merged {
                if let Some(below) = below {
                    shown.change(below, -1)?;
                }
                if let Some(merged) = merged {
                    shown.change(merged, 1)?;
                }
            }
            let Some(entry) = entry else { continue };
            if entry.kind == FileKind::Directory {
                todo.push(entry);
            } else if entry.kind == FileKind::Regular && private.insert(entry.status.ino) {
                // Damaged marks: the root answers EIO, so it shows nothing.
                shown.more += match upper.bytes(&entry) {
                    Ok(Bytes::Private) => entry.status.size,
                    Ok(Bytes::Object { size, .. }) => size,
                    Err(_) => 0,
                };
            }
        }
    }
    shown.settle()?;
    Ok(whole.saturating_add(shown.more).saturating_sub(shown.less))
}

/// An entry; none if it went meanwhile, or its marks are damaged.
fn open(upper: &Upper, dir: &Entry, name: &[u8]) -> Option<Entry> {
    let fd = inode::open_path(&dir.fd, name).ok()?;
    upper.read(fd, dir.origin, name).ok()
}

struct Shown<'a> {
    tree: &'a Manifest,
    /// Names of files with several that went (or came, with a moved directory).
    names: HashMap<TreeIno, i64>,
    less: u64,
    more: u64,
}

impl Shown<'_> {
    /// A name of the tree went (-1) or came once more (1), with all that is beneath.
    fn change(&mut self, ino: TreeIno, by: i64) -> Result<(), ManifestError> {
        let mut todo = vec![self.tree.inode(ino)?];
        while let Some(inode) = todo.pop() {
            match inode.kind {
                FileKind::Directory => {
                    for entry in self.tree.entries(&inode) {
                        if let Some(ino) = entry?.ino {
                            todo.push(self.tree.inode(ino)?);
                        }
                    }
                }
                FileKind::Regular => self.file(&inode, by),
                FileKind::Symlink
                | FileKind::Fifo
                | FileKind::Socket
                | FileKind::CharDevice
                | FileKind::BlockDevice => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, inode: &Inode, by: i64) {
        if inode.nlink > 1 {
            *self.names.entry(inode.ino).or_default() += by;
        } else if by < 0 {
            self.less = self.less.saturating_add(inode.size);
        } else {
            self.more = self.more.saturating_add(inode.size);
        }
    }

    /// Files with several names are gone when all of those are.
    fn settle(&mut self) -> Result<(), ManifestError> {
        for (ino, by) in std::mem::take(&mut self.names) {
            let inode = self.tree.inode(ino)?;
            if i64::from(inode.nlink) + by <= 0 {
                self.less = self.less.saturating_add(inode.size);
            }
        }
        Ok(())
    }
}
