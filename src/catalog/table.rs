//! The reverse of one merged tree: from a content to its files, from a name to its places.
//!
//! ```text
//! index/trees/<stack digest>   numbers little-endian
//!   header   magic "MICAREV1"; stack (32); objects, inodes, files, names (u32 each);
//!            one checksum for each data block: the first 8 bytes of its BLAKE3
//!   digest   BLAKE3 of the header (32)
//!   data     in blocks of 4096 bytes, the last one shorter:
//!            first[objects + 1] (u32): where in `files` the object's begin
//!            files[files] (u32): inodes, by object, then by number
//!            names[names] (u32, u32): directory and index in it of every name of a regular
//!            file, in byte order of the names
//! ```
//! A file of its own, not rows of the database: sled opens in time proportional to its rows
//! (0.4 s for 300,000 of 40 bytes), and this is read in place, three or four blocks for a
//! question. It is read, not mapped: whoever truncates it must not kill the reader. What
//! fails its checksum is as good as missing.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::layer::{Derived, FileKind, Manifest, ManifestError, StackId, TreeIno};
use crate::object::Digest;

const MAGIC: &[u8; 8] = b"MICAREV1";
const BLOCK: usize = 4096;
const FIXED: usize = 8 + 32 + 4 * 4;
const CHECKSUM: usize = 8;
const DIGEST: usize = 32;
/// What a tree of 2^32 files would need; more is damage.
const MAX_HEADER: u64 = 256 << 20;

/// Tells apart what the threads of this process are writing.
static STAGED: AtomicU64 = AtomicU64::new(0);

/// The table of one tree, opened or just made.
pub struct Table {
    source: Source,
    objects: u32,
    files: u32,
    names: u32,
    checksums: Vec<u8>,
    /// Blocks that were read and are whole.
    blocks: HashMap<usize, Vec<u8>>,
}

enum Source {
    File { file: File, data: u64, len: u64 },
    Memory(Vec<u8>),
}

/// The table is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index of a tree is damaged")]
pub struct TableDamaged;

impl Table {
    /// The table of `tree`, the merge of `stack`: from `directory` if it is whole there, made
    /// and put there otherwise. That it cannot be put there is no error.
    ///
    /// # Errors
    /// [`ManifestError`] if the tree is damaged.
    pub(super) fn of(
        directory: &Path,
        stack: &StackId,
        tree: &Manifest,
    ) -> Result<Self, ManifestError> {
        let path = directory.join(stack.to_string());
        if let Some(table) = Self::open(&path, stack, tree) {
            return Ok(table);
        }
        Self::make(directory, stack, tree)
    }

    /// Makes the table of `tree` anew.
    ///
    /// # Errors
    /// [`ManifestError`] if the tree is damaged.
    pub(super) fn make(
        directory: &Path,
        stack: &StackId,
        tree: &Manifest,
    ) -> Result<Self, ManifestError> {
        let (header, data) = encode(stack, tree)?;
        let path = directory.join(stack.to_string());
        if let Err(error) = write(directory, &path, &header, &data) {
            tracing::debug!(path = %path.display(), %error, "the index of a tree is not kept");
        }
        Ok(Self {
            objects: u32_at(&header, 40),
            files: u32_at(&header, 48),
            names: u32_at(&header, 52),
            checksums: Vec::new(),
            source: Source::Memory(data),
            blocks: HashMap::new(),
        })
    }

    /// Compares what is in `directory` with what `tree` gives; with `fix` it is replaced where it
    /// is something else.
    ///
    /// # Errors
    /// [`ManifestError`] if the tree is damaged.
    pub(super) fn check(
        directory: &Path,
        stack: &StackId,
        tree: &Manifest,
        fix: bool,
    ) -> Result<Derived, ManifestError> {
        let (header, data) = encode(stack, tree)?;
        let path = directory.join(stack.to_string());
        let stored = match fs::read(&path) {
            // An index that cannot be made (a file has its name) is none.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(Derived::Absent);
            }
            stored => stored.ok(),
        };
        let parts = stored.as_ref().and_then(|stored| stored.split_at_checked(header.len()));
        if parts == Some((&*header, &*data)) {
            return Ok(Derived::Right);
        }
        let replaced = fix && write(directory, &path, &header, &data).is_ok();
        Ok(if replaced { Derived::Replaced } else { Derived::Wrong })
    }

    fn open(path: &Path, stack: &StackId, tree: &Manifest) -> Option<Self> {
        let file = File::open(path).ok()?;
        // The header of a tree of 100,000 files has 3.5 KiB.
        let mut header = vec![0; BLOCK];
        let read = read_some(&file, &mut header, 0).ok()?;
        header.truncate(read);
        let fixed = header.get(..FIXED)?;
        if !fixed.starts_with(MAGIC) || fixed.get(8..40)? != stack.digest().as_bytes() {
            return None;
        }
        let (objects, inodes) = (u32_at(fixed, 40), u32_at(fixed, 44));
        let (files, names) = (u32_at(fixed, 48), u32_at(fixed, 52));
        if objects != tree.object_count() || inodes != tree.len() {
            return None;
        }
        let len = (u64::from(objects) + 1) * 4 + u64::from(files) * 4 + u64::from(names) * 8;
        let checksums = usize::try_from(len.div_ceil(BLOCK as u64)).ok()? * CHECKSUM;
        let whole = FIXED + checksums + DIGEST;
        if whole as u64 > MAX_HEADER {
            return None;
        }
        let had = header.len().min(whole);
        header.resize(whole, 0);
        if had < whole {
            file.read_exact_at(header.get_mut(had..)?, had as u64).ok()?;
        }
        let (told, digest) = header.split_at_checked(FIXED + checksums)?;
        if Digest::of(told).as_bytes() != digest {
            return None;
        }
        let checksums = told.get(FIXED..)?.to_vec();
        let source = Source::File { file, data: whole as u64, len };
        Some(Self { source, objects, files, names, checksums, blocks: HashMap::new() })
    }

    /// The files of the tree that have the object at `index` of its object table, none of them
    /// hidden.
    ///
    /// # Errors
    /// [`TableDamaged`].
    pub fn files_with(&mut self, index: u32) -> Result<Vec<TreeIno>, TableDamaged> {
        if index >= self.objects {
            return Err(TableDamaged);
        }
        let at = u64::from(index) * 4;
        let (first, end) = (self.number(at)?, self.number(at + 4)?);
        if first > end || end > self.files {
            return Err(TableDamaged);
        }
        let files = (u64::from(self.objects) + 1) * 4;
        (first..end)
            .map(|at| TreeIno::new(self.number(files + u64::from(at) * 4)?).ok_or(TableDamaged))
            .collect()
    }

    /// Number of names of regular files.
    pub fn name_count(&self) -> u32 {
        self.names
    }

    /// Where the name of rank `at`, in byte order, is: its directory and its index in that.
    ///
    /// # Errors
    /// [`TableDamaged`].
    pub fn name(&mut self, at: u32) -> Result<(TreeIno, u32), TableDamaged> {
        let start = (u64::from(self.objects) + 1) * 4 + u64::from(self.files) * 4;
        let start = start + u64::from(at) * 8;
        let dir = TreeIno::new(self.number(start)?).ok_or(TableDamaged)?;
        Ok((dir, self.number(start + 4)?))
    }

    fn number(&mut self, at: u64) -> Result<u32, TableDamaged> {
        let at = usize::try_from(at).map_err(|_| TableDamaged)?;
        if let Source::Memory(data) = &self.source {
            return data.get(at..at + 4).map(|bytes| u32_at(bytes, 0)).ok_or(TableDamaged);
        }
        // Every number is at a multiple of four, so none crosses a block.
        let block = self.block(at / BLOCK)?;
        block.get(at % BLOCK..at % BLOCK + 4).map(|bytes| u32_at(bytes, 0)).ok_or(TableDamaged)
    }

    fn block(&mut self, number: usize) -> Result<&[u8], TableDamaged> {
        if !self.blocks.contains_key(&number) {
            let Source::File { file, data, len } = &self.source else { return Err(TableDamaged) };
            let start = number as u64 * BLOCK as u64;
            let size = len.checked_sub(start).ok_or(TableDamaged)?.min(BLOCK as u64);
            let mut block = vec![0; usize::try_from(size).map_err(|_| TableDamaged)?];
            file.read_exact_at(&mut block, data + start).map_err(|_| TableDamaged)?;
            let told = self.checksums.get(number * CHECKSUM..(number + 1) * CHECKSUM);
            if told != Some(&Digest::of(&block).as_bytes()[..CHECKSUM]) {
                return Err(TableDamaged);
            }
            self.blocks.insert(number, block);
        }
        self.blocks.get(&number).map(Vec::as_slice).ok_or(TableDamaged)
    }
}

/// Header with its digest, and data.
fn encode(stack: &StackId, tree: &Manifest) -> Result<(Vec<u8>, Vec<u8>), ManifestError> {
    let mut files: Vec<(u32, u32)> = Vec::with_capacity(tree.len() as usize);
    let mut names: Vec<(&[u8], u32, u32)> = Vec::with_capacity(tree.name_count() as usize);
    for ino in (1..=tree.len()).filter_map(TreeIno::new) {
        let inode = tree.inode(ino)?;
        match (inode.kind, inode.object) {
            (FileKind::Directory, _) => {
                for entry in tree.entries(&inode) {
                    let entry = entry?;
                    let regular = crate::layer::EntryKind::Inode(FileKind::Regular);
                    if entry.kind == regular {
                        names.push((entry.name, ino.get(), entry.index));
                    }
                }
            }
            (FileKind::Regular, Some(object)) if !inode.is_hidden() => {
                files.push((object, ino.get()));
            }
            _ => {}
        }
    }
    files.sort_unstable();
    names.sort_unstable();
    let objects = tree.object_count();
    let mut data = Vec::with_capacity(files.len() * 4 + names.len() * 8 + objects as usize * 4 + 4);
    let mut at = 0;
    for object in 0..=objects {
        while files.get(at).is_some_and(|(of, _)| *of < object) {
            at += 1;
        }
        push(&mut data, count(at));
    }
    for (_, ino) in &files {
        push(&mut data, *ino);
    }
    for (_, dir, index) in &names {
        push(&mut data, *dir);
        push(&mut data, *index);
    }
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(stack.digest().as_bytes());
    for number in [objects, tree.len(), count(files.len()), count(names.len())] {
        push(&mut header, number);
    }
    for block in data.chunks(BLOCK) {
        header.extend_from_slice(&Digest::of(block).as_bytes()[..CHECKSUM]);
    }
    let digest = Digest::of(&header);
    header.extend_from_slice(digest.as_bytes());
    Ok((header, data))
}

/// Not made durable: what a crash leaves fails its checksums.
fn write(directory: &Path, path: &Path, header: &[u8], data: &[u8]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let serial = STAGED.fetch_add(1, Ordering::Relaxed);
    let staged = path.with_extension(format!("{}-{serial}.staged", std::process::id()));
    let written = File::create(&staged).and_then(|mut file| {
        file.write_all(header)?;
        file.write_all(data)?;
        fs::rename(&staged, path)
    });
    if written.is_err() {
        // The first error is the one that matters; the next cleaning takes a leftover away.
        let _left = fs::remove_file(&staged);
    }
    written
}

fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn push(bytes: &mut Vec<u8>, number: u32) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let number = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    u32::from_le_bytes(number.unwrap_or_default())
}

/// Positions in what a manifest counts with 32 bits.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
