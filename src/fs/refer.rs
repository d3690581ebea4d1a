//! Putting objects in the place of private files, beside everything else that goes on.

use std::time::{Duration, Instant};

use super::open::{Backing, Served};
use super::{FileSystem, FsError, Notice};
use crate::layer::LayerPath;
use crate::sys::inode;
use crate::sys::lease::ReadLease;
use crate::union::{ObjectContent, PrivatePlace, ReferError, UnionError};

/// How long a replacement waits for changes that began before it. What changes the root waits for
/// one replacement: of a file with several names until its marks are on the disk.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often it is asked whether somebody waits for a file that is to be replaced.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// A private file to be replaced.
pub struct Replacement {
    /// Where it is in the root.
    pub path: LayerPath,
    /// Held since before its content was read.
    pub lease: ReadLease,
    /// What was read.
    pub object: ObjectContent,
}

impl FileSystem {
    /// Replaces private files by references to objects, as far as nobody writes to them; each
    /// lease is given back as soon as it is no longer needed.
    ///
    /// Whoever reads one of them goes on reading the old inode; who opens one after the last of
    /// those has closed it gets the object. One with several names is left alone while it is read.
    /// The next write copies it up again.
    pub fn replace_by_objects(&self, files: Vec<Replacement>) -> Vec<Result<(), ReferError>> {
        let (mut answers, on_the_way) = self.note_all(&files);
        let mut files: Vec<Option<Replacement>> = files.into_iter().map(Some).collect();
        let mut asked = Instant::now();
        for at in 0..files.len() {
            if asked.elapsed() >= ASK_EVERY {
                // A writer that waits for one of the later ones goes on now.
                for waiting in &mut files {
                    drop(waiting.take_if(|file| !file.lease.holds()));
                }
                asked = Instant::now();
            }
            let (Some(file), Some(answer)) = (files.get_mut(at), answers.get_mut(at)) else {
                break;
            };
            let file = file.take();
            if answer.is_ok() {
                *answer = file.map_or(Err(ReferError::InUse), |file| self.replace_by_object(&file));
            }
        }
        for place in &on_the_way {
            self.union.leave(place);
        }
        answers
    }

    /// Writes all references into the log at once: what it costs is waiting for the disk. Returns
    /// also what was looked up, to be left: until then no directory on the way is read again.
    fn note_all(&self, files: &[Replacement]) -> (Vec<Result<(), ReferError>>, Vec<PrivatePlace>) {
        let (mut references, mut on_the_way) = (Vec::new(), Vec::new());
        let mut noted: Vec<Result<(), ReferError>> = Vec::new();
        for file in files {
            noted.push(self.union.private_place(&file.path).map(|place| {
                references.push(self.union.reference(&place, &file.object));
                on_the_way.push(place);
            }));
        }
        if let Err(error) = self.union.note_references(&references) {
            // One error for all of them: none may be made.
            let errno = FsError::from(error).errno();
            for noted in noted.iter_mut().filter(|noted| noted.is_ok()) {
                *noted = Err(UnionError::Host(errno).into());
            }
        }
        (noted, on_the_way)
    }

    fn replace_by_object(&self, file: &Replacement) -> Result<(), ReferError> {
        // The marks of a file with several names are synced while all wait: not its data as well.
        if inode::status(&file.lease).is_ok_and(|status| status.nlink > 1) {
            rustix::fs::fdatasync(&file.lease).map_err(UnionError::Host)?;
        }
        // Nothing changes from here on, and nothing that changes anything is half way.
        let frozen = self.freeze(PATIENCE).map_err(|_| ReferError::InUse)?;
        let place = self.union.private_place(&file.path)?;
        let replaced = self.replace_at(&place, file);
        drop(frozen);
        let id = place.node.id();
        if replaced.is_ok() {
            self.counters.replaced_by_objects.hit();
            self.quota.was_freed();
            self.notify(Notice::Attributes(id));
        }
        // Of a file that the kernel does not know nothing is kept.
        self.closing(id, |_| {});
        self.union.leave(&place);
        replaced
    }

    fn replace_at(&self, place: &PrivatePlace, file: &Replacement) -> Result<(), ReferError> {
        let id = place.node.id();
        let shared = self.union.is_shared(id)?;
        let (lease, object) = (&file.lease, file.object);
        self.with_state(id, |state, served| {
            // The kernel may be about to open the old file for one that was just answered.
            if state.writers > 0 {
                return Err(ReferError::InUse);
            }
            // What is served from here is opened anew, from what it is then.
            *served = Served::default();
            if self.union.has_several_names(place)? {
                if state.passthrough > 0 {
                    return Err(ReferError::InUse);
                }
                return self.union.refer_linked(place, lease, object);
            }
            // Who reads an unshared file sees what others write, so nobody may keep the old inode.
            if !shared && (state.passthrough > 0 || !lease.is_sole_user()) {
                return Err(ReferError::InUse);
            }
            let serial = place.node.serial();
            self.union.refer(place, lease, object)?;
            if let Some(Backing::Private { .. }) = state.backing {
                state.backing = Some(Backing::Former { object, serial });
            }
            Ok(())
        })
    }
}
