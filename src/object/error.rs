//! What can fail in the object store.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::ObjectId;

/// A failure of the object store.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// A system call on a file of the store failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The content to be stored could not be read.
    #[error("cannot read the content to store")]
    Source(#[source] io::Error),
    /// No object of that name is in the store.
    #[error("object {0} is missing from the store")]
    Missing(ObjectId),
    /// The name is there, but what it names is not the object.
    #[error("object {0} is damaged: not a regular file")]
    Damaged(ObjectId),
    /// The object's file is longer or shorter than its content.
    #[error("object {id} is damaged: {found} bytes long instead of {wanted}")]
    Length {
        /// The object.
        id: ObjectId,
        /// Length of its file in bytes.
        found: u64,
        /// Length of its content in bytes.
        wanted: u64,
    },
    /// What was read is not the content that the name stands for.
    #[error(
        "object {0} is damaged: it was altered; restore it with `mica template check --fix SOURCE`"
    )]
    Altered(ObjectId),
    /// The host could not make the staged objects durable earlier on; they cannot be trusted.
    #[error("the import in {} lost data to an earlier write error and must be started again", .0.display())]
    Lost(PathBuf),
}

impl ObjectError {
    /// Whether the host file system was full, or a quota was.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Source(source) => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Missing(_)
            | Self::Damaged(_)
            | Self::Length { .. }
            | Self::Altered(_)
            | Self::Lost(_) => false,
        }
    }

    pub(super) fn io(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn sys(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(Errno) -> Self {
        let path = path.as_ref().to_owned();
        move |errno| Self::Io { action, path, source: errno.into() }
    }
}
