//! Whether a private inode and one of the tree are the same, without reading content.

use super::{Bytes, Entry};
use crate::layer::{FileKind, Inode, Manifest, Metadata, NewXattr, Timestamp};
use crate::sys::inode;
use crate::union::UnionError;

/// The metadata of a private inode as the root shows it.
pub fn metadata(entry: &Entry) -> Metadata {
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

/// Which metadata of a private inode is not that of `old`.
///
/// # Errors
/// [`UnionError::Manifest`]; the host's errno.
pub fn differences(tree: &Manifest, old: &Inode, entry: &Entry) -> Result<Differences, UnionError> {
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

/// Whether a private inode still has the content of the tree inode it stands for, without
/// reading it: a private copy has not.
///
/// # Errors
/// [`UnionError::Manifest`]; the host's errno.
pub fn same_content(
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
