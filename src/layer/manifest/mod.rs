//! The manifest: one immutable file that is a layer or a merged tree.
//!
//! Owns the byte format (docs/FORMAT.md), its zero-copy reader and its encoder. Knows nothing
//! of stores or mounts. A manifest is published whole or not at all; what is read here is
//! bounds-checked, so any bytes give an error, never a panic, a wild read or an endless walk.

mod contents;
mod encode;
mod format;
mod places;
mod read;
mod validate;

use std::num::NonZeroU32;

pub use contents::Xattrs;
pub use encode::EncodeError;
pub(super) use encode::{Draft, DraftContent, DraftEntry, Encoder};
pub use format::seal;
pub use read::{Entry, EntryKind, Inode, Manifest, ObjectRef, Origin};

/// Longest symlink target in bytes (`PATH_MAX` of Linux without its NUL).
pub const MAX_TARGET_BYTES: usize = 4095;
/// Longest extended attribute name in bytes (`XATTR_NAME_MAX` of Linux).
pub const MAX_XATTR_NAME_BYTES: usize = 255;
/// Longest extended attribute value in bytes (`XATTR_SIZE_MAX` of Linux).
pub const MAX_XATTR_VALUE_BYTES: usize = 65536;
/// Permission, set-id and sticky bits.
pub const MODE_BITS: u32 = 0o7777;

/// The permanent number of an inode in a layer or tree; 1 is the root.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash, Ord, PartialOrd)]
pub struct TreeIno(NonZeroU32);

impl TreeIno {
    /// The root directory.
    pub const ROOT: Self = Self(NonZeroU32::MIN);

    /// The inode with this number; none for 0.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl std::fmt::Display for TreeIno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What an inode is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A file with an object.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl FileKind {
    fn code(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::Symlink => 3,
            Self::Fifo => 4,
            Self::Socket => 5,
            Self::CharDevice => 6,
            Self::BlockDevice => 7,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::Fifo,
            5 => Self::Socket,
            6 => Self::CharDevice,
            7 => Self::BlockDevice,
            _ => return None,
        })
    }
}

/// A point in time since 1970, before it with negative seconds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds.
    pub secs: i64,
    /// Nanoseconds after them, below 1,000,000,000.
    pub nanos: u32,
}

/// Who may do what with a file, and when its content last changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Permission, set-id and sticky bits (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Timestamp,
}

/// Why bytes are no manifest, or a damaged one.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The first bytes are not those of a manifest.
    #[error("not a manifest")]
    NotAManifest,
    /// Written by a version of Mica that this one does not know.
    #[error("manifest version {found} is not supported (this is version {})", format::VERSION)]
    Version {
        /// The version in the header.
        found: u32,
    },
    /// Uses features that a reader has to know.
    #[error("the manifest needs features that this version of mica lacks (bits {unknown:#x})")]
    Features {
        /// The unknown bits.
        unknown: u64,
    },
    /// Shorter or longer than its header says.
    #[error("the manifest is truncated: {found} bytes{}", expected_len(.expected))]
    Truncated {
        /// Bytes in the file.
        found: u64,
        /// Bytes the header promises, when that much of it is there.
        expected: Option<u64>,
    },
    /// The header or the section table is damaged.
    #[error("the manifest's header is damaged: {problem}")]
    Header {
        /// What is wrong.
        problem: &'static str,
    },
    /// The bytes behind the header do not have the digest in the header.
    #[error("the manifest's content does not match its digest")]
    BodyDigest,
    /// A record is damaged.
    #[error("record {index} of the manifest's {section} is damaged: {problem}")]
    Record {
        /// The section the record is in.
        section: &'static str,
        /// Index of the record in its section.
        index: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// No inode has this number.
    #[error("the manifest has no inode {0}")]
    NoInode(u32),
    /// The file could not be mapped.
    #[error("cannot map the manifest")]
    Map(#[source] std::io::Error),
}

fn expected_len(expected: &Option<u64>) -> String {
    expected.map(|len| format!(" instead of {len}")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
