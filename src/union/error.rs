//! Why an operation on the merged view failed.

use rustix::io::Errno;

use crate::layer::ManifestError;
use crate::object::ObjectError;
use crate::private::marks::MarkError;

/// Why an operation on the merged view failed.
#[derive(Debug, thiserror::Error)]
pub enum UnionError {
    /// No such name, or the inode is gone.
    #[error("no such entry")]
    NoEntry,
    /// More than 255 bytes in one name.
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory cannot be used here.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The kernel holds a number that no longer stands for an inode.
    #[error("the inode number is stale")]
    Stale,
    /// A directory that is to come back is in the root under another name.
    #[error("/{0} was moved, and is still there under its new name; revert that too")]
    StillThere(String),
    /// The root has no private layer.
    #[error("the root is read-only")]
    ReadOnly,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The operation does not fit the inode or its arguments.
    #[error("invalid argument")]
    Invalid,
    /// The tree is damaged.
    #[error("the tree is damaged: {0}")]
    Manifest(#[from] ManifestError),
    /// The object store is damaged or cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// An entry of the private layer cannot be understood.
    #[error(
        "the private layer is damaged here: its mark {0} cannot be used; unmount the root and \
         restore the entry from a backup, or remove it"
    )]
    Mark(&'static str),
    /// The host file system refused.
    #[error("the host file system refused: {0}")]
    Host(#[from] Errno),
}

impl From<MarkError> for UnionError {
    fn from(error: MarkError) -> Self {
        match error {
            MarkError::Damaged(mark) => Self::Mark(mark),
            MarkError::Host(errno) => Self::Host(errno),
        }
    }
}
