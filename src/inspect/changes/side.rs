//! The versions of a file that a change is between.

use crate::layer::{FileKind, Inode, Manifest, ManifestError, Metadata};
use crate::object::ObjectId;
use crate::union::upper::{Bytes, Entry, compare};

/// One version of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its type.
    pub kind: FileKind,
    /// Mode, owner and time.
    pub metadata: Metadata,
    /// Bytes of content, or of a symlink's target; 0 for anything else.
    pub size: u64,
    /// Bytes on disk: of the tree's version those of its object, which all share; of a
    /// private one those that are this root's alone.
    pub disk_bytes: u64,
    /// The content, if it is an object.
    pub object: Option<ObjectId>,
    /// `dev_t` of a device.
    pub rdev: u64,
}

impl Side {
    pub(crate) fn of_tree(tree: &Manifest, inode: &Inode) -> Result<Self, ManifestError> {
        Ok(Self {
            kind: inode.kind,
            metadata: inode.metadata(),
            size: inode.size,
            disk_bytes: inode.data_blocks.saturating_mul(512),
            object: tree.object(inode)?,
            rdev: inode.rdev,
        })
    }

    pub(crate) fn of_entry(entry: &Entry, bytes: &Bytes) -> Self {
        let status = &entry.status;
        let size = match (entry.kind, bytes) {
            (FileKind::Regular, Bytes::Object { size, .. }) => *size,
            (FileKind::Regular | FileKind::Symlink, _) => status.size,
            (
                FileKind::Directory
                | FileKind::Fifo
                | FileKind::Socket
                | FileKind::CharDevice
                | FileKind::BlockDevice,
                _,
            ) => 0,
        };
        Self {
            kind: entry.kind,
            metadata: compare::metadata(entry),
            size,
            disk_bytes: status.blocks.saturating_mul(512),
            object: match bytes {
                Bytes::Object { id, .. } => Some(*id),
                Bytes::Private => None,
            },
            rdev: entry.rdev(),
        }
    }
}
