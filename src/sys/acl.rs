//! How the kernel keeps POSIX ACLs: as extended attributes, a version word and then one record of
//! tag, permissions and identifier for each entry. Linux `posix_acl_xattr.h`.

/// The attribute that holds the ACL of a file.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds the ACL new files in a directory get.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// The version word, and its length in bytes.
pub const VERSION: u32 = 2;
/// Bytes before the first entry.
pub const HEADER_LEN: usize = 4;
/// Bytes of one entry.
pub const ENTRY_LEN: usize = 8;

/// The owner.
pub const USER_OBJ: u16 = 0x01;
/// A user by number.
pub const USER: u16 = 0x02;
/// The owning group.
pub const GROUP_OBJ: u16 = 0x04;
/// A group by number.
pub const GROUP: u16 = 0x08;
/// What named users and all groups may have at most.
pub const MASK: u16 = 0x10;
/// Everybody else.
pub const OTHER: u16 = 0x20;

/// The identifier of an entry that needs none.
pub const UNDEFINED_ID: u32 = u32::MAX;
