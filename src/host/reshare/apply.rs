//! Having one root replace its files: by its mount process, or on its locked directory.

use std::os::fd::{AsFd, BorrowedFd};

use super::content::Leased;
use super::{Member, run::Ready};
use crate::control::{ControlError, FileToReplace, Outcome, REPLACEMENTS};
use crate::fs::FileSystem;
use crate::host::error::{HostError, sentence};
use crate::host::roots::Roots;
use crate::host::store::Store;
use crate::host::{refer, referred};
use crate::layer::Layers;
use crate::object::ObjectReader;
use crate::private::{PrivateError, PrivateLayer};
use crate::union::{SharedSet, Union};

/// Bytes of paths in one message; its line has a limit.
const PATH_BYTES: usize = 16 << 10;

/// As many of `ready` as go into one message.
pub(super) fn batch(ready: &[Ready]) -> usize {
    let mut bytes = 0;
    let fits = |ready: &&Ready| {
        bytes += ready.leased.file.path.len();
        bytes <= PATH_BYTES
    };
    ready.iter().take(REPLACEMENTS).take_while(fits).count().max(1)
}

/// Replaces files of one root, no more than a [`batch`]; tells what became of each.
///
/// # Errors
/// What keeps the store from being used at all; trouble of this root is an outcome.
pub(super) fn apply(
    store: &Store,
    roots: &Roots,
    member: &Member,
    ready: &[Ready],
) -> Result<Vec<Outcome>, HostError> {
    let all = |outcome: Outcome| vec![outcome; ready.len()];
    let Some(record) = roots.reread(&member.record)? else {
        return Ok(all(Outcome::Failed { reason: "the root was forgotten meanwhile".to_owned() }));
    };
    // Before anything else: from here on a collection knows.
    if let Err(error) = referred::note(roots, &record, ready.iter().map(|ready| ready.object.id)) {
        return Ok(all(Outcome::Failed { reason: sentence(&error) }));
    }
    let files = || ready.iter().map(to_replace).collect::<Vec<_>>();
    if let Some(mut client) = record.living() {
        let leases: Vec<BorrowedFd<'_>> =
            ready.iter().map(|ready| ready.leased.lease.as_fd()).collect();
        match client.replace_by_objects(files(), &leases) {
            Ok(outcomes) => return Ok(outcomes),
            // Unmounted just now: then it is at rest.
            Err(error) if error.is_hang_up() => {}
            Err(error @ (ControlError::Refused { .. } | ControlError::Protocol(_))) => {
                let reason = format!("its mount process refuses ({error}); mount it again");
                return Ok(all(Outcome::Failed { reason }));
            }
            Err(error) => return Ok(all(Outcome::Failed { reason: sentence(&error) })),
        }
    }
    match at_rest(store, member) {
        Ok(file_system) => {
            let copied: Result<Vec<_>, _> =
                ready.iter().map(|ready| descriptor(&ready.leased)).collect();
            let copied = copied.map_err(HostError::system("lease files in", &member.private))?;
            Ok(refer::replace(&file_system, files().into_iter().zip(copied).collect()))
        }
        // It is just being mounted, or another looks after it.
        Err(HostError::Private(PrivateError::InUse(_))) => Ok(all(Outcome::InUse)),
        Err(error) => Ok(all(Outcome::Failed { reason: sentence(&error) })),
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
fn at_rest(store: &Store, member: &Member) -> Result<std::sync::Arc<FileSystem>, HostError> {
    let stack = member.upper.stack();
    let layer = PrivateLayer::open(&member.private, stack)?;
    let tree = Layers::open(store.path())?.tree(stack)?;
    let shared = SharedSet::resolve(&tree, &member.patterns)?;
    let union = Union::new(tree, ObjectReader::open(store.path())?, Some(layer), shared)?;
    Ok(FileSystem::new(union))
}
