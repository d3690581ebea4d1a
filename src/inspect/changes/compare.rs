//! Whether two versions of a file are the same, without reading content.

use crate::inspect::upper::{Bytes, Entry};
use crate::layer::{FileKind, Inode, Manifest, ManifestError, Metadata, NewXattr, Timestamp};
use crate::object::ObjectId;
use crate::sys::inode;
use crate::union::UnionError;

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
            metadata: metadata(entry),
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

/// The metadata of a private inode as the root shows it.
pub(super) fn metadata(entry: &Entry) -> Metadata {
    let (secs, nanos) = entry.marks.filling.as_ref().map_or(entry.status.mtime, |f| f.mtime);
    Metadata {
        mode: entry.status.mode & 0o7777,
        uid: entry.status.uid,
        gid: entry.status.gid,
        mtime: Timestamp { secs, nanos },
    }
}

/// Which metadata differs between two versions of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Permission, set-id and sticky bits.
    pub mode: bool,
    /// Owner or group.
    pub owner: bool,
    /// Time of the last change of the content.
    pub mtime: bool,
    /// Extended attributes: ACLs and capabilities among them.
    pub xattrs: bool,
}

impl Differences {
    /// Whether the metadata is the same.
    pub fn is_empty(self) -> bool {
        !(self.mode || self.owner || self.mtime || self.xattrs)
    }

    /// The names of what differs.
    pub fn words(self) -> Vec<&'static str> {
        let all = [
            (self.mode, "mode"),
            (self.owner, "owner"),
            (self.mtime, "mtime"),
            (self.xattrs, "xattrs"),
        ];
        all.into_iter().filter(|(differs, _)| *differs).map(|(_, word)| word).collect()
    }
}

pub(super) fn differences(
    tree: &Manifest,
    old: &Inode,
    entry: &Entry,
) -> Result<Differences, UnionError> {
    let (was, is) = (old.metadata(), metadata(entry));
    let mut xattrs: Vec<NewXattr> = Vec::new();
    for xattr in tree.xattrs(old)? {
        let (name, value) = xattr?;
        xattrs.push((name.into(), value.into()));
    }
    Ok(Differences {
        mode: was.mode != is.mode,
        owner: (was.uid, was.gid) != (is.uid, is.gid),
        mtime: was.mtime != is.mtime,
        xattrs: xattrs != entry.xattrs()?,
    })
}

/// Whether a private inode still has the content of the tree inode it stands for.
pub(super) fn same_content(
    tree: &Manifest,
    old: &Inode,
    entry: &Entry,
    bytes: &Bytes,
) -> Result<bool, UnionError> {
    if old.kind != entry.kind {
        return Ok(false);
    }
    Ok(match old.kind {
        FileKind::Regular => match bytes {
            Bytes::Private => false,
            Bytes::Object { id, .. } => tree.object(old)? == Some(*id),
        },
        FileKind::Symlink => tree.symlink_target(old)? == inode::symlink_target(&entry.fd)?,
        FileKind::CharDevice | FileKind::BlockDevice => old.rdev == entry.rdev(),
        FileKind::Directory | FileKind::Fifo | FileKind::Socket => true,
    })
}
