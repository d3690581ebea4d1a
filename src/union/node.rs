//! Inodes of the merged view that the private layer holds.
//!
//! An untouched tree inode has no [`Node`]: its number is its name and the manifest tells
//! the rest. A node exists for what was copied up or born here and the kernel knows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use super::UnionError;
use crate::layer::{FileKind, TreeIno};
use crate::object::{Digest, ObjectId};
use crate::private::listing::{UpperEntry, UpperKind};
use crate::sys::handle::FileHandle;
use crate::sys::inode::Status;

/// What the kernel calls an inode of one mount.
///
/// | range | meaning |
/// |---|---|
/// | 1 ..= 2³²−1 | the tree inode of that number, copied up or not |
/// | 2⁶¹ + n | renumbered, or a number taken twice: internal, st_ino differs |
/// | 2⁶² + n | born in the private layer as host inode n |
/// | 2⁶² + 2⁶⁰ + n | the same, where that number shows as another file's: n is drawn |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u64);

const INTERNAL: u64 = 1 << 61;
const BORN: u64 = 1 << 62;
/// Above the inode numbers of any host file system.
const OTHER: u64 = 1 << 60;

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(1);

    /// From the kernel's number.
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The kernel's number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// A tree inode's.
    pub fn tree(ino: TreeIno) -> Self {
        Self(u64::from(ino.get()))
    }

    /// That of a file born as host inode `host_ino`.
    pub fn born(host_ino: u64) -> Self {
        Self(BORN + host_ino)
    }

    /// The one that shows `ino`, if that is the number of a file born here.
    pub(super) fn shown(ino: u64) -> Option<Self> {
        (BORN..BORN << 1).contains(&ino).then_some(Self(ino))
    }

    /// A number for a file born here whose own one is another file's already: made of what tells
    /// its host inode from every other, `unique`.
    pub(super) fn other(unique: &[u8]) -> Self {
        let digest = Digest::of(unique);
        let drawn = digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self(BORN | OTHER | (drawn & (OTHER - 1)))
    }

    pub(super) fn internal(sequence: u64) -> Self {
        Self(INTERNAL + sequence)
    }

    /// The tree inode it names, if any.
    pub fn as_tree(self) -> Option<TreeIno> {
        u32::try_from(self.0).ok().and_then(TreeIno::new)
    }

    /// True if LOOKUP must not let the kernel take this number for st_ino.
    pub fn is_internal(self) -> bool {
        (INTERNAL..BORN).contains(&self.0)
    }
}

/// Content that lies in the object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectContent {
    /// Its name.
    pub id: ObjectId,
    /// Size in bytes.
    pub size: u64,
    /// 512-byte units that hold data.
    pub blocks: u64,
}

/// Where a regular file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Shared with everybody: may be read, never written.
    Object(ObjectContent),
    /// In the private layer.
    Private,
}

/// The inode of the host that stands for a node.
#[derive(Clone)]
pub(super) struct HostInode {
    pub(super) ino: u64,
    /// Its own for as long as the mount lives; host numbers are reused.
    pub(super) serial: u64,
    pub(super) handle: Option<FileHandle>,
}

/// An inode that the private layer holds.
pub struct Node {
    pub(super) id: AtomicU64,
    /// What stat(2) shows as inode number.
    pub(super) ino: u64,
    pub(super) kind: FileKind,
    /// For directories: the tree directory it merges with (0: none). For files: its origin.
    pub(super) origin: AtomicU32,
    /// Taken before `content` where both are changed.
    pub(super) host: RwLock<HostInode>,
    /// Held while the handle cannot find the inode: no handles on this host, or unlinked.
    pub(super) pinned: Mutex<Option<Pinned>>,
    pub(super) content: RwLock<Content>,
    /// Held by the one that copies the content up; readers of `content` never wait for it.
    pub(super) copying: Mutex<()>,
    pub(super) directory: Mutex<Option<Directory>>,
    /// The number it left to open descriptors when it was renumbered; 0: none.
    pub(super) supersedes: AtomicU64,
    /// The kernel's references, for numbers that only the kernel keeps alive.
    pub(super) lookups: AtomicU64,
    pub(super) unlinked: AtomicBool,
    /// Names of the tree that `index/` still answers for.
    pub(super) indexed: AtomicBool,
    /// Its attributes when it was unlinked and nobody had it open any more.
    pub(super) last_status: Mutex<Option<Status>>,
    pub(super) parent: AtomicU64,
    /// Names that the kernel may have it under while its data is shared, besides the tree's.
    pub(super) called: Mutex<HashSet<(NodeId, Box<[u8]>)>>,
    /// Its names of the tree are still being made; until then the tree knows how many.
    pub(super) names_pending: AtomicBool,
    /// Whether files without an origin are opened shared, by the directory they were found in.
    pub(super) in_shared_set: bool,
    /// A mapping may change its size and times without telling anybody.
    pub(super) maybe_written: AtomicBool,
    /// Its pages in the mount's own page cache may be older than the file.
    pub(super) cache_stale: AtomicBool,
    /// Counts what fdatasync(2) leaves out: names and marks that say what the file is.
    pub(super) shaped: AtomicU64,
    /// How many of those are known to be durable.
    pub(super) settled: AtomicU64,
}

impl Node {
    /// What the kernel calls it now.
    pub fn id(&self) -> NodeId {
        NodeId(self.id.load(Ordering::Acquire))
    }

    /// Its type.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Notes a name under which the kernel will know this file: should it get another number, that
    /// name has to find it.
    pub(super) fn called(&self, dir: NodeId, name: &[u8]) {
        if self.kind != FileKind::Regular || self.content() == Content::Private {
            return;
        }
        self.called.lock().insert((dir, name.into()));
    }

    /// Notes that a name went: what is kept does not grow with what a container renames.
    pub(super) fn uncalled(&self, dir: NodeId, name: &[u8]) {
        let mut called = self.called.lock();
        if !called.is_empty() {
            called.remove(&(dir, name.into()));
        }
    }

    /// The tree inode it merges with or was copied up from.
    pub fn origin(&self) -> Option<TreeIno> {
        TreeIno::new(self.origin.load(Ordering::Acquire))
    }

    /// Where its bytes are.
    pub fn content(&self) -> Content {
        *self.content.read()
    }

    /// The host's inode, as it is now.
    pub(super) fn host(&self) -> HostInode {
        self.host.read().clone()
    }

    /// The number of the host's inode.
    pub(super) fn host_ino(&self) -> u64 {
        self.host.read().ino
    }

    /// Names the host's inode for as long as the mount lives.
    pub fn serial(&self) -> u64 {
        self.host.read().serial
    }

    /// True once its last name is gone.
    pub fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// Notes that a passthrough writer exists: sizes and times may change unseen.
    pub fn set_maybe_written(&self) {
        self.maybe_written.store(true, Ordering::Release);
        self.cache_stale.store(true, Ordering::Release);
    }

    /// Notes that its content is another from here on, by a change of marks alone.
    pub(super) fn reshaped(&self) {
        self.shaped.fetch_add(1, Ordering::AcqRel);
    }

    /// Runs `sync`, a full one, after which everything noted so far is durable.
    pub(super) fn settle(
        &self,
        sync: impl FnOnce() -> Result<(), UnionError>,
    ) -> Result<(), UnionError> {
        let shaped = self.shaped.load(Ordering::Acquire);
        sync()?;
        self.settled.fetch_max(shaped, Ordering::AcqRel);
        Ok(())
    }

    /// True if fdatasync(2) leaves out nothing that was noted.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) == self.shaped.load(Ordering::Acquire)
    }

    /// True once after passthrough writing: the kernel's own pages of it must go.
    pub fn take_cache_stale(&self) -> bool {
        self.cache_stale.swap(false, Ordering::AcqRel)
    }
}

/// A descriptor that keeps an inode findable, counted while it does so for want of a name.
pub(super) struct Pinned {
    pub(super) fd: Arc<OwnedFd>,
    nameless: Option<Arc<AtomicUsize>>,
}

impl Pinned {
    /// For a host file system without handles.
    pub(super) fn named(fd: Arc<OwnedFd>) -> Self {
        Self { fd, nameless: None }
    }

    /// For an inode without a name.
    pub(super) fn nameless(fd: Arc<OwnedFd>, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { fd, nameless: Some(Arc::clone(count)) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(count) = &self.nameless {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One name of a private directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpperName {
    /// Place in listings, for names that the tree directory does not have.
    pub(super) sequence: u64,
    pub(super) kind: UpperKind,
    pub(super) host_ino: u64,
    /// The tree has a directory of this name here.
    hides_directory: bool,
}

impl UpperName {
    /// What the name adds to the subdirectories that the tree counts.
    fn subdirectories(&self) -> i64 {
        i64::from(self.kind == UpperKind::Directory) - i64::from(self.hides_directory)
    }
}

/// The names of one upper directory, kept while its node is known.
///
/// This process is the only one that changes the directory, so it is read once.
#[derive(Default)]
pub(super) struct Directory {
    names: HashMap<Box<[u8]>, UpperName>,
    order: BTreeMap<u64, Box<[u8]>>,
    subdirectories: i64,
}

impl Directory {
    pub(super) fn get(&self, name: &[u8]) -> Option<UpperName> {
        self.names.get(name).copied()
    }

    /// Adds a name, or changes what it stands for.
    ///
    /// `sequence` is a fresh number: a new name, and one that comes back after a removal,
    /// is a new entry of the listing; a name that changes its inode keeps its place.
    pub(super) fn insert(&mut self, entry: UpperEntry, hides_directory: bool, sequence: u64) {
        let UpperEntry { name, kind, host_ino } = entry;
        let mut fresh = UpperName { sequence, kind, host_ino, hides_directory };
        if let Some(known) = self.names.get(&name) {
            self.subdirectories -= known.subdirectories();
            if known.kind == UpperKind::Whiteout {
                self.order.remove(&known.sequence);
            } else {
                fresh.sequence = known.sequence;
            }
        }
        self.subdirectories += fresh.subdirectories();
        self.order.insert(fresh.sequence, name.clone());
        self.names.insert(name, fresh);
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        if let Some(gone) = self.names.remove(name) {
            self.order.remove(&gone.sequence);
            self.subdirectories -= gone.subdirectories();
        }
    }

    /// Subdirectories of the merged view beyond those the tree counts; may be negative.
    pub(super) fn subdirectories(&self) -> i64 {
        self.subdirectories
    }

    /// Names listed from `sequence` on, in order of their making.
    pub(super) fn from(&self, sequence: u64) -> impl Iterator<Item = (&[u8], UpperName)> {
        self.order
            .range(sequence..)
            .filter_map(|(_, name)| self.names.get(name).map(|upper| (&**name, *upper)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// True if every name is a whiteout.
    pub(super) fn has_only_whiteouts(&self) -> bool {
        self.names.values().all(|upper| upper.kind == UpperKind::Whiteout)
    }
}
