//! POSIX operations on a root, by inode number.
//!
//! Owns open files and the rule which of them are shared with the kernel directly
//! (passthrough) and which are served from here (cached), set-id stripping, and errno. Must
//! never know the kernel protocol: it runs and is tested unmounted. Nothing here survives a
//! crash; nothing has to.

mod errno;
mod file;
mod forget;
mod gate;
mod namespace;
mod open;
mod privilege;
mod quota;
mod refer;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};

pub use errno::FsError;
pub use file::Sought;
pub use gate::{FreezeError, Frozen};
pub use namespace::Renaming;
pub use open::{Backing, BackingFile, Handle, How, OpenRequest, Opened};
pub use quota::DiskUse;
pub use refer::Replacement;

use crate::object::ObjectId;
use crate::sys::process::share_of_descriptors;
use crate::telemetry::{Counters, Snapshot};
use crate::union::{Attributes, NodeId, Union};
use gate::{Gate, Passing};
use open::{OpenFile, OpenInode};
use quota::Quota;

/// Messages to the kernel that may wait at once; beyond that they are dropped and counted.
const NOTICES: usize = 65_536;

/// Open inodes that keep files to serve requests from, at most; a sixteenth of the descriptors
/// this process may have, if that is less.
const SERVED: NonZeroUsize = NonZeroUsize::new(4096).expect("the constant is not zero");

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User; the kernel tells it for requests that create something, and for no others.
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
    /// Thread, in the server's pid namespace; 0 outside of it.
    pub pid: u32,
    /// Permission bits to clear on creation.
    pub umask: u32,
}

/// Something the kernel's caches must be told after the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The attributes of this inode may change unseen from now on.
    Attributes(NodeId),
    /// This name may stand for another inode now.
    Name(NodeId, Vec<u8>),
    /// Pages of this inode may hold what is not its content.
    Content(NodeId),
}

/// Is told of objects of which nothing may be kept.
type Forget = Box<dyn Fn(&[ObjectId]) + Send + Sync>;

/// A root.
pub struct FileSystem {
    union: Union,
    passthrough: AtomicBool,
    counters: Arc<Counters>,
    inodes: Mutex<HashMap<NodeId, Arc<OpenInode>>>,
    /// Open inodes that keep files to serve requests from, by the time they got the first.
    served: Mutex<LruCache<NodeId, Weak<OpenInode>>>,
    files: Mutex<HashMap<u64, OpenFile>>,
    next_handle: AtomicU64,
    gate: Arc<Gate>,
    quota: Quota,
    notices: (Sender<Notice>, Receiver<Notice>),
    /// Messages that were queued, ever.
    queued: AtomicU64,
    /// Of those, how many the kernel was told.
    told: Mutex<u64>,
    telling: Condvar,
    /// Who else keeps descriptors of objects.
    forget: OnceLock<Forget>,
    /// Set once the root is at rest for good: nothing changes it any more.
    at_rest: OnceLock<Frozen>,
}

impl FileSystem {
    /// Serves `union`; opens are cached until [`FileSystem::allow_passthrough`].
    pub fn new(union: Union) -> Arc<Self> {
        Arc::new(Self {
            counters: Arc::clone(union.counters()),
            union,
            passthrough: AtomicBool::new(false),
            inodes: Mutex::default(),
            served: Mutex::new(LruCache::new(share_of_descriptors(16, SERVED))),
            files: Mutex::default(),
            next_handle: AtomicU64::new(1),
            gate: Arc::default(),
            quota: Quota::default(),
            // A bounded channel would take the room for all of them at once.
            notices: crossbeam::channel::unbounded(),
            queued: AtomicU64::new(0),
            told: Mutex::default(),
            telling: Condvar::new(),
            forget: OnceLock::new(),
            at_rest: OnceLock::new(),
        })
    }

    /// Lets opens be answered with passthrough, once the kernel agreed to it.
    pub fn allow_passthrough(&self) {
        self.passthrough.store(true, Ordering::Release);
    }

    /// Whether opens may be answered with passthrough.
    pub fn passes_through(&self) -> bool {
        self.passthrough.load(Ordering::Acquire)
    }

    /// Holds back everything that changes the root, opens for writing among it, until the value
    /// is dropped. Writes through descriptors and mappings that pass through go on: they never
    /// come here.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub fn freeze(&self, patience: Duration) -> Result<Frozen, FreezeError> {
        self.gate.close(patience)
    }

    /// Lets a change through, or waits while the root is frozen.
    fn changing(&self) -> Passing<'_> {
        self.gate.pass()
    }

    /// Tells the kernel of metadata that was changed through a number the inode had before.
    fn tell_successor(&self, id: NodeId) {
        if let Some(now) = self.union.successor(id) {
            self.notify(Notice::Attributes(now));
        }
    }

    /// What was counted so far.
    pub fn statistics(&self) -> Snapshot {
        self.counters.snapshot()
    }

    /// Where the adapter counts what only it sees.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The merged view.
    pub fn union(&self) -> &Union {
        &self.union
    }

    /// What the kernel must be told; for the one thread that tells it.
    pub fn notices(&self) -> Receiver<Notice> {
        self.notices.1.clone()
    }

    /// Queues a message to the kernel; called after the reply it belongs to.
    pub fn notify(&self, notice: Notice) {
        // Threads that pass here together exceed the limit by as many as they are.
        if self.notices.0.len() >= NOTICES || self.notices.0.send(notice).is_err() {
            self.counters.notices_dropped.hit();
        } else {
            self.queued.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Notes that the kernel was told one more message; for the one thread that tells it.
    pub fn told(&self) {
        *self.told.lock() += 1;
        self.telling.notify_all();
    }

    /// Waits until the kernel knows all that was queued so far; false if it takes too long.
    ///
    /// Never from a thread that serves requests: the kernel may wait for that one.
    pub fn await_told(&self, patience: Duration) -> bool {
        let queued = self.queued.load(Ordering::Acquire);
        let deadline = Instant::now() + patience;
        let mut told = self.told.lock();
        while *told < queued {
            if self.telling.wait_until(&mut told, deadline).timed_out() {
                return *told >= queued;
            }
        }
        true
    }

    /// Tells the kernel to ask about an inode that has its old number again.
    fn went_back(&self, id: Option<NodeId>) {
        if let Some(id) = id {
            self.notify(Notice::Attributes(id));
        }
    }

    /// The attributes of `id`.
    ///
    /// # Errors
    /// `ESTALE` for an unknown number.
    pub fn attributes(&self, id: NodeId) -> Result<Attributes, FsError> {
        let attributes = self.union.attributes(id)?;
        if !attributes.volatile {
            return Ok(attributes);
        }
        // A mapping may have changed the file unseen. Once nobody can write it any more its
        // attributes are read again and hold until it is opened for writing.
        let Some(node) = self.union.node(id) else { return Ok(attributes) };
        let writable = || self.inode_if_open(id).is_some_and(|inode| inode.has_writer());
        if writable() || !self.union.prove_unwritten(&node) {
            return Ok(attributes);
        }
        if writable() {
            // Opened for writing between the proof and here; the opener set the mark first.
            node.set_maybe_written();
        }
        Ok(self.union.attributes(id)?)
    }
}
