//! What can fail while importing.

use std::io;

use super::compression::CompressionError;
use super::exclude::PatternError;
use super::image::ImageError;
use super::metadata::{MetadataFault, printable};
use super::tar::TarError;
use crate::layer::{BuildError, ManifestError, MergeError, PathError};
use crate::object::ObjectError;

/// Why an import failed. Whatever it had staged goes with its staging directory.
///
/// What the system or another module said is the source, and not repeated in the text.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The user, or the supervisor, stopped it.
    #[error("the import was cancelled")]
    Cancelled,
    /// The source cannot be opened.
    #[error("cannot open {name}")]
    Open {
        /// What was to be opened.
        name: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The source is neither a directory nor a file.
    #[error("{0} is neither a directory nor an archive")]
    NotASource(String),
    /// A system call on a file of the source failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file of the source.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A file was written to each time it was read.
    #[error(
        "{path} changed while it was read, {attempts} times in a row; import a snapshot, or exclude it"
    )]
    Changed {
        /// The file.
        path: String,
        /// How often it was read.
        attempts: u32,
    },
    /// Metadata of a file that a layer cannot hold.
    #[error("{path}: {fault}")]
    Metadata {
        /// The file.
        path: String,
        /// What is wrong.
        fault: MetadataFault,
    },
    /// An exclude pattern that cannot be used.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A compressed stream that cannot be read.
    #[error("{name}: {fault}")]
    Compression {
        /// The stream.
        name: String,
        /// What is wrong.
        fault: CompressionError,
    },
    /// A broken archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An archive with no members at all.
    #[error("{0} is an empty archive")]
    EmptyArchive(String),
    /// More files and directories than the limit.
    #[error("the source has more than {0} files and directories")]
    TooManyNodes(usize),
    /// Files that are nearly all hole, and longer than anybody wants to wait.
    #[error(
        "{path} has {} GiB of holes; of all files together at most {} GiB are hashed: leave it out, \
         or make it shorter",
        .bytes >> 30, .most >> 30
    )]
    TooManyHoles {
        /// The file.
        path: String,
        /// Bytes of holes in it.
        bytes: u64,
        /// Most of all files together.
        most: u64,
    },
    /// A member's path that cannot be part of a tree.
    #[error("a name in the archive cannot be used")]
    Path(#[from] PathError),
    /// Another kind of file stands where a member needs a directory.
    #[error("\"{}\" in the archive: \"{}\" is not a directory", printable(.member), printable(.parent))]
    NotADirectory {
        /// The member.
        member: Box<[u8]>,
        /// The path that is something else.
        parent: Box<[u8]>,
    },
    /// Directories nested beyond any sense.
    #[error("\"{}\" lies more than {} directories deep", printable(.0), super::assemble::MAX_DEPTH)]
    TooDeep(Box<[u8]>),
    /// Far more directories on the way to the members than there are members.
    #[error("\"{}\": the members of the archive lie in too many directories that it does not have", printable(.0))]
    TooManyImplied(Box<[u8]>),
    /// Far more steps on the way to the members than there are members.
    #[error("\"{}\": the names in the archive lead through too many links and directories", printable(.0))]
    TooManySteps(Box<[u8]>),
    /// Symbolic links that lead in circles.
    #[error("\"{}\" in the archive: too many symbolic links on the way", printable(.0))]
    LinkLoop(Box<[u8]>),
    /// A hard link whose target is nowhere.
    #[error("\"{}\" in the archive is a hard link to \"{}\", which is not there", printable(.member), printable(.target))]
    NoLinkTarget {
        /// The link.
        member: Box<[u8]>,
        /// What it should name.
        target: Box<[u8]>,
    },
    /// A hard link to a directory.
    #[error("\"{}\" in the archive is a hard link to \"{}\", which is a directory", printable(.member), printable(.target))]
    LinkToDirectory {
        /// The link.
        member: Box<[u8]>,
        /// What it names.
        target: Box<[u8]>,
    },
    /// The root as anything but a directory.
    #[error("the archive has the root directory as another kind of file")]
    RootReplaced,
    /// A `.wh.` name that names nothing.
    #[error("\"{0}\" is a whiteout of nothing")]
    BadWhiteout(String),
    /// A layer of a container image that cannot be imported.
    #[error("layer {number} of {count} of the image")]
    Layer {
        /// Which layer, from 1.
        number: usize,
        /// How many there are.
        count: usize,
        /// What is wrong.
        source: Box<ImportError>,
    },
    /// A broken container image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The object store failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Content could not be read or stored.
    #[error("cannot store {path}")]
    Content {
        /// The file whose content it is.
        path: String,
        /// What failed.
        source: ObjectError,
    },
    /// The layer cannot be written as a manifest.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The layer below is damaged.
    #[error("the layer below is damaged")]
    Below(#[from] ManifestError),
    /// The layers of an image cannot be merged.
    #[error("the layers of the image cannot be merged")]
    Merge(#[from] MergeError),
    /// A file for the unpacked archive could not be made in the staging directory.
    #[error("cannot keep the archive in the store meanwhile")]
    Spool(#[source] io::Error),
    /// An unpacked image archive above the limit.
    #[error("the unpacked image archive is larger than {0} bytes")]
    SpoolFull(u64),
    /// A worker thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

impl ImportError {
    /// Whether the host file system was full, or a quota was.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Object(source) | Self::Content { source, .. } => source.is_no_space(),
            Self::Spool(source) => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Layer { source, .. } => source.is_no_space(),
            Self::Cancelled
            | Self::Open { .. }
            | Self::NotASource(_)
            | Self::File { .. }
            | Self::Changed { .. }
            | Self::Metadata { .. }
            | Self::Pattern(_)
            | Self::Compression { .. }
            | Self::Tar(_)
            | Self::EmptyArchive(_)
            | Self::TooManyNodes(_)
            | Self::TooManyHoles { .. }
            | Self::Path(_)
            | Self::NotADirectory { .. }
            | Self::TooDeep(_)
            | Self::TooManyImplied(_)
            | Self::TooManySteps(_)
            | Self::LinkLoop(_)
            | Self::NoLinkTarget { .. }
            | Self::LinkToDirectory { .. }
            | Self::RootReplaced
            | Self::BadWhiteout(_)
            | Self::Image(_)
            | Self::Build(_)
            | Self::Below(_)
            | Self::Merge(_)
            | Self::SpoolFull(_)
            | Self::Thread(_) => false,
        }
    }

    /// Whether the content of the source is at fault, and not the host or the user.
    pub(super) fn is_of_the_source(&self) -> bool {
        match self {
            Self::Compression { .. }
            | Self::Tar(_)
            | Self::EmptyArchive(_)
            | Self::TooManyNodes(_)
            | Self::TooManyHoles { .. }
            | Self::Path(_)
            | Self::NotADirectory { .. }
            | Self::TooDeep(_)
            | Self::TooManyImplied(_)
            | Self::TooManySteps(_)
            | Self::LinkLoop(_)
            | Self::NoLinkTarget { .. }
            | Self::LinkToDirectory { .. }
            | Self::RootReplaced
            | Self::BadWhiteout(_)
            | Self::Metadata { .. }
            | Self::Build(_)
            | Self::SpoolFull(_) => true,
            Self::Cancelled
            | Self::Open { .. }
            | Self::NotASource(_)
            | Self::File { .. }
            | Self::Changed { .. }
            | Self::Pattern(_)
            | Self::Layer { .. }
            | Self::Image(_)
            | Self::Object(_)
            | Self::Content { .. }
            | Self::Below(_)
            | Self::Merge(_)
            | Self::Spool(_)
            | Self::Thread(_) => false,
        }
    }

    /// Says which layer of an image is broken.
    pub(super) fn in_layer(self, number: usize, count: usize) -> Self {
        if self.is_of_the_source() {
            Self::Layer { number, count, source: Box::new(self) }
        } else {
            self
        }
    }

    pub(super) fn file(
        action: &'static str,
        path: &[u8],
    ) -> impl FnOnce(rustix::io::Errno) -> Self + use<> {
        let path = printable(path);
        move |errno| Self::File { action, path, source: errno.into() }
    }
}
