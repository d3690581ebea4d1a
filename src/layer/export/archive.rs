//! Tar streams: PAX, as GNU tar and Go read them.
//!
//! Attributes are `SCHILY.xattr` records, holes GNU's sparse format 1.0. Sockets are left out,
//! as every tar does.

use std::io::{self, Write};
use std::os::fd::AsFd;

use tar::EntryType;

use super::header::{BLOCK_BYTES, Described, Record};
use super::members::{Member, visit, xattr_records};
use super::{ExportError, Watched};
use crate::layer::{FileKind, Inode, LayerPath, Manifest, ManifestError, Metadata, Timestamp};
use crate::object::{ObjectError, ObjectFile, ObjectId, ObjectReader, Reading};
use crate::sys::sparse::{Piece, Pieces};

/// Granularity of holes, that of objects.
const HOLE_BYTES: usize = 4096;
/// What is read of an object at a time; a multiple of [`HOLE_BYTES`].
const CHUNK_BYTES: usize = 256 * 1024;
/// Two zero blocks end an archive.
const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// How 4 KiB blocks of zeros are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holes {
    /// Left out, in GNU's sparse format.
    Sparse,
    /// As zeros, which every reader understands.
    Dense,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Members.
    pub members: u64,
    /// Bytes of regular files, holes included.
    pub bytes: u64,
    /// Sockets that were left out.
    pub sockets: Vec<LayerPath>,
}

/// Writes a merged tree as a tar stream.
///
/// # Errors
/// [`ExportError`]; what was written is then no whole archive.
pub fn write_tree(
    tree: &Manifest,
    objects: &ObjectReader,
    out: &mut dyn Write,
    watched: &Watched<'_>,
) -> Result<Written, ExportError> {
    if !tree.is_tree() {
        return Err(ExportError::NotATree);
    }
    Archive::new(tree, objects, out, Holes::Sparse, watched).write()
}

/// Writes a layer as OCI images have it: `.wh.NAME` for a whiteout, `.wh..wh..opq` in an opaque
/// directory.
///
/// # Errors
/// As [`write_tree`], and [`ExportError::WhiteoutName`].
pub fn write_layer(
    layer: &Manifest,
    objects: &ObjectReader,
    out: &mut dyn Write,
    watched: &Watched<'_>,
) -> Result<Written, ExportError> {
    Archive::new(layer, objects, out, Holes::Dense, watched).write()
}

struct Archive<'a> {
    manifest: &'a Manifest,
    objects: &'a ObjectReader,
    out: &'a mut dyn Write,
    holes: Holes,
    watched: &'a Watched<'a>,
    written: Written,
}

impl<'a> Archive<'a> {
    fn new(
        manifest: &'a Manifest,
        objects: &'a ObjectReader,
        out: &'a mut dyn Write,
        holes: Holes,
        watched: &'a Watched<'a>,
    ) -> Self {
        Self { manifest, objects, out, holes, watched, written: Written::default() }
    }

    fn write(mut self) -> Result<Written, ExportError> {
        let manifest = self.manifest;
        visit(manifest, |path, member| {
            self.watched.check()?;
            self.member(path, member)
        })?;
        self.put(&END)?;
        self.out.flush().map_err(failed)?;
        Ok(self.written)
    }

    fn member(&mut self, path: &[u8], member: Member<'_>) -> Result<(), ExportError> {
        match member {
            Member::Node(inode) => self.node(path, inode),
            Member::Link(first) => {
                let metadata = Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default() };
                self.refuse_whiteout_name(path)?;
                let mut link = described(path, EntryType::Link, metadata);
                link.link = first.to_vec();
                self.header(&link)
            }
            Member::Whiteout => {
                let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
                    Some(slash) => path.split_at(slash + 1),
                    None => path.split_at(0),
                };
                self.mark(&[dir, b".wh.", name].concat())
            }
            Member::Opaque if path.is_empty() => self.mark(b".wh..wh..opq"),
            Member::Opaque => self.mark(&[path, b"/.wh..wh..opq"].concat()),
        }
    }

    /// Writes an empty file that only its name makes something of.
    fn mark(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let metadata = Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default() };
        self.header(&described(path, EntryType::Regular, metadata))
    }

    fn node(&mut self, path: &[u8], inode: &Inode) -> Result<(), ExportError> {
        self.refuse_whiteout_name(path)?;
        let entry = match inode.kind {
            FileKind::Regular => EntryType::Regular,
            FileKind::Directory => EntryType::Directory,
            FileKind::Symlink => EntryType::Symlink,
            FileKind::Fifo => EntryType::Fifo,
            FileKind::CharDevice => EntryType::Char,
            FileKind::BlockDevice => EntryType::Block,
            FileKind::Socket => {
                self.written.sockets.push(layer_path(path));
                return Ok(());
            }
        };
        let mut member = described(path, entry, inode.metadata());
        if inode.kind == FileKind::Directory {
            if path.is_empty() {
                member.path.push(b'.');
            }
            member.path.push(b'/');
        }
        member.link = self.manifest.symlink_target(inode)?.to_vec();
        member.rdev = inode.rdev;
        member.records = xattr_records(self.manifest, inode)?;
        if inode.kind == FileKind::Regular {
            return self.regular(path, inode, member);
        }
        self.header(&member)
    }

    fn regular(
        &mut self,
        path: &[u8],
        inode: &Inode,
        mut member: Described,
    ) -> Result<(), ExportError> {
        let id = self.manifest.object(inode)?.ok_or(ManifestError::NoInode(inode.ino.get()))?;
        let object = self
            .objects
            .open_object(&id)
            .map_err(|source| ExportError::Object { path: layer_path(path), source })?;
        let mut content = Content { object, id, size: inode.size, path };
        self.written.bytes = self.written.bytes.saturating_add(inode.size);
        let full = inode.size.div_ceil(HOLE_BYTES as u64).saturating_mul(8);
        if self.holes == Holes::Dense || inode.data_blocks >= full {
            member.size = inode.size;
            self.header(&member)?;
            let mut reading = Reading::default();
            self.copy(&mut content, 0, inode.size, Some(&mut reading))?;
            content.verify(&reading)?;
            return self.pad(inode.size);
        }
        let runs = self.runs(&content)?;
        let map = sparse_map(&runs, inode.size);
        let data: u64 = runs.iter().map(|(_, len)| len).sum();
        member.size = data + map.len() as u64;
        member.records.extend(sparse_records(&member.path, inode.size));
        // What a reader sees that does not know the format: not the name of the file itself.
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        member.path = [&b"GNUSparseFile.0/"[..], name].concat();
        self.header(&member)?;
        self.put(&map)?;
        for (start, len) in runs {
            self.copy(&mut content, start, len, None)?;
        }
        self.pad(data)
    }

    /// The parts of a file that are not blocks of zeros: start and length in bytes. They stand before
    /// the data, so data is read twice, but holes are not. What the host has as holes is not the
    /// same everywhere, and an archive is.
    fn runs(&mut self, content: &Content<'_>) -> Result<Vec<(u64, u64)>, ExportError> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut reading = Reading::default();
        let mut buffer = vec![0; CHUNK_BYTES];
        let file = content.object.as_fd();
        let mut pieces = Pieces::of(file, content.size).map_err(|error| content.failed(error))?;
        loop {
            self.watched.check()?;
            let mut at = pieces.position();
            let piece = pieces.next(file, &mut buffer).map_err(|error| content.failed(error))?;
            let Some(piece) = piece else { break };
            reading.take_piece(piece, &buffer).map_err(|source| content.failed(source))?;
            let Piece::Data(count) = piece else { continue };
            for block in buffer[..count].chunks(HOLE_BYTES) {
                let len = block.len() as u64;
                if block.iter().any(|byte| *byte != 0) {
                    match runs.last_mut() {
                        Some((start, known)) if *start + *known == at => *known += len,
                        _ => runs.push((at, len)),
                    }
                }
                at += len;
            }
        }
        content.verify(&reading)?;
        Ok(runs)
    }

    fn copy(
        &mut self,
        content: &mut Content<'_>,
        start: u64,
        len: u64,
        mut reading: Option<&mut Reading>,
    ) -> Result<(), ExportError> {
        let mut buffer = vec![0; CHUNK_BYTES.min(usize::try_from(len).unwrap_or(CHUNK_BYTES))];
        let mut done = 0;
        while done < len {
            self.watched.check()?;
            let count = content.fill(&mut buffer, start + done, len - done)?;
            if let Some(reading) = &mut reading {
                reading.take(&buffer[..count]).map_err(|source| content.failed(source))?;
            }
            self.put(&buffer[..count])?;
            done += count as u64;
            (self.watched.read)(count as u64);
        }
        Ok(())
    }

    fn header(&mut self, member: &Described) -> Result<(), ExportError> {
        self.written.members += 1;
        let bytes = member.encode().map_err(failed)?;
        self.put(&bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.out.write_all(bytes).map_err(failed)
    }

    fn pad(&mut self, len: u64) -> Result<(), ExportError> {
        let over = usize::try_from(len % BLOCK_BYTES as u64).unwrap_or(0);
        let missing = if over == 0 { 0 } else { BLOCK_BYTES - over };
        self.put(&END[..missing])
    }

    /// In a layer such a name would be taken for a whiteout.
    fn refuse_whiteout_name(&self, path: &[u8]) -> Result<(), ExportError> {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        if !self.manifest.is_tree() && name.starts_with(b".wh.") {
            return Err(ExportError::WhiteoutName { path: layer_path(path) });
        }
        Ok(())
    }
}

/// The content of one file, being read.
struct Content<'a> {
    object: ObjectFile,
    id: ObjectId,
    size: u64,
    path: &'a [u8],
}

impl Content<'_> {
    /// Fills the buffer, or its beginning with the `left` bytes there are.
    fn fill(&mut self, buffer: &mut [u8], at: u64, left: u64) -> Result<usize, ExportError> {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut done = 0;
        while done < wanted {
            let read = self.object.read_at(&mut buffer[done..wanted], at + done as u64);
            match read.map_err(|source| self.failed(source))? {
                0 => return Err(self.altered()),
                count => done += count,
            }
        }
        Ok(done)
    }

    /// Refuses what is not the content that the object stands for: in an archive it would get a
    /// digest of its own, and be whole to everybody else.
    fn verify(&self, reading: &Reading) -> Result<(), ExportError> {
        let len = self.object.len().map_err(|source| self.failed(source))?;
        if reading.finish().0 == self.id && len == self.size { Ok(()) } else { Err(self.altered()) }
    }

    fn altered(&self) -> ExportError {
        let source = ObjectError::Altered(self.id);
        ExportError::Object { path: layer_path(self.path), source }
    }

    fn failed(&self, source: io::Error) -> ExportError {
        ExportError::Read { path: layer_path(self.path), source }
    }
}

fn described(path: &[u8], entry: EntryType, metadata: Metadata) -> Described {
    Described {
        path: path.to_vec(),
        entry,
        metadata,
        size: 0,
        link: Vec::new(),
        rdev: 0,
        records: Vec::new(),
    }
}

/// Number of runs, then start and length of each, a line each, padded to whole blocks. A run of
/// nothing at the end says how long the file is. GNU tar manual, "PAX Format, Version 1.0".
fn sparse_map(runs: &[(u64, u64)], size: u64) -> Vec<u8> {
    let mut runs = runs.to_vec();
    if runs.last().is_none_or(|(start, len)| start + len < size) {
        runs.push((size, 0));
    }
    let mut map = format!("{}\n", runs.len());
    for (start, len) in runs {
        map.push_str(&format!("{start}\n{len}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
    map
}

fn sparse_records(path: &[u8], size: u64) -> [Record; 4] {
    let record = |key: &str, value: &[u8]| (key.as_bytes().to_vec(), value.to_vec());
    [
        record("GNU.sparse.major", b"1"),
        record("GNU.sparse.minor", b"0"),
        record("GNU.sparse.name", path),
        record("GNU.sparse.realsize", size.to_string().as_bytes()),
    ]
}

fn layer_path(path: &[u8]) -> LayerPath {
    // Made of the manifest's own names.
    LayerPath::parse(path).unwrap_or_default()
}

fn failed(source: io::Error) -> ExportError {
    ExportError::Write { what: "the archive".to_owned(), source }
}
