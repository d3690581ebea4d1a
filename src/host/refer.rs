//! Replacing private files by objects: what came over the control socket, for the file system.

use std::os::fd::OwnedFd;

use super::error::sentence;
use crate::control::{self, FileToReplace, Outcome};
use crate::fs::{FileSystem, Replacement};
use crate::layer::LayerPath;
use crate::sys::lease::ReadLease;
use crate::union::{ObjectContent, ReferError};

/// Replaces each of `files` by its object, as far as the lease that came with it still holds.
pub(super) fn replace(
    file_system: &FileSystem,
    files: Vec<(FileToReplace, OwnedFd)>,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let (mut wanted, mut places) = (Vec::new(), Vec::new());
    for (at, (file, descriptor)) in files.into_iter().enumerate() {
        outcomes.push(match read(&file, descriptor) {
            Ok(replacement) => {
                wanted.push(replacement);
                places.push(at);
                Outcome::Replaced
            }
            Err(outcome) => outcome,
        });
    }
    for (at, replaced) in places.into_iter().zip(file_system.replace_by_objects(wanted)) {
        if let (Err(error), Some(outcome)) = (replaced, outcomes.get_mut(at)) {
            *outcome = outcome_of(&error);
        }
    }
    outcomes
}

fn read(file: &FileToReplace, descriptor: OwnedFd) -> Result<Replacement, Outcome> {
    let failed = |reason: &str| Outcome::Failed { reason: reason.to_owned() };
    let path = control::bytes(&file.path_hex)
        .and_then(|path| LayerPath::parse(&path).ok())
        .ok_or_else(|| failed("that is no path in hexadecimal"))?;
    let lease = ReadLease::received(descriptor).ok_or(Outcome::InUse)?;
    let object = ObjectContent { id: file.object, size: file.size, blocks: file.blocks };
    Ok(Replacement { path, lease, object })
}

/// The outcome that an error is.
pub(super) fn outcome_of(error: &ReferError) -> Outcome {
    match error {
        ReferError::Changed => Outcome::Changed,
        ReferError::InUse => Outcome::InUse,
        ReferError::Linked => Outcome::Linked,
        ReferError::Union(error) => Outcome::Failed { reason: sentence(error) },
    }
}
