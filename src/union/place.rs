//! From numbers and names to inodes, and what the kernel still knows.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard, RwLock};
use rustix::io::Errno;

use super::node::{Directory, HostInode, Pinned, UpperName};
use super::{
    Attributes, Content, DEPARTED, Node, NodeId, ObjectContent, Place, Superseded, Union,
    UnionError,
};
use crate::layer::{EntryKind, FileKind, TreeIno};
use crate::private::listing::{UpperEntry, UpperKind, read_upper};
use crate::private::marks::Marks;
use crate::sys::handle::FileHandle;
use crate::sys::inode::{self, Status};

/// Longest name of one component, in bytes. limits.h, `NAME_MAX`.
const NAME_MAX: usize = 255;

/// What a name stands for in one directory.
pub(super) enum Child {
    /// Nothing.
    Absent,
    /// An entry of the upper directory that is no whiteout.
    Upper(UpperName),
    /// An entry of the tree that nothing hides.
    Tree(TreeIno),
}

/// The directory a name was found in.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) parent: NodeId,
    pub(super) parent_origin: Option<TreeIno>,
    /// Of a directory without an origin.
    pub(super) in_shared_set: bool,
    pub(super) name: &'a [u8],
}

impl Union {
    /// Finds `name` in `parent` and counts one reference of the kernel's to it.
    ///
    /// # Errors
    /// [`UnionError::NoEntry`], [`UnionError::NotDirectory`].
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Attributes, UnionError> {
        self.look();
        loop {
            let found = match name {
                // A file handle that the kernel decodes: the inode itself, then what leads to it.
                b"." => self.place(parent)?,
                b".." => self.place(self.parent(parent)?)?,
                name => self.child(parent, name)?,
            };
            match found {
                Place::Tree(inode) => return Ok(self.tree_attributes(&inode)),
                Place::Private(node) if self.hold(&node) => {
                    if !matches!(name, b"." | b"..") {
                        node.called(parent, name);
                    }
                    return self.node_attributes(&node);
                }
                Place::Private(_) => {}
            }
        }
    }

    /// The names under which the kernel may know the file `id`, whose data is shared. Some may be
    /// another's by now.
    pub fn names(&self, id: NodeId) -> Vec<(NodeId, Vec<u8>)> {
        let node = self.table.read().nodes.get(&id).cloned();
        let called = node.map(|node| node.called.lock().clone()).unwrap_or_default();
        let mut names: Vec<_> =
            called.into_iter().map(|(dir, name)| (dir, name.into_vec())).collect();
        if let Some(links) = id.as_tree().and_then(|ino| self.tree.links(ino).ok()) {
            names.extend(links.map(|(dir, name)| (self.number_of(dir), name.to_vec())));
        }
        names
    }

    /// The directory that `id` was last found in.
    fn parent(&self, id: NodeId) -> Result<NodeId, UnionError> {
        Ok(match self.place(id)? {
            Place::Tree(inode) => self.number_of(inode.parent),
            Place::Private(node) => NodeId::from_raw(node.parent.load(Ordering::Relaxed)),
        })
    }

    /// Counts one reference of the kernel's to `id`.
    pub fn remember(&self, id: NodeId) {
        let table = self.table.read();
        if let Some(node) = table.nodes.get(&id) {
            node.lookups.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes back `count` references of the kernel's.
    ///
    /// A tree number keeps its node: untouched ones are not counted, so its last reference
    /// cannot be told from others. Such nodes are as many as the files a container changed.
    ///
    /// Returns the number that the inode went back to, if it did: what the kernel remembers of
    /// that one is old.
    pub fn forget(&self, id: NodeId, count: u64) -> Option<NodeId> {
        if id.as_tree().is_some() {
            return None;
        }
        let mut table = self.table.write();
        let spent = |lookups: &AtomicU64| {
            let before = lookups.load(Ordering::Acquire);
            lookups.store(before.saturating_sub(count), Ordering::Release);
            before <= count
        };
        let Some(node) = table.nodes.get(&id).cloned() else {
            if let Some(old) = table.superseded.get(&id).cloned()
                && spent(&old.lookups)
            {
                table.superseded.remove(&id);
            }
            return None;
        };
        if !spent(&node.lookups) {
            return None;
        }
        let gone = table.drop_node(&node);
        drop(table);
        if gone {
            self.descriptors.lock().pop(&node.serial());
            return None;
        }
        let now = node.id();
        if now != id && now.as_tree().is_some() && node.is_unlinked() {
            self.bury(&node);
        }
        (now != id).then_some(now)
    }

    /// Tells that no descriptor of `id` is open any more.
    ///
    /// Returns the number that the inode went back to, as [`Union::forget`] does.
    pub fn closed(&self, id: NodeId) -> Option<NodeId> {
        let (node, old) = {
            let table = self.table.read();
            (table.nodes.get(&id).cloned(), table.superseded.get(&id).cloned())
        };
        if let Some(old) = old {
            old.closed.store(true, Ordering::Release);
            // Nothing but those descriptors may have kept the node under its new number.
            return self.forget(old.node.id(), 0);
        }
        let node = node?;
        if id.as_tree().is_none() {
            self.forget(id, 0);
        } else if node.is_unlinked() {
            self.depart(&node);
        }
        None
    }

    /// Lets go of an unlinked inode that no descriptor known here has open.
    ///
    /// The kernel opens directories, devices and fifos without a word: those go when enough others
    /// have come after them.
    pub(super) fn depart(&self, node: &Arc<Node>) {
        if matches!(node.kind, FileKind::Regular | FileKind::Symlink) {
            return self.bury(node);
        }
        let mut departed = self.departed.lock();
        if departed.iter().any(|known| Arc::ptr_eq(known, node)) {
            return;
        }
        departed.push_back(Arc::clone(node));
        if departed.len() > DEPARTED
            && let Some(first) = departed.pop_front()
        {
            self.bury(&first);
        }
    }

    /// Lets go of an unlinked inode that the kernel may still ask about: what stat(2)
    /// answers is kept, the host inode is not.
    pub(super) fn bury(&self, node: &Node) {
        let pinned = node.pinned.lock().take();
        if let Some(pinned) = pinned
            && let Ok(status) = inode::status(&pinned.fd)
        {
            *node.last_status.lock() = Some(status);
        }
        self.descriptors.lock().pop(&node.serial());
    }

    /// Gives the inode of `id` a new number, leaving `id` to the descriptors that are open.
    ///
    /// `object` is what those descriptors go on reading.
    pub fn renumber(&self, id: NodeId, object: ObjectContent, mtime: (i64, u32)) {
        let mut table = self.table.write();
        let Some(node) = table.nodes.remove(&id) else { return };
        let fresh = NodeId::internal(self.next_internal.fetch_add(1, Ordering::Relaxed));
        node.id.store(fresh.get(), Ordering::Release);
        node.supersedes.store(id.get(), Ordering::Release);
        let lookups = AtomicU64::new(node.lookups.swap(0, Ordering::AcqRel));
        let old = Superseded {
            node: Arc::clone(&node),
            object,
            mtime,
            lookups,
            closed: AtomicBool::new(false),
        };
        table.superseded.insert(id, Arc::new(old));
        table.nodes.insert(fresh, node);
    }

    /// What `id` stands for.
    pub(super) fn place(&self, id: NodeId) -> Result<Place, UnionError> {
        {
            let table = self.table.read();
            if let Some(node) = table.nodes.get(&id) {
                return Ok(Place::Private(Arc::clone(node)));
            }
            if let Some(old) = table.superseded.get(&id) {
                return Ok(Place::Private(Arc::clone(&old.node)));
            }
            if id.as_tree().is_some_and(|ino| table.damaged.contains(&ino)) {
                return Err(UnionError::Mark("in index/"));
            }
        }
        let ino = id.as_tree().filter(|ino| ino.get() <= self.tree.len());
        Ok(Place::Tree(self.tree.inode(ino.ok_or(UnionError::Stale)?)?))
    }

    /// What `name` in `parent` stands for.
    pub(super) fn child(&self, parent: NodeId, name: &[u8]) -> Result<Place, UnionError> {
        check_name(name)?;
        match self.place(parent)? {
            Place::Tree(inode) => {
                if inode.kind != FileKind::Directory {
                    return Err(UnionError::NotDirectory);
                }
                let entry = self.tree.lookup(&inode, name)?;
                self.tree_place(entry.and_then(|e| e.ino).ok_or(UnionError::NoEntry)?)
            }
            Place::Private(node) => {
                let (upper, found) = {
                    let directory = self.directory(&node)?;
                    match self.find(&node, &directory, name)? {
                        Child::Absent => return Err(UnionError::NoEntry),
                        Child::Tree(ino) => {
                            drop(directory);
                            return self.tree_place(ino);
                        }
                        Child::Upper(upper) => (upper, self.found(&node, name)),
                    }
                };
                Ok(Place::Private(self.upper_node(&node, upper, found)?))
            }
        }
    }

    /// Reads what `name` stands for in a directory whose names are held.
    pub(super) fn find(
        &self,
        node: &Node,
        directory: &Directory,
        name: &[u8],
    ) -> Result<Child, UnionError> {
        check_name(name)?;
        match directory.get(name) {
            Some(upper) if upper.kind == UpperKind::Whiteout => Ok(Child::Absent),
            Some(upper) => Ok(Child::Upper(upper)),
            None => Ok(match self.below(node, name)? {
                Some((ino, _)) => Child::Tree(ino),
                None => Child::Absent,
            }),
        }
    }

    /// What the tree has under `name` in a merged directory, hidden or not.
    pub(super) fn below(
        &self,
        node: &Node,
        name: &[u8],
    ) -> Result<Option<(TreeIno, FileKind)>, UnionError> {
        let Some(origin) = node.origin() else { return Ok(None) };
        let dir = self.tree.inode(origin)?;
        let Some(entry) = self.tree.lookup(&dir, name)? else { return Ok(None) };
        Ok(match (entry.ino, entry.kind) {
            (Some(ino), EntryKind::Inode(kind)) => Some((ino, kind)),
            _ => None,
        })
    }

    /// Where `id` lies, for a log: its place in the template, or in the private directory if it
    /// was born there.
    pub fn describe(&self, id: NodeId) -> PathBuf {
        let origin = match self.place(id) {
            Ok(Place::Tree(inode)) => Some(inode.ino),
            Ok(Place::Private(node)) => match (node.origin(), self.descriptor(&node)) {
                (None, Ok(fd)) => {
                    let here = inode::place(&*fd).unwrap_or_default();
                    return PathBuf::from(OsString::from_vec(here));
                }
                (origin, _) => origin,
            },
            Err(_) => id.as_tree(),
        };
        let path = origin.and_then(|ino| self.tree.path(&self.tree.inode(ino).ok()?).ok());
        match path {
            Some(path) => Path::new("/").join(OsStr::from_bytes(&path)),
            None => PathBuf::from(format!("inode {}", id.get())),
        }
    }

    /// What the kernel calls directory `ino` of the tree.
    pub(super) fn number_of(&self, ino: TreeIno) -> NodeId {
        self.table.read().standing.get(&ino).copied().unwrap_or(NodeId::tree(ino))
    }

    /// A tree inode found under a name of the tree: several names may have been copied up
    /// under one of them.
    fn tree_place(&self, ino: TreeIno) -> Result<Place, UnionError> {
        let inode = self.tree.inode(ino)?;
        if inode.nlink > 1 && inode.kind != FileKind::Directory {
            if self.table.read().outnumbered.contains(&ino) {
                let copy = self.indexed_node(&inode)?;
                return copy.map(Place::Private).ok_or(UnionError::NoEntry);
            }
            let table = self.table.read();
            if let Some(old) = table.superseded.get(&NodeId::tree(ino)) {
                return Ok(Place::Private(Arc::clone(&old.node)));
            }
            if let Some(node) = table.nodes.get(&NodeId::tree(ino)) {
                return Ok(Place::Private(Arc::clone(node)));
            }
            if table.damaged.contains(&ino) {
                return Err(UnionError::Mark("in index/"));
            }
        }
        Ok(Place::Tree(inode))
    }

    /// Where `name` was found: in `parent`.
    pub(super) fn found<'a>(&self, parent: &Node, name: &'a [u8]) -> Found<'a> {
        let (parent_origin, in_shared_set) = (parent.origin(), parent.in_shared_set);
        Found { parent: parent.id(), parent_origin, in_shared_set, name }
    }

    /// The node of an upper entry, read from the host if it is not known.
    pub(super) fn upper_node(
        &self,
        parent: &Node,
        upper: UpperName,
        found: Found<'_>,
    ) -> Result<Arc<Node>, UnionError> {
        if let Some(node) = self.table.read().by_host.get(&upper.host_ino) {
            node.parent.store(found.parent.get(), Ordering::Relaxed);
            return Ok(Arc::clone(node));
        }
        let dir = self.descriptor(parent)?;
        let fd = inode::open_path(&dir, found.name)?;
        self.adopt(fd, found)
    }

    /// Makes the node of an upper inode from what the host says of it.
    pub(super) fn adopt(&self, fd: OwnedFd, found: Found<'_>) -> Result<Arc<Node>, UnionError> {
        let status = inode::status(&fd)?;
        let marks = Marks::read(&fd)?;
        let kind = kind_of(&status, &marks)?;
        let directory = kind == FileKind::Directory;
        let origin = self.origins().of(&marks, directory, found.parent_origin, found.name)?;
        let content = if !marks.metacopy || kind != FileKind::Regular {
            Content::Private
        } else if let Some(mark) = marks.object {
            let size = marks.filling.as_ref().map_or(status.size, |filling| filling.size);
            let blocks = mark.blocks_of(size);
            Content::Object(ObjectContent { id: mark.id, size, blocks })
        } else {
            // A metadata-only copy whose tree file cannot be told is damage, not an empty file.
            let lost = UnionError::Mark("trusted.overlay.metacopy");
            let inode = self.tree.inode(origin.ok_or(lost)?)?;
            if inode.kind != FileKind::Regular {
                return Err(UnionError::Mark("trusted.overlay.metacopy"));
            }
            Content::Object(self.object_of(&inode)?)
        };
        let ino = match (marks.ino, origin) {
            (Some(ino), _) => ino,
            (None, Some(origin)) => u64::from(origin.get()),
            (None, None) => self.number(&fd, &status),
        };
        let node = self.enter(fd, &status, kind, origin, content, ino, found)?;
        if marks.filling.is_some()
            && let Err(error) = self.finish_filling(&node)
        {
            tracing::warn!(%error, "an interrupted copy-up keeps its room and a new time");
        }
        Ok(node)
    }

    /// Enters a node into the table, or returns the one that another thread entered first.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn enter(
        &self,
        fd: OwnedFd,
        status: &Status,
        kind: FileKind,
        origin: Option<TreeIno>,
        content: Content,
        ino: u64,
        found: Found<'_>,
    ) -> Result<Arc<Node>, UnionError> {
        let handle = FileHandle::of(&fd).ok();
        let indexed = match origin {
            Some(origin) if kind != FileKind::Directory => self.is_indexed(origin, status)?,
            _ => false,
        };
        // What has an origin goes by the tree; a long way up in a deep one.
        let in_shared_set = match (origin, found.parent_origin) {
            (Some(_), _) => false,
            (None, Some(parent)) => self.shared.contains(&self.tree, parent)?,
            (None, None) => found.in_shared_set,
        };
        // A copy that stands for one of several names only, as the kernel's overlayfs makes them
        // without an index, leaves the number to the others.
        let follows = match origin {
            Some(origin) if kind != FileKind::Directory && status.nlink > 0 => {
                indexed || self.tree.inode(origin)?.nlink < 2
            }
            _ => true,
        };
        let (fd, serial) = (Arc::new(fd), self.sequence());
        let pinned = handle.is_none().then(|| Pinned::named(Arc::clone(&fd)));
        let mut table = self.table.write();
        if let Some(node) = table.by_host.get(&status.ino) {
            return Ok(Arc::clone(node));
        }
        // What was born here is called by the number that it shows, also when another host inode
        // stands for it by now.
        let born = NodeId::shown(ino).unwrap_or(NodeId::born(status.ino));
        let born = if origin.is_some() { NodeId::born(status.ino) } else { born };
        let wanted = origin.filter(|_| follows).map_or(born, NodeId::tree);
        let outnumbered = origin.is_some_and(|origin| table.outnumbered.contains(&origin));
        let taken = outnumbered
            || table.nodes.contains_key(&wanted)
            || table.superseded.contains_key(&wanted);
        let id = if taken {
            NodeId::internal(self.next_internal.fetch_add(1, Ordering::Relaxed))
        } else {
            wanted
        };
        // Two private files with one number are copies that somebody made outside of a mount.
        let copy = table.nodes.contains_key(&wanted);
        let ino = if (origin.is_some() && !follows) || copy {
            NodeId::born(status.ino).get()
        } else {
            ino
        };
        let node = Arc::new(Node {
            id: AtomicU64::new(id.get()),
            ino,
            kind,
            origin: AtomicU32::new(origin.map_or(0, TreeIno::get)),
            host: RwLock::new(HostInode { ino: status.ino, serial, handle }),
            pinned: Mutex::new(pinned),
            content: RwLock::new(content),
            copying: Mutex::default(),
            directory: Mutex::default(),
            supersedes: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            unlinked: AtomicBool::new(status.nlink == 0),
            indexed: AtomicBool::new(indexed),
            last_status: Mutex::default(),
            parent: AtomicU64::new(found.parent.get()),
            called: Mutex::default(),
            names_pending: AtomicBool::new(false),
            in_shared_set,
            maybe_written: AtomicBool::new(false),
            cache_stale: AtomicBool::new(false),
            shaped: AtomicU64::new(1),
            settled: AtomicU64::new(0),
        });
        if status.nlink > 0 {
            table.by_host.insert(status.ino, Arc::clone(&node));
        } else {
            *node.pinned.lock() = Some(Pinned::nameless(Arc::clone(&fd), &self.nameless));
        }
        table.nodes.insert(id, Arc::clone(&node));
        if let Some(origin) = origin.filter(|_| outnumbered && kind == FileKind::Directory) {
            table.standing.insert(origin, id);
        }
        drop(table);
        self.descriptors.lock().put(serial, fd);
        Ok(node)
    }

    /// Counts one reference of the kernel's; false if the node was forgotten just now, and
    /// another may stand for its inode.
    pub(super) fn hold(&self, node: &Arc<Node>) -> bool {
        let table = self.table.read();
        let known = table.nodes.get(&node.id()).is_some_and(|known| Arc::ptr_eq(known, node));
        if known {
            node.lookups.fetch_add(1, Ordering::AcqRel);
        }
        known
    }

    /// An `O_PATH` descriptor of a node's host inode.
    ///
    /// # Errors
    /// [`UnionError::Stale`] once the inode is gone.
    pub(super) fn descriptor(&self, node: &Node) -> Result<Arc<OwnedFd>, UnionError> {
        if let Some(pinned) = &*node.pinned.lock() {
            return Ok(Arc::clone(&pinned.fd));
        }
        if node.last_status.lock().is_some() {
            return Err(UnionError::Stale);
        }
        let host = node.host();
        if let Some(fd) = self.descriptors.lock().get(&host.serial) {
            return Ok(Arc::clone(fd));
        }
        let handle = host.handle.as_ref().ok_or(UnionError::Stale)?;
        let fd = Arc::new(handle.open(self.private()?.upper())?);
        self.descriptors.lock().put(host.serial, Arc::clone(&fd));
        if node.serial() != host.serial {
            // Another inode stands for it by now; this one is not kept alive.
            self.descriptors.lock().pop(&host.serial);
        }
        Ok(fd)
    }

    /// The names of a private directory, read on first use and locked while the guard lives.
    pub(super) fn directory<'a>(
        &self,
        node: &'a Node,
    ) -> Result<MappedMutexGuard<'a, Directory>, UnionError> {
        if node.kind != FileKind::Directory {
            return Err(UnionError::NotDirectory);
        }
        let mut guard = node.directory.lock();
        if guard.is_none() {
            let mut directory = Directory::default();
            if node.last_status.lock().is_none() {
                for entry in read_upper(self.descriptor(node)?.as_fd())? {
                    let hides = self.hides_directory(node, &entry.name)?;
                    directory.insert(entry, hides, self.sequence());
                }
            }
            *guard = Some(directory);
        }
        Ok(MutexGuard::map(guard, |names| names.get_or_insert_with(Directory::default)))
    }

    fn hides_directory(&self, node: &Node, name: &[u8]) -> Result<bool, UnionError> {
        Ok(matches!(self.below(node, name)?, Some((_, FileKind::Directory))))
    }

    /// Notes that `name` now is `kind` in an upper directory.
    pub(super) fn note(
        &self,
        node: &Node,
        directory: &mut Directory,
        name: &[u8],
        kind: UpperKind,
        host_ino: u64,
    ) -> Result<(), UnionError> {
        let hides = self.hides_directory(node, name)?;
        let entry = UpperEntry { name: name.into(), kind, host_ino };
        directory.insert(entry, hides, self.sequence());
        Ok(())
    }

    /// Enters the root directory, giving a new private layer the tree's root metadata.
    pub(super) fn adopt_root(&self) -> Result<(), UnionError> {
        let layer = self.private()?;
        let fd = inode::open_path(layer.upper(), b".")?;
        // The root merges with the tree's whatever its marks say.
        if matches!(Marks::read(&fd), Ok(marks) if marks.origin.is_none())
            && read_upper(&fd)?.is_empty()
        {
            self.dress_root(&fd)?;
        }
        let status = inode::status(&fd)?;
        let found =
            Found { parent: NodeId::ROOT, parent_origin: None, in_shared_set: false, name: b"" };
        let ino = u64::from(TreeIno::ROOT.get());
        let origin = Some(TreeIno::ROOT);
        self.enter(fd, &status, FileKind::Directory, origin, Content::Private, ino, found)?;
        Ok(())
    }
}

/// The kernel's FUSE passes names of up to 1024 bytes; no host file system has them.
fn check_name(name: &[u8]) -> Result<(), UnionError> {
    if name.len() > NAME_MAX { Err(UnionError::NameTooLong) } else { Ok(()) }
}

/// The type a private inode shows.
///
/// # Errors
/// `EUCLEAN` for one that no file has.
pub fn kind_of(status: &Status, marks: &Marks) -> Result<FileKind, UnionError> {
    Ok(match status.mode & libc::S_IFMT {
        libc::S_IFREG if marks.rdev => FileKind::CharDevice,
        libc::S_IFREG => FileKind::Regular,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return Err(Errno::UCLEAN.into()),
    })
}
