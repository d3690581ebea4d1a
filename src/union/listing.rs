//! Listing a merged directory from any offset, without state between requests.
//!
//! The offset of a tree entry is its index in the tree directory, whether it was copied up
//! since or not; that of a private name is 2⁶² and the number it got when it was made. So
//! nothing moves while others are removed, and nothing is listed twice.

use std::sync::atomic::Ordering;

use super::attributes::BLOCK_BYTES;
use super::node::UpperName;
use super::place::{Child, kind_of};
use super::{Attributes, Node, NodeId, Place, Union, UnionError};
use crate::layer::{EntryKind, FileKind, Inode, TreeIno};
use crate::private::marks::Marks;
use crate::sys::inode;

/// Offsets 1 and 2 follow `.` and `..`; a tree entry of index i is followed by i + 3.
const FIRST_TREE: u64 = 2;
const PRIVATE: u64 = 1 << 62;
/// Names read under one hold of a directory's lock.
const BATCH: usize = 128;

/// What is known of a listed entry without asking the host.
#[derive(Clone, Copy, Debug)]
pub enum ListedKind {
    /// `.` or `..`.
    Itself,
    /// A tree inode.
    Tree,
    /// An inode of the private layer.
    Private,
}

/// One entry of a listing.
pub struct Listed<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its attributes.
    pub attributes: Attributes,
    /// What it is.
    pub kind: ListedKind,
    /// The offset at which the listing goes on after it.
    pub next: u64,
}

enum Source {
    Tree(TreeIno),
    Upper(UpperName),
}

impl Union {
    /// Lists `dir` from `offset` (0: the start) until `emit` answers true for "full".
    ///
    /// # Errors
    /// [`UnionError::NotDirectory`], [`UnionError::Stale`].
    pub fn list(
        &self,
        dir: NodeId,
        offset: u64,
        emit: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<(), UnionError> {
        self.look();
        let place = self.place(dir)?;
        if offset < FIRST_TREE && self.list_dots(&place, offset, emit)? {
            return Ok(());
        }
        let from = offset.max(FIRST_TREE);
        match place {
            Place::Tree(inode) => self.list_tree(&inode, from, emit),
            Place::Private(node) => self.list_merged(&node, from, emit),
        }
    }

    fn list_dots(
        &self,
        place: &Place,
        offset: u64,
        emit: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<bool, UnionError> {
        let (itself, parent) = match place {
            Place::Tree(inode) if inode.kind != FileKind::Directory => {
                return Err(UnionError::NotDirectory);
            }
            Place::Tree(inode) => (self.tree_attributes(inode), self.number_of(inode.parent)),
            Place::Private(node) => {
                (self.node_attributes(node)?, NodeId::from_raw(node.parent.load(Ordering::Relaxed)))
            }
        };
        let kind = ListedKind::Itself;
        if offset == 0 && emit(Listed { name: b".", attributes: itself, kind, next: 1 }) {
            return Ok(true);
        }
        // A parent that the kernel forgot is shown as the directory itself: only d_ino.
        let attributes = self.attributes(parent).unwrap_or(itself);
        Ok(emit(Listed { name: b"..", attributes, kind, next: FIRST_TREE }))
    }

    fn list_tree(
        &self,
        dir: &Inode,
        from: u64,
        emit: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<(), UnionError> {
        if dir.kind != FileKind::Directory {
            return Err(UnionError::NotDirectory);
        }
        let Ok(start) = u32::try_from(from - FIRST_TREE) else { return Ok(()) };
        for index in start..self.tree.entry_count(dir) {
            let Some(entry) = self.tree.entry(dir, index)? else { break };
            let (Some(ino), EntryKind::Inode(_)) = (entry.ino, entry.kind) else { continue };
            let Ok(attributes) = self.tree_listed(ino) else { continue };
            let next = FIRST_TREE + u64::from(index) + 1;
            if emit(Listed { name: entry.name, attributes, kind: ListedKind::Tree, next }) {
                break;
            }
        }
        Ok(())
    }

    fn list_merged(
        &self,
        node: &Node,
        mut from: u64,
        emit: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<(), UnionError> {
        loop {
            let batch = self.read_batch(node, from)?;
            let Some((_, _, last)) = batch.last() else { return Ok(()) };
            from = *last;
            for (name, source, next) in &batch {
                let (attributes, kind) = match source {
                    Source::Tree(ino) => (self.tree_listed(*ino), ListedKind::Tree),
                    Source::Upper(upper) => {
                        let found = self.found(node, name);
                        let child = self.upper_node(node, *upper, found);
                        let listed = child
                            .and_then(|n| self.node_attributes(&n))
                            .or_else(|error| self.damaged_listed(node, *upper, name, error));
                        (listed, ListedKind::Private)
                    }
                };
                let attributes = match attributes {
                    Ok(attributes) => attributes,
                    // Removed since the batch was read.
                    Err(UnionError::Host(rustix::io::Errno::NOENT) | UnionError::Stale) => continue,
                    Err(error) => return Err(error),
                };
                let full = emit(Listed { name, attributes, kind, next: *next });
                // A listing alone gives the kernel no reference to keep a node for.
                self.forget(attributes.id, 0);
                if full {
                    return Ok(());
                }
            }
        }
    }

    /// What a listing shows of a tree entry; a damaged one is listed, and answers nothing else.
    fn tree_listed(&self, ino: TreeIno) -> Result<Attributes, UnionError> {
        if self.table.read().outnumbered.contains(&ino)
            && let Some(copy) = self.indexed_node(&self.tree.inode(ino)?)?
        {
            return self.node_attributes(&copy);
        }
        match self.attributes(NodeId::tree(ino)) {
            Err(UnionError::Mark(_)) => {
                let inode = self.tree.inode(ino)?;
                Ok(Attributes { volatile: true, ..self.tree_attributes(&inode) })
            }
            listed => listed,
        }
    }

    /// What a listing shows of a private entry whose marks are damaged: its name and type. The
    /// number is that of nothing else, and the kernel keeps none of it.
    fn damaged_listed(
        &self,
        dir: &Node,
        upper: UpperName,
        name: &[u8],
        error: UnionError,
    ) -> Result<Attributes, UnionError> {
        if !matches!(error, UnionError::Mark(_)) {
            return Err(error);
        }
        let status = inode::status(inode::open_path(&*self.descriptor(dir)?, name)?)?;
        let id = NodeId::born(upper.host_ino);
        Ok(Attributes {
            id,
            ino: id.get(),
            kind: kind_of(&status, &Marks::default())?,
            mode: status.mode & 0o7777,
            nlink: status.nlink,
            uid: status.uid,
            gid: status.gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_bytes: BLOCK_BYTES,
            atime: status.atime,
            mtime: status.mtime,
            ctime: status.ctime,
            volatile: true,
        })
    }

    /// Reads the next names of a merged directory: tree places first, then private names.
    fn read_batch(
        &self,
        node: &Node,
        from: u64,
    ) -> Result<Vec<(Vec<u8>, Source, u64)>, UnionError> {
        let directory = self.directory(node)?;
        let mut batch = Vec::new();
        if from < PRIVATE
            && let Some(origin) = node.origin()
        {
            let dir = self.tree.inode(origin)?;
            let start = u32::try_from(from - FIRST_TREE).unwrap_or(u32::MAX);
            for index in start..self.tree.entry_count(&dir) {
                let Some(entry) = self.tree.entry(&dir, index)? else { break };
                let next = FIRST_TREE + u64::from(index) + 1;
                let source = match self.find(node, &directory, entry.name)? {
                    Child::Absent => continue,
                    Child::Tree(ino) => Source::Tree(ino),
                    Child::Upper(upper) => Source::Upper(upper),
                };
                batch.push((entry.name.to_vec(), source, next));
                if batch.len() == BATCH {
                    return Ok(batch);
                }
            }
        }
        let start = from.saturating_sub(PRIVATE);
        for (name, upper) in directory.from(start) {
            if upper.kind == crate::private::listing::UpperKind::Whiteout
                || self.below(node, name)?.is_some()
            {
                continue;
            }
            batch.push((name.to_vec(), Source::Upper(upper), PRIVATE + upper.sequence + 1));
            if batch.len() == BATCH {
                break;
            }
        }
        Ok(batch)
    }
}
