//! Looking into a private directory without its lock.
//!
//! Nothing is changed, nothing is waited for; a mounted root may change what is seen at any
//! moment. Whoever looks takes a name that vanished meanwhile for one that never was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{INDEX, PrivateError, PrivateRecord, UPPER, check_marks};

/// The parts of a private directory, open for looking.
#[derive(Debug)]
pub struct PrivateView {
    path: PathBuf,
    upper: OwnedFd,
    index: Option<OwnedFd>,
    record: PrivateRecord,
}

impl PrivateView {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`PrivateError::NotPrivate`] if it is not a private directory,
    /// [`PrivateError::LostMarks`], [`PrivateError::Record`], [`PrivateError::Host`].
    pub fn open(path: &Path) -> Result<Self, PrivateError> {
        let host = |what| move |errno| PrivateError::Host { dir: path.to_owned(), what, errno };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(host("open it"))?;
        let record = PrivateRecord::read(&dir, path)?
            .ok_or_else(|| PrivateError::NotPrivate(path.to_owned()))?;
        let part = |name| rustix::fs::openat(&dir, name, flags | OFlags::NOFOLLOW, Mode::empty());
        let upper = part(UPPER).map_err(host("open upper"))?;
        let index = match part(INDEX) {
            Ok(index) => Some(index),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(host("open index")(errno)),
        };
        check_marks(&upper, &record, path)?;
        Ok(Self { path: path.to_owned(), upper, index, record })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of changes, in overlayfs upper format.
    pub fn upper(&self) -> BorrowedFd<'_> {
        self.upper.as_fd()
    }

    /// Copied-up files that have several names in the tree, by tree number, if there is one.
    pub fn index(&self) -> Option<BorrowedFd<'_>> {
        self.index.as_ref().map(AsFd::as_fd)
    }

    /// What the directory says of itself.
    pub fn record(&self) -> &PrivateRecord {
        &self.record
    }
}
