//! Garbage collection: what no template, root or running import refers to.

use std::cell::Cell;
use std::collections::HashSet;

use super::error::HostError;
use super::references::References;
use super::referred;
use super::store::Store;
use crate::layer::{Layers, Stack, StackId};
use crate::object::Objects;

/// Parts that a collection goes through, one after the other.
pub const PARTS: u64 = 256;

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
    /// It was told to end before it had seen all objects.
    pub ended_early: bool,
}

/// Removes from `store` what nothing refers to. A dry run only counts.
///
/// References are the templates, every registered root (also one whose private directory
/// is gone, until it is forgotten) and what running imports rely on. Beside it imports and
/// mounts go on. Memory does not grow with the store: what is alive is gathered for one 256th
/// of the digests at a time, from the object tables of the layers; only what private files refer to
/// is held as a whole.
///
/// `proceed` is asked with the number of parts done, of 256, and ends the collection early by
/// saying no; then [`Collected::ended_early`].
///
/// # Errors
/// A template, a root or a layer that cannot be read, or is not what its name says, stops it
/// before any object is removed: what that refers to is unknown.
pub fn collect(
    store: &Store,
    dry_run: bool,
    proceed: &dyn Fn(u8) -> bool,
) -> Result<Collected, HostError> {
    let _store = store.share()?;
    if !dry_run {
        // Objects that files have let go of since.
        referred::tidy(store)?;
    }
    let objects = Objects::open(store.path())?;
    let layers = Layers::open(store.path())?;
    // From here on no import that ends takes its pins along.
    let sweep = objects.begin_sweep(dry_run)?;
    let mut stacks = HashSet::new();
    let swept_layers = layers.sweep::<HostError>(
        || {
            stacks = References::stacks(store, &layers)?;
            Ok(stacks.iter().flat_map(|stack| stack.layers().iter().copied()).collect())
        },
        dry_run,
    )?;
    let tree_ids: HashSet<StackId> = stacks.iter().map(Stack::id).collect();
    let swept_trees = layers.sweep_trees(&tree_ids, dry_run)?;

    let marked = References::of(&layers, &stacks)?.complete()?.private(store)?;
    let ended_early = Cell::new(false);
    let go_on = |part| {
        ended_early.set(!proceed(part));
        !ended_early.get()
    };
    let mut swept = sweep.run_in_parts::<HostError>(|first| Ok(marked.beginning(first)), &go_on)?;
    // What a scrub set aside is kept as long as somebody misses it.
    for id in objects.quarantined()?.iter().filter(|id| !marked.holds(id)) {
        swept.objects += 1;
        swept.bytes +=
            if dry_run { objects.quarantined_bytes(id)? } else { objects.discard(id)? };
    }

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
        ended_early: ended_early.get(),
    })
}
