//! The way back from a copy-up: a private file whose content is an object becomes a reference
//! to that object.
//!
//! The reference is another host inode, made whole in `work/` with all that the file shows, and
//! put in its place by one rename; who has the file open keeps the old inode, which is never
//! touched. Its number, name and metadata stay. Nothing here proves that nobody writes: the
//! caller holds the lease and everything back that changes the root.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::RenameFlags;

use super::copy_up::keeping_times;
use super::node::{HostInode, Pinned};
use super::{Content, Node, NodeId, ObjectContent, Place, Union, UnionError};
use crate::layer::{FileKind, LayerPath, TreeIno};
use crate::object::ObjectId;
use crate::private::NewInode;
use crate::private::listing::UpperKind;
use crate::private::marks::{self, ObjectMark};
use crate::private::refs::Reference;
use crate::sys::handle::FileHandle;
use crate::sys::inode::{self, Status};
use crate::sys::lease::ReadLease;

/// Why a private file was not replaced by a reference. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReferError {
    /// The name stands for something else, or the file has other content by now.
    #[error("it was changed or replaced meanwhile")]
    Changed,
    /// Somebody writes to it, or would no longer see what others write.
    #[error("it is in use")]
    InUse,
    /// It has several names, not all of which are known.
    #[error("it has several names, not all of which are known")]
    Linked,
    /// The merged view, the store or the host.
    #[error(transparent)]
    Union(#[from] UnionError),
}

impl From<rustix::io::Errno> for ReferError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Union(errno.into())
    }
}

/// A private file and the name it was found under.
pub struct PrivatePlace {
    parent: Arc<Node>,
    name: Vec<u8>,
    /// The file.
    pub node: Arc<Node>,
    /// Numbers that were looked up on the way.
    on_the_way: Vec<NodeId>,
}

/// Marks that a reference gets anew, or that none has.
const OWN_MARKS: [&[u8]; 5] =
    [marks::METACOPY, marks::OBJECT, marks::REDIRECT, marks::INO, marks::FILLING];

impl Union {
    /// Finds the private file at `path`; follows no symlink.
    ///
    /// # Errors
    /// [`ReferError::Changed`] if none is there.
    pub fn private_place(&self, path: &LayerPath) -> Result<PrivatePlace, ReferError> {
        let (name, parents) = path.names().split_last().ok_or(ReferError::Changed)?;
        let (mut at, mut on_the_way) = (NodeId::ROOT, Vec::new());
        let step = |at, name: &[u8]| match self.child(at, name) {
            Ok(Place::Private(node)) => Ok(node),
            Ok(Place::Tree(_)) | Err(UnionError::NoEntry | UnionError::NotDirectory) => {
                Err(ReferError::Changed)
            }
            Err(error) => Err(error.into()),
        };
        for name in parents {
            at = step(at, name.as_bytes())?.id();
            on_the_way.push(at);
        }
        let Place::Private(parent) = self.place(at)? else { return Err(ReferError::Changed) };
        let node = step(at, name.as_bytes())?;
        Ok(PrivatePlace { parent, name: name.as_bytes().to_vec(), node, on_the_way })
    }

    /// Lets go of what was looked up on the way to `place` and nobody else knows.
    pub fn leave(&self, place: &PrivatePlace) {
        for id in place.on_the_way.iter().rev() {
            // None of them was ever renumbered: only files are.
            self.forget(*id, 0);
        }
    }

    /// Every number whose content is one of `objects`.
    ///
    /// # Errors
    /// Those of a damaged tree.
    pub fn holders_of(&self, objects: &HashSet<ObjectId>) -> Result<Vec<NodeId>, UnionError> {
        let mut holders = Vec::new();
        for ino in (1..=self.tree.len()).filter_map(TreeIno::new) {
            let inode = self.tree.inode(ino)?;
            let object =
                if inode.kind == FileKind::Regular { self.tree.object(&inode)? } else { None };
            if object.is_some_and(|object| objects.contains(&object)) {
                holders.push(NodeId::tree(ino));
            }
        }
        // What was looked at is not to stay in memory.
        if let Err(error) = self.tree.let_go() {
            tracing::debug!(%error, "the tree's pages stay mapped");
        }
        let table = self.table.read();
        let holds = |object: &ObjectContent| objects.contains(&object.id);
        for (id, node) in &table.nodes {
            if matches!(node.content(), Content::Object(object) if holds(&object)) {
                holders.push(*id);
            }
        }
        holders.extend(
            table.superseded.iter().filter(|(_, old)| holds(&old.object)).map(|(id, _)| *id),
        );
        Ok(holders)
    }

    /// As [`PrivateLayer::tidy_references`](crate::private::PrivateLayer::tidy_references).
    ///
    /// # Errors
    /// The host's errno.
    pub fn tidy_references(
        &self,
        patience: Duration,
    ) -> Result<Option<HashSet<ObjectId>>, UnionError> {
        let Some(private) = &self.private else { return Ok(None) };
        Ok(private.tidy_references(patience)?)
    }

    /// The reference that [`Union::refer`] will make of the file at `place`, for the log.
    pub fn reference(&self, place: &PrivatePlace, object: &ObjectContent) -> Reference {
        Reference { object: object.id, ino: place.node.ino }
    }

    /// Notes references that are about to be made; durable on return.
    ///
    /// # Errors
    /// [`UnionError::ReadOnly`], the host's errno.
    pub fn note_references(&self, references: &[Reference]) -> Result<(), UnionError> {
        Ok(self.private()?.refer(references)?)
    }

    /// Replaces the private file at `place`, which `lease` is open on, by a reference to
    /// `object`. Its content is that of the object; the caller has hashed it under the lease, and
    /// noted the reference.
    ///
    /// # Errors
    /// [`ReferError`]; the file is as it was.
    pub fn refer(
        &self,
        place: &PrivatePlace,
        lease: &ReadLease,
        object: ObjectContent,
    ) -> Result<(), ReferError> {
        let PrivatePlace { parent, name, node, .. } = place;
        let Some(_copying) = node.copying.try_lock() else { return Err(ReferError::InUse) };
        let status = self.replaceable(node, lease, &object)?;
        // One rename replaces one name: between two of them a cut would part the others from it.
        if status.nlink != 1 || node.indexed.load(Ordering::Acquire) {
            return Err(ReferError::Linked);
        }
        // There and of the right length: nothing may refer to an object that is not.
        drop(self.open_object(&object).map_err(ReferError::from)?);
        let private = self.private()?;
        let fd = self.descriptor(node)?;
        let staged = private.stage(&self.reference_to(node, &fd, &status, &object)?)?;
        let fresh = inode::status(staged.fd())?;
        let parent_fd = self.descriptor(parent)?;
        let mut directory = self.directory(parent)?;
        if directory.get(name).map(|upper| upper.host_ino) != Some(node.host_ino()) {
            return Err(ReferError::Changed);
        }
        if !lease.holds() {
            return Err(ReferError::InUse);
        }
        let fd = keeping_times(&parent_fd, || {
            Ok(staged.commit(&parent_fd, name, RenameFlags::empty())?)
        })?;
        self.note(parent, &mut directory, name, UpperKind::Other, fresh.ino)?;
        self.take_place(node, fd, &fresh, object);
        // Should it get another number, this name has to find it.
        node.called(parent.id(), name);
        Ok(())
    }

    /// Tells whether the file of `node` may be replaced now.
    pub(super) fn replaceable(
        &self,
        node: &Node,
        lease: &ReadLease,
        object: &ObjectContent,
    ) -> Result<Status, ReferError> {
        if node.kind != FileKind::Regular
            || node.is_unlinked()
            || node.content() != Content::Private
        {
            return Err(ReferError::Changed);
        }
        let leased = rustix::fs::fstat(lease)?;
        let fd = self.descriptor(node)?;
        let there = rustix::fs::fstat(&*fd)?;
        let status = inode::status(&fd)?;
        if (leased.st_dev, leased.st_ino) != (there.st_dev, there.st_ino)
            || status.size != object.size
        {
            return Err(ReferError::Changed);
        }
        // Descriptors that read an older object know it by another number.
        if node.supersedes.load(Ordering::Acquire) != 0 || !lease.holds() {
            return Err(ReferError::InUse);
        }
        Ok(status)
    }

    /// What the reference is made of: all that the file shows, and the marks.
    fn reference_to(
        &self,
        node: &Node,
        fd: &OwnedFd,
        status: &Status,
        object: &ObjectContent,
    ) -> Result<NewInode<'static>, ReferError> {
        let mark = ObjectMark { id: object.id, blocks: Some(object.blocks) };
        // In this order: what differs from file to file fits into the inode, and the rest is then
        // the same for all containers, which ext4 keeps once.
        let mut xattrs = vec![
            (marks::INO.to_vec(), node.ino.to_le_bytes().to_vec()),
            (marks::METACOPY.to_vec(), Vec::new()),
            (marks::OBJECT.to_vec(), mark.encode()),
            (marks::REDIRECT.to_vec(), self.nowhere()?),
        ];
        for name in inode::xattr_names(fd)? {
            if !OWN_MARKS.contains(&name.as_slice())
                && let Some(value) = inode::xattr(fd, &name)?
            {
                xattrs.push((name, value));
            }
        }
        Ok(NewInode {
            kind: FileKind::Regular,
            mode: status.mode & 0o7777,
            uid: status.uid,
            gid: status.gid,
            rdev: 0,
            target: b"",
            size: object.size,
            mtime: Some(status.mtime),
            atime: Some(status.atime),
            xattrs,
        })
    }

    /// An absolute path that the tree does not have, so that the kernel's overlayfs finds no data
    /// for a reference and says so, where it would show another file's or zeros.
    pub(super) fn nowhere(&self) -> Result<Vec<u8>, UnionError> {
        let root = self.tree.root()?;
        let mut path = b"/\xffmica.object".to_vec();
        while self.tree.lookup(&root, path.get(1..).unwrap_or_default())?.is_some() {
            path.push(b'_');
        }
        Ok(path)
    }

    /// Lets the reference `fd` stand for `node` from here on.
    fn take_place(&self, node: &Arc<Node>, fd: OwnedFd, status: &Status, object: ObjectContent) {
        let fd = Arc::new(fd);
        let handle = FileHandle::of(&fd).ok();
        let serial = self.sequence();
        if handle.is_none() {
            *node.pinned.lock() = Some(Pinned::named(Arc::clone(&fd)));
        }
        let old = {
            let mut table = self.table.write();
            let mut host = node.host.write();
            let mut content = node.content.write();
            table.by_host.remove(&host.ino);
            table.by_host.insert(status.ino, Arc::clone(node));
            *content = Content::Object(object);
            std::mem::replace(&mut *host, HostInode { ino: status.ino, serial, handle })
        };
        // Proved by the lease.
        node.maybe_written.store(false, Ordering::Release);
        node.reshaped();
        let mut descriptors = self.descriptors.lock();
        descriptors.pop(&old.serial);
        descriptors.put(serial, fd);
    }

    /// The number that an inode shows which carries no mark that says another.
    pub(super) fn number(&self, fd: impl std::os::fd::AsFd, status: &Status) -> u64 {
        let own = NodeId::born(status.ino).get();
        let lent = self.private.as_ref().is_some_and(|private| private.is_lent(own));
        if !lent {
            return own;
        }
        match FileHandle::of(fd) {
            Ok(handle) => NodeId::other(handle.bytes()).get(),
            // No handle tells it from the one before: the time of its making does.
            Err(_) => {
                let (seconds, nanos) = status.ctime;
                let unique = [status.ino.to_le_bytes(), seconds.to_le_bytes()].concat();
                NodeId::other(&[unique, nanos.to_le_bytes().to_vec()].concat()).get()
            }
        }
    }
}
