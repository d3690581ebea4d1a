//! New entries: files, directories, symlinks, device nodes, and new names of old files.

use std::os::fd::OwnedFd;

use rustix::fs::RenameFlags;

use super::copy_up::upper_kind;
use super::place::Child;
use super::{Attributes, Content, NodeId, Union, UnionError, acl};
use crate::layer::FileKind;
use crate::private::listing::UpperKind;
use crate::private::{NewInode, marks};
use crate::sys::acl::{ACCESS, DEFAULT};
use crate::sys::inode;

const SETGID: u32 = libc::S_ISGID;

/// What to make.
#[derive(Clone, Copy, Debug)]
pub enum NewEntry<'a> {
    /// An empty regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink to these bytes.
    Symlink(&'a [u8]),
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
    /// A character device, libc encoding.
    CharDevice(u64),
    /// A block device, libc encoding.
    BlockDevice(u64),
}

impl<'a> NewEntry<'a> {
    fn device(&self) -> u64 {
        if let Self::CharDevice(rdev) | Self::BlockDevice(rdev) = self { *rdev } else { 0 }
    }

    fn target(&self) -> &'a [u8] {
        if let Self::Symlink(target) = self { target } else { b"" }
    }

    fn kind(&self) -> FileKind {
        match self {
            Self::File => FileKind::Regular,
            Self::Directory => FileKind::Directory,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
        }
    }
}

/// Who makes an entry, and with which bits.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// Permission, set-id and sticky bits asked for.
    pub mode: u32,
    /// Bits to clear unless the directory has a default ACL.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory is set-gid.
    pub gid: u32,
}

impl Union {
    /// Makes `name` in `parent` and counts one reference of the kernel's.
    ///
    /// # Errors
    /// [`UnionError::Exists`]; [`UnionError::NoEntry`] in a removed directory.
    pub fn create(
        &self,
        parent: NodeId,
        name: &[u8],
        entry: NewEntry<'_>,
        birth: Birth,
    ) -> Result<Attributes, UnionError> {
        let private = self.private()?;
        let parent = self.own_directory(parent)?;
        let kind = entry.kind();
        let directory_fd = self.descriptor(&parent)?;
        let mut directory = self.directory(&parent)?;
        if !matches!(self.find(&parent, &directory, name)?, Child::Absent) {
            return Err(UnionError::Exists);
        }
        if parent.is_unlinked() {
            return Err(UnionError::NoEntry);
        }
        let mut new = newborn(&directory_fd, entry, birth)?;
        if kind == FileKind::Directory && parent.origin().is_some() {
            // Born here: nothing that a layer below has or gets under this name shows through.
            new.xattrs.push((marks::OPAQUE.to_vec(), b"y".to_vec()));
        }
        let staged = private.stage(&new)?;
        let status = inode::status(staged.fd())?;
        let ino = self.number(staged.fd(), &status);
        if ino != NodeId::born(status.ino).get() {
            marks::set(staged.fd(), marks::INO, &ino.to_le_bytes())?;
        }
        let flags = match directory.get(name) {
            None => RenameFlags::NOREPLACE,
            Some(_) if kind == FileKind::Directory => RenameFlags::EXCHANGE,
            Some(_) => RenameFlags::empty(),
        };
        let fd = staged.commit(&directory_fd, name, flags)?;
        self.note(&parent, &mut directory, name, upper_kind(kind), status.ino)?;
        drop(directory);
        let found = self.found(&parent, name);
        let node = self.enter(fd, &status, kind, None, Content::Private, ino, found)?;
        if self.hold(&node) { self.node_attributes(&node) } else { self.lookup(parent.id(), name) }
    }

    /// Gives `id` the name `name` in `parent` too, and counts one reference of the kernel's.
    ///
    /// # Errors
    /// [`UnionError::Exists`]; [`UnionError::NoEntry`] for an inode without a name.
    pub fn link(&self, id: NodeId, parent: NodeId, name: &[u8]) -> Result<Attributes, UnionError> {
        let private = self.private()?;
        let node = self.own(id)?;
        if node.is_unlinked() {
            return Err(UnionError::NoEntry);
        }
        if node.kind == FileKind::Directory {
            return Err(UnionError::IsDirectory);
        }
        let parent = self.own_directory(parent)?;
        // Under its new name the kernel's overlayfs finds shared data by this path.
        self.redirect(&node)?;
        let fd = self.descriptor(&node)?;
        let parent_fd = self.descriptor(&parent)?;
        let mut directory = self.directory(&parent)?;
        if !matches!(self.find(&parent, &directory, name)?, Child::Absent) {
            return Err(UnionError::Exists);
        }
        match directory.get(name) {
            None => inode::link(&fd, &parent_fd, name)?,
            Some(_) => private.link_over(&fd, &parent_fd, name)?,
        }
        self.note(&parent, &mut directory, name, UpperKind::Other, node.host_ino())?;
        drop(directory);
        node.called(parent.id(), name);
        if self.hold(&node) { self.node_attributes(&node) } else { self.lookup(parent.id(), name) }
    }
}

/// An inode as it is born in a directory: with the group, the set-group-id bit and the ACL
/// that the directory passes on.
pub(super) fn newborn<'a>(
    directory: &OwnedFd,
    entry: NewEntry<'a>,
    birth: Birth,
) -> Result<NewInode<'a>, UnionError> {
    let kind = entry.kind();
    let mut new = NewInode {
        kind,
        mode: birth.mode & 0o7777,
        uid: birth.uid,
        gid: birth.gid,
        rdev: entry.device(),
        target: entry.target(),
        size: 0,
        mtime: None,
        atime: None,
        xattrs: Vec::new(),
    };
    let status = inode::status(directory)?;
    if status.mode & SETGID != 0 {
        new.gid = status.gid;
        if kind == FileKind::Directory {
            new.mode |= SETGID;
        }
    }
    let default = if kind == FileKind::Symlink {
        None
    } else {
        // A host without ACLs has none to inherit.
        inode::xattr(directory, DEFAULT).unwrap_or(None)
    };
    inherit(&mut new, default, birth.umask);
    Ok(new)
}

/// Applies the directory's default ACL, or else the umask.
fn inherit(new: &mut NewInode<'_>, default: Option<Vec<u8>>, umask: u32) {
    if new.kind == FileKind::Symlink {
        return;
    }
    let inherited = default.as_deref().and_then(|acl| acl::inherit(acl, new.mode & 0o777));
    match (inherited, default) {
        (Some(inherited), Some(default)) => {
            new.mode = (new.mode & !0o777) | inherited.mode;
            if let Some(access) = inherited.access {
                new.xattrs.push((ACCESS.to_vec(), access));
            }
            if new.kind == FileKind::Directory {
                new.xattrs.push((DEFAULT.to_vec(), default));
            }
        }
        _ => new.mode &= !(umask & 0o777),
    }
}
