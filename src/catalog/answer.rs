//! What the catalog answers, and how to find it out without the index.

use std::collections::{BTreeMap, BTreeSet};

use crate::layer::{LayerId, Layers, LayersError, Manifest, TemplateName};
use crate::object::ObjectId;

/// Everything that refers to one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Layers with a file of that content.
    pub layers: BTreeSet<LayerId>,
    /// Templates whose stack has one of the layers, in order of their names.
    pub templates: Vec<TemplateName>,
    /// Roots whose stack has one of the layers, as they were given.
    pub roots: Vec<String>,
    /// Layers whose manifest cannot be read; they may hold it too.
    pub unreadable: BTreeSet<LayerId>,
}

/// The weight of every layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// By layer.
    pub layers: BTreeMap<LayerId, LayerSize>,
    /// Layers whose manifest cannot be read.
    pub unreadable: BTreeSet<LayerId>,
}

/// The weight of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSize {
    /// Different objects that its files refer to.
    pub objects: u64,
    /// Bytes of content in them.
    pub bytes: u64,
    /// Those of the objects that no other layer refers to.
    pub exclusive_objects: u64,
    /// Bytes of content in them.
    pub exclusive_bytes: u64,
}

/// Shows every readable layer to `each`; returns the others.
pub(super) fn from_manifests(
    layers: &Layers,
    mut each: impl FnMut(LayerId, &Manifest),
) -> Result<BTreeSet<LayerId>, LayersError> {
    let mut unreadable = BTreeSet::new();
    for stored in layers.layers()? {
        match read(layers, &stored.id) {
            Ok(Some(manifest)) => each(stored.id, &manifest),
            Ok(None) => {}
            Err(()) => {
                unreadable.insert(stored.id);
            }
        }
    }
    Ok(unreadable)
}

/// A layer's manifest; `None` if it was deleted since it was listed.
pub(super) fn read(layers: &Layers, layer: &LayerId) -> Result<Option<Manifest>, ()> {
    match layers.load(layer) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(LayersError::NoLayer(_)) => Ok(None),
        Err(error) => {
            tracing::warn!(%layer, %error, "a layer is left out");
            Err(())
        }
    }
}

/// Weighs `layers` by rows of object, layer and length in bytes, which come in order.
pub(super) fn sum_up(
    layers: impl IntoIterator<Item = LayerId>,
    rows: impl Iterator<Item = (ObjectId, LayerId, u64)>,
) -> BTreeMap<LayerId, LayerSize> {
    let mut sizes: BTreeMap<LayerId, LayerSize> =
        layers.into_iter().map(|layer| (layer, LayerSize::default())).collect();
    let mut rows = rows.peekable();
    let mut before = None;
    while let Some((object, layer, bytes)) = rows.next() {
        let alone = before != Some(object) && rows.peek().is_none_or(|(next, ..)| *next != object);
        before = Some(object);
        let Some(size) = sizes.get_mut(&layer) else { continue };
        size.objects += 1;
        size.bytes += bytes;
        if alone {
            size.exclusive_objects += 1;
            size.exclusive_bytes += bytes;
        }
    }
    sizes
}
