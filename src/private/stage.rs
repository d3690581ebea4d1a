//! Making an inode whole in `work/` before it gets its name.
//!
//! Everything that appears in `upper/` was finished here first and moved by one rename.
//! After a crash a staged inode is a leftover that the next mount removes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{PrivateLayer, marks};
use crate::layer::FileKind;
use crate::sys::inode;

/// An inode to make.
pub struct NewInode<'a> {
    /// Its type.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number (libc encoding), for devices.
    pub rdev: u64,
    /// Target, for symlinks.
    pub target: &'a [u8],
    /// Bytes of hole a regular file starts with.
    pub size: u64,
    /// Modification time to keep; `None`: now.
    pub mtime: Option<(i64, u32)>,
    /// Access time of a regular file, if that is to be another than its modification time.
    pub atime: Option<(i64, u32)>,
    /// Host attributes, marks included: name, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An inode in `work/`; removed when dropped before its commit.
pub struct Staged<'a> {
    layer: &'a PrivateLayer,
    name: Vec<u8>,
    fd: Option<OwnedFd>,
    directory: bool,
    named: bool,
}

impl PrivateLayer {
    /// Makes `new` in `work/`.
    ///
    /// # Errors
    /// The host's errno; nothing is left behind.
    pub fn stage(&self, new: &NewInode<'_>) -> Result<Staged<'_>, Errno> {
        if new.kind == FileKind::Regular {
            return self.stage_hole(new);
        }
        let staged = self.make(new)?;
        dress(staged.fd(), new)?;
        if new.kind == FileKind::CharDevice && new.rdev == 0 {
            marks::set(staged.fd(), marks::RDEV, b"0:0")?;
        }
        Ok(staged)
    }

    /// Makes a regular file by way of a descriptor that is open: each step through the path of one
    /// that is not costs a lookup, and of these files there are many.
    fn stage_hole(&self, new: &NewInode<'_>) -> Result<Staged<'_>, Errno> {
        let name = self.temporary_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let private = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(self.work(), name.as_slice(), flags, private)?;
        // From here on it is removed if anything fails.
        let mut staged = Staged { layer: self, name, fd: None, directory: false, named: false };
        staged.fd = Some(inode::open_path(self.work(), &staged.name)?);
        if new.size > 0 {
            rustix::fs::ftruncate(&file, new.size)?;
        }
        if new.uid != 0 || new.gid != 0 {
            let (uid, gid) = (Uid::from_raw(new.uid), Gid::from_raw(new.gid));
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(new.mode & 0o7777))?;
        for (name, value) in &new.xattrs {
            rustix::fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty())?;
        }
        if let Some(mtime) = new.mtime {
            let time = inode::timespec(new.atime.unwrap_or(mtime));
            let times = Timestamps { last_access: time, last_modification: inode::timespec(mtime) };
            rustix::fs::futimens(&file, &times)?;
        }
        Ok(staged)
    }

    /// Makes the regular file `new` in `work/` with the content that `fill` writes; returns it
    /// also open for writing.
    ///
    /// `fill` comes before owner, mode and attributes, of which writing undoes some.
    ///
    /// # Errors
    /// Those of `fill`, and the host's errno; nothing is left behind.
    pub fn stage_filled<E: From<Errno>>(
        &self,
        new: &NewInode<'_>,
        fill: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<(Staged<'_>, OwnedFd), E> {
        let staged = self.make(new)?;
        let file = inode::reopen(staged.fd(), OFlags::RDWR)?;
        fill(file.as_fd())?;
        dress(staged.fd(), new)?;
        Ok((staged, file))
    }

    /// Makes an inode of the right type in `work/`.
    fn make(&self, new: &NewInode<'_>) -> Result<Staged<'_>, Errno> {
        let name = self.temporary_name();
        let work = self.work();
        let private = Mode::RUSR | Mode::WUSR;
        let device_zero = new.kind == FileKind::CharDevice && new.rdev == 0;
        let node = |kind, rdev| rustix::fs::mknodat(work, name.as_slice(), kind, private, rdev);
        match new.kind {
            FileKind::Directory => {
                rustix::fs::mkdirat(work, name.as_slice(), private | Mode::XUSR)?;
            }
            FileKind::Symlink => rustix::fs::symlinkat(new.target, work, name.as_slice())?,
            FileKind::Regular => node(FileType::RegularFile, 0)?,
            // The kernel's overlayfs reads char 0:0 as a whiteout.
            FileKind::CharDevice if device_zero => node(FileType::RegularFile, 0)?,
            FileKind::CharDevice => node(FileType::CharacterDevice, new.rdev)?,
            FileKind::BlockDevice => node(FileType::BlockDevice, new.rdev)?,
            FileKind::Fifo => node(FileType::Fifo, 0)?,
            FileKind::Socket => node(FileType::Socket, 0)?,
        }
        let mut staged = Staged {
            layer: self,
            name,
            fd: None,
            directory: new.kind == FileKind::Directory,
            named: false,
        };
        staged.fd = Some(inode::open_path(work, &staged.name)?);
        Ok(staged)
    }

    /// Makes an inode without a name, for one that lost its last.
    pub fn stage_nameless(&self, new: &NewInode<'_>) -> Result<OwnedFd, Errno> {
        if new.kind != FileKind::Regular {
            // No other kind can be born without one.
            let staged = self.stage(new)?;
            return rustix::io::fcntl_dupfd_cloexec(staged.fd(), 0);
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.work(), c".", flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::ftruncate(&file, new.size)?;
        dress(&file, new)?;
        inode::reopen(&file, OFlags::PATH)
    }
}

/// Gives a fresh inode its owner, mode, attributes and time, in the order in which none
/// undoes another: chown strips set-id bits, every change moves mtime or ctime.
fn dress(fd: impl AsFd, new: &NewInode<'_>) -> Result<(), Errno> {
    let fd = fd.as_fd();
    if new.uid != 0 || new.gid != 0 {
        inode::set_owner(fd, Some(new.uid), Some(new.gid))?;
    }
    if new.kind != FileKind::Symlink {
        inode::set_mode(fd, new.mode)?;
    }
    for (name, value) in &new.xattrs {
        inode::set_xattr(fd, name, value, XattrFlags::empty())?;
    }
    if let Some(mtime) = new.mtime {
        inode::set_times(fd, inode::timespec(mtime), inode::timespec(mtime))?;
    }
    Ok(())
}

impl Staged<'_> {
    /// The inode, `O_PATH`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("a staged inode is opened before it is handed out").as_fd()
    }

    /// Gives the inode its name in `dir` and returns its descriptor.
    ///
    /// With [`RenameFlags::EXCHANGE`] what stood at `name` is removed afterwards: it must
    /// be a whiteout.
    pub fn commit(
        mut self,
        dir: impl AsFd,
        name: &[u8],
        flags: RenameFlags,
    ) -> Result<OwnedFd, Errno> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let before = if exchange { Some(inode::status(self.fd())?) } else { None };
        rustix::fs::renameat_with(self.layer.work(), self.name.as_slice(), dir, name, flags)?;
        self.named = true;
        if let Some(before) = before {
            // A whiteout that stays in `work/` harms nobody; the next mount removes it.
            self.layer.discard(&self.name, false);
            // xfs takes an exchange for a change of what is in a directory (xfs_cross_rename).
            inode::set_times(self.fd(), inode::OMIT, inode::timespec(before.mtime))?;
        }
        Ok(self.fd.take().expect("a staged inode is opened before it is handed out"))
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.named {
            self.layer.discard(&self.name, self.directory);
        }
    }
}

impl PrivateLayer {
    /// Removes `name` from `work/`; what cannot be removed now is removed by the next mount.
    pub(super) fn discard(&self, name: &[u8], directory: bool) {
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        if let Err(errno) = rustix::fs::unlinkat(self.work(), name, flags) {
            tracing::debug!(%errno, "a staged inode stays in work/ until the next mount");
        }
    }
}
