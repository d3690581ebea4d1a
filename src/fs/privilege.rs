//! Set-id bits and file capabilities go when somebody changes a file.
//!
//! FUSE_HANDLE_KILLPRIV_V2 makes this the server's work: fuse.h, and the kernel's
//! `setattr_should_drop_suidgid`. Its flags do not reach us through fuser, and a server that
//! declares FUSE_ALLOW_IDMAP is told the caller's uid only when something is created: who is
//! privileged is asked of /proc, by the thread that waits for the answer.

use super::{Caller, FileSystem, FsError};
use crate::sys::credentials::{Credentials, FSETID};
use crate::union::{Change, NodeId, UnionError};

const CAPABILITY: &[u8] = b"security.capability";
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

impl FileSystem {
    /// Clears set-user-id, set-group-id where the group may execute, and file capabilities.
    ///
    /// # Errors
    /// The host's errno.
    pub fn strip_privileges(&self, id: NodeId) -> Result<(), FsError> {
        let mode = self.union.attributes(id)?.mode;
        let mut stripped = mode & !libc::S_ISUID;
        if mode & libc::S_IXGRP != 0 {
            stripped &= !libc::S_ISGID;
        }
        if stripped != mode {
            self.union.change(id, &Change { mode: Some(stripped), ..Change::default() })?;
        }
        match self.union.remove_xattr(id, CAPABILITY) {
            Ok(()) | Err(UnionError::NoAttribute) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Clears the bits after a change of size, unless the caller may keep them.
    pub(super) fn strip_after_truncate(&self, id: NodeId, caller: Caller) -> Result<(), FsError> {
        let set_id = self.union.attributes(id)?.mode & (libc::S_ISUID | libc::S_ISGID);
        if set_id == 0 || Credentials::of(caller.pid).holds(FSETID) {
            // The host has taken the capabilities of the file itself.
            return Ok(());
        }
        self.strip_privileges(id)
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
        if name != ACCESS_ACL {
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
