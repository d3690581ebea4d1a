//! Turns trees from elsewhere into layers: directories, tar streams, container images.
//!
//! Content goes into a [`Staging`] of the object store while it is read; what comes back is
//! manifest bytes, which the caller publishes. Knows nothing of templates and mounts. Nothing
//! of a failed, cancelled or killed import survives it: its staging directory is dropped or
//! swept. The same input gives the same manifests, whatever the number of threads.
//!
//! What is taken over: names as bytes, mode, owner (numeric), mtime to the nanosecond, all
//! extended attributes of the four Linux namespaces, hard links, holes, devices, fifos, and from
//! directories sockets. User and group names in archives are ignored, as docker ignores them.

mod acl;
mod archive;
mod assemble;
mod compression;
mod directory;
mod error;
mod exclude;
mod image;
mod intake;
mod metadata;
mod progress;
mod resolve;
mod sink;
mod source;
mod tar;
mod walk;
mod whiteout;
mod workers;
mod xattrs;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

pub use acl::AclFault;
pub use compression::{Compression, CompressionError};
pub use error::ImportError;
pub use exclude::{Excludes, PatternError};
pub use image::{ImageError, Platform};
pub use metadata::MetadataFault;
pub use progress::{Note, Progress, Silent};
pub use source::{Archive, Source};
pub use tar::{TarError, TarFault};

use crate::layer::{Manifest, RunConfig};
use crate::object::{ObjectId, Staging};
use crate::sys::sparse::MOST_HOLE_BYTES;
use archive::Rules;
use image::ImageFiles;
use metadata::printable;
use progress::Cancel;
use sink::{HashOnly, Sink, Wanted};
use source::Unpacked;

/// Never set; for imports that nobody stops.
static NEVER: AtomicBool = AtomicBool::new(false);

/// How to import.
#[derive(Debug)]
pub struct ImportOptions<'a> {
    /// The tree below. With it `.wh.` names are whiteouts in every kind of source, and hard
    /// links may lead to its files.
    pub on: Option<&'a Manifest>,
    /// What to leave out of a directory.
    pub excludes: Excludes,
    /// What the source is, where it does not tell by itself.
    pub format: Format,
    /// Which image, where a source holds several.
    pub choice: Choice,
    /// Count a directory before importing it, so that progress has an end.
    pub measure: bool,
    /// Threads that hash and store, besides the importing one.
    pub threads: NonZeroUsize,
    /// Upper bounds.
    pub limits: Limits,
    /// Stops the import when set; it then fails with [`ImportError::Cancelled`].
    pub cancel: &'a AtomicBool,
}

impl Default for ImportOptions<'_> {
    fn default() -> Self {
        Self {
            on: None,
            excludes: Excludes::default(),
            format: Format::default(),
            choice: Choice::default(),
            measure: false,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            limits: Limits::default(),
            cancel: &NEVER,
        }
    }
}

/// What a source is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Told by its content: an image if it is one, else a tree.
    #[default]
    Auto,
    /// A tree of files, whatever they are called.
    Tree,
    /// A container image: an OCI layout or a docker-save archive.
    Image,
}

/// Which image of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Its name: the annotation `org.opencontainers.image.ref.name`, or a repository tag.
    pub reference: Option<String>,
    /// Its platform; by default this host's.
    pub platform: Option<Platform>,
}

/// Bounds that no sensible source reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest regular file in bytes.
    pub file_bytes: u64,
    /// Most files and directories in one layer, which is what memory grows with.
    pub nodes: usize,
    /// Most bytes of an unpacked image archive.
    pub spool_bytes: u64,
    /// Most bytes of holes in all files: the source does not have them, but they are hashed.
    pub hole_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // 16 TiB is the largest file of ext4.
        Self {
            file_bytes: 16 << 40,
            nodes: 16 << 20,
            spool_bytes: u64::MAX,
            hole_bytes: MOST_HOLE_BYTES,
        }
    }
}

/// What an import made, besides staged objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Manifests, lowest first: one, or as many as the image has layers.
    pub layers: Vec<Vec<u8>>,
    /// How to run it; empty unless the source is an image.
    pub config: RunConfig,
    /// Digest of the source with its algorithm: of an image's manifest, or of a stream as it
    /// came. A directory has none.
    pub source_digest: Option<String>,
    /// Names taken over, in all layers.
    pub names: u64,
}

/// Imports `source`, staging its content in `staging`.
///
/// Nothing is published. Reads archives to their end, also beyond the end mark.
///
/// # Errors
/// [`ImportError`]; the caller drops `staging` then.
pub fn import(
    source: Source,
    staging: &Staging,
    options: &ImportOptions<'_>,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    import_into(source, staging, options, progress)
}

/// As [`import`], but only reads and hashes: what would come out, and whether it would.
///
/// # Errors
/// [`ImportError`], as [`import`].
pub fn try_import(
    source: Source,
    options: &ImportOptions<'_>,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    import_into(source, &HashOnly, options, progress)
}

/// As [`import`], but stages only the content that is `wanted`, for a store that has lost it.
///
/// # Errors
/// [`ImportError`], as [`import`].
pub fn import_wanted(
    source: Source,
    staging: &Staging,
    wanted: &HashSet<ObjectId>,
    options: &ImportOptions<'_>,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    import_into(source, &Wanted { staging, ids: wanted }, options, progress)
}

fn import_into(
    source: Source,
    sink: &dyn Sink,
    options: &ImportOptions<'_>,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    let session = Session {
        sink,
        progress,
        cancel: Cancel(options.cancel),
        threads: options.threads,
        limits: options.limits,
        holes: &AtomicU64::new(0),
    };
    let result = match source {
        Source::Directory { name, dir } => import_directory(&session, name, dir, options),
        Source::Archive(archive) => import_archive(&session, archive, options),
    };
    // Cancelling shows up as one or another failure, wherever it is noticed first.
    if result.is_err() && session.cancel.is_set() { Err(ImportError::Cancelled) } else { result }
}

fn import_directory(
    session: &Session<'_>,
    name: String,
    dir: std::os::fd::OwnedFd,
    options: &ImportOptions<'_>,
) -> Result<Imported, ImportError> {
    if options.format != Format::Tree {
        let copy =
            dir.try_clone().map_err(|source| ImportError::Open { name: name.clone(), source })?;
        let files = ImageFiles::directory(name.clone(), copy);
        if options.format == Format::Image || files.is_oci_layout() {
            return import_image(session, &files, options);
        }
    }
    if options.measure {
        let copy =
            dir.try_clone().map_err(|source| ImportError::Open { name: name.clone(), source })?;
        let (names, bytes) = directory::measure(session, copy, &name, &options.excludes)?;
        session.progress.expect(Some(names), Some(bytes));
    }
    session.progress.layer(0, 1);
    let (manifest, names) =
        directory::import_directory(session, dir, &name, &options.excludes, options.on.is_some())?;
    Ok(Imported {
        layers: vec![manifest],
        config: RunConfig::default(),
        source_digest: None,
        names,
    })
}

fn import_archive(
    session: &Session<'_>,
    archive: Archive,
    options: &ImportOptions<'_>,
) -> Result<Imported, ImportError> {
    let name = archive.name().to_owned();
    match source::unpack(session, archive, options.format)? {
        Unpacked::Image(files) => import_image(session, &files, options),
        Unpacked::Tree(mut stream) => {
            session.progress.layer(0, 1);
            let rules = Rules {
                lower: options.on,
                whiteouts: options.on.is_some(),
                needs_end_mark: true,
                again: stream.file.as_ref(),
            };
            let layer = archive::read_layer(session, &mut stream.input, rules)?;
            if layer.members == 0 {
                return Err(ImportError::EmptyArchive(name));
            }
            Ok(Imported {
                layers: vec![layer.manifest],
                config: RunConfig::default(),
                source_digest: Some(stream.digest()),
                names: layer.members,
            })
        }
    }
}

fn import_image(
    session: &Session<'_>,
    files: &ImageFiles,
    options: &ImportOptions<'_>,
) -> Result<Imported, ImportError> {
    let image = image::read_image(session, files, &options.choice, options.on)?;
    Ok(Imported {
        layers: image.layers,
        config: image.config,
        source_digest: Some(image.digest),
        names: image.members,
    })
}

/// What all parts of one import share.
#[derive(Clone, Copy)]
struct Session<'a> {
    sink: &'a dyn Sink,
    progress: &'a dyn Progress,
    cancel: Cancel<'a>,
    threads: NonZeroUsize,
    limits: Limits,
    /// Bytes of holes so far.
    holes: &'a AtomicU64,
}

impl Session<'_> {
    /// Counts the holes of a file that is about to be hashed.
    fn check_holes(&self, path: &[u8], bytes: u64) -> Result<(), ImportError> {
        let before = self.holes.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 && before.saturating_add(bytes) > self.limits.hole_bytes {
            let (path, most) = (printable(path), self.limits.hole_bytes);
            return Err(ImportError::TooManyHoles { path, bytes, most });
        }
        Ok(())
    }

    fn check_nodes(&self, nodes: usize) -> Result<(), ImportError> {
        if nodes > self.limits.nodes {
            return Err(ImportError::TooManyNodes(self.limits.nodes));
        }
        Ok(())
    }
}
