//! What stat(2), chmod(2), chown(2), utimensat(2) and statfs(2) see and change.

use std::sync::atomic::Ordering;

use rustix::fs::{OFlags, Timespec};

use super::{Content, Node, NodeId, Place, Union, UnionError};
use crate::layer::{FileKind, Inode};
use crate::sys::{inode, lease};

/// Block size that stat(2) advises. Linux FUSE and ext4 say the same.
pub(super) const BLOCK_BYTES: u32 = 4096;

/// An inode as the merged view shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What the kernel calls it.
    pub id: NodeId,
    /// What stat(2) shows.
    pub ino: u64,
    /// Type.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Link count.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, libc encoding.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte units.
    pub blocks: u64,
    /// Advised I/O size.
    pub block_bytes: u32,
    /// Last access.
    pub atime: (i64, u32),
    /// Last modification.
    pub mtime: (i64, u32),
    /// Last change.
    pub ctime: (i64, u32),
    /// The kernel must ask again: a mapping may change it unseen, or another number does.
    pub volatile: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// Seconds and nanoseconds.
    At((i64, u32)),
}

impl SetTime {
    fn timespec(this: Option<Self>) -> Timespec {
        match this {
            None => inode::OMIT,
            Some(Self::Now) => inode::NOW,
            Some(Self::At(time)) => inode::timespec(time),
        }
    }
}

/// Metadata to change; `None` leaves a part alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Permission, set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
}

impl Change {
    /// True if nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        let Self { mode, uid, gid, atime, mtime } = self;
        mode.is_none() && uid.is_none() && gid.is_none() && atime.is_none() && mtime.is_none()
    }
}

/// What statfs(2) shows.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Unit of the block counts, in bytes.
    pub fragment_bytes: u64,
    /// Advised I/O size.
    pub block_bytes: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub free: u64,
    /// Blocks free to users.
    pub available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
}

impl Union {
    /// The attributes of `id`.
    ///
    /// # Errors
    /// [`UnionError::Stale`] for an unknown number.
    pub fn attributes(&self, id: NodeId) -> Result<Attributes, UnionError> {
        if let Some(old) = self.superseded(id) {
            let now = self.node_attributes(&old.node)?;
            let (size, blocks) = (old.object.size, old.object.blocks);
            // Owner, mode and link count change under the other number, where no notice is sent.
            return Ok(Attributes { id, size, blocks, mtime: old.mtime, volatile: true, ..now });
        }
        match self.place(id)? {
            Place::Tree(inode) => Ok(self.tree_attributes(&inode)),
            Place::Private(node) => self.node_attributes(&node),
        }
    }

    /// Changes metadata, copying up no data.
    ///
    /// # Errors
    /// [`UnionError::ReadOnly`]; the host's errno.
    pub fn change(&self, id: NodeId, change: &Change) -> Result<(), UnionError> {
        let node = self.own(id)?;
        let fd = self.descriptor(&node)?;
        let _copied = self.await_copy(&node);
        // A copy-up in this directory sets its times back.
        let _names = (node.kind == FileKind::Directory).then(|| node.directory.lock());
        if change.uid.is_some() || change.gid.is_some() {
            inode::set_owner(&fd, change.uid, change.gid)?;
        }
        if let Some(mode) = change.mode
            && node.kind != FileKind::Symlink
        {
            inode::set_mode(&fd, mode)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let (atime, mtime) = (SetTime::timespec(change.atime), SetTime::timespec(change.mtime));
            inode::set_times(&fd, atime, mtime)?;
        }
        Ok(())
    }

    /// True once no descriptor and no mapping can write the private file any more; its
    /// attributes are stable from here on until it is opened for writing again.
    pub fn prove_unwritten(&self, node: &Node) -> bool {
        if !node.maybe_written.load(Ordering::Acquire) {
            return true;
        }
        let Ok(fd) = self.descriptor(node) else { return false };
        let Ok(file) = inode::reopen(&fd, OFlags::RDONLY | OFlags::NOATIME) else { return false };
        let proven = lease::nobody_can_write(&file);
        if proven {
            node.maybe_written.store(false, Ordering::Release);
        }
        proven
    }

    /// Room on the file system that holds the private layer, or the objects of a read-only root.
    ///
    /// # Errors
    /// The host's errno.
    pub fn space(&self) -> Result<Space, UnionError> {
        let raw = match &self.private {
            Some(private) => rustix::fs::fstatvfs(private.upper())?,
            None => self.objects.space()?,
        };
        Ok(Space {
            fragment_bytes: raw.f_frsize,
            block_bytes: raw.f_bsize,
            blocks: raw.f_blocks,
            free: raw.f_bfree,
            available: raw.f_bavail,
            files: raw.f_files,
            files_free: raw.f_ffree,
        })
    }

    pub(super) fn tree_attributes(&self, inode: &Inode) -> Attributes {
        let id = NodeId::tree(inode.ino);
        let time = (inode.mtime.secs, inode.mtime.nanos);
        let removed = self.table.read().removed.contains(&inode.ino);
        let directory = inode.kind == FileKind::Directory;
        Attributes {
            id,
            ino: id.get(),
            kind: inode.kind,
            mode: inode.mode,
            nlink: if removed { 0 } else { inode.nlink },
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            size: if directory { u64::from(BLOCK_BYTES) } else { inode.size },
            blocks: if directory { u64::from(BLOCK_BYTES / 512) } else { inode.data_blocks },
            block_bytes: BLOCK_BYTES,
            atime: time,
            mtime: time,
            ctime: time,
            volatile: false,
        }
    }

    pub(super) fn node_attributes(&self, node: &Node) -> Result<Attributes, UnionError> {
        let (status, content) = loop {
            let (serial, content) = (node.serial(), node.content());
            let buried = *node.last_status.lock();
            let status = match buried {
                Some(status) => status,
                None => inode::status(&self.descriptor(node)?)?,
            };
            // Both of one host inode: an object may just be taking the file's place.
            if node.serial() == serial {
                break (status, content);
            }
        };
        let (size, blocks) = match (node.kind, content) {
            (FileKind::CharDevice | FileKind::BlockDevice, _) => (0, 0),
            (_, Content::Object(object)) => (object.size, object.blocks),
            (_, Content::Private) => (status.size, status.blocks),
        };
        let rdev = if status.mode & libc::S_IFMT == libc::S_IFREG { 0 } else { status.rdev };
        Ok(Attributes {
            id: node.id(),
            ino: node.ino,
            kind: node.kind,
            mode: status.mode & 0o7777,
            nlink: self.link_count(node, status.nlink)?,
            uid: status.uid,
            gid: status.gid,
            rdev,
            size,
            blocks,
            block_bytes: BLOCK_BYTES,
            atime: status.atime,
            mtime: status.mtime,
            ctime: status.ctime,
            volatile: node.maybe_written.load(Ordering::Acquire),
        })
    }

    fn link_count(&self, node: &Node, host: u32) -> Result<u32, UnionError> {
        if node.is_unlinked() {
            return Ok(0);
        }
        if node.kind == FileKind::Directory {
            let below = match node.origin() {
                Some(origin) => self.tree.inode(origin)?.nlink,
                None => 2,
            };
            let extra = self.directory(node)?.subdirectories();
            return Ok(u32::try_from(i64::from(below) + extra).unwrap_or(2));
        }
        if node.names_pending.load(Ordering::Acquire)
            && let Some(origin) = node.origin()
        {
            return Ok(self.tree.inode(origin)?.nlink);
        }
        Ok(host.saturating_sub(u32::from(node.indexed.load(Ordering::Acquire))))
    }
}
