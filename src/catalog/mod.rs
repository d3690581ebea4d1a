//! The index beside the store: which layers hold an object, and what each layer weighs.
//!
//! It may be deleted at any moment, and no answer changes: all it holds is derived from
//! `layers/`, and where it is locked, broken or gone the manifests themselves are read. No
//! process keeps it open, and no request of a mounted root reads it. Knows objects, layers and
//! templates; roots are told to it. Must never be relied on: garbage collection marks from the
//! manifests.
//!
//! A crash can leave it behind the truth, which its stamp shows, or broken, which shows when it
//! is opened or read: then it is deleted and built again.

mod answer;
mod index;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use answer::{Holders, LayerSize, Sizes};

use crate::layer::{LayerId, Layers, LayersError, Stack, TemplateName};
use crate::object::ObjectId;
use answer::{from_manifests, sum_up};
use index::{Indexed, with_index};

/// How long an answer waits for the index before it reads the manifests instead.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers questions about the store as a whole, from the index where that is possible.
pub struct Catalog {
    index: PathBuf,
    layers: Layers,
    patience: Duration,
}

/// A failure to answer. Anything wrong with the index itself is not one.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The truth that the index is derived from cannot be read.
    #[error(transparent)]
    Layers(#[from] LayersError),
}

impl Catalog {
    /// The catalog of the store at `store`. Opens no index yet.
    ///
    /// # Errors
    /// [`CatalogError::Layers`] if the store cannot be opened.
    pub fn open(store: &Path) -> Result<Self, CatalogError> {
        let layers = Layers::open(store)?;
        Ok(Self { index: store.join("index"), layers, patience: PATIENCE })
    }

    /// Brings a new layer (and whatever else is new) into the index, so that the next question
    /// is answered quickly. Does nothing if the index is in use for longer than a second: the
    /// next question makes up for it.
    ///
    /// # Errors
    /// [`CatalogError::Layers`] if `layers/` cannot be listed.
    pub fn record_layer(&self, layer: &LayerId) -> Result<(), CatalogError> {
        match with_index(&self.index, &self.layers, self.patience, |_| Ok(()))? {
            Indexed::Answer(()) => {}
            Indexed::Unavailable => tracing::debug!(%layer, "indexed later: the index is in use"),
        }
        Ok(())
    }

    /// Tells which layers hold an object, and which templates and `roots` stand on them.
    /// `roots` is every registered root with its stack.
    ///
    /// # Errors
    /// [`CatalogError::Layers`].
    pub fn who_has(
        &self,
        object: &ObjectId,
        roots: &[(String, Stack)],
    ) -> Result<Holders, CatalogError> {
        let query = |reader: &index::Reader<'_>| reader.layers_with(object);
        let (layers, unreadable) =
            match with_index(&self.index, &self.layers, self.patience, query)? {
                Indexed::Answer(found) => found,
                Indexed::Unavailable => {
                    let mut found = std::collections::BTreeSet::new();
                    let unreadable = from_manifests(&self.layers, |layer, manifest| {
                        if manifest.objects().any(|held| held.id == *object) {
                            found.insert(layer);
                        }
                    })?;
                    (found, unreadable)
                }
            };
        let stands_on = |stack: &Stack| stack.layers().iter().any(|layer| layers.contains(layer));
        let mut templates: Vec<TemplateName> = Vec::new();
        for listed in self.layers.templates().list()? {
            match listed.template {
                Ok(template) if stands_on(&template.stack) => templates.push(template.name),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %listed.path.display(), %error, "a template is left out");
                }
            }
        }
        let roots = roots.iter().filter(|(_, stack)| stands_on(stack));
        let roots = roots.map(|(name, _)| name.clone()).collect();
        Ok(Holders { layers, templates, roots, unreadable })
    }

    /// Tells how many objects and bytes each layer refers to, and how many of them no other
    /// layer does.
    ///
    /// # Errors
    /// [`CatalogError::Layers`].
    pub fn sizes(&self) -> Result<Sizes, CatalogError> {
        let query = |reader: &index::Reader<'_>| reader.sizes();
        match with_index(&self.index, &self.layers, self.patience, query)? {
            Indexed::Answer(sizes) => Ok(sizes),
            Indexed::Unavailable => {
                let mut rows = Vec::new();
                let mut layers = Vec::new();
                let unreadable = from_manifests(&self.layers, |layer, manifest| {
                    layers.push(layer);
                    rows.extend(manifest.objects().map(|held| (held.id, layer, held.size)));
                })?;
                rows.sort_unstable();
                Ok(Sizes { layers: sum_up(layers, rows.into_iter()), unreadable })
            }
        }
    }

    /// Deletes the index and builds it again; tells whether that was possible, which it is not
    /// while another process uses it for longer than a second.
    ///
    /// # Errors
    /// [`CatalogError::Layers`].
    pub fn rebuild(&self) -> Result<bool, CatalogError> {
        Ok(index::rebuild(&self.index, &self.layers, self.patience)?)
    }
}

#[cfg(test)]
mod tests;
