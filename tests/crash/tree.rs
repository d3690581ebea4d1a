//! What a workload's directory holds, as the workload knows it and as a disk shows it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Size of the blocks that files are made of, in bytes.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// A file's bytes, as one stamp for each block. The stamp 0 is a block of zeros, or a hole.
///
/// Each block repeats its stamp in a way that tells it from every other, so that a file made of
/// parts of several writes shows which.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Content {
    stamps: Vec<u64>,
    /// Bytes in the last block; a whole block, but for some files of the template.
    tail_bytes: usize,
}

impl Content {
    /// Whole blocks with these stamps.
    pub(crate) fn whole(stamps: Vec<u64>) -> Self {
        Self { stamps, tail_bytes: BLOCK_BYTES }
    }

    /// Blocks with these stamps, the last one cut to `tail_bytes` (a multiple of 8, not 0).
    pub(crate) fn cut(stamps: Vec<u64>, tail_bytes: usize) -> Self {
        assert!(tail_bytes.is_multiple_of(8) && (1..=BLOCK_BYTES).contains(&tail_bytes));
        Self { stamps, tail_bytes }
    }

    /// The stamps, one a block.
    pub(crate) fn stamps(&self) -> &[u64] {
        &self.stamps
    }

    /// Bytes in the last block.
    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Whether the last block is a whole one, so that blocks can follow it.
    pub(crate) fn is_whole(&self) -> bool {
        self.tail_bytes == BLOCK_BYTES
    }

    /// The same with other blocks from `first` on, grown if they reach beyond the end.
    pub(crate) fn with(&self, first: usize, stamps: &[u64]) -> Self {
        let mut changed = self.clone();
        let end = first + stamps.len();
        if end > changed.stamps.len() {
            assert!(self.is_whole(), "only whole blocks can be appended to");
            changed.stamps.resize(end, 0);
        }
        changed.stamps[first..end].copy_from_slice(stamps);
        changed
    }

    /// The first `blocks` blocks.
    pub(crate) fn truncated(&self, blocks: usize) -> Self {
        Self::whole(self.stamps[..blocks].to_vec())
    }

    /// The bytes that this stands for.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.stamps.iter().flat_map(|stamp| block(*stamp)).collect();
        bytes.truncate(bytes.len() - (BLOCK_BYTES - self.tail_bytes));
        bytes
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// The number of the first block that is of one piece with nothing ever written.
    fn read(bytes: &[u8]) -> Result<Self, usize> {
        let mut stamps = Vec::new();
        for (number, part) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let first = part.first_chunk::<8>().ok_or(number)?;
            let stamp = u64::from_le_bytes(*first);
            if block(stamp).get(..part.len()) != Some(part) {
                return Err(number);
            }
            stamps.push(stamp);
        }
        let tail_bytes = match bytes.len() % BLOCK_BYTES {
            0 => BLOCK_BYTES,
            tail => tail,
        };
        Ok(Self { stamps, tail_bytes })
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:x?}", self.stamps)?;
        if self.is_whole() { Ok(()) } else { write!(formatter, " cut to {}", self.tail_bytes) }
    }
}

/// The bytes of one block.
fn block(stamp: u64) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    if stamp != 0 {
        for (word, at) in bytes.chunks_exact_mut(8).zip(0_u64..) {
            word.copy_from_slice(&stamp.wrapping_add(at << 48).to_le_bytes());
        }
    }
    bytes
}

/// One file, whatever its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its bytes.
    pub(crate) content: Content,
    /// Its permission bits.
    pub(crate) mode: u32,
}

impl Node {
    /// Says how `self` differs from what was `expected`; nothing when it does not.
    fn difference(&self, expected: &Self) -> Option<String> {
        let (found, wanted) = (self.content.stamps(), expected.content.stamps());
        if self.mode != expected.mode {
            return Some(format!("mode {:o} instead of {:o}", self.mode, expected.mode));
        }
        if found.len() != wanted.len() || self.content.tail_bytes() != expected.content.tail_bytes()
        {
            return Some(format!("{:?} instead of {:?}", self.content, expected.content));
        }
        let at = found.iter().zip(wanted).position(|(found, wanted)| found != wanted)?;
        Some(format!("block {at} {:x} instead of {:x}", found[at], wanted[at]))
    }
}

/// Directories one level deep and the files in them; paths are `directory/file`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    /// Names of directories.
    pub(crate) directories: BTreeSet<String>,
    /// What each path names; paths of one file share the number.
    pub(crate) names: BTreeMap<String, u64>,
    /// The files.
    pub(crate) nodes: BTreeMap<u64, Node>,
}

impl Tree {
    /// Reads the directory `top`.
    ///
    /// # Errors
    /// A sentence about what cannot be so after any crash: a torn block, a wrong link count, an
    /// entry that is listed and is not there.
    pub(crate) fn read(top: &Path) -> Result<Self, String> {
        let mut tree = Self::default();
        for directory in list(top)? {
            for file in list(&top.join(&directory))? {
                tree.read_file(top, format!("{directory}/{file}"))?;
            }
            tree.directories.insert(directory);
        }
        tree.check_links(top)?;
        Ok(tree)
    }

    fn read_file(&mut self, top: &Path, path: String) -> Result<(), String> {
        let told = |error: io::Error| format!("{path}: {error}");
        let metadata = fs::symlink_metadata(top.join(&path)).map_err(told)?;
        let number = metadata.ino();
        if let Entry::Vacant(vacant) = self.nodes.entry(number) {
            let bytes = fs::read(top.join(&path)).map_err(told)?;
            let content =
                Content::read(&bytes).map_err(|block| format!("{path}: block {block} is torn"))?;
            let mode = metadata.permissions().mode() & 0o7777;
            vacant.insert(Node { content, mode });
        }
        self.names.insert(path, number);
        Ok(())
    }

    fn check_links(&self, top: &Path) -> Result<(), String> {
        for (path, number) in &self.names {
            let names = self.names.values().filter(|other| *other == number).count();
            let links = fs::symlink_metadata(top.join(path)).map_or(0, |metadata| metadata.nlink());
            if u64::try_from(names) != Ok(links) {
                return Err(format!("{path}: has {names} names and a link count of {links}"));
            }
        }
        Ok(())
    }

    /// Makes these directories and files on disk, as the lower tree that a template is made of.
    pub(crate) fn write(&self, top: &Path) -> io::Result<()> {
        for directory in &self.directories {
            fs::create_dir_all(top.join(directory))?;
        }
        let mut made: BTreeMap<u64, &String> = BTreeMap::new();
        for (path, number) in &self.names {
            if let Some(first) = made.get(number) {
                fs::hard_link(top.join(first), top.join(path))?;
                continue;
            }
            let node = &self.nodes[number];
            fs::write(top.join(path), node.content.bytes())?;
            fs::set_permissions(top.join(path), fs::Permissions::from_mode(node.mode))?;
            made.insert(*number, path);
        }
        Ok(())
    }

    /// The file at `path`.
    pub(crate) fn node(&self, path: &str) -> Option<&Node> {
        self.names.get(path).and_then(|number| self.nodes.get(number))
    }

    /// Gives `path` a file of its own.
    pub(crate) fn insert(&mut self, path: &str, node: Node) {
        self.remove(path);
        let number = self.nodes.keys().next_back().map_or(1, |last| last + 1);
        self.nodes.insert(number, node);
        self.names.insert(path.to_owned(), number);
    }

    /// Changes the file at `path`, under all of its names.
    pub(crate) fn change(&mut self, path: &str, change: impl FnOnce(&mut Node)) {
        let number = self.names[path];
        change(self.nodes.get_mut(&number).expect("every name has a node"));
    }

    /// Takes `path` away, and its file with the last name.
    pub(crate) fn remove(&mut self, path: &str) {
        if let Some(number) = self.names.remove(path)
            && !self.names.values().any(|other| *other == number)
        {
            self.nodes.remove(&number);
        }
    }

    /// Gives the file at `from` the further name `to`.
    pub(crate) fn link(&mut self, from: &str, to: &str) {
        let number = self.names[from];
        self.names.insert(to.to_owned(), number);
    }

    /// Says how `self` differs from what was `expected`; nothing when it does not.
    pub(crate) fn difference(&self, expected: &Self) -> Option<String> {
        if self.directories != expected.directories {
            return Some(format!(
                "directories {:?} instead of {:?}",
                self.directories, expected.directories
            ));
        }
        for path in expected.names.keys() {
            if !self.names.contains_key(path) {
                return Some(format!("{path} is missing"));
            }
        }
        for path in self.names.keys() {
            match (self.node(path), expected.node(path)) {
                (_, None) => return Some(format!("{path} should not be there")),
                (Some(found), Some(wanted)) => {
                    if let Some(difference) = found.difference(wanted) {
                        return Some(format!("{path} has {difference}"));
                    }
                }
                (None, Some(_)) => {}
            }
            if self.names_of(path) != expected.names_of(path) {
                return Some(format!(
                    "{path} has the names {:?} instead of {:?}",
                    self.names_of(path),
                    expected.names_of(path)
                ));
            }
        }
        None
    }

    fn names_of(&self, path: &str) -> Vec<&String> {
        let number = self.names.get(path);
        self.names
            .iter()
            .filter(|(_, other)| Some(*other) == number)
            .map(|(name, _)| name)
            .collect()
    }
}

/// The names in a directory, sorted.
fn list(directory: &Path) -> Result<Vec<String>, String> {
    let told = |error: io::Error| format!("{}: {error}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(told)? {
        names.push(entry.map_err(told)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
