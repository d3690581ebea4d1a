//! What can be imported, and telling what it is.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use super::compression::{Compression, decompress, peek};
use super::image::ImageFiles;
use super::intake::{FilePart, Hashed, Intake};
use super::tar::Members;
use super::{Format, ImportError, Session, directory};

/// Bytes of an archive that are looked at to tell what it is.
const SNIFF_BYTES: usize = 16 * 1024;
const BUFFER_BYTES: usize = 256 * 1024;

/// Something to import.
#[derive(Debug)]
pub enum Source {
    /// An open directory: a tree, or an OCI layout.
    Directory {
        /// What to call it in messages.
        name: String,
        /// Open for reading.
        dir: OwnedFd,
    },
    /// A byte stream: a tar archive, compressed or not, of a tree or of an image.
    Archive(Archive),
}

/// A byte stream to import.
pub struct Archive {
    name: String,
    input: Input,
}

enum Input {
    /// A regular file, which can be read twice.
    File(File),
    Stream(Box<dyn Read + Send>),
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Source {
    /// Opens a directory, or a file that holds an archive.
    ///
    /// # Errors
    /// [`ImportError::Open`], and [`ImportError::NotASource`] for devices and sockets.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let name = path.display().to_string();
        let fail = |source| ImportError::Open { name: name.clone(), source };
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if kind.is_dir() {
            return Ok(Self::Directory { dir: directory::open(path)?, name });
        }
        let file = File::open(path).map_err(fail)?;
        // What was opened counts, not what stood there a moment ago.
        let kind = file.metadata().map_err(fail)?.file_type();
        if kind.is_file() {
            return Ok(Self::Archive(Archive { name, input: Input::File(file) }));
        }
        if std::os::unix::fs::FileTypeExt::is_fifo(&kind) {
            return Ok(Self::stream(name, file));
        }
        Err(ImportError::NotASource(name))
    }

    /// A stream that is read once from start to end, such as standard input.
    pub fn stream(name: String, input: impl Read + Send + 'static) -> Self {
        Self::Archive(Archive { name, input: Input::Stream(Box::new(input)) })
    }
}

impl Archive {
    /// What to call it in messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// An archive whose nature is known.
pub(super) enum Unpacked<'a> {
    Tree(TreeStream<'a>),
    Image(ImageFiles),
}

/// The uncompressed tar stream of a tree.
pub(super) struct TreeStream<'a> {
    pub(super) input: Box<dyn Read + 'a>,
    /// The uncompressed archive, where it is a file.
    pub(super) file: Option<File>,
    digest: Rc<RefCell<blake3::Hasher>>,
}

impl TreeStream<'_> {
    /// Digest of the source as it came, once all of it was read.
    pub(super) fn digest(&self) -> String {
        format!("blake3:{}", self.digest.borrow().finalize().to_hex())
    }
}

/// Tells trees from images. An image inside a stream is spooled, for its parts come in any order.
pub(super) fn unpack<'a>(
    session: &Session<'a>,
    archive: Archive,
    format: Format,
) -> Result<Unpacked<'a>, ImportError> {
    let Archive { name, input } = archive;
    let fail = |source| ImportError::Open { name: name.clone(), source };
    let (raw, file): (Box<dyn Read>, Option<File>) = match input {
        Input::Stream(stream) => (stream, None),
        Input::File(file) => {
            let len_bytes = file.metadata().map_err(fail)?.len();
            session.progress.expect(None, Some(len_bytes));
            let again = file.try_clone().map_err(fail)?;
            (Box::new(FilePart::whole(file)), Some(again))
        }
    };
    let (compression, stream) = decoded(session, raw, &name)?;
    let TreeStream { input, digest, .. } = stream;
    let (prefix, input) = peek(input, SNIFF_BYTES).map_err(|source| read_error(&name, source))?;
    if prefix.is_empty() {
        return Err(ImportError::EmptyArchive(name));
    }
    let image = match format {
        Format::Tree => false,
        Format::Image => true,
        Format::Auto => looks_like_image(&prefix),
    };
    let file = file.filter(|_| compression == Compression::Plain);
    if !image {
        return Ok(Unpacked::Tree(TreeStream { input: Box::new(input), file, digest }));
    }
    let file = match file {
        Some(file) => file,
        None => spool(session, input, &name)?,
    };
    let copy = file.try_clone().map_err(ImportError::Spool)?;
    let again = Intake::new(FilePart::whole(copy), session.cancel, None);
    let again = BufReader::with_capacity(BUFFER_BYTES, again);
    let index = file.try_clone().map_err(ImportError::Spool)?;
    let files = ImageFiles::archive(name.clone(), index, again, session.limits.nodes)?;
    if format == Format::Image || files.is_image() {
        return Ok(Unpacked::Image(files));
    }
    // A tree whose first name looked like part of an image.
    let copy = file.try_clone().map_err(ImportError::Spool)?;
    let again = Intake::new(FilePart::whole(copy), session.cancel, None);
    let input = Box::new(BufReader::with_capacity(BUFFER_BYTES, again));
    Ok(Unpacked::Tree(TreeStream { input, file: Some(file), digest }))
}

fn decoded<'a>(
    session: &Session<'a>,
    raw: Box<dyn Read + 'a>,
    name: &str,
) -> Result<(Compression, TreeStream<'a>), ImportError> {
    let intake = Intake::new(raw, session.cancel, Some(session.progress));
    let digest = Rc::new(RefCell::new(blake3::Hasher::new()));
    let hashed = Hashed::new(intake, Rc::clone(&digest));
    let (compression, input) = decompress(hashed)
        .map_err(|fault| ImportError::Compression { name: name.to_owned(), fault })?;
    Ok((compression, TreeStream { input, file: None, digest }))
}

fn read_error(name: &str, source: io::Error) -> ImportError {
    ImportError::Compression { name: name.to_owned(), fault: source.into() }
}

/// Whether the first name in an archive is one that only image archives start with.
fn looks_like_image(prefix: &[u8]) -> bool {
    let mut members = Members::new(prefix, false, u64::MAX);
    while let Ok(Some(member)) = members.next_member() {
        let mut names = member.path.split(|byte| *byte == b'/');
        let Some(first) = names.find(|name| !name.is_empty() && *name != b".") else { continue };
        let stem = [&b".json"[..], b".tar"].iter().find_map(|end| first.strip_suffix(*end));
        let digits = stem.unwrap_or(first);
        return matches!(
            first,
            b"oci-layout" | b"index.json" | b"blobs" | b"manifest.json" | b"repositories"
        ) || (digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit));
    }
    false
}

fn spool(session: &Session<'_>, mut input: impl Read, name: &str) -> Result<File, ImportError> {
    let mut file = session.sink.spool().map_err(ImportError::Spool)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut written = 0_u64;
    loop {
        session.cancel.check()?;
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(read_error(name, source)),
        };
        written = written.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if written > session.limits.spool_bytes {
            return Err(ImportError::SpoolFull(session.limits.spool_bytes));
        }
        file.write_all(&buffer[..count]).map_err(ImportError::Spool)?;
    }
}
