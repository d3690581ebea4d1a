//! unlink(2) and rmdir(2): a whiteout where the tree has the name, nothing where it has not.

use std::sync::Arc;

use rustix::fs::AtFlags;

use super::node::Directory;
use super::place::Child;
use super::{Node, NodeId, Place, Union, UnionError};
use crate::layer::FileKind;
use crate::private::listing::UpperKind;
use crate::private::{self, marks};
use crate::sys::inode;

/// What a removal removed.
#[derive(Clone, Copy, Debug)]
pub struct Removed {
    /// The inode that lost a name.
    pub id: NodeId,
    /// That was its last name.
    pub last: bool,
}

impl Union {
    /// Removes the name of something that is no directory.
    ///
    /// # Errors
    /// [`UnionError::NoEntry`], [`UnionError::IsDirectory`].
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<Removed, UnionError> {
        let private = self.private()?;
        self.own_if_linked(parent, name)?;
        let parent = self.own_directory(parent)?;
        let parent_fd = self.descriptor(&parent)?;
        let mut directory = self.directory(&parent)?;
        match self.find(&parent, &directory, name)? {
            Child::Absent => Err(UnionError::NoEntry),
            Child::Tree(ino) => {
                if self.tree.inode(ino)?.kind == FileKind::Directory {
                    return Err(UnionError::IsDirectory);
                }
                private.whiteout(&parent_fd, name)?;
                self.note(&parent, &mut directory, name, UpperKind::Whiteout, 0)?;
                self.table.write().removed.insert(ino);
                Ok(Removed { id: NodeId::tree(ino), last: true })
            }
            Child::Upper(upper) => {
                if upper.kind == UpperKind::Directory {
                    return Err(UnionError::IsDirectory);
                }
                self.room_for_nameless()?;
                let node = self.upper_node(&parent, upper, self.found(&parent, name))?;
                let fd = self.descriptor(&node)?;
                if self.below(&parent, name)?.is_some() {
                    private.replace_with_whiteout(&parent_fd, name, false)?;
                    self.note(&parent, &mut directory, name, UpperKind::Whiteout, 0)?;
                } else {
                    rustix::fs::unlinkat(&parent_fd, name, AtFlags::empty())?;
                    directory.remove(name);
                }
                drop(directory);
                node.uncalled(parent.id(), name);
                self.lost_name(&node, fd)
            }
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`UnionError::NoEntry`], [`UnionError::NotDirectory`], [`UnionError::NotEmpty`].
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<Removed, UnionError> {
        let private = self.private()?;
        let parent = self.own_directory(parent)?;
        let parent_fd = self.descriptor(&parent)?;
        let _pairs = self.pairs.lock();
        let mut directory = self.directory(&parent)?;
        match self.find(&parent, &directory, name)? {
            Child::Absent => Err(UnionError::NoEntry),
            Child::Tree(ino) => {
                let inode = self.tree.inode(ino)?;
                if inode.kind != FileKind::Directory {
                    return Err(UnionError::NotDirectory);
                }
                if self.tree.entry_count(&inode) > 0 {
                    return Err(UnionError::NotEmpty);
                }
                private.whiteout(&parent_fd, name)?;
                self.note(&parent, &mut directory, name, UpperKind::Whiteout, 0)?;
                self.table.write().removed.insert(ino);
                Ok(Removed { id: NodeId::tree(ino), last: true })
            }
            Child::Upper(upper) => {
                if upper.kind != UpperKind::Directory {
                    return Err(UnionError::NotDirectory);
                }
                self.room_for_nameless()?;
                let node = self.upper_node(&parent, upper, self.found(&parent, name))?;
                let fd = self.descriptor(&node)?;
                self.empty_out(&node)?;
                if self.below(&parent, name)?.is_some() {
                    private.replace_with_whiteout(&parent_fd, name, true)?;
                    self.note(&parent, &mut directory, name, UpperKind::Whiteout, 0)?;
                } else {
                    rustix::fs::unlinkat(&parent_fd, name, AtFlags::REMOVEDIR)?;
                    directory.remove(name);
                }
                drop(directory);
                self.unlinked(&node, fd);
                if node.id().as_tree().is_some() {
                    self.depart(&node);
                }
                Ok(Removed { id: node.id(), last: true })
            }
        }
    }

    /// Copies up a tree file with several names before one of them goes, so that the others
    /// count right and keep their inode.
    pub(super) fn own_if_linked(&self, parent: NodeId, name: &[u8]) -> Result<(), UnionError> {
        match self.child(parent, name)? {
            Place::Tree(inode) if inode.nlink < 2 || inode.kind == FileKind::Directory => Ok(()),
            place @ (Place::Tree(_) | Place::Private(_)) => self.own_place(place).map(drop),
        }
    }

    /// Brings the bookkeeping of a file up to date after one of its names went.
    pub(super) fn lost_name(
        &self,
        node: &Arc<Node>,
        fd: Arc<std::os::fd::OwnedFd>,
    ) -> Result<Removed, UnionError> {
        let left = inode::status(&fd)?.nlink;
        let indexed = node.indexed.load(std::sync::atomic::Ordering::Acquire);
        let last = left == u32::from(indexed);
        if last {
            self.drop_index(node)?;
            self.unlinked(node, fd);
        }
        Ok(Removed { id: node.id(), last })
    }

    /// Makes an empty merged directory empty on the host too.
    ///
    /// It is made opaque first, so at every moment it shows the same nothing.
    pub(super) fn empty_out(&self, node: &Node) -> Result<(), UnionError> {
        let mut names = self.directory(node)?;
        self.check_empty(node, &names)?;
        if names.is_empty() {
            return Ok(());
        }
        let fd = self.descriptor(node)?;
        marks::set(&fd, marks::OPAQUE, b"y")?;
        node.origin.store(0, std::sync::atomic::Ordering::Release);
        private::empty(&*fd)?;
        *names = Directory::default();
        Ok(())
    }

    fn check_empty(&self, node: &Node, names: &Directory) -> Result<(), UnionError> {
        if !names.has_only_whiteouts() {
            return Err(UnionError::NotEmpty);
        }
        if let Some(origin) = node.origin() {
            let dir = self.tree.inode(origin)?;
            for index in 0..self.tree.entry_count(&dir) {
                let Some(entry) = self.tree.entry(&dir, index)? else { break };
                if names.get(entry.name).is_none() {
                    return Err(UnionError::NotEmpty);
                }
            }
        }
        Ok(())
    }
}
