//! The files of an image: in a directory, or at offsets of an uncompressed tar file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::ImageError;
use crate::layer::LayerPath;
use crate::layer::import::intake::FilePart;
use crate::layer::import::tar::{Member, MemberKind, Members, TarError};

/// Symbolic links followed inside an archive; old docker-save archives have one per shared layer.
const MAX_LINKS: u32 = 8;

/// Where the files of an image are.
pub(in crate::layer::import) struct ImageFiles {
    name: String,
    place: Place,
}

enum Place {
    Directory(OwnedFd),
    Archive { file: File, members: HashMap<LayerPath, Stored> },
}

/// A file in an archive.
#[derive(Clone, Debug)]
enum Stored {
    Content { offset: u64, len_bytes: u64 },
    Symlink(Box<[u8]>),
}

impl ImageFiles {
    /// The files in an open directory.
    pub(in crate::layer::import) fn directory(name: String, dir: OwnedFd) -> Self {
        Self { name, place: Place::Directory(dir) }
    }

    /// The files in an uncompressed tar archive. Reads it through once.
    ///
    /// # Errors
    /// [`TarError`] if it is broken. Members that no image has are passed over.
    pub(in crate::layer::import) fn archive(
        name: String,
        file: File,
        intake: impl Read,
        max_members: usize,
    ) -> Result<Self, TarError> {
        let mut reader = Members::new(intake, true, u64::MAX);
        let mut members = HashMap::new();
        while let Some(member) = reader.next_member()? {
            let Ok(path) = LayerPath::parse(&member.path) else { continue };
            if let Some(stored) = stored(&member, &members)
                && members.len() < max_members
            {
                members.insert(path, stored);
            }
        }
        reader.finish()?;
        Ok(Self { name, place: Place::Archive { file, members } })
    }

    /// Whether there is an OCI layout.
    pub(in crate::layer::import) fn is_oci_layout(&self) -> bool {
        self.has("oci-layout") && self.has("index.json")
    }

    /// Whether there is an OCI layout or a docker-save archive.
    pub(in crate::layer::import) fn is_image(&self) -> bool {
        self.is_oci_layout() || self.has("manifest.json")
    }

    /// What to call them in messages.
    pub(in crate::layer::import) fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is a file at `path`.
    pub(in crate::layer::import) fn has(&self, path: &str) -> bool {
        self.open(path).is_ok()
    }

    /// Size of a file in bytes.
    pub(in crate::layer::import) fn len(&self, path: &str) -> Option<u64> {
        match self.open(path).ok()? {
            ImageFile::Whole(file) => file.metadata().ok().map(|metadata| metadata.len()),
            ImageFile::Part(_, len_bytes) => Some(len_bytes),
        }
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// [`ImageError::Missing`] and [`ImageError::Read`].
    pub(in crate::layer::import) fn open(&self, path: &str) -> Result<ImageFile<'_>, ImageError> {
        let missing = || ImageError::Missing(path.to_owned());
        let read = |errno: Errno| ImageError::Read { name: path.to_owned(), source: errno.into() };
        let parsed = LayerPath::parse(path.as_bytes()).map_err(|_| missing())?;
        match &self.place {
            Place::Directory(dir) => {
                // NONBLOCK: a fifo would wait for a writer. What a symbolic link leads to is
                // only taken if its digest is right.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file =
                    openat(dir, path_of(&parsed), flags, Mode::empty()).map_err(|errno| {
                        if errno == Errno::NOENT { missing() } else { read(errno) }
                    })?;
                let stat = fstat(&file).map_err(read)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(missing());
                }
                Ok(ImageFile::Whole(file.into()))
            }
            Place::Archive { file, members } => {
                let mut at = parsed;
                for _ in 0..=MAX_LINKS {
                    match members.get(&at).ok_or_else(missing)? {
                        Stored::Content { offset, len_bytes } => {
                            let part = FilePart::new(file, *offset, *len_bytes);
                            return Ok(ImageFile::Part(part, *len_bytes));
                        }
                        Stored::Symlink(target) => at = follow(&at, target).ok_or_else(missing)?,
                    }
                }
                Err(missing())
            }
        }
    }
}

fn path_of(path: &LayerPath) -> Vec<u8> {
    path.to_bytes()
}

fn stored(member: &Member, known: &HashMap<LayerPath, Stored>) -> Option<Stored> {
    match &member.kind {
        MemberKind::Regular => {
            Some(Stored::Content { offset: member.content_offset?, len_bytes: member.size })
        }
        MemberKind::Symlink(target) => Some(Stored::Symlink(target.clone())),
        MemberKind::HardLink(target) => known.get(&LayerPath::parse(target).ok()?).cloned(),
        MemberKind::Directory
        | MemberKind::Fifo
        | MemberKind::CharDevice(_)
        | MemberKind::BlockDevice(_) => None,
    }
}

/// The path that a link at `link` leads to; none if it leaves the archive.
fn follow(link: &LayerPath, target: &[u8]) -> Option<LayerPath> {
    let mut bytes: Vec<&[u8]> = Vec::new();
    let parent = link.parent()?;
    if !target.starts_with(b"/") {
        bytes.extend(parent.names().iter().map(crate::layer::FileName::as_bytes));
    }
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                bytes.pop()?;
            }
            name => bytes.push(name),
        }
    }
    LayerPath::parse(&bytes.join(&b'/')).ok()
}

/// An open file of an image.
#[derive(Debug)]
pub(in crate::layer::import) enum ImageFile<'a> {
    Whole(File),
    Part(FilePart<&'a File>, u64),
}

impl Read for ImageFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Whole(file) => file.read(buffer),
            Self::Part(part, _) => part.read(buffer),
        }
    }
}
