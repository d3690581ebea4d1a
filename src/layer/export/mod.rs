//! Writing layers and trees out: as a directory, a tar stream, an OCI image layout.
//!
//! The same template gives the same bytes each time. Knows nothing of mounts. What is written
//! is not durable and may be unfinished after a crash: whoever asks for it names it only when
//! it is whole.

pub mod archive;
pub mod compress;
mod header;
mod members;
pub mod oci;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{LayerPath, ManifestError};
use crate::object::ObjectError;

pub use archive::{Holes, Written, write_layer, write_tree};
pub use compress::Compression;

/// Why something could not be written out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The caller stopped it.
    #[error("the export was cancelled; nothing has its name")]
    Cancelled,
    /// The archive, or a file of the layout, cannot be written.
    #[error("cannot write {what}")]
    Write {
        /// Which one.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// Something of a directory cannot be made.
    #[error("cannot {action} {path}")]
    Make {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path of the tree.
        path: LayerPath,
        /// Why it failed.
        source: io::Error,
    },
    /// The place has no use for an attribute.
    #[error("cannot set the attribute {name} of {path} here; a tar archive can hold it")]
    Attribute {
        /// Its name, printable.
        name: String,
        /// On which path of the tree.
        path: LayerPath,
        /// Why it failed.
        source: io::Error,
    },
    /// Content cannot be read.
    #[error("cannot read the content of {path}")]
    Read {
        /// The file.
        path: LayerPath,
        /// Why not.
        source: io::Error,
    },
    /// An object is missing or damaged.
    #[error("cannot use the content of {path}")]
    Object {
        /// The file.
        path: LayerPath,
        /// What is wrong.
        source: ObjectError,
    },
    /// The manifest is damaged.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A name means something else in a layer of an image.
    #[error(
        "{path} cannot be in a layer of an OCI image: names that begin with \".wh.\" are \
         whiteouts there; rename it, or export a directory or a tar archive"
    )]
    WhiteoutName {
        /// The file.
        path: LayerPath,
    },
    /// A single layer was given where only a merged tree makes sense.
    #[error("only a tree can be written out like this, not a single layer")]
    NotATree,
    /// The place holds something that is no OCI image layout.
    #[error("{path} is not an OCI image layout: {reason}; name another place")]
    Layout {
        /// The file that says so.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What an export is to look at and to tell while it works.
pub struct Watched<'a> {
    /// Stops the export when set.
    pub cancel: &'a AtomicBool,
    /// Is told of bytes that were read from objects.
    pub read: &'a dyn Fn(u64),
}

impl Watched<'_> {
    fn check(&self) -> Result<(), ExportError> {
        if self.cancel.load(Ordering::Relaxed) { Err(ExportError::Cancelled) } else { Ok(()) }
    }
}
