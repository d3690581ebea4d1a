//! What an import tells those who watch it, and how they stop it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::ImportError;

/// Watches an import. Called from several threads at once; must be quick.
pub trait Progress: Sync {
    /// How much there will be, as far as it is known: names, and bytes of input. Called again,
    /// a new pass over the input begins and [`Progress::read`] counts from zero.
    fn expect(&self, _files: Option<u64>, _bytes: Option<u64>) {}
    /// Work on a layer begins; the index counts from 0.
    fn layer(&self, _index: usize, _count: usize) {}
    /// So many more bytes of input were read (compressed ones, if the input is).
    fn read(&self, _bytes: u64) {}
    /// One more name was taken over, of whatever kind.
    fn entry(&self) {}
    /// The content of one more file is in the store; a hit was there before.
    fn stored(&self, _bytes: u64, _hit: bool) {}
    /// Something was left out or changed, and the user may want to know.
    fn note(&self, _note: &Note) {}
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}

/// Something an import left out or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// A mount point: the directory is kept, what is mounted on it is not.
    #[error("{0} is another file system: its content was left out")]
    OtherFileSystem(String),
    /// A file that is mounted over.
    #[error("{0} is mounted from another file system: it was left out")]
    MountedFile(String),
    /// A file that went away while the directory was being read.
    #[error("{0} was removed while it was imported")]
    Vanished(String),
    /// An attribute outside the namespaces every file system has.
    #[error("{path}: the attribute {name} belongs to its file system only: it was left out")]
    ForeignXattr {
        /// The file.
        path: String,
        /// The attribute.
        name: String,
    },
    /// Absolute member names.
    #[error("the leading / of {0} member names was removed")]
    AbsoluteNames(u64),
    /// Bytes after the end mark of an archive.
    #[error("data after the end mark of the archive was ignored")]
    TrailingData,
    /// Bookkeeping files of aufs (`.wh..wh.plnk` and the like).
    #[error("{0} is bookkeeping of aufs: it was left out")]
    AufsFile(String),
}

/// A request to stop, looked at between files and between blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cancel<'a>(pub(super) &'a AtomicBool);

impl Cancel<'_> {
    pub(super) fn is_set(self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn check(self) -> Result<(), ImportError> {
        if self.is_set() { Err(ImportError::Cancelled) } else { Ok(()) }
    }
}
