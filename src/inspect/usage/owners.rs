//! Who holds what: each object, layer and tree is judged once.

use std::collections::{HashMap, HashSet};

use super::tally::Cost;
use crate::layer::{LayerId, Manifest, Stack, StackId};
use crate::object::{ObjectId, Surveyed};

/// Who holds a thing, as far as it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody.
    #[default]
    None,
    /// This one alone.
    One(u32),
    /// Several.
    Many,
}

impl Owner {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, owner) | (owner, Self::None) => owner,
            (one, other) if one == other => one,
            _ => Self::Many,
        }
    }
}

/// Who holds a thing: by single references, and by templates with all that is made from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// The only template or root that refers to it.
    pub(super) reference: Owner,
    /// The only template whose name or roots refer to it.
    pub(super) family: Owner,
}

impl Holding {
    fn and(self, other: Self) -> Self {
        Self {
            reference: self.reference.and(other.reference),
            family: self.family.and(other.family),
        }
    }
}

/// Something that refers to a stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reference<'a> {
    pub(super) stack: &'a Stack,
    pub(super) family: u32,
}

/// Adds up what each holder has.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// By reference: what nobody else refers to.
    pub(super) sole: HashMap<u32, Cost>,
    /// By family: what no other has.
    pub(super) exclusive: HashMap<u32, Cost>,
    /// What several families have.
    pub(super) shared: Cost,
    /// What nobody refers to.
    pub(super) unreferenced: Cost,
    /// Everything that each stack refers to.
    pub(super) stacks: HashMap<StackId, StackSum>,
}

/// What one stack refers to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StackSum {
    pub(super) cost: Cost,
    /// The part of it that one family alone has.
    pub(super) exclusive: Cost,
    pub(super) objects: u64,
}

impl StackSum {
    fn add(&mut self, cost: Cost, holding: Holding) {
        self.cost += cost;
        if let Owner::One(_) = holding.family {
            self.exclusive += cost;
        }
    }
}

impl Sums {
    fn add(&mut self, cost: Cost, holding: Holding) {
        if let Owner::One(reference) = holding.reference {
            *self.sole.entry(reference).or_default() += cost;
        }
        match holding.family {
            Owner::One(family) => *self.exclusive.entry(family).or_default() += cost,
            Owner::Many => self.shared += cost,
            Owner::None => self.unreferenced += cost,
        }
    }
}

/// Adds up everything that `references` refer to: on the disk all of it, in memory the objects.
///
/// `objects` are in order of their names. Each object is judged once: it inherits from the
/// layers that name it, whose tables are merged with the list of objects. What no layer names but
/// private files refer to (`referred`) is shared by those.
pub(super) fn add_up(
    references: &[Reference<'_>],
    objects: &[Surveyed],
    layers: &HashMap<LayerId, (Cost, Option<Manifest>)>,
    trees: &HashMap<StackId, Cost>,
    referred: &HashSet<ObjectId>,
) -> Sums {
    let mut layer_holding: HashMap<LayerId, Holding> = HashMap::new();
    let mut tree_holding: HashMap<StackId, Holding> = HashMap::new();
    let mut stacks: HashMap<StackId, &Stack> = HashMap::new();
    for (at, reference) in (0..).zip(references) {
        let holding = Holding { reference: Owner::One(at), family: Owner::One(reference.family) };
        for layer in reference.stack.layers() {
            let entry = layer_holding.entry(*layer).or_default();
            *entry = entry.and(holding);
        }
        let id = reference.stack.id();
        let entry = tree_holding.entry(id).or_default();
        *entry = entry.and(holding);
        stacks.insert(id, reference.stack);
    }

    let mut sums = Sums::default();
    let mut holdings = vec![Holding::default(); objects.len()];
    // Where each layer's objects are in `objects`.
    let mut tables: HashMap<LayerId, Vec<u32>> = HashMap::new();
    for (id, (cost, manifest)) in layers {
        let holding = layer_holding.get(id).copied().unwrap_or_default();
        sums.add(on_disk(*cost), holding);
        if let (Some(manifest), true) = (manifest, holding != Holding::default()) {
            let table = positions(manifest, objects);
            for at in &table {
                if let Some(entry) = holdings.get_mut(*at as usize) {
                    *entry = entry.and(holding);
                }
            }
            tables.insert(*id, table);
        }
    }
    for (id, cost) in trees {
        sums.add(on_disk(*cost), tree_holding.get(id).copied().unwrap_or_default());
    }
    for (object, holding) in objects.iter().zip(&holdings) {
        let unheld = *holding == Holding::default();
        let among_roots = Holding { reference: Owner::Many, family: Owner::Many };
        let shared = unheld && referred.contains(&object.id);
        sums.add(cost_of(object), if shared { among_roots } else { *holding });
    }

    let mut counted = vec![u32::MAX; objects.len()];
    for (mark, (id, stack)) in (0_u32..).zip(stacks) {
        let mut sum = StackSum::default();
        let of_tree = tree_holding.get(&id).copied().unwrap_or_default();
        sum.add(on_disk(trees.get(&id).copied().unwrap_or_default()), of_tree);
        let mut distinct = stack.layers().to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        for layer in &distinct {
            let cost = layers.get(layer).map(|(cost, _)| *cost).unwrap_or_default();
            sum.add(on_disk(cost), layer_holding.get(layer).copied().unwrap_or_default());
            for at in tables.get(layer).map(Vec::as_slice).unwrap_or_default() {
                // Two layers of a stack may name the same object.
                let at = *at as usize;
                if let (Some(counted), Some(object), Some(holding)) =
                    (counted.get_mut(at), objects.get(at), holdings.get(at))
                    && *counted != mark
                {
                    *counted = mark;
                    sum.objects += 1;
                    sum.add(cost_of(object), *holding);
                }
            }
        }
        sums.stacks.insert(id, sum);
    }
    sums
}

/// The part of a manifest's cost that counts: what its pages hold belongs to the store.
fn on_disk(cost: Cost) -> Cost {
    Cost { resident: 0, ..cost }
}

fn cost_of(object: &Surveyed) -> Cost {
    Cost { disk: object.disk_bytes, resident: object.resident_bytes }
}

/// The positions in `objects` of what `manifest` names: both are in order of digests.
fn positions(manifest: &Manifest, objects: &[Surveyed]) -> Vec<u32> {
    let mut found = Vec::with_capacity(manifest.object_count() as usize);
    let mut objects = (0_u32..).zip(objects).peekable();
    for wanted in manifest.objects() {
        while objects.next_if(|(_, object)| object.id < wanted.id).is_some() {}
        if let Some((at, _)) = objects.next_if(|(_, object)| object.id == wanted.id) {
            found.push(at);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_one_as_long_as_nobody_else_is() {
        let (one, two) = (Owner::One(1), Owner::One(2));
        assert_eq!(Owner::None.and(one), one);
        assert_eq!(one.and(one), one);
        assert_eq!(one.and(two), Owner::Many);
        assert_eq!(Owner::Many.and(one), Owner::Many);
    }
}
