//! Limits of metadata, checked the same way for every source.
//!
//! A value that a Linux file system cannot hold is refused where it is read, with the thing
//! named, instead of being cut down quietly.

use crate::layer::NewXattr;

/// Longest name of an extended attribute, in bytes (`XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;
/// Longest value of an extended attribute, in bytes (`XATTR_SIZE_MAX`).
const XATTR_SIZE_MAX: usize = 65_536;
/// Longest list of the attribute names of one file, in bytes with their NULs (`XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65_536;
/// Longest symbolic link target, in bytes (`PATH_MAX` without its NUL).
const SYMLINK_MAX: usize = 4095;
/// Device numbers have 12 bits for the major and 20 for the minor in the kernel (`kdev_t.h`).
const MAJOR_MAX: u64 = (1 << 12) - 1;
const MINOR_MAX: u64 = (1 << 20) - 1;

/// Extended attributes of one file: name and value.
pub(crate) type Xattrs = Vec<NewXattr>;

/// Metadata that no Linux file can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataFault {
    /// A user identifier outside 0 to 2^32-2.
    #[error("the user id {0} is out of range (0 to 4294967294)")]
    Uid(i128),
    /// A group identifier outside 0 to 2^32-2.
    #[error("the group id {0} is out of range (0 to 4294967294)")]
    Gid(i128),
    /// A device number the kernel cannot hold.
    #[error("the device number {major}:{minor} is out of range (4095:1048575)")]
    Device {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// An attribute name that is empty, too long, holds NUL or names no namespace.
    #[error("\"{0}\" cannot be the name of an extended attribute")]
    XattrName(String),
    /// An attribute value above the kernel's limit.
    #[error("the extended attribute {name} has {len_bytes} bytes; the limit is 65536")]
    XattrValue {
        /// Name of the attribute, printable.
        name: String,
        /// Length of the value.
        len_bytes: usize,
    },
    /// More attribute names than listxattr(2) can return.
    #[error("the names of the extended attributes take {0} bytes; the limit is 65536")]
    XattrList(usize),
    /// An empty symbolic link target, one with NUL, or one above `PATH_MAX`.
    #[error("the symbolic link target is empty, holds a NUL byte, or is longer than 4095 bytes")]
    SymlinkTarget,
}

/// A user identifier; 2^32-1 means "no change" to chown(2), so no file can have it.
pub(crate) fn uid(number: i128) -> Result<u32, MetadataFault> {
    id(number).ok_or(MetadataFault::Uid(number))
}

/// A group identifier, under the rule of [`uid`].
pub(crate) fn gid(number: i128) -> Result<u32, MetadataFault> {
    id(number).ok_or(MetadataFault::Gid(number))
}

fn id(number: i128) -> Option<u32> {
    u32::try_from(number).ok().filter(|id| *id != u32::MAX)
}

/// Joins a device number the way libc's `dev_t` does.
pub(crate) fn device(major: u64, minor: u64) -> Result<u64, MetadataFault> {
    if major > MAJOR_MAX || minor > MINOR_MAX {
        return Err(MetadataFault::Device { major, minor });
    }
    let fault = MetadataFault::Device { major, minor };
    let (Ok(major), Ok(minor)) = (u32::try_from(major), u32::try_from(minor)) else {
        return Err(fault);
    };
    Ok(rustix::fs::makedev(major, minor))
}

/// Checks all extended attributes of one file.
pub(crate) fn check_xattrs(xattrs: &[NewXattr]) -> Result<(), MetadataFault> {
    let mut list_bytes = 0;
    for (name, value) in xattrs {
        let namespaced = name.iter().position(|byte| *byte == b'.').is_some_and(|dot| {
            matches!(&name[..dot], b"user" | b"trusted" | b"security" | b"system")
                && dot + 1 < name.len()
        });
        if !namespaced || name.len() > XATTR_NAME_MAX || name.contains(&0) {
            return Err(MetadataFault::XattrName(printable(name)));
        }
        if value.len() > XATTR_SIZE_MAX {
            let name = printable(name);
            return Err(MetadataFault::XattrValue { name, len_bytes: value.len() });
        }
        list_bytes += name.len() + 1;
    }
    if list_bytes > XATTR_LIST_MAX {
        return Err(MetadataFault::XattrList(list_bytes));
    }
    Ok(())
}

/// Checks the target of a symbolic link; it may point anywhere, the container follows it.
pub(crate) fn check_symlink(target: &[u8]) -> Result<(), MetadataFault> {
    if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) {
        return Err(MetadataFault::SymlinkTarget);
    }
    Ok(())
}

/// Bytes for a person to read: UTF-8 as it is, anything that would garble a terminal escaped;
/// the middle of a very long text is left out.
pub(crate) fn printable(bytes: &[u8]) -> String {
    const LONGEST: usize = 1024;
    if bytes.len() > LONGEST {
        let (start, end) = (&bytes[..LONGEST / 2], &bytes[bytes.len() - LONGEST / 2..]);
        return format!("{}…{}", printable(start), printable(end));
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() {
                text.extend(letter.escape_default());
            } else {
                text.push(letter);
            }
        }
        text.push_str(&chunk.invalid().escape_ascii().to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &[u8], len: usize) -> NewXattr {
        (name.into(), vec![0; len].into())
    }

    #[test]
    fn identifiers_outside_the_kernels_range_are_refused() {
        assert_eq!(uid(0), Ok(0));
        assert_eq!(gid(4_294_967_294), Ok(4_294_967_294));
        for bad in [-1, 4_294_967_295, 1 << 40] {
            assert_eq!(uid(bad), Err(MetadataFault::Uid(bad)));
            assert_eq!(gid(bad), Err(MetadataFault::Gid(bad)));
        }
    }

    #[test]
    fn device_numbers_are_bounded() {
        assert_eq!(device(8, 1), Ok(rustix::fs::makedev(8, 1)));
        assert!(device(4096, 0).is_err());
        assert!(device(0, 1 << 20).is_err());
    }

    #[test]
    fn attributes_keep_the_kernels_limits() {
        assert!(check_xattrs(&[pair(b"user.a", 65_536), pair(b"security.capability", 20)]).is_ok());
        assert!(check_xattrs(&[pair(b"user.a", 65_537)]).is_err());
        for name in [&b""[..], b"user", b"user.", b"os2.x", b"user.a\0b", &[b'u'; 300]] {
            assert!(check_xattrs(&[pair(name, 1)]).is_err(), "{name:?}");
        }
        let many: Vec<_> =
            (0..400).map(|number| pair(format!("user.{number:0>200}").as_bytes(), 0)).collect();
        assert!(matches!(check_xattrs(&many), Err(MetadataFault::XattrList(_))));
    }

    #[test]
    fn printable_text_never_carries_terminal_control() {
        assert_eq!(printable("größe".as_bytes()), "größe");
        assert_eq!(printable(b"a\x1b[2J\xff\n"), "a\\u{1b}[2J\\xff\\n");
    }
}
