//! The encoder: inodes in number order and directories in number order become the bytes.
//!
//! The bytes depend on nothing but what is added, so equal input gives equal digests.

use std::collections::HashMap;

use crate::layer::stack::Stack;
use crate::object::ObjectId;

use super::format::{
    ENTRY_LEN, ENTRY_WHITEOUT, FLAG_HIDDEN, FLAG_IMPLICIT, FLAG_OPAQUE, HEADER_LEN, INODE_LEN,
    KIND_LAYER, KIND_TREE, MAGIC, Section, TABLE_RECORD, VERSION, inode, name_prefix, seal, u16_at,
    u32_at,
};
use super::{FileKind, MODE_BITS, Metadata, Origin, TreeIno};

/// Why something cannot be written down as a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More records or bytes than the format can number.
    #[error("too many {what} for one manifest")]
    TooMany {
        /// Of what there are too many.
        what: &'static str,
    },
    /// One object is said to have two sizes.
    #[error("object {id} is given two sizes ({first} and {second} bytes)")]
    ObjectSizes {
        /// The object.
        id: ObjectId,
        /// The size seen first.
        first: u64,
        /// The other size.
        second: u64,
    },
}

/// An inode to be written.
pub(in super::super) struct Draft<'a, 'x> {
    pub(in super::super) metadata: Metadata,
    pub(in super::super) content: DraftContent<'a>,
    /// In byte order of the names, no name twice.
    pub(in super::super) xattrs: &'x [(&'a [u8], &'a [u8])],
    /// The place to record if no name is added: the last name of a hidden inode.
    pub(in super::super) last_name: Option<(TreeIno, &'a [u8])>,
}

#[derive(Clone, Copy)]
pub(in super::super) enum DraftContent<'a> {
    Directory { opaque: bool, implicit: bool },
    Regular { object: ObjectId, size: u64, data_blocks: u64 },
    Symlink(&'a [u8]),
    Fifo,
    Socket,
    CharDevice(u64),
    BlockDevice(u64),
}

impl DraftContent<'_> {
    fn kind(&self) -> FileKind {
        match self {
            Self::Directory { .. } => FileKind::Directory,
            Self::Regular { .. } => FileKind::Regular,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
        }
    }
}

/// A name to be written: of an inode, or with none a whiteout.
pub(in super::super) struct DraftEntry<'a> {
    pub(in super::super) name: &'a [u8],
    pub(in super::super) node: Option<(FileKind, TreeIno)>,
}

/// What an object table row says of an object, beside its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ObjectRow {
    size: u64,
    data_blocks: u64,
}

/// Collects a manifest. `'a` is the life of the names, which are interned by reference.
#[derive(Default)]
pub(in super::super) struct Encoder<'a> {
    inodes: Vec<[u8; INODE_LEN]>,
    entries: Vec<[u8; ENTRY_LEN]>,
    names: Pool<'a>,
    targets: Vec<u8>,
    objects: Vec<(ObjectId, ObjectRow)>,
    object_index: HashMap<ObjectId, u32>,
    xattr_sets: Vec<u8>,
    xattrs: Vec<u8>,
    xattr_values: Vec<u8>,
    xattr_index: HashMap<Vec<u8>, u32>,
    /// Directory of each run of entries, parallel to `runs`.
    runs: Vec<(TreeIno, std::ops::Range<usize>)>,
}

#[derive(Default)]
struct Pool<'a> {
    bytes: Vec<u8>,
    index: HashMap<&'a [u8], u32>,
}

impl<'a> Pool<'a> {
    fn intern(&mut self, name: &'a [u8]) -> Result<u32, EncodeError> {
        if let Some(offset) = self.index.get(name) {
            return Ok(*offset);
        }
        let offset = narrow(self.bytes.len(), "name bytes")?;
        self.bytes.extend_from_slice(name);
        self.index.insert(name, offset);
        Ok(offset)
    }
}

impl<'a> Encoder<'a> {
    /// Adds the inode with the next number; the first is the root.
    pub(in super::super) fn add_inode(&mut self, draft: &Draft<'a, '_>) -> Result<(), EncodeError> {
        let mut record = [0; INODE_LEN];
        let kind = draft.content.kind();
        record[inode::KIND] = kind.code();
        let mode = u16::try_from(draft.metadata.mode & MODE_BITS).unwrap_or_default();
        put(&mut record, inode::MODE, mode.to_le_bytes());
        put(&mut record, inode::UID, draft.metadata.uid.to_le_bytes());
        put(&mut record, inode::GID, draft.metadata.gid.to_le_bytes());
        put(&mut record, inode::MTIME_SECS, draft.metadata.mtime.secs.to_le_bytes());
        put(&mut record, inode::MTIME_NANOS, draft.metadata.mtime.nanos.to_le_bytes());
        let (first, second) = match draft.content {
            DraftContent::Directory { opaque, implicit } => {
                record[inode::FLAGS] |= if opaque { FLAG_OPAQUE } else { 0 };
                record[inode::FLAGS] |= if implicit { FLAG_IMPLICIT } else { 0 };
                (0, 0)
            }
            DraftContent::Regular { object, size, data_blocks } => {
                let index = self.add_object(object, ObjectRow { size, data_blocks })?;
                put(&mut record, inode::OBJECT, index.to_le_bytes());
                (size, data_blocks)
            }
            DraftContent::Symlink(target) => {
                let offset = narrow(self.targets.len(), "symlink target bytes")?;
                self.targets.extend_from_slice(target);
                (u64::from(offset), target.len() as u64)
            }
            DraftContent::Fifo | DraftContent::Socket => (0, 0),
            DraftContent::CharDevice(rdev) | DraftContent::BlockDevice(rdev) => (rdev, 0),
        };
        put(&mut record, inode::FIRST, first.to_le_bytes());
        put(&mut record, inode::SECOND, second.to_le_bytes());
        if !draft.xattrs.is_empty() {
            let count = u16::try_from(draft.xattrs.len())
                .map_err(|_| EncodeError::TooMany { what: "extended attributes of one file" })?;
            let set = self.add_xattrs(draft.xattrs)?;
            put(&mut record, inode::XATTR_COUNT, count.to_le_bytes());
            put(&mut record, inode::XATTR_SET, set.to_le_bytes());
        }
        if self.inodes.is_empty() {
            put(&mut record, inode::PARENT, 1_u32.to_le_bytes());
        } else if let Some((parent, name)) = draft.last_name {
            let offset = self.names.intern(name)?;
            put_name(&mut record, parent, offset, name.len());
        }
        narrow(self.inodes.len() + 1, "inodes")?;
        self.inodes.push(record);
        Ok(())
    }

    fn add_object(&mut self, id: ObjectId, row: ObjectRow) -> Result<u32, EncodeError> {
        if let Some(index) = self.object_index.get(&id) {
            let (_, known) = self.objects[*index as usize];
            if known != row {
                return Err(EncodeError::ObjectSizes { id, first: known.size, second: row.size });
            }
            return Ok(*index);
        }
        let index = narrow(self.objects.len(), "objects")?;
        self.objects.push((id, row));
        self.object_index.insert(id, index);
        Ok(index)
    }

    fn add_xattrs(&mut self, xattrs: &[(&'a [u8], &'a [u8])]) -> Result<u32, EncodeError> {
        // Equal sets are stored once; lengths in the key keep different ones apart.
        let mut key = Vec::new();
        for (name, value) in xattrs {
            for part in [name, value] {
                key.extend_from_slice(&part.len().to_le_bytes());
                key.extend_from_slice(part);
            }
        }
        if let Some(set) = self.xattr_index.get(&key) {
            return Ok(*set);
        }
        let first = narrow(self.xattrs.len() / Section::Xattrs.record_len(), "xattrs")?;
        for (name, value) in xattrs {
            let name_offset = self.names.intern(name)?;
            let value_offset = narrow(self.xattr_values.len(), "xattr bytes")?;
            self.xattr_values.extend_from_slice(value);
            let lens = [narrow(name.len(), "xattr bytes")?, narrow(value.len(), "xattr bytes")?];
            for field in [name_offset, lens[0], value_offset, lens[1]] {
                self.xattrs.extend_from_slice(&field.to_le_bytes());
            }
        }
        let set = narrow(self.xattr_sets.len() / Section::XattrSets.record_len(), "xattr sets")?;
        self.xattr_sets.extend_from_slice(&first.to_le_bytes());
        self.xattr_sets.extend_from_slice(&narrow(xattrs.len(), "xattrs")?.to_le_bytes());
        self.xattr_index.insert(key, set);
        Ok(set)
    }

    /// Adds all names of `dir`, in byte order. Directories come in the order of their
    /// numbers; all inodes are there before.
    pub(in super::super) fn add_directory(
        &mut self,
        dir: TreeIno,
        entries: impl IntoIterator<Item = DraftEntry<'a>>,
    ) -> Result<(), EncodeError> {
        debug_assert!(self.runs.last().is_none_or(|(last, _)| *last < dir));
        let start = self.entries.len();
        for DraftEntry { name, node } in entries {
            let mut record = [0; ENTRY_LEN];
            put(&mut record, 0, self.names.intern(name)?.to_le_bytes());
            record[4] = u8::try_from(name.len())
                .map_err(|_| EncodeError::TooMany { what: "bytes in a file name" })?;
            record[5] = node.map_or(ENTRY_WHITEOUT, |(kind, _)| kind.code());
            put(&mut record, 8, node.map_or(0, |(_, ino)| ino.get()).to_le_bytes());
            put(&mut record, 12, name_prefix(name).to_le_bytes());
            self.entries.push(record);
        }
        let end = self.entries.len();
        narrow(end, "names")?;
        let record = &mut self.inodes[dir.get() as usize - 1];
        // An empty directory points nowhere, so that it does not depend on its neighbours.
        let first = if start == end { 0 } else { start as u64 };
        put(record, inode::FIRST, first.to_le_bytes());
        put(record, inode::SECOND, ((end - start) as u64).to_le_bytes());
        self.runs.push((dir, start..end));
        Ok(())
    }

    /// The bytes of a layer.
    pub(in super::super) fn finish_layer(self) -> Result<Vec<u8>, EncodeError> {
        self.finish(None)
    }

    /// The bytes of the tree of `stack`; `origins` has one row for each inode.
    pub(in super::super) fn finish_tree(
        self,
        stack: &Stack,
        origins: &[Origin],
    ) -> Result<Vec<u8>, EncodeError> {
        self.finish(Some((stack, origins)))
    }

    fn finish(mut self, tree: Option<(&Stack, &[Origin])>) -> Result<Vec<u8>, EncodeError> {
        let links = self.count_links();
        self.sort_objects();
        let mut stack_bytes = Vec::new();
        let mut origin_bytes = Vec::new();
        if let Some((stack, origins)) = tree {
            debug_assert_eq!(origins.len(), self.inodes.len());
            for layer in stack.layers() {
                stack_bytes.extend_from_slice(layer.digest().as_bytes());
            }
            for origin in origins {
                origin_bytes.extend_from_slice(&origin.layer.to_le_bytes());
                origin_bytes.extend_from_slice(&origin.ino.get().to_le_bytes());
            }
        }
        let mut object_bytes = Vec::with_capacity(self.objects.len() * 48);
        for (id, row) in &self.objects {
            object_bytes.extend_from_slice(id.digest().as_bytes());
            object_bytes.extend_from_slice(&row.size.to_le_bytes());
            object_bytes.extend_from_slice(&row.data_blocks.to_le_bytes());
        }
        let body = |section: Section| -> &[u8] {
            match section {
                Section::Inodes => self.inodes.as_flattened(),
                Section::Entries => self.entries.as_flattened(),
                Section::Names => &self.names.bytes,
                Section::Targets => &self.targets,
                Section::Objects => &object_bytes,
                Section::XattrSets => &self.xattr_sets,
                Section::Xattrs => &self.xattrs,
                Section::XattrValues => &self.xattr_values,
                Section::Links => &links,
                Section::Stack => &stack_bytes,
                Section::Origins => &origin_bytes,
            }
        };
        let is_tree = tree.is_some();
        let sections: Vec<(Section, &[u8])> = Section::ALL
            .into_iter()
            .filter(|section| is_tree || !section.tree_only())
            .map(|section| (section, body(section)))
            .collect();
        Ok(assemble(is_tree, &sections))
    }

    /// Sets link counts and first names, and returns the links section.
    fn count_links(&mut self) -> Vec<u8> {
        let mut counts = vec![0_u32; self.inodes.len()];
        let mut placed = vec![false; self.inodes.len()];
        for (dir, run) in &self.runs {
            for entry in &self.entries[run.clone()] {
                let Some(ino) = TreeIno::new(u32_at(entry, 8)) else { continue };
                let slot = ino.get() as usize - 1;
                // Directories come in number order and names in byte order: the first seen
                // is the first name.
                if !std::mem::replace(&mut placed[slot], true) {
                    put_name(&mut self.inodes[slot], *dir, u32_at(entry, 0), entry[4].into());
                }
                if entry[5] == FileKind::Directory.code() {
                    counts[slot] += 2;
                    counts[dir.get() as usize - 1] += 1;
                } else {
                    counts[slot] += 1;
                }
            }
        }
        if let Some(root) = counts.first_mut() {
            *root += 2;
        }
        for (index, (record, count)) in self.inodes.iter_mut().zip(&counts).enumerate() {
            if index > 0 && !placed[index] {
                record[inode::FLAGS] |= FLAG_HIDDEN;
                put(record, inode::NLINK, 0_u32.to_le_bytes());
            } else {
                put(record, inode::NLINK, count.to_le_bytes());
            }
        }
        let mut links = Vec::new();
        for (dir, run) in &self.runs {
            for entry in &self.entries[run.clone()] {
                let ino = u32_at(entry, 8);
                let directory = entry[5] == FileKind::Directory.code();
                if ino != 0 && !directory && counts[ino as usize - 1] > 1 {
                    links.push([ino, dir.get(), u32_at(entry, 0), u32::from(entry[4])]);
                }
            }
        }
        // Stable: names of one inode stay in (directory, name) order.
        links.sort_by_key(|link| link[0]);
        links.into_iter().flatten().flat_map(u32::to_le_bytes).collect()
    }

    /// Brings the object table into digest order and renumbers the inodes' references.
    fn sort_objects(&mut self) {
        let mut order: Vec<usize> = (0..self.objects.len()).collect();
        order.sort_unstable_by_key(|index| self.objects[*index].0);
        let mut renumbered = vec![0_u32; order.len()];
        for (new, old) in (0_u32..).zip(&order) {
            renumbered[*old] = new;
        }
        self.objects = order.iter().map(|old| self.objects[*old]).collect();
        for record in &mut self.inodes {
            if record[inode::KIND] == FileKind::Regular.code() {
                let old = u32_at(record, inode::OBJECT) as usize;
                put(record, inode::OBJECT, renumbered[old].to_le_bytes());
            }
        }
    }
}

fn assemble(is_tree: bool, sections: &[(Section, &[u8])]) -> Vec<u8> {
    let align = |len: usize| len.next_multiple_of(8);
    let body: usize = sections.iter().map(|(_, bytes)| align(bytes.len())).sum();
    let table_end = HEADER_LEN + TABLE_RECORD * sections.len();
    let mut file = Vec::with_capacity(table_end + body);
    file.resize(HEADER_LEN, 0);
    file[..8].copy_from_slice(&MAGIC);
    file[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let kind = if is_tree { KIND_TREE } else { KIND_LAYER };
    file[12..16].copy_from_slice(&kind.to_le_bytes());
    let mut offset = table_end;
    let mut count = 0_u32;
    for (section, bytes) in sections {
        let record_len = section.record_len() as u64;
        file.extend_from_slice(&(u64::from(section.id()) | record_len << 32).to_le_bytes());
        file.extend_from_slice(&(offset as u64).to_le_bytes());
        file.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        file.extend_from_slice(&[0; 8]);
        offset += align(bytes.len());
        count += 1;
    }
    file[48..52].copy_from_slice(&count.to_le_bytes());
    for (_, bytes) in sections {
        file.extend_from_slice(bytes);
        file.resize(align(file.len()), 0);
    }
    seal(&mut file);
    file
}

fn put<const R: usize, const N: usize>(record: &mut [u8; R], at: usize, value: [u8; N]) {
    record[at..at + N].copy_from_slice(&value);
}

fn put_name(record: &mut [u8; INODE_LEN], parent: TreeIno, offset: u32, len: usize) {
    put(record, inode::PARENT, parent.get().to_le_bytes());
    put(record, inode::NAME_OFFSET, offset.to_le_bytes());
    let len = u16::try_from(len).unwrap_or_default(); // A file name, checked on the way in.
    put(record, inode::NAME_LEN, len.to_le_bytes());
    debug_assert_eq!(usize::from(u16_at(record, inode::NAME_LEN)), usize::from(len));
}

fn narrow(value: usize, what: &'static str) -> Result<u32, EncodeError> {
    // The last number stays free, so that counts and ends fit as well.
    u32::try_from(value).ok().filter(|value| *value < u32::MAX).ok_or(EncodeError::TooMany { what })
}
