//! One store, opened for looking.

use std::path::Path;

use crate::host::{Access, RootRecord, Roots, Store, sentence};
use crate::layer::{LayerId, Layers, LayersError, Manifest, Template};
use crate::object::ObjectReader;

use super::InspectError;

/// A store opened for looking: its layers and templates, its objects, its roots.
pub struct Library {
    store: Store,
    layers: Layers,
    objects: ObjectReader,
    roots: Roots,
}

impl Library {
    /// Opens the store at `path`. Takes no lock.
    ///
    /// # Errors
    /// [`InspectError::Host`] if no usable store is there.
    pub fn open(path: &Path) -> Result<Self, InspectError> {
        let store = Store::open(path, Access::Read)?;
        let layers = Layers::open(store.path())?;
        let objects = ObjectReader::open(store.path())?;
        let roots = Roots::open(&store)?;
        Ok(Self { store, layers, objects, roots })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Its layers, trees and templates.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Its objects.
    pub fn objects(&self) -> &ObjectReader {
        &self.objects
    }

    /// Its registry of roots.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Every template that can be read. What is wrong with the others is told where templates
    /// are listed or checked.
    ///
    /// # Errors
    /// [`InspectError`] if templates cannot be listed.
    pub fn templates(&self) -> Result<Vec<Template>, InspectError> {
        self.readable_templates(&mut Vec::new())
    }

    /// Every template that can be read; a sentence about each other goes to `damaged`.
    ///
    /// # Errors
    /// [`InspectError`] if templates cannot be listed.
    pub(super) fn readable_templates(
        &self,
        damaged: &mut Vec<String>,
    ) -> Result<Vec<Template>, InspectError> {
        let mut templates = Vec::new();
        for listed in self.layers().templates().list()? {
            match listed.template {
                Ok(template) => templates.push(template),
                Err(error) => damaged.push(sentence(&error)),
            }
        }
        Ok(templates)
    }

    /// The record of every root.
    ///
    /// # Errors
    /// [`InspectError::Host`] if one of them is damaged.
    pub fn records(&self) -> Result<Vec<RootRecord>, InspectError> {
        Ok(self.roots.list()?)
    }

    /// Opens a layer whose manifest has the digest it is called by.
    ///
    /// # Errors
    /// [`LayersError::NoLayer`], [`LayersError::Damaged`], [`LayersError::Altered`] and
    /// [`LayersError::Io`].
    pub fn open_layer(&self, id: &LayerId) -> Result<Manifest, LayersError> {
        let manifest = self.layers().load(id)?;
        if manifest.digest() == *id.digest() {
            Ok(manifest)
        } else {
            Err(LayersError::Altered(*id))
        }
    }
}
