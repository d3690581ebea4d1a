//! The same for a file with several names: it becomes a reference where it lies.
//!
//! Between two renames a cut would part its names, so no other inode takes its place: the marks of a
//! reference are set on the file itself, last the one that puts them in force, for all names at
//! once. Only then its data goes. So nobody may have it open or mapped, for reading either, which a
//! write lease proves; and all its names must be the tree's own, which `index/` knows: those are
//! told when it gets another number. A cut leaves the private file, or a reference whose data is
//! still there until the next mount gives its room back (`trusted.mica.filling`).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use super::copy_up::{CAPABILITY, unfill};
use super::refer::{PrivatePlace, ReferError};
use super::{Content, Node, ObjectContent, Place, Union, UnionError};
use crate::layer::TreeIno;
use crate::private::marks::{self, Filling, ObjectMark};
use crate::sys::inode;
use crate::sys::lease::ReadLease;

impl Union {
    /// Whether the private file at `place` has several names.
    ///
    /// # Errors
    /// The host's errno.
    pub fn has_several_names(&self, place: &PrivatePlace) -> Result<bool, UnionError> {
        let node = &place.node;
        let status = inode::status(&*self.descriptor(node)?)?;
        Ok(status.nlink != 1 || node.indexed.load(Ordering::Acquire))
    }

    /// Makes the private file at `place`, which has several names, a reference to `object`; as
    /// [`Union::refer`], and nobody else has it open or mapped, which is proved here. The lease is
    /// given back.
    ///
    /// # Errors
    /// [`ReferError::Linked`] if not all its names are known, the others as for [`Union::refer`]:
    /// then it is as it was.
    pub fn refer_linked(
        &self,
        place: &PrivatePlace,
        lease: &ReadLease,
        object: ObjectContent,
    ) -> Result<(), ReferError> {
        let node = &place.node;
        self.finish_names(node)?;
        let Some(_copying) = node.copying.try_lock() else { return Err(ReferError::InUse) };
        let status = self.replaceable(node, lease, &object)?;
        if !node.indexed.load(Ordering::Acquire) || !self.knows_all_names(node, status.nlink)? {
            return Err(ReferError::Linked);
        }
        drop(self.open_object(&object).map_err(ReferError::from)?);
        let nowhere = self.nowhere()?;
        let fd = self.descriptor(node)?;
        let capability = inode::xattr(&fd, CAPABILITY)?.unwrap_or_default();
        let filling = Filling { size: status.size, mtime: status.mtime, capability };
        let mark = ObjectMark { id: object.id, blocks: Some(object.blocks) };
        // Not in force yet: of a file without the last mark none of them is read.
        marks::set(&fd, marks::INO, &node.ino.to_le_bytes())?;
        let set = || {
            marks::set(&fd, marks::OBJECT, &mark.encode())?;
            marks::set(&fd, marks::REDIRECT, &nowhere)?;
            marks::set(&fd, marks::FILLING, &filling.encode())?;
            if !lease.is_sole_user() || !lease.holds() {
                return Err(ReferError::InUse);
            }
            Ok(marks::set(&fd, marks::METACOPY, b"")?)
        };
        if let Err(error) = set() {
            for mark in [marks::FILLING, marks::REDIRECT, marks::OBJECT] {
                marks::clear(&fd, mark)?;
            }
            return Err(error);
        }
        *node.content.write() = Content::Object(object);
        node.maybe_written.store(false, Ordering::Release);
        node.reshaped();
        // The data may not go before the marks are on the disk. Through the lease: whoever opens
        // the file now waits for it.
        node.settle(|| Ok(rustix::fs::fsync(lease)?))?;
        lease.give_back();
        if let Err(error) = self.give_room_back(&fd, &filling) {
            tracing::warn!(%error, "a shared file keeps its room until the next mount");
        }
        Ok(())
    }

    fn give_room_back(&self, fd: &OwnedFd, filling: &Filling) -> Result<(), UnionError> {
        Ok(unfill(&inode::reopen(fd, OFlags::RDWR)?, filling)?)
    }

    /// Whether the names that the tree has for a file, and its entry in `index/`, are all its links.
    fn knows_all_names(&self, node: &Arc<Node>, links: u32) -> Result<bool, UnionError> {
        let Some(origin) = node.origin() else { return Ok(false) };
        let names: Vec<(TreeIno, Vec<u8>)> =
            self.tree.links(origin)?.map(|(dir, name)| (dir, name.to_vec())).collect();
        let mut known: u32 = 1;
        for (dir, name) in names {
            let Some(id) = self.present(dir)? else { continue };
            let Place::Private(dir) = self.place(id)? else { continue };
            let upper = self.directory(&dir)?.get(&name);
            known += u32::from(upper.is_some_and(|upper| upper.host_ino == node.host_ino()));
        }
        Ok(known == links)
    }
}
