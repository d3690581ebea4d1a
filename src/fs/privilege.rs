//! Set-id bits and file capabilities go when somebody changes a file.
//!
//! FUSE_HANDLE_KILLPRIV_V2 makes this the server's work: fuse.h, and the kernel's
//! `setattr_should_drop_suidgid`.

use super::{Caller, FileSystem, FsError};
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

    /// Clears set-group-id after an access ACL was set by somebody outside the group.
    ///
    /// The kernel's flag for this does not reach us through fuser, so the caller's groups
    /// are asked of /proc; a caller that is gone counts as outside.
    pub(super) fn strip_after_acl(
        &self,
        id: NodeId,
        name: &[u8],
        caller: Caller,
    ) -> Result<(), FsError> {
        if name != ACCESS_ACL || caller.uid == 0 {
            return Ok(());
        }
        let attributes = self.union.attributes(id)?;
        if attributes.mode & libc::S_ISGID == 0
            || caller.gid == attributes.gid
            || in_group(caller.pid, attributes.gid)
        {
            return Ok(());
        }
        let mode = Some(attributes.mode & !libc::S_ISGID);
        Ok(self.union.change(id, &Change { mode, ..Change::default() })?)
    }
}

fn in_group(pid: u32, gid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .is_some_and(|groups| groups.split_whitespace().any(|g| g.parse() == Ok(gid)))
}
