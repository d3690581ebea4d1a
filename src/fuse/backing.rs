//! Backing files registered with the kernel.
//!
//! Registered once per object and mount, kept in a bounded cache, and never let go while an
//! open file uses the registration: the kernel wants the same one for all of an inode.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

use fuser::BackingId;
use lru::LruCache;
use parking_lot::Mutex;

use crate::fs::{Backing, Handle};
use crate::object::ObjectId;
use crate::telemetry::Counters;
use crate::union::NodeId;

/// Objects kept registered without an open file.
const IDLE: usize = 4096;

/// What a registration stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Object(ObjectId),
    Private,
}

/// All registrations of one mount.
pub(super) struct Backings {
    table: Mutex<Table>,
}

struct Table {
    objects: LruCache<ObjectId, Arc<BackingId>>,
    inodes: HashMap<NodeId, (Key, Weak<BackingId>)>,
    files: HashMap<Handle, (NodeId, Arc<BackingId>)>,
}

impl Backings {
    pub(super) fn new() -> Self {
        let capacity = NonZeroUsize::new(IDLE).expect("the constant is not zero");
        let objects = LruCache::new(capacity);
        let table = Table { objects, inodes: HashMap::new(), files: HashMap::new() };
        Self { table: Mutex::new(table) }
    }

    /// The registration that an open file of `id` is answered with.
    ///
    /// # Errors
    /// What `register` said.
    pub(super) fn acquire<E>(
        &self,
        handle: Handle,
        id: NodeId,
        backing: Backing,
        counters: &Counters,
        register: impl FnOnce() -> Result<BackingId, E>,
    ) -> Result<Arc<BackingId>, E> {
        let key = match backing {
            Backing::Object(object) => Key::Object(object.id),
            Backing::Private(_) => Key::Private,
        };
        let mut table = self.table.lock();
        let of_inode = match table.inodes.get(&id) {
            Some((known, weak)) if *known == key => weak.upgrade(),
            Some(_) | None => None,
        };
        let known = match (of_inode, key) {
            (Some(known), _) => Some(known),
            (None, Key::Object(object)) => table.objects.get(&object).cloned(),
            (None, Key::Private) => None,
        };
        let registered = match known {
            Some(registered) => registered,
            None => {
                let fresh = Arc::new(register()?);
                counters.backings_registered.hit();
                if let Key::Object(object) = key
                    && table.objects.push(object, Arc::clone(&fresh)).is_some()
                {
                    counters.backings_evicted.hit();
                }
                fresh
            }
        };
        table.inodes.insert(id, (key, Arc::downgrade(&registered)));
        table.files.insert(handle, (id, Arc::clone(&registered)));
        Ok(registered)
    }

    /// Lets go of what an open file used.
    pub(super) fn release(&self, handle: Handle) {
        let mut table = self.table.lock();
        let Some((id, registered)) = table.files.remove(&handle) else { return };
        drop(registered);
        // An idle object's registration lives on in the cache; the inode need not know.
        let unused = |(key, weak): &(Key, Weak<BackingId>)| {
            weak.strong_count() <= usize::from(matches!(key, Key::Object(_)))
        };
        if table.inodes.get(&id).is_some_and(unused) {
            table.inodes.remove(&id);
        }
    }
}
