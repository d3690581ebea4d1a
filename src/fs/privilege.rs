//! Set-id bits and file capabilities go when somebody changes a file.
//!
//! FUSE_HANDLE_KILLPRIV_V2 makes this the server's work: fuse.h, and the kernel's
//! `setattr_should_drop_suidgid`. Its flags do not reach us through fuser, and a server that
//! declares FUSE_ALLOW_IDMAP is told the caller's uid only when something is created: who is
//! privileged is asked of /proc, by the thread that waits for the answer.

use super::{Caller, FileSystem, FsError};
use crate::layer::FileKind;
use crate::sys::acl;
use crate::sys::credentials::{Credentials, FOWNER, FSETID};
use crate::union::{Attributes, Change, NodeId, UnionError};

const CAPABILITY: &[u8] = b"security.capability";

impl FileSystem {
    /// Answers a request to change nothing, which asks for privileges to go.
    ///
    /// The kernel asks so before `caller` writes, if the file has capabilities or `caller` may
    /// not keep its set-id bits; then somebody has the file open for writing. And it asks so for
    /// a chown that names neither user nor group, which takes the bits whoever asks, but of
    /// nobody except the owner. On a file that is open for writing the two look the same.
    ///
    /// # Errors
    /// [`FsError::NotOwner`]; the host's errno.
    pub fn strip_privileges(&self, id: NodeId, caller: Caller) -> Result<(), FsError> {
        let _changing = self.changing();
        let attributes = self.union.attributes(id)?;
        if attributes.kind == FileKind::Directory {
            return Ok(());
        }
        match self.union.remove_xattr(id, CAPABILITY) {
            Ok(()) | Err(UnionError::NoAttribute) => {}
            Err(error) => return Err(error.into()),
        }
        if attributes.mode & (libc::S_ISUID | libc::S_ISGID) == 0 {
            return Ok(());
        }
        let credentials = Credentials::of(caller.pid);
        let mode = without_set_id(&attributes, &credentials);
        if self.is_open_for_writing(id) {
            if credentials.holds(FSETID) {
                return Ok(());
            }
        } else if mode != attributes.mode
            && !credentials.holds(FOWNER)
            && !credentials.is_user(attributes.uid)
        {
            return Err(FsError::NotOwner);
        }
        self.set_mode(&attributes, mode)
    }

    /// Changes metadata with the owner or the group among it, which takes set-id bits: the host
    /// sees us do it, who are in every group.
    ///
    /// # Errors
    /// As [`FileSystem::change`].
    pub fn change_owner(&self, id: NodeId, change: &Change, caller: Caller) -> Result<(), FsError> {
        let _changing = self.changing();
        let before = self.union.attributes(id)?;
        let set_group_id = before.mode & libc::S_ISGID != 0;
        let mut change = *change;
        if change.mode.is_none() && set_group_id && before.kind != FileKind::Directory {
            change.mode = Some(without_set_id(&before, &Credentials::of(caller.pid)));
        }
        self.union.change(id, &change)?;
        self.tell_successor(id);
        Ok(())
    }

    /// Clears the set-id bits that `caller` may not keep on a file it changes.
    pub(super) fn strip_set_id(&self, id: NodeId, caller: Caller) -> Result<(), FsError> {
        let attributes = self.union.attributes(id)?;
        if attributes.mode & (libc::S_ISUID | libc::S_ISGID) == 0 {
            return Ok(());
        }
        let credentials = Credentials::of(caller.pid);
        if credentials.holds(FSETID) {
            return Ok(());
        }
        self.set_mode(&attributes, without_set_id(&attributes, &credentials))
    }

    fn set_mode(&self, attributes: &Attributes, mode: u32) -> Result<(), FsError> {
        if mode != attributes.mode {
            let change = Change { mode: Some(mode), ..Change::default() };
            self.union.change(attributes.id, &change)?;
        }
        Ok(())
    }

    /// Clears set-group-id after an access ACL was set by somebody outside the group.
    ///
    /// The kernel's flag for this does not reach us through fuser.
    pub(super) fn strip_after_acl(
        &self,
        id: NodeId,
        name: &[u8],
        caller: Caller,
    ) -> Result<(), FsError> {
        if name != acl::ACCESS {
            return Ok(());
        }
        let attributes = self.union.attributes(id)?;
        if attributes.mode & libc::S_ISGID == 0 {
            return Ok(());
        }
        let credentials = Credentials::of(caller.pid);
        if credentials.holds(FSETID) || credentials.is_in_group(attributes.gid) {
            return Ok(());
        }
        let mode = Some(attributes.mode & !libc::S_ISGID);
        Ok(self.union.change(id, &Change { mode, ..Change::default() })?)
    }
}

/// The mode without set-user-id, and without set-group-id where the group may execute or the
/// caller is not in the group.
fn without_set_id(attributes: &Attributes, caller: &Credentials) -> u32 {
    let inside = caller.holds(FSETID) || caller.is_in_group(attributes.gid);
    let mode = attributes.mode & !libc::S_ISUID;
    if inside && mode & libc::S_IXGRP == 0 { mode } else { mode & !libc::S_ISGID }
}
