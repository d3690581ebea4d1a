//! Open files: shared or coherent, and the step from one content to the next.
//!
//! The kernel allows one way of opening per inode at a time. `OpenInode` holds which one. Its
//! lock is not held while content is copied up: others go on opening, reading and closing.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::OFlags;

use super::{Caller, FileSystem, FsError, Notice};
use crate::object::{ObjectFile, ObjectId};
use crate::sys::copy::Copied;
use crate::union::{Bytes, Node, NodeId, ObjectContent, UnionError};

/// An open file, as the kernel is told to call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest {
    /// Bytes may be written.
    pub write: bool,
    /// Content is dropped.
    pub truncate: bool,
    /// The kernel opens it to run it.
    pub execute: bool,
    /// Each write is to be durable when it returns (`O_DSYNC`).
    pub durable: bool,
}

/// How reads and writes of an open file reach their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// In the kernel, straight to the file that [`FileSystem::open_backing`] opens.
    Passthrough(Backing),
    /// By requests, through the mount's own page cache.
    Cached {
        /// Pages the kernel has of the inode are still good.
        keep_cache: bool,
    },
}

/// The file behind a passthrough open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A shared object: answers read-only opens alone.
    Object(ObjectContent),
    /// The private file of an inode.
    Private {
        /// The inode.
        id: NodeId,
        /// Which of its files: an object may take the place of one, and another come later.
        serial: u64,
    },
    /// A private file whose place an object with the same content has taken: answers read-only
    /// opens alone, as long as others have it open.
    Former {
        /// The object.
        object: ObjectContent,
        /// The file.
        serial: u64,
    },
}

/// An open backing file, read-only or `O_PATH`.
pub enum BackingFile {
    /// A shared object.
    Object(ObjectFile),
    /// A private file, `O_PATH`.
    Private(Arc<OwnedFd>),
}

impl AsFd for BackingFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Object(file) => file.as_fd(),
            Self::Private(fd) => fd.as_fd(),
        }
    }
}

/// An answer to open(2).
pub struct Opened {
    /// The open file.
    pub handle: Handle,
    /// Its way to its bytes.
    pub how: How,
    /// For [`FileSystem::notify`], once the kernel has the answer.
    pub after: Option<Notice>,
}

/// How a write reaches its bytes. It cannot reach an object: there is no such variant.
enum WriteHow {
    Private,
    Cached,
}

#[derive(Clone, Copy)]
pub(super) struct OpenFile {
    id: NodeId,
    passthrough: bool,
    write: bool,
    execute: bool,
}

/// An inode with open files.
#[derive(Default)]
pub(super) struct OpenInode {
    /// Requests that are about to change `state`; counted under the table's lock.
    users: AtomicU32,
    state: Mutex<State>,
    served: Mutex<Served>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) passthrough: u32,
    cached: u32,
    /// Of either kind.
    pub(super) writers: u32,
    passthrough_writers: u32,
    executing: u32,
    /// What the passthrough opens are backed by.
    pub(super) backing: Option<Backing>,
}

impl State {
    fn is_idle(&self) -> bool {
        self.passthrough == 0 && self.cached == 0
    }

    /// Notes that a file is open in passthrough no more.
    fn leave_passthrough(&mut self, file: &OpenFile) {
        self.passthrough = self.passthrough.saturating_sub(1);
        self.passthrough_writers = self.passthrough_writers.saturating_sub(u32::from(file.write));
        if self.passthrough == 0 {
            self.backing = None;
        }
    }
}

impl OpenInode {
    /// Keeps no descriptor of `objects`.
    pub(super) fn forget(&self, objects: &HashSet<ObjectId>) {
        let mut served = self.served.lock();
        if served.object.as_ref().is_some_and(|(id, _)| objects.contains(id)) {
            served.object = None;
        }
    }
}

/// Files that requests are served from, opened on first use.
#[derive(Default)]
pub(super) struct Served {
    object: Option<(ObjectId, Arc<ObjectFile>)>,
    read: Option<Arc<OwnedFd>>,
    write: Option<Arc<OwnedFd>>,
}

impl OpenInode {
    pub(super) fn has_writer(&self) -> bool {
        // Locked by an open in progress: it may be about to become a writer.
        self.state.try_lock().is_none_or(|state| state.passthrough_writers > 0)
    }
}

/// A file that a read is served from.
pub(super) enum Source {
    Object(Arc<ObjectFile>),
    Private(Arc<OwnedFd>),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Object(file) => file.as_fd(),
            Self::Private(fd) => fd.as_fd(),
        }
    }
}

impl FileSystem {
    /// Opens regular file `id`.
    ///
    /// # Errors
    /// [`FsError::Renumbered`] (`ESTALE`): the kernel looks the name up again and asks anew.
    pub fn open(
        &self,
        id: NodeId,
        request: OpenRequest,
        caller: Caller,
    ) -> Result<Opened, FsError> {
        let _changing = (request.write || request.truncate).then(|| self.changing());
        let inode = self.inode(id);
        let opened = self.open_inode(&inode, id, request, caller);
        self.let_go(id, &inode);
        opened
    }

    fn open_inode(
        &self,
        inode: &OpenInode,
        id: NodeId,
        request: OpenRequest,
        caller: Caller,
    ) -> Result<Opened, FsError> {
        let (mut state, how, node) = if request.write || request.truncate {
            let keep = if request.truncate { 0 } else { u64::MAX };
            let (state, node) = self.own_content(inode, id, keep, |state| {
                // For a writer the kernel refuses before it asks; an O_RDONLY|O_TRUNC open it
                // refuses only after the truncation that FUSE_ATOMIC_O_TRUNC makes ours
                // (fs/namei.c, do_open).
                let runs = request.truncate && !request.write && state.executing > 0;
                if runs { Err(FsError::Executing) } else { Ok(()) }
            })?;
            if request.truncate {
                self.truncate_private(&node, 0, caller)?;
            }
            if request.durable {
                // The kernel will sync the data of each write, and nobody the copy-up.
                self.union.sync(&node, true)?;
            }
            let how = match self.write_how(&state, id) {
                WriteHow::Private => {
                    How::Passthrough(Backing::Private { id, serial: node.serial() })
                }
                WriteHow::Cached => How::Cached { keep_cache: !node.take_cache_stale() },
            };
            (state, how, Some(node))
        } else {
            let state = inode.state.lock();
            if self.union.is_superseded(id) {
                return Err(FsError::Renumbered);
            }
            let how = self.read_how(&state, id)?;
            (state, how, self.union.node(id))
        };
        let mut after = None;
        let passthrough = match how {
            How::Passthrough(backing) => {
                state.backing = Some(backing);
                state.passthrough += 1;
                self.counters.passthrough_opens.hit();
                true
            }
            How::Cached { .. } => {
                state.cached += 1;
                self.counters.cached_opens.hit();
                false
            }
        };
        state.writers += u32::from(request.write);
        if passthrough && request.write {
            state.passthrough_writers += 1;
            if let Some(node) = &node {
                node.set_maybe_written();
            }
            after = Some(Notice::Attributes(id));
        }
        state.executing += u32::from(request.execute);
        let handle = Handle(self.next_handle.fetch_add(1, Ordering::Relaxed));
        let (write, execute) = (request.write, request.execute);
        let file = OpenFile { id, passthrough, write, execute };
        self.files.lock().insert(handle.0, file);
        Ok(Opened { handle, how, after })
    }

    /// Chooses passthrough or not: never two ways of opening on one inode at a time.
    fn read_how(&self, state: &State, id: NodeId) -> Result<How, FsError> {
        let bytes = self.union.bytes(id)?;
        let cached = |node: Option<&Node>| How::Cached {
            keep_cache: !node.is_some_and(Node::take_cache_stale),
        };
        let how = match (bytes, state.backing) {
            (Bytes::Object(_), _) if state.cached > 0 => cached(None),
            (Bytes::Private(node), _) if state.cached > 0 => cached(Some(&node)),
            (_, Some(backing)) => How::Passthrough(backing),
            (Bytes::Object(object), None) => {
                if self.passes_through() && self.union.is_shared(id)? {
                    How::Passthrough(Backing::Object(object))
                } else {
                    cached(None)
                }
            }
            (Bytes::Private(node), None) if self.passes_through() && !self.holds(id) => {
                How::Passthrough(Backing::Private { id, serial: node.serial() })
            }
            (Bytes::Private(node), None) => cached(Some(&node)),
        };
        Ok(how)
    }

    fn write_how(&self, state: &State, id: NodeId) -> WriteHow {
        let cached = state.cached > 0 || !self.passes_through();
        if cached || (state.passthrough == 0 && self.holds(id)) {
            WriteHow::Cached
        } else {
            WriteHow::Private
        }
    }

    /// Opens the file behind a passthrough open, for registering it with the kernel.
    ///
    /// # Errors
    /// `EIO` when an object is missing or damaged.
    pub fn open_backing(&self, backing: Backing) -> Result<BackingFile, FsError> {
        match backing {
            Backing::Object(object) => Ok(BackingFile::Object(self.union.open_object(&object)?)),
            Backing::Former { object, .. } => {
                Ok(BackingFile::Object(self.union.open_object(&object)?))
            }
            Backing::Private { id, serial } => match self.union.bytes(id)? {
                Bytes::Private(node) => {
                    let file = self.union.private_path(&node)?;
                    // An object took the file's place since the open was answered.
                    let same = node.serial() == serial;
                    if same { Ok(BackingFile::Private(file)) } else { Err(FsError::Renumbered) }
                }
                // The same; or a superseded number, which is opened by nobody.
                Bytes::Object(_) => Err(FsError::Renumbered),
            },
        }
    }

    /// Makes the content of `id` private before a write, keeping `keep` bytes, and holds the
    /// open state from then on. `allow` is asked under it before anything is changed.
    ///
    /// Descriptors that read the object in the kernel go on reading it: then the inode goes
    /// on under a new number and the writer is sent there.
    fn own_content<'a>(
        &self,
        inode: &'a OpenInode,
        id: NodeId,
        keep: u64,
        allow: impl Fn(&State) -> Result<(), FsError>,
    ) -> Result<(MutexGuard<'a, State>, Arc<Node>), FsError> {
        let mut mtime = None;
        loop {
            let state = inode.state.lock();
            if self.union.is_superseded(id) {
                return Err(FsError::Renumbered);
            }
            allow(&state)?;
            match (self.union.bytes(id)?, state.backing) {
                // Descriptors here still read an object, or a file that one replaced: nobody may
                // write beside them.
                (
                    Bytes::Private(_),
                    Some(Backing::Object(object) | Backing::Former { object, .. }),
                ) => {
                    let mtime = match mtime {
                        Some(mtime) => mtime,
                        None => self.union.attributes(id)?.mtime,
                    };
                    self.supersede(id, object, mtime);
                    return Err(FsError::Renumbered);
                }
                (Bytes::Private(node), _) => return Ok((state, node)),
                // Nor is there a name under which the writer could find the new number.
                (Bytes::Object(_), Some(_)) if !self.union.has_name(id)? => {
                    return Err(FsError::Renumbered);
                }
                (Bytes::Object(object), _) => {
                    mtime = Some(self.union.attributes(id)?.mtime);
                    drop(state);
                    let room = self.reserve(keep.min(object.blocks.saturating_mul(512)))?;
                    self.count_copy_up(self.union.own_content(id, keep)?);
                    if self.limits_disk() {
                        room.settle(0, self.union.file_bytes(id)?);
                    }
                }
            }
        }
    }

    fn count_copy_up(&self, copied: Option<Copied>) {
        match copied {
            None => return,
            Some(Copied::Reflinked) => self.counters.copy_ups_reflinked.hit(),
            Some(Copied::Copied { bytes }) => self.counters.copy_up_bytes.add(bytes),
        }
        self.counters.copy_ups.hit();
    }

    fn supersede(&self, id: NodeId, object: ObjectContent, mtime: (i64, u32)) {
        let names = self.union.names(id);
        self.union.renumber(id, object, mtime);
        self.counters.renumbered.hit();
        // What the kernel knows of the old number is of before; from now on it asks each time.
        self.notify(Notice::Attributes(id));
        // Its other names must find the new number too.
        for (dir, name) in names {
            self.notify(Notice::Name(dir, name));
        }
    }

    /// Sets the size of `id`.
    ///
    /// # Errors
    /// [`FsError::Renumbered`] as for [`FileSystem::open`].
    pub fn set_size(&self, id: NodeId, size: u64, caller: Caller) -> Result<(), FsError> {
        let _changing = self.changing();
        let inode = self.inode(id);
        let done = self
            .own_content(&inode, id, size, |_| Ok(()))
            .and_then(|(_state, node)| self.truncate_private(&node, size, caller));
        self.let_go(id, &inode);
        done
    }

    /// The kernel could not register the backing file: serves the open file from here.
    ///
    /// Whoever asks the kernel must answer all open files of an inode alike.
    ///
    /// # Errors
    /// [`FsError::BadHandle`].
    pub fn demote(&self, handle: Handle) -> Result<(), FsError> {
        let file = {
            let mut files = self.files.lock();
            let file = files.get_mut(&handle.0).ok_or(FsError::BadHandle)?;
            file.passthrough = false;
            *file
        };
        let inode = self.inode(file.id);
        {
            let mut state = inode.state.lock();
            state.leave_passthrough(&file);
            state.cached += 1;
        }
        self.let_go(file.id, &inode);
        self.counters.passthrough_refused.hit();
        Ok(())
    }

    /// Closes an open file.
    ///
    /// # Errors
    /// [`FsError::BadHandle`].
    pub fn close(&self, handle: Handle) -> Result<(), FsError> {
        let file = self.files.lock().remove(&handle.0).ok_or(FsError::BadHandle)?;
        self.closing(file.id, |state| {
            state.executing = state.executing.saturating_sub(u32::from(file.execute));
            state.writers = state.writers.saturating_sub(u32::from(file.write));
            if file.passthrough {
                state.leave_passthrough(&file);
            } else {
                state.cached = state.cached.saturating_sub(1);
            }
        });
        Ok(())
    }

    /// Lets go of `id` if it has no open files after `change`; no open can come in between.
    pub(super) fn closing(&self, id: NodeId, change: impl FnOnce(&mut State)) {
        let inode = self.inode(id);
        {
            let mut state = inode.state.lock();
            change(&mut state);
            if state.is_idle() {
                self.went_back(self.union.closed(id));
            }
        }
        self.let_go(id, &inode);
    }

    /// Does `work` on the open state of `id` while nobody opens or closes it, open or not.
    pub(super) fn with_state<T>(
        &self,
        id: NodeId,
        work: impl FnOnce(&mut State, &mut Served) -> T,
    ) -> T {
        let inode = self.inode(id);
        let done = work(&mut inode.state.lock(), &mut inode.served.lock());
        self.let_go(id, &inode);
        done
    }

    /// True if a descriptor of `id` may write.
    pub(super) fn is_open_for_writing(&self, id: NodeId) -> bool {
        self.inode_if_open(id).is_some_and(|inode| inode.state.lock().writers > 0)
    }

    /// The open state of `id`; every call is paired with one of `let_go`.
    fn inode(&self, id: NodeId) -> Arc<OpenInode> {
        let mut inodes = self.inodes.lock();
        let inode = inodes.entry(id).or_default();
        inode.users.fetch_add(1, Ordering::AcqRel);
        Arc::clone(inode)
    }

    pub(super) fn inode_if_open(&self, id: NodeId) -> Option<Arc<OpenInode>> {
        self.inodes.lock().get(&id).cloned()
    }

    /// Forgets an inode without open files that nobody else is about to open.
    fn let_go(&self, id: NodeId, inode: &OpenInode) {
        let mut inodes = self.inodes.lock();
        if inode.users.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // Only glances hold this lock now: whoever changes the state is counted in `users`.
        let idle = inode.state.lock().is_idle();
        if idle {
            inodes.remove(&id);
            self.served.lock().pop(&id);
        }
    }

    /// The file that bytes of `id` are read from now, whatever the handle was opened on.
    pub(super) fn source(&self, id: NodeId) -> Result<Source, FsError> {
        let open = self.inode_if_open(id);
        let (source, fresh) = self.find_source(id, open.as_deref())?;
        if let Some(open) = open.filter(|_| fresh) {
            self.keep_served(id, &open);
        }
        Ok(source)
    }

    /// Enters the files of an open inode among those that are kept, and closes those of the
    /// inode that got its first: open files are more than this process may have descriptors.
    fn keep_served(&self, id: NodeId, inode: &Arc<OpenInode>) {
        let evicted = self.served.lock().push(id, Arc::downgrade(inode));
        let other = evicted.filter(|(evicted, _)| *evicted != id);
        if let Some(other) = other.and_then(|(_, inode)| inode.upgrade()) {
            *other.served.lock() = Served::default();
        }
    }

    /// The source, and whether it was opened just now.
    fn find_source(&self, id: NodeId, open: Option<&OpenInode>) -> Result<(Source, bool), FsError> {
        loop {
            match self.look_for_source(id, open) {
                // An object took the place of the private file between two steps.
                Err(FsError::Union(UnionError::Invalid))
                    if matches!(self.union.bytes(id)?, Bytes::Object(_)) => {}
                found => return found,
            }
        }
    }

    fn look_for_source(
        &self,
        id: NodeId,
        open: Option<&OpenInode>,
    ) -> Result<(Source, bool), FsError> {
        let mut served = open.map(|inode| inode.served.lock());
        match self.union.bytes(id)? {
            Bytes::Object(object) => {
                if let Some(Some((known, file))) = served.as_ref().map(|s| s.object.as_ref())
                    && *known == object.id
                {
                    return Ok((Source::Object(Arc::clone(file)), false));
                }
                let file = Arc::new(self.union.open_object(&object)?);
                if let Some(served) = &mut served {
                    served.object = Some((object.id, Arc::clone(&file)));
                }
                Ok((Source::Object(file), true))
            }
            Bytes::Private(node) => {
                if let Some(Some(fd)) = served.as_ref().map(|s| s.read.as_ref()) {
                    return Ok((Source::Private(Arc::clone(fd)), false));
                }
                let flags = OFlags::RDONLY | OFlags::NOATIME;
                let fd = Arc::new(self.union.open_private(&node, flags)?);
                if let Some(served) = &mut served {
                    served.object = None;
                    served.read = Some(Arc::clone(&fd));
                }
                Ok((Source::Private(fd), true))
            }
        }
    }

    /// The private file that bytes of `id` are written to.
    ///
    /// # Errors
    /// [`FsError::BadHandle`] while the content is an object: no write-open was answered.
    pub(super) fn sink(&self, id: NodeId) -> Result<Arc<OwnedFd>, FsError> {
        let open = self.inode_if_open(id);
        let mut served = open.as_ref().map(|inode| inode.served.lock());
        let Bytes::Private(node) = self.union.bytes(id)? else { return Err(FsError::BadHandle) };
        if let Some(Some(fd)) = served.as_ref().map(|s| s.write.as_ref()) {
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(self.union.open_private(&node, OFlags::RDWR)?);
        // Kept only while no read lease may be wanted: passthrough opens are proved by one.
        let cached = open
            .as_ref()
            .is_some_and(|inode| inode.state.try_lock().is_some_and(|state| state.cached > 0));
        if let Some(served) = served.as_mut().filter(|_| cached) {
            served.write = Some(Arc::clone(&fd));
        }
        drop(served);
        if let Some(open) = open.filter(|_| cached) {
            self.keep_served(id, &open);
        }
        Ok(fd)
    }
}
