//! Backing files registered with the kernel.
//!
//! Registered once per object and mount, kept in a bounded cache, and never let go while an
//! open file uses the registration: the kernel wants the same one for all of an inode.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};

use fuser::BackingId;
use lru::LruCache;
use parking_lot::Mutex;

use crate::fs::{Backing, BackingFile, Handle};
use crate::object::ObjectId;
use crate::telemetry::Counters;
use crate::union::NodeId;

/// Objects kept registered without an open file.
const IDLE: usize = 4096;

/// What a registration stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Object(ObjectId),
    /// One private file, by its serial number.
    Private(u64),
}

/// All registrations of one mount.
pub(super) struct Backings {
    table: Mutex<Table>,
}

/// How an open file of the mount is answered for.
pub(super) enum Acquired {
    /// With this registration.
    Registered(Arc<BackingId>),
    /// Without: the kernel refused it, for this file or for one opened just before.
    Refused(Option<io::Error>),
}

struct Table {
    objects: LruCache<ObjectId, Arc<BackingId>>,
    inodes: HashMap<NodeId, OfInode>,
    /// `None`: refused.
    files: HashMap<Handle, (NodeId, Option<Arc<BackingId>>)>,
    /// How often objects were forgotten.
    forgotten: u64,
}

/// What open files of one inode have been answered with. The kernel takes passthrough for all of
/// them or for none.
enum OfInode {
    Registered(Key, Weak<BackingId>),
    /// So many open files were refused.
    Refused(u32),
}

impl Backings {
    pub(super) fn new() -> Self {
        let capacity = NonZeroUsize::new(IDLE).expect("the constant is not zero");
        let objects = LruCache::new(capacity);
        let (inodes, files) = (HashMap::new(), HashMap::new());
        let table = Table { objects, inodes, files, forgotten: 0 };
        Self { table: Mutex::new(table) }
    }

    /// The registration that an open file of `id` is answered with.
    ///
    /// # Errors
    /// What `open` said, which opens the file to register.
    pub(super) fn acquire<E>(
        &self,
        handle: Handle,
        id: NodeId,
        backing: Backing,
        counters: &Counters,
        open: impl FnOnce() -> Result<BackingFile, E>,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<Acquired, E> {
        let key = match backing {
            Backing::Object(object) => Key::Object(object.id),
            Backing::Private { serial, .. } | Backing::Former { serial, .. } => {
                Key::Private(serial)
            }
        };
        let forgotten = {
            let mut table = self.table.lock();
            if let Some(known) = table.known(handle, id, key) {
                return Ok(known);
            }
            table.forgotten
        };
        // A disk that is slow to open a file holds up nobody else.
        let file = open()?;
        let mut table = self.table.lock();
        if let Some(known) = table.known(handle, id, key) {
            return Ok(known);
        }
        let fresh = match register(file.as_fd()) {
            Ok(fresh) => Arc::new(fresh),
            Err(error) => {
                table.inodes.insert(id, OfInode::Refused(1));
                table.files.insert(handle, (id, None));
                return Ok(Acquired::Refused(Some(error)));
            }
        };
        counters.backings_registered.hit();
        // Not what was opened before its object was forgotten.
        if let Key::Object(object) = key
            && table.forgotten == forgotten
            && table.objects.push(object, Arc::clone(&fresh)).is_some()
        {
            counters.backings_evicted.hit();
        }
        Ok(table.answer(handle, id, key, fresh))
    }

    /// Keeps no registration of these objects but for inodes that are open with one.
    pub(super) fn forget(&self, objects: &[ObjectId]) {
        let mut table = self.table.lock();
        table.forgotten += 1;
        for object in objects {
            table.objects.pop(object);
        }
    }

    /// Lets go of what an open file used.
    pub(super) fn release(&self, handle: Handle) {
        let mut table = self.table.lock();
        let Some((id, registered)) = table.files.remove(&handle) else { return };
        drop(registered);
        let unused = match table.inodes.get_mut(&id) {
            None => false,
            // An idle object's registration lives on in the cache; the inode need not know.
            Some(OfInode::Registered(key, weak)) => {
                weak.strong_count() <= usize::from(matches!(key, Key::Object(_)))
            }
            Some(OfInode::Refused(files)) => {
                *files = files.saturating_sub(1);
                *files == 0
            }
        };
        if unused {
            table.inodes.remove(&id);
        }
    }
}

impl Table {
    /// The answer for `handle` that needs no registering, if there is one.
    fn known(&mut self, handle: Handle, id: NodeId, key: Key) -> Option<Acquired> {
        let of_inode = match self.inodes.get_mut(&id) {
            Some(OfInode::Refused(files)) => {
                *files += 1;
                self.files.insert(handle, (id, None));
                return Some(Acquired::Refused(None));
            }
            Some(OfInode::Registered(known, weak)) if *known == key => weak.upgrade(),
            Some(OfInode::Registered(..)) | None => None,
        };
        let registered = match (of_inode, key) {
            (Some(registered), _) => registered,
            (None, Key::Object(object)) => Arc::clone(self.objects.get(&object)?),
            (None, Key::Private(_)) => return None,
        };
        Some(self.answer(handle, id, key, registered))
    }

    fn answer(
        &mut self,
        handle: Handle,
        id: NodeId,
        key: Key,
        registered: Arc<BackingId>,
    ) -> Acquired {
        self.inodes.insert(id, OfInode::Registered(key, Arc::downgrade(&registered)));
        self.files.insert(handle, (id, Some(Arc::clone(&registered))));
        Acquired::Registered(registered)
    }
}
