//! Copy-up: giving a root its own copy of a shared inode.
//!
//! Metadata alone: an inode with owner, mode, times, attributes and the right size, whose data
//! still lies in the tree (`metacopy`), appears by one rename. If somebody writes to it later
//! the data is copied into that inode, made durable, and put in force by removing the mark. A
//! file that nobody has changed before its first write appears with its data at once, by one
//! rename, and needs no marks. A cut in between leaves the file whole and shared.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use rustix::fs::{OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::node::Pinned;
use super::place::{Child, Found};
use super::{Content, Node, NodeId, ObjectContent, Place, Union, UnionError};
use crate::layer::{FileKind, Inode};
use crate::private::NewInode;
use crate::private::listing::UpperKind;
use crate::private::marks::{self, Filling};
use crate::sys::copy::{Copied, copy_data};
use crate::sys::{durable, inode};

/// File capabilities, which the host drops on every write.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

impl Union {
    /// The private inode of `id`, made by a metadata-only copy-up if it has none.
    ///
    /// # Errors
    /// [`UnionError::ReadOnly`] without a private layer. Nothing half-made stays.
    pub(super) fn own(&self, id: NodeId) -> Result<Arc<Node>, UnionError> {
        self.private()?;
        self.own_place(self.place(id)?)
    }

    /// As [`Union::own`].
    pub(super) fn own_place(&self, place: Place) -> Result<Arc<Node>, UnionError> {
        let inode = match place {
            Place::Private(node) => {
                self.finish_names(&node)?;
                return Ok(node);
            }
            Place::Tree(inode) => inode,
        };
        if self.table.read().removed.contains(&inode.ino) {
            self.own_nameless(&inode)
        } else if inode.kind == FileKind::Directory {
            self.own_directory(NodeId::tree(inode.ino))
        } else if inode.nlink > 1 {
            self.own_linked(&inode)
        } else {
            self.own_named(&inode, &self.own_directory(NodeId::tree(inode.parent))?)
        }
    }

    /// The private directory of `id`, with all that lead to it.
    pub(super) fn own_directory(&self, id: NodeId) -> Result<Arc<Node>, UnionError> {
        self.private()?;
        // Up to the first that is private, then down again: no recursion, for a template may be
        // deeper than a stack.
        let (mut id, mut missing) = (id, Vec::new());
        let mut owned = loop {
            id = id.as_tree().map_or(id, |ino| self.number_of(ino));
            match self.place(id)? {
                Place::Private(node) if node.kind == FileKind::Directory => break node,
                Place::Tree(inode) if inode.kind == FileKind::Directory => {
                    if self.table.read().removed.contains(&inode.ino) {
                        return Err(UnionError::NoEntry);
                    }
                    id = NodeId::tree(inode.parent);
                    missing.push(inode);
                }
                Place::Private(_) | Place::Tree(_) => return Err(UnionError::NotDirectory),
            }
        };
        while let Some(inode) = missing.pop() {
            owned = self.own_named(&inode, &owned)?;
        }
        Ok(owned)
    }

    /// Copies up an inode that has one name in the tree, in place: in `parent`.
    fn own_named(&self, inode: &Inode, parent: &Arc<Node>) -> Result<Arc<Node>, UnionError> {
        let private = self.private()?;
        let name = self.tree.name(inode)?;
        let mut directory = self.directory(parent)?;
        if let Some(node) = self.node(NodeId::tree(inode.ino)) {
            return Ok(node);
        }
        match self.find(parent, &directory, name)? {
            Child::Tree(ino) if ino == inode.ino => {}
            // Somebody removed or replaced the name since the caller saw it.
            Child::Tree(_) | Child::Upper(_) | Child::Absent => {
                drop(directory);
                if inode.kind == FileKind::Directory {
                    return Err(UnionError::NoEntry);
                }
                return self.own_nameless(inode);
            }
        }
        let staged = private.stage(&self.metadata_copy(inode)?)?;
        let status = inode::status(staged.fd())?;
        let parent_fd = self.descriptor(parent)?;
        let fd = keeping_times(&parent_fd, || {
            Ok(staged.commit(&parent_fd, name, RenameFlags::NOREPLACE)?)
        })?;
        let kind = upper_kind(inode.kind);
        self.note(parent, &mut directory, name, kind, status.ino)?;
        self.enter_copy(fd, &status, inode, self.found(parent, name))
    }

    /// Copies up an untouched file with one name, with the first `keep` bytes of its content.
    ///
    /// `None` for any other: its metadata comes first. Durable as [`Union::own_content`] says.
    fn own_whole(&self, id: NodeId, keep: u64) -> Result<Option<Copied>, UnionError> {
        let private = self.private()?;
        let Place::Tree(inode) = self.place(id)? else { return Ok(None) };
        let regular = inode.kind == FileKind::Regular;
        if !regular || inode.nlink > 1 || self.table.read().removed.contains(&inode.ino) {
            return Ok(None);
        }
        let parent = self.own_directory(NodeId::tree(inode.parent))?;
        let name = self.tree.name(&inode)?;
        let object = self.object_of(&inode)?;
        let mut copy = self.metadata_copy(&inode)?;
        copy.xattrs.retain(|(name, _)| name != marks::METACOPY);
        copy.size = 0;
        let mut copied = Copied::Copied { bytes: 0 };
        let fill = |file: BorrowedFd<'_>| {
            copied = self.copy_content(file, &object, keep)?;
            write_out(file, copied)
        };
        // Before the directory is locked: nobody who looks into it waits for a copy.
        let (staged, file) = private.stage_filled(&copy, fill)?;
        let status = inode::status(&file)?;
        let parent_fd = self.descriptor(&parent)?;
        let mut directory = self.directory(&parent)?;
        if self.node(id).is_some() {
            return Ok(None);
        }
        match self.find(&parent, &directory, name)? {
            Child::Tree(ino) if ino == inode.ino => {}
            Child::Tree(_) | Child::Upper(_) | Child::Absent => return Ok(None),
        }
        let fd = keeping_times(&parent_fd, || {
            Ok(staged.commit(&parent_fd, name, RenameFlags::NOREPLACE)?)
        })?;
        self.note(&parent, &mut directory, name, upper_kind(inode.kind), status.ino)?;
        let (origin, ino) = (Some(inode.ino), u64::from(inode.ino.get()));
        let (content, found) = (Content::Private, self.found(&parent, name));
        let node = self.enter(fd, &status, inode.kind, origin, content, ino, found)?;
        drop(directory);
        settle(&node, &file, copied)?;
        Ok(Some(copied))
    }

    /// Copies up what lost its last name and is still open.
    fn own_nameless(&self, inode: &Inode) -> Result<Arc<Node>, UnionError> {
        self.room_for_nameless()?;
        // Found under no name, so nothing but this lock makes it one inode.
        let _linking = self.linking.lock();
        if let Some(node) = self.node(NodeId::tree(inode.ino)) {
            return Ok(node);
        }
        let fd = self.private()?.stage_nameless(&self.metadata_copy(inode)?)?;
        let status = inode::status(&fd)?;
        let parent = NodeId::tree(inode.parent);
        let found = Found { parent, parent_origin: None, in_shared_set: false, name: b"" };
        let node = self.enter_copy(fd, &status, inode, found)?;
        if inode.kind != FileKind::Regular {
            self.depart(&node);
        }
        Ok(node)
    }

    pub(super) fn enter_copy(
        &self,
        fd: OwnedFd,
        status: &inode::Status,
        inode: &Inode,
        found: Found<'_>,
    ) -> Result<Arc<Node>, UnionError> {
        let content = if inode.kind == FileKind::Regular {
            Content::Object(self.object_of(inode)?)
        } else {
            Content::Private
        };
        let ino = u64::from(inode.ino.get());
        self.counters.metadata_copy_ups.hit();
        self.enter(fd, status, inode.kind, Some(inode.ino), content, ino, found)
    }

    /// What a metadata-only copy of a tree inode is made of.
    pub(super) fn metadata_copy(&self, inode: &Inode) -> Result<NewInode<'_>, UnionError> {
        let mut xattrs = Vec::new();
        for xattr in self.tree.xattrs(inode)? {
            let (name, value) = xattr?;
            xattrs.push((marks::escape(name), value.to_vec()));
        }
        xattrs.push((marks::ORIGIN.to_vec(), self.origins().mark(inode.ino)?.encode()));
        if inode.kind == FileKind::Regular {
            xattrs.push((marks::METACOPY.to_vec(), Vec::new()));
        }
        let target =
            if inode.kind == FileKind::Symlink { self.tree.symlink_target(inode)? } else { b"" };
        Ok(NewInode {
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            target,
            size: if inode.kind == FileKind::Regular { inode.size } else { 0 },
            mtime: Some((inode.mtime.secs, inode.mtime.nanos)),
            atime: None,
            xattrs,
        })
    }

    /// Makes the content of `id` private, keeping its first `keep` bytes.
    ///
    /// What was copied is durable on return, and so is that it is the content now. Nothing is
    /// durable when nothing was copied (`keep` 0, or a reflink): a cut leaves the file shared until
    /// the first [`Union::sync`]. Readers are not held up. Returns what was copied; `None` if the
    /// content was private already.
    ///
    /// # Errors
    /// The host's errno, `ENOSPC` above all: then the file is shared as before.
    pub fn own_content(&self, id: NodeId, keep: u64) -> Result<Option<Copied>, UnionError> {
        if let Some(copied) = self.own_whole(id, keep)? {
            return Ok(Some(copied));
        }
        let node = self.own(id)?;
        let _copying: MutexGuard<'_, ()> = node.copying.lock();
        let Content::Object(object) = node.content() else { return Ok(None) };
        let fd = self.descriptor(&node)?;
        let file = inode::reopen(&fd, OFlags::RDWR)?;
        let copied = self.fill(&file, &object, keep)?;
        marks::clear(&fd, marks::METACOPY)?;
        *node.content.write() = Content::Private;
        node.reshaped();
        // No longer read once the first is gone; kept out of the way of other tools.
        for mark in [marks::REDIRECT, marks::OBJECT, marks::FILLING] {
            marks::clear(&fd, mark)?;
        }
        settle(&node, &file, copied)?;
        Ok(Some(copied))
    }

    /// Copies the content into the private file, which goes on being a metadata-only copy. The
    /// data is on the disk on return.
    ///
    /// Writing content moves the time and takes the capabilities away; a mark keeps both until
    /// the content is in force, so that a cut or a full disk changes nothing.
    fn fill(
        &self,
        file: &OwnedFd,
        object: &ObjectContent,
        keep: u64,
    ) -> Result<Copied, UnionError> {
        if keep == 0 {
            rustix::fs::ftruncate(file, 0)?;
            return Ok(Copied::Copied { bytes: 0 });
        }
        let before = inode::status(file)?;
        let capability = inode::xattr(file, CAPABILITY)?.unwrap_or_default();
        let filling = Filling { size: object.size, mtime: before.mtime, capability };
        match marks::set(file, marks::FILLING, &filling.encode()) {
            // Only the attributes of this one inode may be full; a cut then moves its time.
            Ok(()) | Err(Errno::NOSPC) => {}
            Err(errno) => return Err(errno.into()),
        }
        let copy = || -> Result<Copied, UnionError> {
            let copied = self.copy_content(file.as_fd(), object, keep)?;
            if keep >= object.size {
                restore_capability(file, &filling)?;
            }
            let (atime, mtime) = (inode::timespec(before.atime), inode::timespec(before.mtime));
            inode::set_times(file, atime, mtime)?;
            write_out(file.as_fd(), copied)?;
            Ok(copied)
        };
        let copied = copy();
        if copied.is_err()
            && let Err(errno) = unfill(file, &filling)
        {
            tracing::warn!(%errno, "an unfinished copy-up is undone by the next mount");
        }
        copied
    }

    /// Writes the first `keep` bytes of an object into an empty private file.
    fn copy_content(
        &self,
        file: BorrowedFd<'_>,
        object: &ObjectContent,
        keep: u64,
    ) -> Result<Copied, UnionError> {
        if keep == 0 {
            return Ok(Copied::Copied { bytes: 0 });
        }
        let source = self.open_object(object)?;
        Ok(copy_data(source.as_fd(), file, keep.min(object.size)).map_err(errno)?)
    }

    /// Undoes a copy-up that a cut interrupted, or forgets about one that it did not.
    pub(super) fn finish_filling(&self, node: &Node) -> Result<(), UnionError> {
        // Whoever has this copies the content up at this moment: no cut came between.
        let Some(_copying) = node.copying.try_lock() else { return Ok(()) };
        let fd = self.descriptor(node)?;
        // Read again: another copy-up may have come and gone since the mark was seen.
        let Some(filling) = inode::xattr(&fd, marks::FILLING)? else { return Ok(()) };
        if node.content() == Content::Private {
            return Ok(marks::clear(&fd, marks::FILLING)?);
        }
        let filling = Filling::decode(&filling).ok_or(UnionError::Mark("trusted.mica.filling"))?;
        Ok(unfill(&inode::reopen(&fd, OFlags::RDWR)?, &filling)?)
    }

    /// Waits for a copy of content into `node`, which sets times and capabilities back when it is
    /// done: whoever changes those must not come before that.
    pub(super) fn await_copy<'a>(&self, node: &'a Node) -> Option<MutexGuard<'a, ()>> {
        matches!(node.content(), Content::Object(_)).then(|| node.copying.lock())
    }

    /// Prepares an inode for standing under another name.
    ///
    /// A metadata-only copy and a merged directory get the path under which the tree has
    /// them, for the kernel's overlayfs; Mica itself goes by the origin mark. A directory
    /// born here must not merge with what the tree has under the new name.
    pub(super) fn redirect(&self, node: &Node) -> Result<(), UnionError> {
        let Some(origin) = node.origin() else {
            if node.kind == FileKind::Directory {
                marks::set(&*self.descriptor(node)?, marks::OPAQUE, b"y")?;
            }
            return Ok(());
        };
        let shared = matches!(node.content(), Content::Object(_));
        if node.kind != FileKind::Directory && !shared {
            return Ok(());
        }
        let path = self.tree.path(&self.tree.inode(origin)?)?;
        let fd = self.descriptor(node)?;
        if inode::xattr(&fd, marks::OBJECT)?.is_none() {
            marks::set(&fd, marks::REDIRECT, &[b"/".as_slice(), &path].concat())?;
        }
        Ok(())
    }

    /// Gives the root directory of a new private layer the metadata of the tree's.
    pub(super) fn dress_root(&self, fd: &OwnedFd) -> Result<(), UnionError> {
        let root = self.tree.root()?;
        let copy = self.metadata_copy(&root)?;
        inode::set_owner(fd, Some(copy.uid), Some(copy.gid))?;
        inode::set_mode(fd, copy.mode)?;
        for (name, value) in &copy.xattrs {
            inode::set_xattr(fd, name, value, XattrFlags::empty())?;
        }
        if let Some(mtime) = copy.mtime {
            inode::set_times(fd, inode::timespec(mtime), inode::timespec(mtime))?;
        }
        Ok(())
    }

    /// Tells whether one more inode may be kept without a name.
    ///
    /// # Errors
    /// `EMFILE`: each takes a descriptor of this process, which needs some for everything else.
    pub(super) fn room_for_nameless(&self) -> Result<(), UnionError> {
        let kept = self.nameless.load(Ordering::Relaxed);
        if kept < self.nameless_limit.get() { Ok(()) } else { Err(Errno::MFILE.into()) }
    }

    /// Notes that a private inode lost its last name; it lives while it is open.
    pub(super) fn unlinked(&self, node: &Arc<Node>, fd: Arc<OwnedFd>) {
        *node.pinned.lock() = Some(Pinned::nameless(fd, &self.nameless));
        node.unlinked.store(true, Ordering::Release);
        self.descriptors.lock().pop(&node.serial());
        self.table.write().by_host.remove(&node.host_ino());
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Whether there is data that only the host's memory may have yet.
fn was_written(copied: Copied) -> bool {
    matches!(copied, Copied::Copied { bytes: 1.. })
}

/// Brings to the disk what was copied, before anything says that it is the content.
fn write_out(file: BorrowedFd<'_>, copied: Copied) -> Result<(), UnionError> {
    if was_written(copied) {
        durable::write_out(file).map_err(errno)?;
    }
    Ok(())
}

/// Makes durable that what was copied is the content of `node`.
///
/// One commit for the data and the name or mark that says so. It cannot wait for a later
/// fdatasync: msync(2) and RWF_DSYNC on a passthrough file sync data in the kernel, unseen.
fn settle(node: &Node, file: &OwnedFd, copied: Copied) -> Result<(), UnionError> {
    if was_written(copied) {
        node.settle(|| Ok(rustix::fs::fsync(file)?))?;
    }
    Ok(())
}

/// Makes a half-filled file the hole it was, and gives back the room it took.
pub(super) fn unfill(file: &OwnedFd, filling: &Filling) -> Result<(), Errno> {
    rustix::fs::ftruncate(file, 0)?;
    rustix::fs::ftruncate(file, filling.size)?;
    restore_capability(file, filling)?;
    inode::set_times(file, inode::OMIT, inode::timespec(filling.mtime))?;
    marks::clear(file, marks::FILLING)
}

fn restore_capability(file: &OwnedFd, filling: &Filling) -> Result<(), Errno> {
    if filling.capability.is_empty() {
        return Ok(());
    }
    inode::set_xattr(file, CAPABILITY, &filling.capability, XattrFlags::empty())
}

/// What listings of upper directories call an inode type.
pub(super) fn upper_kind(kind: FileKind) -> UpperKind {
    if kind == FileKind::Directory { UpperKind::Directory } else { UpperKind::Other }
}

/// Runs `change` in a directory and sets its times back: a copy-up changes nothing that
/// anybody may see.
pub(super) fn keeping_times<T>(
    dir: &OwnedFd,
    change: impl FnOnce() -> Result<T, UnionError>,
) -> Result<T, UnionError> {
    let before = inode::status(dir)?;
    let done = change()?;
    inode::set_times(dir, inode::timespec(before.atime), inode::timespec(before.mtime))?;
    Ok(done)
}
