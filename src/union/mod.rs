//! One namespace from a tree and a private layer.
//!
//! Owns which inode a name stands for, copy-up of metadata and data, hard links across
//! copy-up, and the numbers the kernel uses. Must never know the kernel protocol, open
//! files or errno policy: `fs` does. After a crash the private layer is in one of the
//! states between two operations, or holds a metadata-only copy of what was being written.
//!
//! Locks, in the order in which they are taken: `pairs` (operations on two directories) or
//! `linking` (names of a multi-name file), a node's `copying`, a node's `directory`, then
//! for moments only and without I/O: `table`, `descriptors`, `pinned`, `content`.

mod acl;
mod allocated;
mod attributes;
mod copy_up;
mod create;
mod error;
mod links;
mod listing;
mod node;
mod origin;
mod place;
mod policy;
mod refer;
mod refer_linked;
mod relink;
mod remove;
mod rename;
mod restore;
mod revert;
pub mod upper;
mod xattr;

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

pub use attributes::{Attributes, Change, SetTime, Space};
pub use create::{Birth, NewEntry};
pub use error::UnionError;
pub use listing::{Listed, ListedKind};
pub use node::{Content, Node, NodeId, ObjectContent};
pub use origin::Origins;
pub use place::kind_of;
pub use policy::SharedSet;
pub use refer::{PrivatePlace, ReferError};
pub use remove::Removed;
pub use revert::Reverted;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::layer::{FileKind, Inode, LayerId, Manifest, TreeIno};
use crate::object::{ObjectError, ObjectFile, ObjectReader};
use crate::private::PrivateLayer;
use crate::sys::inode;
use crate::sys::process::share_of_descriptors;
use crate::telemetry::Counters;

/// Descriptors of private inodes kept open between requests, at most; an eighth of what this
/// process may have, if that is less.
const DESCRIPTORS: NonZeroUsize = NonZeroUsize::new(1024).expect("the constant is not zero");
/// Files without a name that may be kept for who has them open, at most; half of what this
/// process may have, if that is less.
const NAMELESS: NonZeroUsize = NonZeroUsize::new(1 << 20).expect("the constant is not zero");
/// Removed directories, devices and fifos that are kept whole for who may have them open.
const DEPARTED: usize = 256;
/// Requests about names after which the tree's pages are given back.
///
/// What the kernel was told it keeps for ever, so most of the tree is looked at once; the mount
/// process must not hold all that was ever looked at.
const LOOKS: u32 = 512;

/// The merged view of one root.
pub struct Union {
    tree: Manifest,
    layers: Vec<LayerId>,
    objects: ObjectReader,
    private: Option<PrivateLayer>,
    shared: SharedSet,
    counters: Arc<Counters>,
    table: RwLock<Table>,
    descriptors: Mutex<LruCache<u64, Arc<OwnedFd>>>,
    /// Nodes whose inode lives only by a descriptor kept here.
    nameless: Arc<AtomicUsize>,
    /// Those of which the kernel does not tell whether they are open, the latest last.
    departed: Mutex<VecDeque<Arc<Node>>>,
    nameless_limit: NonZeroUsize,
    pairs: Mutex<()>,
    linking: Mutex<()>,
    /// Set once the upper layer was searched for directories moved in earlier mounts.
    moved_found: AtomicBool,
    next_sequence: AtomicU64,
    next_internal: AtomicU64,
    /// Counts to [`LOOKS`].
    looks: AtomicU32,
}

/// Who is who. Held for moments only; no I/O under its lock.
#[derive(Default)]
struct Table {
    nodes: HashMap<NodeId, Arc<Node>>,
    by_host: HashMap<u64, Arc<Node>>,
    /// Numbers whose content stayed an object when their inode was copied up.
    superseded: HashMap<NodeId, Arc<Superseded>>,
    /// Untouched tree inodes that lost their last name.
    removed: HashSet<TreeIno>,
    /// Tree files of several names whose entry in `index/` cannot be understood: what they are
    /// now is not known, and what they were is not theirs to show.
    damaged: HashSet<TreeIno>,
    /// Tree inodes that came back while the kernel may know something else under their number: a
    /// removed directory, which it never brings to life again, or a version that was given up.
    /// For files of several names `index/` answers, for directories `standing`.
    outnumbered: HashSet<TreeIno>,
    /// The numbers of directories whose own is taken so.
    standing: HashMap<TreeIno, NodeId>,
}

impl Table {
    /// Lets go of a node that the kernel has no reference to; true if it is gone.
    ///
    /// A renumbered node stays while descriptors of its old number are open. After the last one
    /// it goes back to that number, which would stand for the untouched tree inode again if
    /// nothing stood behind it.
    fn drop_node(&mut self, node: &Arc<Node>) -> bool {
        let stands = |origin| self.standing.get(&origin) == Some(&node.id());
        if !node.is_unlinked() && node.origin().is_some_and(stands) {
            // What is in it finds it by this number alone.
            return false;
        }
        let old = NodeId::from_raw(node.supersedes.load(Ordering::Acquire));
        if let Some(superseded) = self.superseded.get(&old)
            && Arc::ptr_eq(&superseded.node, node)
        {
            if !superseded.closed.load(Ordering::Acquire) {
                return false;
            }
            let lookups = superseded.lookups.load(Ordering::Acquire);
            self.superseded.remove(&old);
            self.nodes.remove(&node.id());
            node.id.store(old.get(), Ordering::Release);
            node.supersedes.store(0, Ordering::Release);
            node.lookups.store(lookups, Ordering::Release);
            if old.as_tree().is_some() || lookups > 0 {
                self.nodes.insert(old, Arc::clone(node));
                return false;
            }
        }
        self.nodes.remove(&node.id());
        let host_ino = node.host_ino();
        if self.by_host.get(&host_ino).is_some_and(|known| Arc::ptr_eq(known, node)) {
            self.by_host.remove(&host_ino);
        }
        true
    }
}

/// A number that open descriptors still know, after its inode went on under another.
struct Superseded {
    node: Arc<Node>,
    object: ObjectContent,
    mtime: (i64, u32),
    lookups: AtomicU64,
    closed: AtomicBool,
}

/// What a number stands for.
enum Place {
    /// An untouched tree inode.
    Tree(Inode),
    /// An inode of the private layer.
    Private(Arc<Node>),
}

/// Which bytes a number stands for.
pub enum Bytes {
    /// An object: may be read, never written.
    Object(ObjectContent),
    /// A private file.
    Private(Arc<Node>),
}

impl Union {
    /// Puts `private` on `tree`. Without a private layer every change is refused.
    ///
    /// # Errors
    /// [`UnionError::Host`] if the private layer cannot be read.
    pub fn new(
        tree: Manifest,
        objects: ObjectReader,
        private: Option<PrivateLayer>,
        shared: SharedSet,
    ) -> Result<Self, UnionError> {
        let union = Self {
            layers: tree.stack().layers().to_vec(),
            tree,
            objects,
            private,
            shared,
            counters: Arc::default(),
            table: RwLock::default(),
            descriptors: Mutex::new(LruCache::new(share_of_descriptors(8, DESCRIPTORS))),
            nameless: Arc::default(),
            departed: Mutex::default(),
            nameless_limit: share_of_descriptors(2, NAMELESS),
            pairs: Mutex::default(),
            linking: Mutex::default(),
            moved_found: AtomicBool::new(false),
            next_sequence: AtomicU64::new(0),
            next_internal: AtomicU64::new(0),
            looks: AtomicU32::new(0),
        };
        if union.private.is_some() {
            union.adopt_root()?;
            union.finish_links()?;
        }
        Ok(union)
    }

    /// Counts a look at the tree, and gives its pages back once in a while.
    fn look(&self) {
        if self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOKS)
            && let Err(error) = self.tree.let_go()
        {
            tracing::debug!(%error, "the tree's pages stay mapped");
        }
    }

    /// True if changes are possible.
    pub fn is_writable(&self) -> bool {
        self.private.is_some()
    }

    /// What was counted so far, here and by who serves this.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The tree below.
    pub fn tree(&self) -> &Manifest {
        &self.tree
    }

    /// Opens the object that holds some content, for reading.
    ///
    /// # Errors
    /// [`UnionError::Object`] when it is missing or not of the length the tree says.
    pub fn open_object(&self, content: &ObjectContent) -> Result<ObjectFile, UnionError> {
        let file = self.objects.open_object(&content.id)?;
        let len = file.len().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        if len != content.size {
            let (id, wanted) = (content.id, content.size);
            return Err(ObjectError::Length { id, found: len, wanted }.into());
        }
        Ok(file)
    }

    /// An `O_PATH` descriptor of a private file, which opens nothing for writing.
    ///
    /// # Errors
    /// [`UnionError::Stale`] once the file is gone.
    pub fn private_path(&self, node: &Node) -> Result<Arc<OwnedFd>, UnionError> {
        self.descriptor(node)
    }

    /// Opens a private file.
    ///
    /// # Errors
    /// [`UnionError::Invalid`] while its content is an object: that is never opened here.
    pub fn open_private(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, UnionError> {
        loop {
            let serial = node.serial();
            if node.kind == FileKind::Regular && node.content() != Content::Private {
                return Err(UnionError::Invalid);
            }
            let file = inode::reopen(&*self.descriptor(node)?, flags)?;
            // Where an object took the file's place meanwhile, this may be the hole beside it.
            if node.serial() == serial {
                return Ok(file);
            }
        }
    }

    /// Makes a private inode durable: bytes, metadata and, for directories, names.
    ///
    /// The first sync after a copy-up is always a full one: fdatasync(2) would leave out the
    /// rename that gave the copy its name and the removal of the mark that it is one, as neither
    /// changes data, and a cut would bring the shared content back.
    ///
    /// # Errors
    /// The host's errno: what was written may be lost.
    pub fn sync(&self, node: &Node, data_only: bool) -> Result<(), UnionError> {
        if !matches!(node.kind, FileKind::Regular | FileKind::Directory) {
            return Ok(());
        }
        // Read-only, so a metadata-only copy may be opened too: nothing can be written.
        let file = inode::reopen(&*self.descriptor(node)?, OFlags::RDONLY)?;
        if data_only && node.is_settled() {
            return Ok(rustix::fs::fdatasync(file)?);
        }
        node.settle(|| Ok(rustix::fs::fsync(file)?))
    }

    fn origins(&self) -> Origins<'_> {
        Origins::new(&self.tree, &self.layers)
    }

    fn private(&self) -> Result<&PrivateLayer, UnionError> {
        self.private.as_ref().ok_or(UnionError::ReadOnly)
    }

    fn sequence(&self) -> u64 {
        self.next_sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether files of this number are opened shared (DESIGN §5, "Two ways to open a file").
    ///
    /// # Errors
    /// [`UnionError::Stale`] for an unknown number.
    pub fn is_shared(&self, id: NodeId) -> Result<bool, UnionError> {
        match self.place(id)? {
            Place::Tree(inode) => Ok(self.shared.contains(&self.tree, inode.ino)?),
            Place::Private(node) => match node.origin() {
                Some(origin) => Ok(self.shared.contains(&self.tree, origin)?),
                None => Ok(node.in_shared_set),
            },
        }
    }

    /// Where the bytes of regular file `id` are.
    ///
    /// # Errors
    /// [`UnionError::Invalid`] for anything but a regular file; [`UnionError::Stale`] for one
    /// that was removed and closed: its bytes are gone.
    pub fn bytes(&self, id: NodeId) -> Result<Bytes, UnionError> {
        if let Some(superseded) = self.superseded(id) {
            return Ok(Bytes::Object(superseded.object));
        }
        match self.place(id)? {
            Place::Tree(inode) => Ok(Bytes::Object(self.object_of(&inode)?)),
            Place::Private(node) if node.kind != FileKind::Regular => Err(UnionError::Invalid),
            Place::Private(node) => match node.content() {
                Content::Object(object) => Ok(Bytes::Object(object)),
                Content::Private if node.last_status.lock().is_some() => Err(UnionError::Stale),
                Content::Private => Ok(Bytes::Private(node)),
            },
        }
    }

    /// False once `id` lost its last name: nobody finds it again who looks it up.
    ///
    /// # Errors
    /// [`UnionError::Stale`] for an unknown number.
    pub fn has_name(&self, id: NodeId) -> Result<bool, UnionError> {
        Ok(match self.place(id)? {
            Place::Tree(inode) => !self.table.read().removed.contains(&inode.ino),
            Place::Private(node) => !node.is_unlinked(),
        })
    }

    /// The private node of `id`, if it has one.
    pub fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.table.read().nodes.get(&id).cloned()
    }

    /// True if `id` was left behind by a copy-up: only its open descriptors may use it.
    pub fn is_superseded(&self, id: NodeId) -> bool {
        self.table.read().superseded.contains_key(&id)
    }

    /// The number that the inode of `id` has now, if that is another.
    pub fn successor(&self, id: NodeId) -> Option<NodeId> {
        self.superseded(id).map(|old| old.node.id())
    }

    fn superseded(&self, id: NodeId) -> Option<Arc<Superseded>> {
        self.table.read().superseded.get(&id).cloned()
    }

    fn object_of(&self, inode: &Inode) -> Result<ObjectContent, UnionError> {
        let id = self.tree.object(inode)?.ok_or(UnionError::Invalid)?;
        Ok(ObjectContent { id, size: inode.size, blocks: inode.data_blocks })
    }
}
