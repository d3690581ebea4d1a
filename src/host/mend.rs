//! Putting back what a check found missing or damaged, from the source it once came from.
//!
//! What is put back has the digest it is called by, wherever it came from, so no source can do
//! harm. An altered object is replaced by a whole one in one step, never written to: who has it
//! open keeps what it opened.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::check::Finding;
use super::error::HostError;
use super::store::Store;
use crate::layer::import::{ImportOptions, Imported, Progress, Source, import_wanted, try_import};
use crate::layer::{LayerId, Layers, Manifest, Stack};
use crate::object::{ObjectId, Objects, Staging};

/// What was put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Objects.
    pub objects: u64,
    /// Their length together.
    pub bytes: u64,
    /// Layers.
    pub layers: u64,
}

/// What a check wants back.
struct Wanted {
    objects: HashSet<ObjectId>,
    altered: Vec<ObjectId>,
    layers: HashSet<LayerId>,
}

/// Reads the source and puts back what of the `findings` it has. `stacks` are those of the
/// templates that were checked: a layer that was made on top of others is read as such again.
///
/// With `dry_run` the source is read, and nothing changed.
///
/// # Errors
/// What the source or the store has to say; what is put back by then is whole.
pub fn mend(
    store: &Store,
    findings: &[Finding],
    stacks: &[Stack],
    source: &Path,
    dry_run: bool,
    cancel: &AtomicBool,
    progress: &dyn Progress,
) -> Result<Mended, HostError> {
    let _store = store.share()?;
    let objects = Objects::open(store.path())?;
    let layers = Layers::open(store.path())?;
    objects.sweep_staging()?;
    let staging = objects.begin()?;
    let wanted = Wanted::of(findings);
    for object in &wanted.altered {
        staging.distrust(object);
    }
    let mending =
        Mending { layers: &layers, staging: &staging, wanted: &wanted, source, dry_run, cancel };
    let mut back = Back::default();
    let first = mending.read(None, progress)?;
    mending.take(first, &mut back)?;
    for below in belows(stacks, &wanted.layers) {
        // A layer below that is damaged too may be back by now, or keep the tree from being made.
        let Ok(tree) = layers.tree(&below) else { continue };
        if !wanted.layers.is_subset(&back.layers) {
            let again = mending.read(Some(&tree), progress)?;
            mending.take(again, &mut back)?;
        }
    }
    staging.finish()?;
    if !dry_run && !wanted.altered.is_empty() {
        // Mounts may keep the altered ones ready.
        super::recall::recall(store, &wanted.altered);
    }
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    Ok(Mended {
        objects: count(back.objects.len()),
        bytes: back.bytes,
        layers: count(back.layers.len()),
    })
}

/// What the source had of that.
#[derive(Default)]
struct Back {
    objects: HashSet<ObjectId>,
    bytes: u64,
    layers: HashSet<LayerId>,
}

impl Wanted {
    fn of(findings: &[Finding]) -> Self {
        let mut wanted =
            Self { objects: HashSet::new(), altered: Vec::new(), layers: HashSet::new() };
        for finding in findings {
            match finding {
                Finding::Missing { object, .. } | Finding::LostReference { object, .. } => {
                    wanted.objects.insert(*object);
                }
                Finding::Altered { object, .. } => {
                    wanted.objects.insert(*object);
                    wanted.altered.push(*object);
                }
                Finding::Unusable { layer, .. } => wanted.layers.extend(layer),
                Finding::PrivateGone { .. }
                | Finding::PrivateDamaged { .. }
                | Finding::Derived { .. } => {}
            }
        }
        wanted
    }
}

/// The parts of stacks that lie below the wanted layers.
fn belows(stacks: &[Stack], wanted: &HashSet<LayerId>) -> Vec<Stack> {
    let mut belows: Vec<Stack> = Vec::new();
    for stack in stacks {
        for (at, layer) in stack.layers().iter().enumerate() {
            let below = Stack::new(stack.layers().get(..at).unwrap_or_default().to_vec());
            if wanted.contains(layer) && !below.is_empty() && !belows.contains(&below) {
                belows.push(below);
            }
        }
    }
    belows
}

struct Mending<'a> {
    layers: &'a Layers,
    staging: &'a Staging,
    wanted: &'a Wanted,
    source: &'a Path,
    dry_run: bool,
    cancel: &'a AtomicBool,
}

impl Mending<'_> {
    /// Reads the source, as it is or as a layer on top of a tree.
    fn read(&self, on: Option<&Manifest>, progress: &dyn Progress) -> Result<Imported, HostError> {
        let options = ImportOptions { on, cancel: self.cancel, ..ImportOptions::default() };
        let source = Source::open(self.source)?;
        let read = if self.dry_run {
            try_import(source, &options, progress)
        } else {
            import_wanted(source, self.staging, &self.wanted.objects, &options, progress)
        };
        read.map_err(HostError::import_of(self.source))
    }

    /// Publishes what was read and wanted.
    fn take(&self, imported: Imported, back: &mut Back) -> Result<(), HostError> {
        if !self.dry_run {
            self.staging.publish()?;
        }
        for bytes in imported.layers {
            let id = LayerId::of(&bytes);
            let manifest = Manifest::from_bytes(bytes)?;
            for object in manifest.objects() {
                if self.wanted.objects.contains(&object.id) && back.objects.insert(object.id) {
                    back.bytes += object.size;
                }
            }
            let wanted = self.wanted.layers.contains(&id) && back.layers.insert(id);
            if wanted && !self.dry_run {
                self.layers.publish(self.staging.dir(), manifest.as_bytes().to_vec())?;
            }
        }
        Ok(())
    }
}
