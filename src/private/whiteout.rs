//! Whiteouts: the mark that a name of the tree is gone.
//!
//! Character device 0:0, as the kernel's overlayfs writes it. All whiteouts are links of
//! one inode while the host allows more links, so a removal costs no inode.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::PrivateLayer;
use crate::sys::inode;

/// The shared inode's name in `work/`.
pub(super) const SHARED: &[u8] = b"whiteout";

impl PrivateLayer {
    /// Puts a whiteout at `name` in `dir`, where nothing is yet.
    pub fn whiteout(&self, dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        let link = || rustix::fs::linkat(self.work(), SHARED, dir.as_fd(), name, AtFlags::empty());
        match link() {
            Err(Errno::NOENT | Errno::MLINK) => {
                self.renew_whiteout()?;
                link()
            }
            done => done,
        }
    }

    /// Removes `name` from `dir`, leaving a whiteout, in one step. A directory must be empty.
    ///
    /// Takes no inode, so that files can be removed from a disk that has none left: the
    /// kernel's `RENAME_WHITEOUT` makes a fresh one each time.
    pub fn replace_with_whiteout(
        &self,
        dir: impl AsFd,
        name: &[u8],
        directory: bool,
    ) -> Result<(), Errno> {
        let fresh = self.temporary_name();
        self.whiteout(self.work(), &fresh)?;
        // A file is replaced, a directory has to change places.
        let flags = if directory { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        let replaced = rustix::fs::renameat_with(self.work(), fresh.as_slice(), dir, name, flags);
        if replaced.is_err() || directory {
            self.discard(&fresh, directory && replaced.is_ok());
        }
        replaced
    }

    /// Gives the inode of `fd` the name `name` in `dir`, where a whiteout is.
    pub fn link_over(&self, fd: impl AsFd, dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        let fresh = self.temporary_name();
        inode::link(fd, self.work(), &fresh)?;
        let renamed = rustix::fs::renameat(self.work(), fresh.as_slice(), dir, name);
        if renamed.is_err() {
            self.discard(&fresh, false);
        }
        renamed
    }

    /// Replaces the shared inode by a fresh one.
    fn renew_whiteout(&self) -> Result<(), Errno> {
        let fresh = self.temporary_name();
        let work = self.work();
        rustix::fs::mknodat(work, fresh.as_slice(), FileType::CharacterDevice, Mode::empty(), 0)?;
        rustix::fs::renameat(work, fresh.as_slice(), work, SHARED)
    }
}
