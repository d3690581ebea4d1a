//! Hard links across copy-up.
//!
//! A tree file with several names is copied up into `index/` under its number: from that
//! moment all its names follow. Then each name is made in the upper directory too, so that
//! other readers of the format see it; a cut in between is finished by the next mount.

use std::os::fd::{AsFd, OwnedFd};
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
use crate::sys::handle::FileHandle;
use crate::sys::inode;

pub(super) fn index_name(ino: TreeIno) -> Vec<u8> {
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
        self.counters.metadata_copy_ups.hit();
        self.make_names(&node, inode)?;
        drop(linking);
        Ok(node)
    }

    /// Enters what an earlier mount left in `index/`, finishing what a cut interrupted.
    ///
    /// What cannot be finished now, on a full disk or for damage, is left for later: the rest of
    /// the root works.
    pub(super) fn finish_links(&self) -> Result<(), UnionError> {
        for entry in read_upper(self.private()?.index())? {
            if let Some(ino) = index_number(&entry.name).filter(|ino| ino.get() <= self.tree.len())
                && let Err(error) = self.finish_link(ino, &entry.name)
            {
                let file = self.describe(NodeId::tree(ino));
                tracing::warn!(%error, ?file, "the names of a hard-linked file are not all made");
                if self.node(NodeId::tree(ino)).is_none() {
                    // What it is now cannot be told, and what it was is not its to show.
                    self.table.write().damaged.insert(ino);
                }
            }
        }
        Ok(())
    }

    fn finish_link(&self, ino: TreeIno, name: &[u8]) -> Result<(), UnionError> {
        let index = self.private()?.index();
        let fd = inode::open_path(index, name)?;
        let complete = inode::xattr(&fd, marks::NAMES_COMPLETE)?.is_some();
        if complete && inode::status(&fd)?.nlink == 1 {
            // Its last name went, and then the power before the entry could.
            return Ok(rustix::fs::unlinkat(index, name, AtFlags::empty())?);
        }
        let node = self.enter_index(fd, &self.tree.inode(ino)?)?;
        self.finish_names(&node)
    }

    /// Makes the names of a hard-linked file that are still missing, or waits for who does.
    pub(super) fn finish_names(&self, node: &Arc<Node>) -> Result<(), UnionError> {
        if !node.names_pending.load(Ordering::Acquire) {
            return Ok(());
        }
        let _linking = self.linking.lock();
        match node.origin() {
            Some(origin) if node.names_pending.load(Ordering::Acquire) => {
                self.make_names(node, &self.tree.inode(origin)?)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn enter_index(&self, fd: OwnedFd, inode: &Inode) -> Result<Arc<Node>, UnionError> {
        let parent = NodeId::tree(inode.parent);
        let found = Found { parent, parent_origin: None, in_shared_set: false, name: b"" };
        if Marks::read(&fd)?.origin.is_none_or(|origin| origin.tree != inode.ino) {
            return Err(UnionError::Mark("trusted.mica.origin"));
        }
        let node = self.adopt(fd, found)?;
        node.names_pending.store(
            inode::xattr(&*self.descriptor(&node)?, marks::NAMES_COMPLETE)?.is_none(),
            Ordering::Release,
        );
        Ok(node)
    }

    /// Whether `index/` answers for tree file `ino` with the host inode of `status`.
    pub(super) fn is_indexed(
        &self,
        ino: TreeIno,
        status: &inode::Status,
    ) -> Result<bool, UnionError> {
        // Not by the tree alone: a layer added since may have taken all names but one.
        if status.nlink < 2 && self.tree.inode(ino)?.nlink < 2 {
            return Ok(false);
        }
        match inode::open_path(self.private()?.index(), &index_name(ino)) {
            Ok(fd) => Ok(inode::status(&fd)?.ino == status.ino),
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
            match keeping_times(&parent_fd, || Ok(inode::link(&fd, &parent_fd, &name)?)) {
                // The host allows no more names: for the rest the tree goes on answering.
                Err(UnionError::Host(Errno::MLINK)) => return Ok(()),
                made => made?,
            }
            self.note(&parent, &mut directory, &name, UpperKind::Other, node.host_ino())?;
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
    pub(super) fn present(&self, ino: TreeIno) -> Result<Option<NodeId>, UnionError> {
        // Up to the first that is known, then down again: no recursion, for a template may be
        // deeper than a stack.
        let (mut at, mut unknown) = (ino, Vec::new());
        let mut found = loop {
            let id = self.number_of(at);
            if at == TreeIno::ROOT {
                break Some(id);
            }
            if self.table.read().removed.contains(&at) {
                break None;
            }
            if self.node(id).is_some() {
                break self.known(at);
            }
            let inode = self.tree.inode(at)?;
            at = inode.parent;
            unknown.push(inode);
        };
        while let Some(inode) = unknown.pop() {
            found = self.present_in(found, &inode)?;
        }
        Ok(found)
    }

    /// [`Union::present`] of `inode`, whose parent in the tree is at `parent`.
    fn present_in(
        &self,
        parent: Option<NodeId>,
        inode: &Inode,
    ) -> Result<Option<NodeId>, UnionError> {
        if let Some(parent) = parent {
            match self.child(parent, self.tree.name(inode)?) {
                Ok(Place::Tree(found)) if found.ino == inode.ino => {
                    return Ok(Some(NodeId::tree(inode.ino)));
                }
                Ok(Place::Private(node)) if node.origin() == Some(inode.ino) => {
                    return Ok(Some(node.id()));
                }
                Ok(_) | Err(UnionError::NoEntry | UnionError::NotDirectory) => {}
                Err(error) => return Err(error),
            }
        }
        // Not at its place: an earlier mount moved or removed it.
        if !self.moved_found.load(Ordering::Acquire) {
            self.find_moved()?;
            self.moved_found.store(true, Ordering::Release);
        }
        Ok(self.known(inode.ino))
    }

    /// The number of tree directory `ino`, if it was copied up and has a name.
    fn known(&self, ino: TreeIno) -> Option<NodeId> {
        let node = self.node(self.number_of(ino))?;
        (!node.is_unlinked() && node.origin() == Some(ino)).then(|| node.id())
    }

    /// Enters every directory of the upper layer that carries a redirect.
    ///
    /// What is still to be searched is kept as handles: a container may make directories as deep
    /// and as many as it likes.
    fn find_moved(&self) -> Result<(), UnionError> {
        let upper = self.private()?.upper();
        let mut left = vec![Unsearched::of(inode::open_path(upper, b".")?)];
        while let Some(dir) = left.pop() {
            let dir = dir.open(upper)?;
            for entry in read_upper(&dir)? {
                if entry.kind != UpperKind::Directory {
                    continue;
                }
                let fd = inode::open_path(&dir, &entry.name)?;
                // One with damaged marks is nobody's origin; who looks it up is told.
                let moved = |marks: Marks| {
                    let redirect = marks.redirect.as_ref();
                    redirect.is_some_and(|to| marks.origin.is_some() || to.starts_with(b"/"))
                };
                if !Marks::read(&fd).is_ok_and(moved) {
                    left.push(Unsearched::of(fd));
                    continue;
                }
                left.push(Unsearched::of(inode::open_path(&fd, b".")?));
                self.adopt_if_sound(fd, &entry.name)?;
            }
        }
        Ok(())
    }

    /// Takes an entry of the upper directory in for what its marks say, wherever it lies. One with
    /// damaged marks is no concern of who searches: it takes no number.
    pub(super) fn adopt_if_sound(&self, fd: OwnedFd, name: &[u8]) -> Result<(), UnionError> {
        let found = Found { parent: NodeId::ROOT, parent_origin: None, in_shared_set: false, name };
        match self.adopt(fd, found) {
            Ok(_) | Err(UnionError::Mark(_)) => Ok(()),
            Err(error) => Err(error),
        }
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

/// A directory of the upper layer that is still to be searched.
pub(super) enum Unsearched {
    Handle(FileHandle),
    /// On a host without handles.
    Open(OwnedFd),
}

impl Unsearched {
    pub(super) fn of(fd: OwnedFd) -> Self {
        match FileHandle::of(&fd) {
            Ok(handle) => Self::Handle(handle),
            Err(_) => Self::Open(fd),
        }
    }

    pub(super) fn open(self, mount: impl AsFd) -> Result<OwnedFd, Errno> {
        match self {
            Self::Handle(handle) => handle.open(mount),
            Self::Open(fd) => Ok(fd),
        }
    }
}
