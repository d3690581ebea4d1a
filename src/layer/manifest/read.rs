//! The zero-copy reader: a bounds-checked view of mapped or owned bytes.
//!
//! Decodes inodes and directories; `contents` and `places` read what hangs on an inode.

use std::cmp::Ordering;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::object::{Digest, ObjectId};

use super::format::{
    self, ENTRY_LEN, ENTRY_WHITEOUT, FLAG_HIDDEN, FLAG_IMPLICIT, FLAG_OPAQUE, Header, INODE_LEN,
    Section, i64_at, inode, u16_at, u32_at, u64_at,
};
use super::{FileKind, MODE_BITS, ManifestError, Metadata, Timestamp, TreeIno};
use crate::layer::name::MAX_NAME_BYTES;

/// An opened layer manifest or merged tree. Cheap to clone; clones share the bytes.
#[derive(Clone)]
pub struct Manifest(Arc<Opened>);

struct Opened {
    bytes: Bytes,
    header: Header,
}

enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

/// One inode, decoded.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub ino: TreeIno,
    /// What it is.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// `dev_t` as Linux encodes it; 0 unless a device.
    pub rdev: u64,
    /// Bytes of content, or of a symlink's target; 0 for anything else.
    pub size: u64,
    /// 512-byte units that the content takes on disk.
    pub data_blocks: u64,
    /// Names it has; for a directory 2 + its subdirectories. 0: hidden by a higher layer,
    /// the record stays because its number is permanent.
    pub nlink: u32,
    /// Directory of its first name (lowest directory number, then byte order of the name);
    /// the root's is itself. A hidden inode keeps that of its last name.
    pub parent: TreeIno,
    /// Index in the object table; present exactly for regular files.
    pub object: Option<u32>,
    /// Number of extended attributes.
    pub xattr_count: u32,
    /// Layers: the directory hides everything below it.
    pub opaque: bool,
    /// Layers: a directory that nothing described; merging keeps the lower metadata.
    pub implicit: bool,
    pub(super) first: u64,
    pub(super) second: u64,
    pub(super) xattr_set: u32,
    name_offset: u32,
    name_len: u16,
}

impl Inode {
    /// The part of the record that `chmod`, `chown` and `utimensat` change.
    pub fn metadata(&self) -> Metadata {
        Metadata { mode: self.mode, uid: self.uid, gid: self.gid, mtime: self.mtime }
    }

    /// Whether no name is left in the tree.
    pub fn is_hidden(&self) -> bool {
        self.nlink == 0
    }
}

/// What a directory entry is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A name of an inode of this kind.
    Inode(FileKind),
    /// Layers only: the name is removed from the layers below.
    Whiteout,
}

/// One name in a directory.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// What it names.
    pub kind: EntryKind,
    /// The inode; none for a whiteout.
    pub ino: Option<TreeIno>,
    /// Position in the directory.
    pub index: u32,
}

/// One row of the object table.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// The object.
    pub id: ObjectId,
    /// Its length in bytes.
    pub size: u64,
    /// 512-byte units that are not holes.
    pub data_blocks: u64,
}

/// The layer record that a tree's inode number was given to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Index of the layer in the stack, lowest 0.
    pub layer: u32,
    /// Inode number in that layer.
    pub ino: TreeIno,
}

impl Manifest {
    /// Maps `file` and checks its header and section table.
    ///
    /// Reads nothing else, so the time does not depend on the number of files.
    ///
    /// # Errors
    /// [`ManifestError::Map`] if the file cannot be mapped, others if it is no whole manifest.
    pub fn open(file: impl AsFd) -> Result<Self, ManifestError> {
        let io = |error: rustix::io::Errno| ManifestError::Map(error.into());
        let stat = rustix::fs::fstat(file.as_fd()).map_err(io)?;
        if stat.st_size == 0 {
            return Err(ManifestError::Truncated { found: 0, expected: None });
        }
        let map = crate::sys::map::map_readonly(file.as_fd()).map_err(ManifestError::Map)?;
        Self::with_bytes(Bytes::Mapped(map))
    }

    /// Takes `bytes` as a manifest after the same checks as [`Manifest::open`].
    ///
    /// # Errors
    /// Those of [`Manifest::open`], except [`ManifestError::Map`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ManifestError> {
        Self::with_bytes(Bytes::Owned(bytes))
    }

    fn with_bytes(bytes: Bytes) -> Result<Self, ManifestError> {
        let header = Header::parse(match &bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(vec) => vec,
        })?;
        Ok(Self(Arc::new(Opened { bytes, header })))
    }

    /// Takes the mapped pages out of this process's memory until they are asked for again.
    ///
    /// # Errors
    /// [`ManifestError::Map`].
    pub fn let_go(&self) -> Result<(), ManifestError> {
        match &self.0.bytes {
            Bytes::Mapped(map) => crate::sys::map::let_go(map).map_err(ManifestError::Map),
            Bytes::Owned(_) => Ok(()),
        }
    }

    /// The whole file.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(vec) => vec,
        }
    }

    /// BLAKE3-256 of the whole file; the name of a layer. Reads and hashes everything.
    pub fn digest(&self) -> Digest {
        Digest::of(self.as_bytes())
    }

    /// Whether this is a merged tree rather than a layer.
    pub fn is_tree(&self) -> bool {
        self.header().is_tree
    }

    /// Number of inodes; their numbers are 1 to this.
    pub fn len(&self) -> u32 {
        self.count(Section::Inodes)
    }

    /// Whether there is no inode at all, not even a root; no valid manifest is so.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of names in all directories, whiteouts included.
    pub fn name_count(&self) -> u32 {
        self.count(Section::Entries)
    }

    /// Optional features in use: those any reader may ignore, then those a reader may ignore
    /// but a writer may not.
    pub fn features(&self) -> (u64, u64) {
        (self.header().compatible, self.header().read_only_compatible)
    }

    pub(super) fn header(&self) -> &Header {
        &self.0.header
    }

    pub(super) fn section(&self, section: Section) -> &[u8] {
        let span = self.0.header.spans[section.slot()];
        // The span was checked against the file when it was opened.
        self.as_bytes().get(span.start..span.start + span.len).unwrap_or_default()
    }

    pub(super) fn count(&self, section: Section) -> u32 {
        let records = self.0.header.spans[section.slot()].len / section.record_len();
        // Checked when the section table was read.
        u32::try_from(records).unwrap_or(u32::MAX)
    }

    pub(super) fn record<const N: usize>(&self, section: Section, index: u32) -> Option<&[u8; N]> {
        let start = (index as usize).checked_mul(N)?;
        self.section(section).get(start..)?.first_chunk::<N>()
    }

    /// `len` bytes of a byte pool at `offset`.
    pub(super) fn pooled(
        &self,
        pool: Section,
        offset: u64,
        len: u64,
        damage: impl FnOnce(&'static str) -> ManifestError,
    ) -> Result<&[u8], ManifestError> {
        let range = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
        range
            .and_then(|(start, len)| self.section(pool).get(start..start.checked_add(len)?))
            .ok_or_else(|| damage("it points outside a section"))
    }

    /// Decodes the inode `ino`.
    ///
    /// # Errors
    /// [`ManifestError::NoInode`] beyond the last one, [`ManifestError::Record`] for damage.
    pub fn inode(&self, ino: TreeIno) -> Result<Inode, ManifestError> {
        let index = ino.get() - 1;
        let record: &[u8; INODE_LEN] =
            self.record(Section::Inodes, index).ok_or(ManifestError::NoInode(ino.get()))?;
        let bad = |problem| damaged(Section::Inodes, index, problem);
        let kind = FileKind::from_code(record[inode::KIND]).ok_or_else(|| bad("unknown kind"))?;
        let flags = record[inode::FLAGS];
        let is_directory = kind == FileKind::Directory;
        let first = u64_at(record, inode::FIRST);
        let second = u64_at(record, inode::SECOND);
        let parent = TreeIno::new(u32_at(record, inode::PARENT))
            .filter(|parent| parent.get() <= self.len())
            .ok_or_else(|| bad("it has no parent"))?;
        // What makes every walk up or down the tree end, whatever the bytes are.
        if ino == TreeIno::ROOT {
            if !is_directory || parent != TreeIno::ROOT {
                return Err(bad("the root is not a directory"));
            }
        } else if is_directory && parent >= ino {
            return Err(bad("a directory comes before its parent"));
        }
        let nanos = u32_at(record, inode::MTIME_NANOS);
        if nanos >= 1_000_000_000 {
            return Err(bad("more than a second of nanoseconds"));
        }
        let regular = kind == FileKind::Regular;
        let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        Ok(Inode {
            ino,
            kind,
            mode: u32::from(u16_at(record, inode::MODE)) & MODE_BITS,
            uid: u32_at(record, inode::UID),
            gid: u32_at(record, inode::GID),
            mtime: Timestamp { secs: i64_at(record, inode::MTIME_SECS), nanos },
            rdev: if device { first } else { 0 },
            size: match kind {
                FileKind::Regular => first,
                FileKind::Symlink => second,
                FileKind::Directory
                | FileKind::Fifo
                | FileKind::Socket
                | FileKind::CharDevice
                | FileKind::BlockDevice => 0,
            },
            data_blocks: if regular { second } else { 0 },
            nlink: if flags & FLAG_HIDDEN != 0 { 0 } else { u32_at(record, inode::NLINK) },
            parent,
            object: regular.then(|| u32_at(record, inode::OBJECT)),
            xattr_count: u32::from(u16_at(record, inode::XATTR_COUNT)),
            opaque: is_directory && flags & FLAG_OPAQUE != 0,
            implicit: is_directory && flags & FLAG_IMPLICIT != 0,
            first,
            second,
            xattr_set: u32_at(record, inode::XATTR_SET),
            name_offset: u32_at(record, inode::NAME_OFFSET),
            name_len: u16_at(record, inode::NAME_LEN),
        })
    }

    /// The root directory.
    ///
    /// # Errors
    /// Those of [`Manifest::inode`].
    pub fn root(&self) -> Result<Inode, ManifestError> {
        self.inode(TreeIno::ROOT)
    }

    /// The first name, in [`Inode::parent`]; empty for the root.
    ///
    /// # Errors
    /// [`ManifestError::Record`] if it points outside its section.
    pub fn name(&self, inode: &Inode) -> Result<&[u8], ManifestError> {
        if usize::from(inode.name_len) > MAX_NAME_BYTES {
            return Err(damaged(Section::Inodes, inode.ino.get() - 1, "its name is too long"));
        }
        self.pooled(
            Section::Names,
            u64::from(inode.name_offset),
            u64::from(inode.name_len),
            |problem| damaged(Section::Inodes, inode.ino.get() - 1, problem),
        )
    }

    /// Number of names in `dir`, whiteouts included; 0 if it is no directory.
    pub fn entry_count(&self, dir: &Inode) -> u32 {
        if dir.kind == FileKind::Directory { u32::try_from(dir.second).unwrap_or(0) } else { 0 }
    }

    /// The record range of `dir`'s entries.
    pub(super) fn entry_range(&self, dir: &Inode) -> Result<(u32, u32), ManifestError> {
        if dir.kind != FileKind::Directory || dir.second == 0 {
            return Ok((0, 0));
        }
        let all = u64::from(self.count(Section::Entries));
        let end = dir.first.checked_add(dir.second).filter(|end| *end <= all);
        let range = u32::try_from(dir.first).ok().zip(end.and_then(|end| u32::try_from(end).ok()));
        range.ok_or_else(|| {
            damaged(Section::Inodes, dir.ino.get() - 1, "its entries lie outside the section")
        })
    }

    /// The name at `index` in `dir`, in byte order; none beyond the last.
    ///
    /// # Errors
    /// [`ManifestError::Record`] for damage.
    pub fn entry(&self, dir: &Inode, index: u32) -> Result<Option<Entry<'_>>, ManifestError> {
        let (first, end) = self.entry_range(dir)?;
        match first.checked_add(index) {
            Some(at) if at < end => self.entry_at(dir, at, index).map(Some),
            _ => Ok(None),
        }
    }

    /// All names in `dir`, in byte order.
    pub fn entries<'a>(
        &'a self,
        dir: &Inode,
    ) -> impl Iterator<Item = Result<Entry<'a>, ManifestError>> + use<'a> {
        let dir = *dir;
        (0..self.entry_count(&dir)).map_while(move |index| self.entry(&dir, index).transpose())
    }

    fn entry_at(&self, dir: &Inode, at: u32, index: u32) -> Result<Entry<'_>, ManifestError> {
        let bad = |problem| damaged(Section::Entries, at, problem);
        let record: &[u8; ENTRY_LEN] =
            self.record(Section::Entries, at).ok_or_else(|| bad("there is none"))?;
        let name = self.entry_name(record, at)?;
        let (kind, ino) = (record[5], TreeIno::new(u32_at(record, 8)));
        let kind = match (kind, ino) {
            (ENTRY_WHITEOUT, None) if !self.is_tree() => EntryKind::Whiteout,
            (code, Some(ino)) if ino.get() <= self.len() && ino != TreeIno::ROOT => {
                let kind = FileKind::from_code(code).ok_or_else(|| bad("unknown kind"))?;
                if kind == FileKind::Directory && ino <= dir.ino {
                    return Err(bad("a directory comes before its parent"));
                }
                EntryKind::Inode(kind)
            }
            _ => return Err(bad("it names no inode")),
        };
        Ok(Entry { name, kind, ino, index })
    }

    fn entry_name(&self, record: &[u8; ENTRY_LEN], at: u32) -> Result<&[u8], ManifestError> {
        self.pooled(Section::Names, u64::from(u32_at(record, 0)), u64::from(record[4]), |problem| {
            damaged(Section::Entries, at, problem)
        })
    }

    /// Finds `name` in `dir` by binary search; a whiteout is found like any other entry.
    ///
    /// # Errors
    /// [`ManifestError::Record`] for damage on the way.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<Entry<'_>>, ManifestError> {
        let (first, end) = self.entry_range(dir)?;
        let (all, _) = self.section(Section::Entries).as_chunks::<ENTRY_LEN>();
        let names = self.section(Section::Names);
        let mut left = all.get(first as usize..end as usize).unwrap_or_default();
        let prefix = format::name_prefix(name);
        let mut index = 0;
        while let Some(middle) = left.get(left.len() / 2) {
            let at = left.len() / 2;
            let order = match u32_at(middle, 12).cmp(&prefix) {
                Ordering::Equal => {
                    let start = u32_at(middle, 0) as usize;
                    let found = names.get(start..start + usize::from(middle[4]));
                    found.map(|found| found.cmp(name)).ok_or_else(|| {
                        damaged(Section::Entries, first, "a name lies outside its section")
                    })?
                }
                order @ (Ordering::Less | Ordering::Greater) => order,
            };
            match order {
                Ordering::Less => {
                    index += at + 1;
                    left = &left[at + 1..];
                }
                Ordering::Greater => left = &left[..at],
                Ordering::Equal => {
                    // No more than the entries of a section, which 32 bits can count.
                    let index = u32::try_from(index + at).unwrap_or(u32::MAX);
                    return self.entry_at(dir, first.saturating_add(index), index).map(Some);
                }
            }
        }
        Ok(None)
    }
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_tree() { "tree" } else { "layer" };
        write!(f, "Manifest({kind}, {} inodes, {} names)", self.len(), self.name_count())
    }
}

pub(super) fn damaged(section: Section, index: u32, problem: &'static str) -> ManifestError {
    ManifestError::Record { section: section.name(), index: u64::from(index), problem }
}
