//! Keeping nothing of objects that were damaged: the store has set them aside, or has them whole
//! again under the same name.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{FileSystem, FsError, Notice};
use crate::object::ObjectId;

/// How long it may take to shorten a log of references when the root comes to rest: less than who
/// mounts it again waits for the end of this process (`host/unmount.rs`).
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long the end of a root waits for a change that was asked for by way of the control socket.
const REST_PATIENCE: Duration = Duration::from_secs(1);

/// How often it asks whether that has ended.
const REST_RETRY: Duration = Duration::from_millis(5);

impl FileSystem {
    /// Calls `forget` with every object of which nothing may be kept; once, by who keeps
    /// descriptors beside this.
    pub fn when_objects_are_forgotten(&self, forget: impl Fn(&[ObjectId]) + Send + Sync + 'static) {
        if self.forget.set(Box::new(forget)).is_err() {
            tracing::warn!("two keep descriptors of objects, and one is not told of damage");
        }
    }

    /// Lets go of descriptors and pages of `objects`: who opens a file with that content from here
    /// on gets what the store has now, or `EIO` if it has nothing. What is open in the kernel,
    /// and who opens a file beside it, goes on with what it has.
    ///
    /// # Errors
    /// Those of reading the tree: pages may stay then.
    pub fn forget_objects(&self, objects: &[ObjectId]) -> Result<(), FsError> {
        if let Some(forget) = self.forget.get() {
            forget(objects);
        }
        let objects: HashSet<ObjectId> = objects.iter().copied().collect();
        // Each may wait for a disk, and the table must not. One opened from here on is opened
        // from what the store has by now.
        let open: Vec<_> = self.inodes.lock().values().cloned().collect();
        for inode in open {
            inode.forget(&objects);
        }
        for id in self.union.holders_of(&objects)? {
            self.notify(Notice::Content(id));
        }
        Ok(())
    }

    /// Shortens the log of references of a root that comes to rest, if that is worth it; returns
    /// every object that its files still refer to, if it was looked for.
    ///
    /// Nothing changes the root from here on: a re-share may still ask by way of the control
    /// socket, and its reference would be in no log that is left.
    ///
    /// # Errors
    /// Those of the host; the log is as it was.
    pub fn tidy_references(&self) -> Result<Option<HashSet<ObjectId>>, FsError> {
        let deadline = Instant::now() + REST_PATIENCE;
        let frozen = loop {
            match self.freeze(REST_RETRY) {
                Ok(frozen) => break frozen,
                Err(_) if Instant::now() < deadline => std::thread::sleep(REST_RETRY),
                // Somebody copies it: another time.
                Err(_) => return Ok(None),
            }
        };
        self.at_rest.get_or_init(|| frozen);
        Ok(self.union.tidy_references(PATIENCE)?)
    }
}
