//! Hard links across copy-up.
//!
//! A tree file with several names is copied up into `index/` under its number: from that
//! moment all its names follow. Then each name is made in the upper directory too, so that
//! other readers of the format see it; a cut in between is finished by the next mount.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::copy_up::keeping_times;
use super::place::Found;
use super::{Node, NodeId, Place, Union, UnionError};
use crate::layer::{FileKind, Inode, TreeIno};
use crate::private::listing::{UpperKind, read_upper};
use crate::private::marks::{self, Marks};
use crate::sys::inode;

fn index_name(ino: TreeIno) -> Vec<u8> {
    format!("{:08x}", ino.get()).into_bytes()
}

fn index_number(name: &[u8]) -> Option<TreeIno> {
    u32::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok().and_then(TreeIno::new)
}

impl Union {
    /// Copies up the metadata of a file with several names, for all of them.
    pub(super) fn own_linked(&self, inode: &Inode) -> Result<Arc<Node>, UnionError> {
        let private = self.private()?;
        let linking = self.linking.lock();
        if let Some(node) = self.node(NodeId::tree(inode.ino)) {
            return Ok(node);
        }
        let staged = private.stage(&self.metadata_copy(inode)?)?;
        let name = index_name(inode.ino);
        let fd = staged.commit(private.index(), &name, RenameFlags::NOREPLACE)?;
        let node = self.enter_index(fd, inode)?;
        self.make_names(&node, inode)?;
        drop(linking);
        Ok(node)
    }

    /// Enters what an earlier mount left in `index/`, finishing what a cut interrupted.
    pub(super) fn finish_links(&self) -> Result<(), UnionError> {
        let private = self.private()?;
        for entry in read_upper(private.index())? {
            let Some(ino) = index_number(&entry.name) else { continue };
            if ino.get() > self.tree.len() {
                continue;
            }
            let inode = self.tree.inode(ino)?;
            let fd = inode::open_path(private.index(), &entry.name)?;
            let status = inode::status(&fd)?;
            let complete = inode::xattr(&fd, marks::NAMES_COMPLETE)?.is_some();
            if complete && status.nlink == 1 {
                // Its last name went, and then the power before the entry could.
                rustix::fs::unlinkat(private.index(), &*entry.name, AtFlags::empty())?;
                continue;
            }
            let node = self.enter_index(fd, &inode)?;
            if !complete {
                self.make_names(&node, &inode)?;
            }
        }
        Ok(())
    }

    fn enter_index(&self, fd: OwnedFd, inode: &Inode) -> Result<Arc<Node>, UnionError> {
        let in_shared_set = self.shared.contains(&self.tree, inode.ino)?;
        let parent = NodeId::tree(inode.parent);
        let found = Found { parent, parent_origin: None, in_shared_set, name: b"" };
        let node = self.adopt(fd, found)?;
        node.names_pending.store(
            inode::xattr(&*self.descriptor(&node)?, marks::NAMES_COMPLETE)?.is_none(),
            Ordering::Release,
        );
        Ok(node)
    }

    /// Whether `index/` answers for tree file `ino` with host inode `host_ino`.
    pub(super) fn is_indexed(&self, ino: TreeIno, host_ino: u64) -> Result<bool, UnionError> {
        if self.tree.inode(ino)?.nlink < 2 {
            return Ok(false);
        }
        match inode::open_path(self.private()?.index(), &index_name(ino)) {
            Ok(fd) => Ok(inode::status(&fd)?.ino == host_ino),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes every name that the tree still shows for `inode` in the upper directory.
    fn make_names(&self, node: &Arc<Node>, inode: &Inode) -> Result<(), UnionError> {
        let fd = self.descriptor(node)?;
        let names: Vec<(TreeIno, Vec<u8>)> =
            self.tree.links(inode.ino)?.map(|(dir, name)| (dir, name.to_vec())).collect();
        for (dir, name) in names {
            let Some(dir) = self.present(dir)? else { continue };
            let parent = self.own_directory(dir)?;
            let mut directory = self.directory(&parent)?;
            if directory.get(&name).is_some() || parent.origin().is_none() {
                continue;
            }
            let parent_fd = self.descriptor(&parent)?;
            keeping_times(&parent_fd, || Ok(inode::link(&fd, &parent_fd, &name)?))?;
            self.note(&parent, &mut directory, &name, UpperKind::Other, node.host_ino)?;
        }
        if inode.kind == FileKind::Regular {
            // Under another name the kernel's overlayfs finds the data by this path.
            self.redirect(node)?;
        }
        marks::set(&fd, marks::NAMES_COMPLETE, b"y")?;
        node.names_pending.store(false, Ordering::Release);
        Ok(())
    }

    /// The number under which tree directory `ino` is in the merged view, if it is.
    fn present(&self, ino: TreeIno) -> Result<Option<NodeId>, UnionError> {
        let id = NodeId::tree(ino);
        if ino == TreeIno::ROOT {
            return Ok(Some(id));
        }
        if let Some(node) = self.node(id) {
            return Ok((!node.is_unlinked() && node.origin() == Some(ino)).then_some(id));
        }
        if self.table.read().removed.contains(&ino) {
            return Ok(None);
        }
        let inode = self.tree.inode(ino)?;
        if let Some(parent) = self.present(inode.parent)? {
            match self.child(parent, self.tree.name(&inode)?) {
                Ok(Place::Tree(found)) if found.ino == ino => return Ok(Some(id)),
                Ok(Place::Private(node)) if node.origin() == Some(ino) => {
                    return Ok(Some(node.id()));
                }
                Ok(_) | Err(UnionError::NoEntry | UnionError::NotDirectory) => {}
                Err(error) => return Err(error),
            }
        }
        // Not at its place: an earlier mount moved or removed it.
        if !self.moved_found.swap(true, Ordering::AcqRel) {
            let upper = inode::open_path(self.private()?.upper(), b".")?;
            self.find_moved(&upper)?;
        }
        let node = self.node(id);
        Ok(node.filter(|node| !node.is_unlinked() && node.origin() == Some(ino)).map(|_| id))
    }

    /// Enters every directory below `dir` that carries a redirect.
    fn find_moved(&self, dir: &OwnedFd) -> Result<(), UnionError> {
        for entry in read_upper(dir)? {
            if entry.kind != UpperKind::Directory {
                continue;
            }
            let fd = inode::open_path(dir, &entry.name)?;
            self.find_moved(&fd)?;
            let marks = Marks::read(&fd)?;
            if marks.redirect.is_some() && marks.origin.is_some() {
                let found = Found {
                    parent: NodeId::ROOT,
                    parent_origin: None,
                    in_shared_set: false,
                    name: &entry.name,
                };
                self.adopt(fd, found)?;
            }
        }
        Ok(())
    }

    /// Removes the index entry of a file whose last name just went.
    pub(super) fn drop_index(&self, node: &Node) -> Result<(), UnionError> {
        if let Some(origin) = node.origin()
            && node.indexed.swap(false, Ordering::AcqRel)
        {
            let name = index_name(origin);
            match rustix::fs::unlinkat(self.private()?.index(), name.as_slice(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}
