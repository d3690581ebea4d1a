//! Back to the template: what a container changed is dropped.
//!
//! Each step is one rename or removal, so a cut leaves some names reverted and the others as
//! they were; doing it again does the rest. What is done is durable when it returns. On a mounted
//! root a file comes back as a metadata-only copy of the template's: another inode than the one that
//! goes, as after a rename over it, so who has that open keeps what it has. How each comes back:
//! `restore.rs`.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::upper::is_placed;
use super::{Node, NodeId, Place, Removed, Union, UnionError};
use crate::layer::{FileKind, Inode, LayerPath, TreeIno};
use crate::private::listing::UpperKind;
use crate::private::marks::{self, Marks};
use crate::sys::inode;

/// What others must be told of a revert.
#[derive(Default)]
pub struct Reverted {
    /// Names that stand for something else now.
    pub names: Vec<(NodeId, Vec<u8>)>,
    /// Inodes whose metadata changed.
    pub attributes: Vec<NodeId>,
    /// Inodes that lost a name.
    pub removed: Vec<Removed>,
}

/// A directory that stands where the template has it.
struct Merged {
    node: Arc<Node>,
    origin: TreeIno,
}

/// A name whose file in the template a whiteout hides.
pub(super) struct Hidden {
    pub(super) parent: Arc<Node>,
    pub(super) name: Vec<u8>,
    pub(super) inode: Inode,
}

impl Union {
    /// Drops what the private layer has at `path` and below; `live` while the kernel may know
    /// what goes. Calls `told` after each name, also when a later one fails. Durable on return.
    ///
    /// # Errors
    /// [`UnionError::ReadOnly`]; [`UnionError::StillThere`]; the host's errno.
    pub fn revert(
        &self,
        path: &LayerPath,
        live: bool,
        told: &mut dyn FnMut(Reverted),
    ) -> Result<(), UnionError> {
        let mut touched = BTreeSet::new();
        let done = self.revert_path(path, live, &mut |reverted| {
            touched.extend(reverted.names.iter().map(|(dir, _)| *dir));
            touched.extend(&reverted.attributes);
            told(reverted);
        });
        let synced = touched.into_iter().try_for_each(|id| match self.place(id) {
            Ok(Place::Private(node)) if node.kind == FileKind::Directory => {
                match self.sync(&node, false) {
                    // Removed itself since.
                    Err(UnionError::Stale | UnionError::NoEntry) => Ok(()),
                    synced => synced,
                }
            }
            Ok(_) | Err(UnionError::Stale | UnionError::NoEntry) => Ok(()),
            Err(error) => Err(error),
        });
        done.and(synced)
    }

    fn revert_path(
        &self,
        path: &LayerPath,
        live: bool,
        told: &mut dyn FnMut(Reverted),
    ) -> Result<(), UnionError> {
        self.private()?;
        if !live {
            // A mounted root knows already whose numbers are taken.
            self.find_copies()?;
        }
        let mut hidden = Vec::new();
        let Some((last, parents)) = path.names().split_last() else {
            let Place::Private(node) = self.place(NodeId::ROOT)? else { return Ok(()) };
            let top = Merged { node, origin: TreeIno::ROOT };
            return self.revert_merged(top, live, hidden, told);
        };
        let mut parent = NodeId::ROOT;
        for name in parents {
            parent = match self.child(parent, name.as_bytes()) {
                Ok(Place::Private(node)) if node.kind == FileKind::Directory => node.id(),
                // Nothing below it is private.
                Ok(_) | Err(UnionError::NoEntry) => return Ok(()),
                Err(error) => return Err(error),
            };
        }
        let Place::Private(parent) = self.place(parent)? else { return Ok(()) };
        match self.revert_name(&parent, last.as_bytes(), live, &mut hidden, told)? {
            Some(merged) => self.revert_merged(merged, live, hidden, told),
            None => self.revive_all(hidden, live, told),
        }
    }

    /// Reverts everything in a directory, then its own metadata, which the rest has changed.
    fn revert_merged(
        &self,
        top: Merged,
        live: bool,
        mut hidden: Vec<Hidden>,
        told: &mut dyn FnMut(Reverted),
    ) -> Result<(), UnionError> {
        let (mut left, mut done) = (vec![top], Vec::new());
        while let Some(merged) = left.pop() {
            let names: Vec<Vec<u8>> =
                self.directory(&merged.node)?.from(0).map(|(name, _)| name.to_vec()).collect();
            for name in names {
                left.extend(self.revert_name(&merged.node, &name, live, &mut hidden, told)?);
            }
            done.push(merged);
        }
        // Once nothing stands for a moved directory any more, it comes back as itself.
        self.revive_all(hidden, live, told)?;
        for merged in done.into_iter().rev() {
            self.reset_metadata(&merged)?;
            let attributes = vec![merged.node.id()];
            told(Reverted { attributes, ..Reverted::default() });
        }
        Ok(())
    }

    /// Reverts one name. A directory that stands where the template has it is returned instead.
    fn revert_name(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        live: bool,
        hidden: &mut Vec<Hidden>,
        told: &mut dyn FnMut(Reverted),
    ) -> Result<Option<Merged>, UnionError> {
        let below = match self.below(parent, name)? {
            Some((ino, _)) => Some(self.tree.inode(ino)?),
            None => None,
        };
        let Some(upper) = self.directory(parent)?.get(name) else { return Ok(None) };
        if let Some(inode) = below
            && inode.kind != FileKind::Directory
            && inode.nlink > 1
        {
            if upper.kind == UpperKind::Directory {
                let node = self.upper_node(parent, upper, self.found(parent, name))?;
                self.remove_all(parent, name, &node, told)?;
            }
            self.relink(parent, name, &inode, live, told)?;
            return Ok(None);
        }
        let mut reverted = Reverted::default();
        if upper.kind != UpperKind::Whiteout {
            let node = self.upper_node(parent, upper, self.found(parent, name))?;
            match below {
                Some(inode)
                    if node.kind == FileKind::Directory && node.origin() == Some(inode.ino) =>
                {
                    return Ok(Some(Merged { node, origin: inode.ino }));
                }
                Some(inode)
                    if node.kind != FileKind::Directory && inode.kind != FileKind::Directory =>
                {
                    reverted.removed.push(self.put_back(parent, name, &inode, &node, live)?);
                    reverted.names.push((parent.id(), name.to_vec()));
                    told(reverted);
                    return Ok(None);
                }
                // Something is mounted there while the container runs.
                None if self.is_unused_place(&node)? => return Ok(None),
                Some(_) | None if node.kind == FileKind::Directory => {
                    self.remove_all(parent, name, &node, told)?;
                }
                Some(_) | None => reverted.removed.push(self.unlink(parent.id(), name)?),
            }
        }
        if let Some(inode) = below {
            hidden.push(Hidden { parent: Arc::clone(parent), name: name.to_vec(), inode });
        } else if upper.kind == UpperKind::Whiteout {
            self.drop_whiteout(parent, name)?;
        }
        reverted.names.push((parent.id(), name.to_vec()));
        told(reverted);
        Ok(None)
    }

    /// Whether a node is a place for a mount and nothing more.
    fn is_unused_place(&self, node: &Arc<Node>) -> Result<bool, UnionError> {
        let fd = self.descriptor(node)?;
        let placed = is_placed(&Marks::read(&fd)?, &inode::status(&fd)?);
        let unused = || Ok::<_, UnionError>(crate::private::listing::read_upper(&*fd)?.is_empty());
        Ok(placed && (node.kind != FileKind::Directory || unused()?))
    }

    fn revive_all(
        &self,
        hidden: Vec<Hidden>,
        live: bool,
        told: &mut dyn FnMut(Reverted),
    ) -> Result<(), UnionError> {
        for hidden in hidden {
            let mut names = self.revive(&hidden, live)?;
            let attributes = vec![self.number_of(hidden.inode.ino)];
            names.push((hidden.parent.id(), hidden.name));
            told(Reverted { names, attributes, ..Reverted::default() });
        }
        Ok(())
    }

    /// Removes a directory that is not the template's, and all in it.
    ///
    /// What it shows of the tree goes first, in one step.
    fn remove_all(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        top: &Arc<Node>,
        told: &mut dyn FnMut(Reverted),
    ) -> Result<(), UnionError> {
        let mut left = vec![(Arc::clone(parent), name.to_vec(), Arc::clone(top))];
        let mut found = Vec::new();
        while let Some((above, name, dir)) = left.pop() {
            let fd = self.descriptor(&dir)?;
            let names: Vec<(Vec<u8>, UpperKind)> = {
                let names = self.directory(&dir)?;
                if dir.origin().is_some() {
                    marks::set(&fd, marks::OPAQUE, b"y")?;
                    dir.origin.store(0, std::sync::atomic::Ordering::Release);
                }
                let all = crate::private::listing::read_upper(&*fd)?;
                drop(names);
                all.into_iter().map(|entry| (entry.name.into_vec(), entry.kind)).collect()
            };
            for (name, kind) in names {
                match kind {
                    UpperKind::Whiteout => self.drop_whiteout(&dir, &name)?,
                    UpperKind::Directory => {
                        let Some(upper) = self.directory(&dir)?.get(&name) else { continue };
                        let child = self.upper_node(&dir, upper, self.found(&dir, &name))?;
                        left.push((Arc::clone(&dir), name, child));
                    }
                    UpperKind::Other => {
                        let removed = vec![self.unlink(dir.id(), &name)?];
                        let names = vec![(dir.id(), name)];
                        told(Reverted { removed, names, ..Reverted::default() });
                    }
                }
            }
            found.push((above, name));
        }
        for (above, name) in found.into_iter().rev() {
            self.rmdir(above.id(), &name)?;
            told(Reverted { names: vec![(above.id(), name)], ..Reverted::default() });
        }
        Ok(())
    }

    /// Gives a directory the metadata that the template has for it.
    fn reset_metadata(&self, merged: &Merged) -> Result<(), UnionError> {
        let tree = self.tree.inode(merged.origin)?;
        let fd: Arc<OwnedFd> = self.descriptor(&merged.node)?;
        // A copy-up in this directory sets its times back.
        let _names = self.directory(&merged.node)?;
        let copy = self.metadata_copy(&tree)?;
        inode::set_owner(&fd, Some(tree.uid), Some(tree.gid))?;
        inode::set_mode(&fd, tree.mode)?;
        for name in inode::xattr_names(&fd)? {
            let mark = marks::unescape(&name).is_none();
            if !mark && !copy.xattrs.iter().any(|(known, _)| *known == name) {
                match inode::remove_xattr(&fd, &name) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        for (name, value) in &copy.xattrs {
            inode::set_xattr(&fd, name, value, rustix::fs::XattrFlags::empty())?;
        }
        let mtime = inode::timespec((tree.mtime.secs, tree.mtime.nanos));
        Ok(inode::set_times(&fd, inode::OMIT, mtime)?)
    }
}
