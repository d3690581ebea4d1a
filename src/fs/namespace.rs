//! Names and metadata: thin, since the union does the work.

use std::path::PathBuf;

use rustix::fs::{RenameFlags, XattrFlags};

use super::{Caller, FileSystem, FsError, Notice, quota};
use crate::layer::LayerPath;
use crate::sys::acl;
use crate::sys::credentials::{Credentials, SYS_ADMIN};
use crate::union::{
    Attributes, Birth, Change, Listed, NewEntry, NodeId, Removed, Space, UnionError,
};

/// One side of a rename: directory and name.
pub type Renaming<'a> = (NodeId, &'a [u8]);

impl FileSystem {
    /// Finds a name; `None` if there is none. Counts one reference.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>, FsError> {
        match self.union.lookup(parent, name) {
            Ok(attributes) => Ok(Some(attributes)),
            Err(UnionError::NoEntry) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where an inode lies, for a log.
    pub fn describe(&self, id: NodeId) -> PathBuf {
        self.union.describe(id)
    }

    /// Counts one reference of the kernel's.
    pub fn remember(&self, id: NodeId) {
        self.union.remember(id);
    }

    /// Takes back references of the kernel's.
    pub fn forget(&self, id: NodeId, count: u64) {
        self.went_back(self.union.forget(id, count));
    }

    /// Changes metadata.
    ///
    /// # Errors
    /// The host's errno.
    pub fn change(&self, id: NodeId, change: &Change) -> Result<(), FsError> {
        let _changing = self.changing();
        self.union.change(id, change)?;
        self.tell_successor(id);
        Ok(())
    }

    /// Makes an entry. Counts one reference.
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`.
    pub fn create(
        &self,
        parent: NodeId,
        name: &[u8],
        entry: NewEntry<'_>,
        mode: u32,
        caller: Caller,
    ) -> Result<Attributes, FsError> {
        let _changing = self.changing();
        let birth = Birth { mode, umask: caller.umask, uid: caller.uid, gid: caller.gid };
        let large = matches!(entry, NewEntry::Directory | NewEntry::Symlink(_));
        let room =
            self.reserve(quota::name_bytes(name) + if large { quota::UNIT_BYTES } else { 0 })?;
        let file = self.new_file()?;
        let made = self.union.create(parent, name, entry, birth)?;
        file.made();
        room.settle(0, quota::name_bytes(name) + made.blocks.saturating_mul(512));
        Ok(made)
    }

    /// Gives an inode one more name. Counts one reference.
    ///
    /// # Errors
    /// `EEXIST`, `EMLINK`.
    pub fn link(&self, id: NodeId, parent: NodeId, name: &[u8]) -> Result<Attributes, FsError> {
        let _changing = self.changing();
        let room = self.reserve(quota::name_bytes(name))?;
        let linked = self.union.link(id, parent, name)?;
        room.settle(0, quota::name_bytes(name));
        Ok(linked)
    }

    /// Removes the name of something that is no directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<(), FsError> {
        let _changing = self.changing();
        let removed = self.union.unlink(parent, name)?;
        self.after_removal(Some(removed));
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<(), FsError> {
        let _changing = self.changing();
        self.union.rmdir(parent, name)?;
        self.quota.was_freed();
        Ok(())
    }

    /// Moves a name.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub fn rename(
        &self,
        from: Renaming<'_>,
        to: Renaming<'_>,
        flags: RenameFlags,
        caller: Caller,
    ) -> Result<(), FsError> {
        let _changing = self.changing();
        // A rename makes an inode only to leave a device 0:0 behind.
        let owner = if flags.contains(RenameFlags::WHITEOUT) {
            match (caller.uid, caller.gid) {
                // A kernel that names nobody where nothing seems to be made.
                (u32::MAX, _) | (_, u32::MAX) => {
                    Credentials::of(caller.pid).owner().unwrap_or_default()
                }
                // As the mount maps them: the numbers in /proc are the host's.
                mapped => mapped,
            }
        } else {
            Default::default()
        };
        let removed = self.union.rename(from, to, flags, owner)?;
        self.after_removal(removed);
        Ok(())
    }

    /// Drops what the container changed at `path` and below; the kernel hears of it at once.
    /// Returns how many names stand for something else now.
    ///
    /// # Errors
    /// As [`crate::union::Union::revert`]; what was done until then stays done.
    pub fn revert(&self, path: &LayerPath) -> Result<u64, UnionError> {
        let _changing = self.changing();
        let mut names = 0;
        self.union.revert(path, true, &mut |reverted| {
            for removed in reverted.removed {
                self.after_removal(Some(removed));
                self.notify(Notice::Attributes(removed.id));
            }
            for (dir, name) in reverted.names {
                names += 1;
                self.notify(Notice::Name(dir, name));
                self.notify(Notice::Attributes(dir));
            }
            for id in reverted.attributes {
                self.notify(Notice::Attributes(id));
            }
        })?;
        Ok(names)
    }

    /// Lets go of a removed inode that nobody has open.
    fn after_removal(&self, removed: Option<Removed>) {
        self.quota.was_freed();
        if let Some(removed) = removed.filter(|removed| removed.last) {
            self.closing(removed.id, |_| {});
        }
    }

    /// Lists a directory.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`.
    pub fn list(
        &self,
        dir: NodeId,
        offset: u64,
        emit: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<(), FsError> {
        Ok(self.union.list(dir, offset, emit)?)
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// `EINVAL` for anything else.
    pub fn symlink_target(&self, id: NodeId) -> Result<Vec<u8>, FsError> {
        Ok(self.union.symlink_target(id)?)
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`.
    pub fn xattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>, FsError> {
        check_attribute_name(name)?;
        Ok(self.union.xattr(id, name)?)
    }

    /// The names of all extended attributes that the caller may see, each ended by a NUL.
    ///
    /// # Errors
    /// `ESTALE`.
    pub fn xattr_list(&self, id: NodeId, caller: Caller) -> Result<Vec<u8>, FsError> {
        let mut list = Vec::new();
        let mut sees_trusted = None;
        for name in self.union.xattr_names(id)? {
            // xattr(7): trusted attributes are invisible without CAP_SYS_ADMIN.
            let privileged = || Credentials::of(caller.pid).holds(SYS_ADMIN);
            if name.starts_with(b"trusted.") && !*sees_trusted.get_or_insert_with(privileged) {
                continue;
            }
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA`, `ENOSPC`.
    pub fn set_xattr(
        &self,
        id: NodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        caller: Caller,
    ) -> Result<(), FsError> {
        let _changing = self.changing();
        check_attribute_name(name)?;
        // At most a block of its own, mostly none: the next count knows.
        let room = self.reserve(quota::UNIT_BYTES)?;
        self.union.set_xattr(id, name, value, flags)?;
        room.settle(0, quota::UNIT_BYTES);
        self.quota.was_freed();
        self.strip_after_acl(id, name, caller)?;
        self.tell_successor(id);
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`.
    pub fn remove_xattr(&self, id: NodeId, name: &[u8]) -> Result<(), FsError> {
        let _changing = self.changing();
        check_attribute_name(name)?;
        match self.union.remove_xattr(id, name) {
            // Without an ACL the mode is the ACL: there is nothing left to remove (acl(5)).
            Err(UnionError::NoAttribute) if name.starts_with(b"system.posix_acl_") => Ok(()),
            removed => {
                removed?;
                self.tell_successor(id);
                Ok(())
            }
        }
    }

    /// Room left.
    ///
    /// # Errors
    /// The host's errno.
    pub fn space(&self) -> Result<Space, FsError> {
        self.limited_space(self.union.space()?)
    }
}

/// The kernel takes any name for a FUSE mount: the rules of the namespaces (xattr(7)) are ours.
fn check_attribute_name(name: &[u8]) -> Result<(), FsError> {
    let ours: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match ours.iter().find_map(|namespace| name.strip_prefix(*namespace)) {
        Some(b"") => Err(FsError::AttributeName),
        Some(_) => Ok(()),
        None if name == acl::ACCESS || name == acl::DEFAULT => Ok(()),
        None => Err(FsError::Unsupported),
    }
}
