//! Having roots replace their files: by their mount processes, or on their locked directories.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::content::Leased;
use super::{Member, run::Ready};
use crate::control::{Client, ControlError, FileToReplace, Outcome, REPLACEMENTS};
use crate::fs::FileSystem;
use crate::host::error::{HostError, sentence};
use crate::host::roots::{RootRecord, Roots};
use crate::host::store::Store;
use crate::host::{refer, referred};
use crate::layer::Layers;
use crate::object::ObjectReader;
use crate::private::{PrivateError, PrivateLayer};
use crate::union::{SharedSet, Union};

/// Bytes of paths in one message; its line has a limit.
const PATH_BYTES: usize = 12 << 10;
/// Files of a root at rest that are replaced at once: each takes another descriptor meanwhile.
const AT_REST: usize = 512;
/// Roots that are held at once, each with some descriptors.
const ROOTS: usize = 32;

/// Replaces files of roots; tells what became of each, in the same order.
///
/// Each root is held first, then noted in the registry, then changed: whoever looks after a root
/// that is at rest, and so may shorten its logs, locks it too.
///
/// # Errors
/// What keeps the store from being used at all; trouble of a root is an outcome.
pub(super) fn apply(
    store: &Store,
    roots: &Roots,
    members: &[Member],
    by_root: &BTreeMap<usize, Vec<Ready>>,
    threads: usize,
) -> Result<BTreeMap<usize, Vec<Outcome>>, HostError> {
    let mut outcomes = BTreeMap::new();
    let wanted: Vec<(usize, &Member, &[Ready])> = by_root
        .iter()
        .filter_map(|(at, ready)| Some((*at, members.get(*at)?, ready.as_slice())))
        .collect();
    for some in wanted.chunks(ROOTS) {
        let mut work = Vec::new();
        for (at, member, ready) in some {
            match hold(store, roots, member)? {
                Ok(held) => {
                    work.push(Work { at: *at, member, ready, held: Mutex::new(Some(held)) })
                }
                Err(outcome) => drop(outcomes.insert(*at, vec![outcome; ready.len()])),
            }
        }
        // From here on a collection knows.
        let objects = |work: &Work<'_>| work.ready.iter().map(|ready| ready.object.id).collect();
        let note = |work: &Work<'_>| {
            let record = work.held.lock().as_ref().map(|held| held.record.clone())?;
            Some((record, objects(work)))
        };
        let notes: Vec<_> = work.iter().filter_map(note).collect();
        if let Err(error) = referred::note_all(roots, &notes) {
            let failed = Outcome::Failed { reason: sentence(&error) };
            for Work { at, ready, .. } in &work {
                outcomes.insert(*at, vec![failed.clone(); ready.len()]);
            }
            continue;
        }
        let next = AtomicUsize::new(0);
        let done = Mutex::new(&mut outcomes);
        let run = || {
            while let Some(work) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let replaced = work.run(store, roots);
                done.lock().insert(work.at, replaced);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(work.len()) {
                scope.spawn(run);
            }
            run();
        });
    }
    Ok(outcomes)
}

/// Files of one root.
struct Work<'a> {
    at: usize,
    member: &'a Member,
    ready: &'a [Ready],
    /// Taken by who works on it, and let go of with its last file: a mount may wait for it.
    held: Mutex<Option<Held>>,
}

struct Held {
    record: RootRecord,
    by: Holder,
}

/// What keeps a root from changing hands.
enum Holder {
    /// Its mount process, for as long as it answers.
    Process(Client),
    /// Its lock, which this process has.
    Lock(Arc<FileSystem>),
}

/// Gets hold of a root, or tells why its files stay as they are.
fn hold(store: &Store, roots: &Roots, member: &Member) -> Result<Result<Held, Outcome>, HostError> {
    let Some(record) = roots.reread(&member.record)? else {
        return Ok(Err(failed("the root was forgotten meanwhile".to_owned())));
    };
    let by = match record.living() {
        Some(client) => Ok(Holder::Process(client)),
        None => lock(store, member).map(Holder::Lock),
    };
    Ok(by.map(|by| Held { record, by }))
}

fn lock(store: &Store, member: &Member) -> Result<Arc<FileSystem>, Outcome> {
    at_rest(store, member).map_err(|error| {
        if matches!(error, HostError::Private(PrivateError::InUse(_))) {
            // It is just being mounted, or another looks after it.
            return Outcome::InUse;
        }
        failed(sentence(&error))
    })
}

fn failed(reason: String) -> Outcome {
    Outcome::Failed { reason }
}

impl Work<'_> {
    fn run(&self, store: &Store, roots: &Roots) -> Vec<Outcome> {
        let Some(mut held) = self.held.lock().take() else { return Vec::new() };
        let mut outcomes = Vec::new();
        while let Some(rest) = self.ready.get(outcomes.len()..).filter(|rest| !rest.is_empty()) {
            let some = match &mut held.by {
                Holder::Lock(file_system) => locked(file_system, &rest[..rest.len().min(AT_REST)]),
                Holder::Process(client) => {
                    let some = &rest[..message(rest)];
                    match replace(client, some) {
                        Ok(outcomes) => outcomes,
                        // Unmounted just now: then it is at rest, and held anew.
                        Err(error) if error.is_hang_up() || is_leaving(client, &error) => {
                            let locked = lock(store, self.member).and_then(|file_system| {
                                let objects = rest.iter().map(|ready| ready.object.id);
                                let noted = referred::note(roots, &held.record, objects);
                                noted.map_err(|error| failed(sentence(&error)))?;
                                Ok(file_system)
                            });
                            match locked {
                                Ok(file_system) => {
                                    held.by = Holder::Lock(file_system);
                                    continue;
                                }
                                Err(outcome) => vec![outcome; rest.len()],
                            }
                        }
                        Err(error @ (ControlError::Refused { .. } | ControlError::Protocol(_))) => {
                            let reason =
                                format!("its mount process refuses ({error}); mount it again");
                            vec![failed(reason); rest.len()]
                        }
                        Err(error) => vec![failed(sentence(&error)); rest.len()],
                    }
                }
            };
            outcomes.extend(some);
        }
        outcomes
    }
}

/// As many of `ready` as go into one message.
fn message(ready: &[Ready]) -> usize {
    let mut bytes = 0;
    let fits = |ready: &&Ready| {
        bytes += ready.leased.file.path.len();
        bytes <= PATH_BYTES
    };
    ready.iter().take(REPLACEMENTS).take_while(fits).count().max(1)
}

/// Whether the process refuses because it has let go of its root, and is about to end.
fn is_leaving(client: &mut Client, error: &ControlError) -> bool {
    let ended = |client: &mut Client| match client.status() {
        Ok(status) => !status.mounted,
        Err(error) => error.is_hang_up(),
    };
    matches!(error, ControlError::Refused { .. }) && ended(client)
}

fn replace(client: &mut Client, ready: &[Ready]) -> Result<Vec<Outcome>, ControlError> {
    let leases: Vec<BorrowedFd<'_>> =
        ready.iter().map(|ready| ready.leased.lease.as_fd()).collect();
    client.replace_by_objects(ready.iter().map(to_replace).collect(), &leases)
}

fn locked(file_system: &FileSystem, ready: &[Ready]) -> Vec<Outcome> {
    let copied: std::io::Result<Vec<_>> =
        ready.iter().map(|ready| descriptor(&ready.leased)).collect();
    match copied {
        Ok(copied) => {
            let files = ready.iter().map(to_replace).zip(copied).collect();
            refer::replace(file_system, files)
        }
        Err(error) => vec![failed(format!("no descriptor for a lease: {error}")); ready.len()],
    }
}

fn descriptor(leased: &Leased) -> std::io::Result<std::os::fd::OwnedFd> {
    leased.lease.as_fd().try_clone_to_owned()
}

fn to_replace(ready: &Ready) -> FileToReplace {
    FileToReplace {
        path_hex: ready.leased.file.path.iter().map(|byte| format!("{byte:02x}")).collect(),
        object: ready.object.id,
        size: ready.object.size,
        blocks: ready.object.blocks,
    }
}

/// The root as its mount process would have it, but for the kernel.
fn at_rest(store: &Store, member: &Member) -> Result<Arc<FileSystem>, HostError> {
    let stack = member.upper.stack();
    let layer = PrivateLayer::open(&member.private, stack)?;
    let tree = Layers::open(store.path())?.tree(stack)?;
    let shared = SharedSet::resolve(&tree, &member.patterns)?;
    let union = Union::new(tree, ObjectReader::open(store.path())?, Some(layer), shared)?;
    Ok(FileSystem::new(union))
}
