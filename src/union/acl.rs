//! POSIX ACL inheritance, which the kernel leaves to a FUSE server.
//!
//! The algorithm: `posix_acl_create_masq` in Linux's fs/posix_acl.c.

use crate::sys::acl::{
    ENTRY_LEN, GROUP, GROUP_OBJ, HEADER_LEN, MASK, OTHER, USER, USER_OBJ, VERSION,
};

/// What a new inode inherits from its directory's default ACL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    /// Permission bits after the ACL had its say.
    pub(super) mode: u32,
    /// The access ACL to store; `None` when `mode` says it all.
    pub(super) access: Option<Vec<u8>>,
}

/// Applies default ACL `default` to an inode made with `mode`.
///
/// `None` if the bytes are no ACL; then the umask applies, as without one.
pub(super) fn inherit(default: &[u8], mode: u32) -> Option<Inherited> {
    let (header, entries) = default.split_at_checked(HEADER_LEN)?;
    if header != VERSION.to_le_bytes() || entries.is_empty() || entries.len() % ENTRY_LEN != 0 {
        return None;
    }
    let mut access = default.to_vec();
    let mut mode = mode;
    let mut group_obj = None;
    let mut mask = None;
    let mut extended = false;
    for at in (HEADER_LEN..default.len()).step_by(ENTRY_LEN) {
        let tag = u16::from_le_bytes([default[at], default[at + 1]]);
        match tag {
            USER_OBJ => mode = masked(&mut access, at + 2, mode, 6),
            OTHER => mode = masked(&mut access, at + 2, mode, 0),
            GROUP_OBJ => group_obj = Some(at + 2),
            MASK => {
                mask = Some(at + 2);
                extended = true;
            }
            USER | GROUP => extended = true,
            _ => return None,
        }
    }
    mode = masked(&mut access, mask.or(group_obj)?, mode, 3);
    Some(Inherited { mode, access: extended.then_some(access) })
}

/// Cuts the permissions at `at` to those of `mode` at `shift`, and the other way round.
fn masked(acl: &mut [u8], at: usize, mode: u32, shift: u32) -> u32 {
    let allowed = u16::from_le_bytes([acl[at], acl[at + 1]]) & 0o7;
    let wanted = (mode >> shift) & 0o7;
    let both = u32::from(allowed) & wanted;
    acl[at] = (both & 0o7).to_le_bytes()[0];
    acl[at + 1] = 0;
    (mode & !(0o7 << shift)) | (both << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&perm.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_minimal_default_acl_acts_as_a_mode() {
        let default =
            acl(&[(USER_OBJ, 7, u32::MAX), (GROUP_OBJ, 5, u32::MAX), (OTHER, 0, u32::MAX)]);
        let inherited = inherit(&default, 0o666).unwrap();
        assert_eq!(inherited, Inherited { mode: 0o640, access: None });
    }

    #[test]
    fn the_mask_limits_the_group_bits() {
        let default = acl(&[
            (USER_OBJ, 7, u32::MAX),
            (USER, 7, 1000),
            (GROUP_OBJ, 5, u32::MAX),
            (MASK, 7, u32::MAX),
            (OTHER, 5, u32::MAX),
        ]);
        let inherited = inherit(&default, 0o640).unwrap();
        assert_eq!(inherited.mode, 0o640);
        let access = inherited.access.unwrap();
        let permission = |entry: usize| access[HEADER_LEN + entry * ENTRY_LEN + 2];
        assert_eq!([0, 1, 2, 3, 4].map(permission), [6, 7, 5, 4, 0]);
    }

    #[test]
    fn other_bytes_are_no_acl() {
        assert_eq!(inherit(b"", 0o644), None);
        assert_eq!(inherit(&[2, 0, 0, 0, 1], 0o644), None);
        assert_eq!(inherit(&acl(&[(77, 0, 0)]), 0o644), None);
    }
}
