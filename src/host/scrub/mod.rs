//! Scrubbing: reading every object back from its disk, and doing something about what is wrong.
//!
//! Owns the order of steps, how far a scrub is (`scrub.json`), and where content comes from again.
//! A damaged object is set aside first (`quarantine/`), so that nobody is given wrong bytes any
//! more; then it is put back from any private file that has its content. After a crash the next
//! scrub goes on behind the last object that is noted, reads a few again, and still knows what was
//! set aside.

mod repair;
mod state;

use std::collections::HashMap;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Mode, OFlags, openat};
use rustix::io::Errno;

use super::error::HostError;
use super::pace::{Go, Pace};
use super::recall::recall;
use super::references::References;
use super::store::Store;
use crate::layer::Layers;
use crate::object::{Damage, DiskReader, Examined, ObjectId, Objects, crash_point};
use crate::sys::priority::give_way;
use crate::sys::verity::{self, Sealed};
pub(super) use state::FILE as NOTES;
use state::{Notebook, State};

/// How to scrub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Begin anew instead of where the last scrub was interrupted.
    pub restart: bool,
    /// At most so many bytes a second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Look only: nothing is set aside, put back, sealed or noted, and all of it is looked at.
    pub dry_run: bool,
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// The first two bytes of the digest it has come to: digests are spread evenly.
    pub position: u16,
    /// Objects read, and in a resumed scrub those before it.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a scrub found.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// How far it came.
    pub progress: ScrubProgress,
    /// It went on where an earlier one was interrupted.
    pub resumed: bool,
    /// It was told to end before the end.
    pub ended_early: bool,
    /// Objects that the kernel checks by itself from now on (fs-verity).
    pub sealed: u64,
    /// Why no object was sealed, if the host refuses.
    pub unsealed: Option<Errno>,
    /// What is wrong, in order of the digests.
    pub found: Vec<Found>,
    /// Layers that cannot be read, as sentences: what they refer to was not looked for.
    pub unreadable: Vec<String>,
    /// Why nothing could be put back.
    pub unrepaired: Option<String>,
    /// Why how far it is could not be noted.
    pub unnoted: Option<String>,
}

impl Scrubbed {
    /// Whether something is missing that somebody needs.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !self.unreadable.is_empty() || self.found.iter().any(Found::is_lost)
    }
}

/// Something wrong with one object.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The object.
    pub object: ObjectId,
    /// What is wrong; none: it is missing, or was set aside earlier.
    pub damage: Option<Damage>,
    /// Whether a layer refers to it.
    pub needed: bool,
    /// The private file that its content came back from.
    pub repaired_from: Option<PathBuf>,
}

impl Found {
    /// Whether it is needed and did not come back.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.needed && self.repaired_from.is_none()
    }
}

/// Reads every object of `store` from its disk and compares its digest with its name.
///
/// Gives way to everything else on the disk. `proceed` is asked after every piece read and ends
/// the scrub by saying no; the next one goes on from there.
///
/// # Errors
/// [`HostError::ScrubRuns`]; what keeps it from looking at all. What it finds is in the answer.
pub fn scrub(
    store: &Store,
    options: ScrubOptions,
    proceed: &(dyn Fn(ScrubProgress) -> bool + Sync),
) -> Result<Scrubbed, HostError> {
    // On a thread of its own: giving way is a property of the thread, and cannot be taken back.
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            if let Err(error) = give_way() {
                tracing::warn!(%error, "the scrub does not give way");
            }
            Scrub::begin(store, options, proceed)?.run()
        });
        work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Scrub<'a> {
    store: &'a Store,
    dry_run: bool,
    objects: Objects,
    references: References,
    layers: Layers,
    state: State,
    notebook: Notebook,
    pace: Pace,
    proceed: &'a (dyn Fn(ScrubProgress) -> bool + Sync),
    done: Scrubbed,
    _alone: OwnedFd,
    _shared: super::store::StoreLock,
}

impl<'a> Scrub<'a> {
    fn begin(
        store: &'a Store,
        options: ScrubOptions,
        proceed: &'a (dyn Fn(ScrubProgress) -> bool + Sync),
    ) -> Result<Self, HostError> {
        let shared = store.share()?;
        let objects = Objects::open(store.path())?;
        let alone = objects.quarantine_dir()?;
        match rustix::fs::flock(&alone, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Err(HostError::ScrubRuns(store.path().to_owned())),
            Err(errno) => return Err(HostError::system("lock", store.path())(errno)),
        }
        let layers = Layers::open(store.path())?;
        let references = References::now(store, &layers)?;
        let notebook = Notebook::open(store.path())?;
        let state = match notebook.read()? {
            Some(state) if !options.restart && !options.dry_run => state,
            _ => State::default(),
        };
        let progress = ScrubProgress { position: 0, objects: state.objects, bytes: state.bytes };
        let done = Scrubbed {
            progress,
            resumed: state.last.is_some(),
            unreadable: references
                .unreadable()
                .iter()
                .map(|(_, error)| super::sentence(error))
                .collect(),
            ..Scrubbed::default()
        };
        Ok(Self {
            store,
            dry_run: options.dry_run,
            references,
            layers,
            objects,
            state,
            notebook,
            pace: Pace::limited(options.bytes_per_second.map_or(0, NonZeroU64::get)),
            proceed,
            done,
            _alone: alone,
            _shared: shared,
        })
    }

    fn run(mut self) -> Result<Scrubbed, HostError> {
        if !self.dry_run {
            self.done.unsealed = self.try_sealing()?;
        }
        let mut reader = DiskReader::default();
        let from = self.state.last.map_or(0, |last| last.digest().as_bytes()[0]);
        for first in from..=u8::MAX {
            let present = self.objects.beginning(first)?;
            for id in &present {
                if self.state.last.is_some_and(|last| *id <= last) {
                    continue;
                }
                if !self.object(id, &mut reader)? {
                    return self.interrupted();
                }
            }
            for id in self.references.beginning(first) {
                // Listed before, so it may have come since.
                if present.binary_search(&id).is_err() && !self.objects.contains(&id)? {
                    self.found(id, None);
                }
            }
        }
        self.finish()
    }

    /// Looks at one object; no: told to end.
    fn object(&mut self, id: &ObjectId, reader: &mut DiskReader) -> Result<bool, HostError> {
        let bytes = id.digest().as_bytes();
        self.done.progress.position = u16::from_be_bytes([bytes[0], bytes[1]]);
        let (pace, proceed, progress) = (&self.pace, self.proceed, self.done.progress);
        let mut go_on = |piece| {
            pace.spend(piece);
            loop {
                if !proceed(progress) {
                    return false;
                }
                match pace.next() {
                    Go::On => return true,
                    Go::Soon => {}
                    Go::No => return false,
                }
            }
        };
        let examined = self.objects.examine(id, reader, &mut go_on)?;
        let len_bytes = match examined {
            None => return Ok(false),
            Some(Examined::Missing) => 0,
            Some(Examined::Whole { len_bytes }) => {
                if !self.dry_run && self.done.unsealed.is_none() {
                    self.done.sealed += u64::from(self.objects.seal(id)?);
                }
                len_bytes
            }
            Some(Examined::Damaged(suspect)) => {
                if self.dry_run || self.objects.quarantine(&suspect)? {
                    if !self.dry_run {
                        recall(self.store, &[*id]);
                    }
                    self.found(*id, Some(suspect.damage().clone()));
                }
                suspect.len_bytes()
            }
        };
        self.done.progress.objects += 1;
        self.done.progress.bytes += len_bytes;
        let ScrubProgress { objects, bytes, .. } = self.done.progress;
        self.state = State { last: Some(*id), objects, bytes, ..self.state };
        if !self.dry_run && self.notebook.is_due() {
            self.note();
        }
        Ok(true)
    }

    fn found(&mut self, object: ObjectId, damage: Option<Damage>) {
        self.done.found.push(Found { object, damage, needed: true, repaired_from: None });
    }

    /// Judges what was found by what is referred to now: a template that was deleted meanwhile
    /// misses nothing.
    fn see_what_is_needed(&mut self) -> Result<(), HostError> {
        if self.done.found.is_empty() {
            return Ok(());
        }
        self.references = References::now(self.store, &self.layers)?;
        let references = &self.references;
        for found in &mut self.done.found {
            found.needed = references.holds(&found.object);
        }
        self.done.found.retain(|found| found.needed || found.damage.is_some());
        self.done.found.sort_by_key(|found| found.object);
        Ok(())
    }

    fn interrupted(mut self) -> Result<Scrubbed, HostError> {
        self.done.ended_early = true;
        self.see_what_is_needed()?;
        if !self.dry_run {
            self.note();
        }
        Ok(self.done)
    }

    fn finish(mut self) -> Result<Scrubbed, HostError> {
        if self.dry_run {
            self.see_what_is_needed()?;
        } else {
            // Also what an earlier, interrupted scrub has set aside.
            for id in self.objects.quarantined()? {
                let known = self.done.found.iter().any(|found| found.object == id);
                if !known && !self.objects.contains(&id)? {
                    self.found(id, None);
                }
            }
            self.see_what_is_needed()?;
            let wanted = self.done.found.iter().filter(|found| found.needed);
            let wanted =
                wanted.map(|found| (found.object, self.references.len_bytes(&found.object)));
            let wanted = wanted.collect();
            let back = match repair::repair(self.store, &self.objects, wanted) {
                Ok(back) => back,
                // What was found is worth telling all the same.
                Err(error) => {
                    self.done.unrepaired = Some(super::sentence(&error));
                    HashMap::new()
                }
            };
            crash_point("repaired");
            // Somebody may have opened one of them just before it was set aside.
            let whole: Vec<ObjectId> = back.keys().copied().collect();
            if !whole.is_empty() {
                recall(self.store, &whole);
            }
            for found in &mut self.done.found {
                found.repaired_from = back.get(&found.object).cloned();
            }
            for id in self.objects.quarantined()? {
                let unneeded =
                    self.references.unreadable().is_empty() && !self.references.holds(&id);
                if unneeded || self.objects.contains(&id)? {
                    self.objects.discard(&id)?;
                }
            }
            crash_point("tidied");
            self.state.finish();
            self.note();
        }
        self.done.progress.position = u16::MAX;
        Ok(self.done)
    }

    /// Notes how far it is. That this fails, on a full disk, is no reason to stop reading.
    fn note(&mut self) {
        self.done.unnoted =
            self.notebook.write(&self.state).err().map(|error| super::sentence(&error));
    }

    /// Why the host does not seal files, tried on an empty one.
    fn try_sealing(&self) -> Result<Option<Errno>, HostError> {
        let staging = match self.objects.begin() {
            Ok(staging) => staging,
            // There is nothing to try it on; reading goes on.
            Err(error) if error.is_no_space() => return Ok(Some(Errno::NOSPC)),
            Err(error) => return Err(error.into()),
        };
        let fail = |source| HostError::system("try to seal a file in", staging.path())(source);
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(staging.dir(), "seal", flags, Mode::RUSR)
            .map_err(|errno| fail(io::Error::from(errno)))?;
        let sealed = verity::seal(file.as_fd()).map_err(fail)?;
        staging.finish()?;
        match sealed {
            Sealed::Done => Ok(None),
            Sealed::Refused(errno) => Ok(Some(errno)),
        }
    }
}
