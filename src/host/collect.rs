//! Garbage collection: what no template, root or running import refers to.

use std::collections::HashSet;

use super::error::HostError;
use super::roots::Roots;
use super::store::Store;
use crate::layer::{LayerId, Layers, Stack, StackId};
use crate::object::{ObjectId, Objects};

/// What a collection removed, or would remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layer manifests.
    pub layers: u64,
    /// Merged trees; they would be made again when needed.
    pub trees: u64,
    /// Objects.
    pub objects: u64,
    /// Staging directories of imports that died.
    pub imports: u64,
    /// Bytes that all of that took.
    pub bytes: u64,
    /// Objects that stay.
    pub kept: u64,
    /// Those of `kept` that stay only because a running import relies on them.
    pub pinned: u64,
}

/// Removes from `store` what nothing refers to. A dry run only counts.
///
/// References are the templates, every registered root (also one whose private directory
/// is gone, until it is forgotten) and what running imports rely on. Beside it imports and
/// mounts go on.
///
/// # Errors
/// A template or a root that cannot be read stops it before anything is removed: what that
/// refers to is unknown.
pub fn collect(store: &Store, dry_run: bool) -> Result<Collected, HostError> {
    let _store = store.share()?;
    let objects = Objects::open(store.path())?;
    let layers = Layers::open(store.path())?;
    // From here on no import that ends takes its pins along.
    let sweep = objects.begin_sweep(dry_run)?;
    let mut stacks = HashSet::new();
    let swept_layers = layers.sweep::<HostError>(
        || {
            stacks = live_stacks(store, &layers)?;
            Ok(stacks.iter().flat_map(|stack| stack.layers().iter().copied()).collect())
        },
        dry_run,
    )?;
    let tree_ids: HashSet<StackId> = stacks.iter().map(Stack::id).collect();
    let swept_trees = layers.sweep_trees(&tree_ids, dry_run)?;

    let mut live_layers: HashSet<LayerId> =
        stacks.iter().flat_map(|stack| stack.layers().iter().copied()).collect();
    live_layers.extend(layers.pinned()?);
    let mut live: HashSet<ObjectId> = HashSet::new();
    for id in live_layers {
        live.extend(layers.load(&id)?.objects().map(|object| object.id));
    }
    let swept = sweep.run(&|id| live.contains(id))?;

    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let manifest_bytes: u64 = swept_layers.iter().map(|layer| layer.len_bytes).sum::<u64>()
        + swept_trees.iter().map(|tree| tree.len_bytes).sum::<u64>();
    Ok(Collected {
        layers: count(swept_layers.len()),
        trees: count(swept_trees.len()),
        objects: swept.objects,
        imports: swept.imports,
        bytes: swept.bytes + manifest_bytes,
        kept: swept.kept,
        pinned: swept.pinned,
    })
}

/// The stacks of all templates and roots.
///
/// Read under the registry's lock: a root that is just being mounted either has its record
/// already, or will find its template as it is now.
fn live_stacks(store: &Store, layers: &Layers) -> Result<HashSet<Stack>, HostError> {
    let roots = Roots::open(store)?;
    let locked = roots.lock()?;
    locked.prune()?;
    let mut stacks = HashSet::new();
    for listed in layers.templates().list()? {
        stacks.insert(listed.template?.stack);
    }
    stacks.extend(roots.list()?.into_iter().map(|record| record.stack));
    Ok(stacks)
}
