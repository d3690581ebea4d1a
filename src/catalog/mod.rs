//! The index beside the store: from contents and names to their files, and what private files
//! were last hashed to.
//!
//! It may be deleted at any moment. What it says of templates is derived from the manifests,
//! and no answer changes without it; what it remembers of private layers is found out again
//! by walking them, but for the digests of their files, which take reading. No process keeps it
//! open, and no request of a mounted root reads it. Knows objects, layers and templates; roots
//! are told to it. Must never be relied on: garbage collection marks from the manifests.
//!
//! A crash can leave it broken, which its checksums show: then that part is made anew.

mod answer;
mod index;
mod private;
mod table;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use answer::{Holders, LayerSize, Sizes};
pub use index::{IndexError, Session};
pub use private::{Glance, Held, Identity, Kept, RootKey, Stamp};
pub use table::{Table, TableDamaged};

use crate::layer::{
    Derived, Layers, LayersError, Manifest, ManifestError, Stack, StackId, TemplateName,
};
use crate::object::ObjectId;
use answer::{from_manifests, sum_up};

/// How long an answer waits for the database before it does without.
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
    /// A tree is damaged.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
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

    /// Makes the table of a new stack, so that the next question is answered quickly.
    ///
    /// # Errors
    /// [`CatalogError`] if the stack has no tree.
    pub fn record_stack(&self, stack: &Stack) -> Result<(), CatalogError> {
        let tree = self.layers.tree(stack)?;
        self.table(&stack.id(), &tree).map(drop)
    }

    /// The reverse table of `tree`, the merge of `stack`; made if it is missing or damaged.
    ///
    /// # Errors
    /// [`CatalogError::Manifest`].
    pub fn table(&self, stack: &StackId, tree: &Manifest) -> Result<Table, CatalogError> {
        Ok(Table::of(&self.tables(), stack, tree)?)
    }

    /// The same, made anew: for who found the old one damaged.
    ///
    /// # Errors
    /// [`CatalogError::Manifest`].
    pub fn new_table(&self, stack: &StackId, tree: &Manifest) -> Result<Table, CatalogError> {
        Ok(Table::make(&self.tables(), stack, tree)?)
    }

    /// Compares the table of `tree` with what the tree gives; with `fix` it is replaced where it is
    /// something else.
    ///
    /// # Errors
    /// [`CatalogError::Manifest`].
    pub fn check_table(
        &self,
        stack: &StackId,
        tree: &Manifest,
        fix: bool,
    ) -> Result<Derived, CatalogError> {
        Ok(Table::check(&self.tables(), stack, tree, fix)?)
    }

    /// Removes the tables of stacks that are not among `live`.
    pub fn prune(&self, live: &HashSet<StackId>) {
        let Ok(entries) = fs::read_dir(self.tables()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let stack = name.to_str().and_then(|name| name.parse::<StackId>().ok());
            if stack.is_none_or(|stack| !live.contains(&stack)) {
                // What stays costs room and nothing else.
                let _gone = fs::remove_file(entry.path());
            }
        }
    }

    /// Opens what is remembered of private layers; `None` if another process has it for longer
    /// than a second, or it cannot be had at all.
    pub fn session(&self) -> Option<Session> {
        Session::open(&self.index, self.patience)
    }

    /// Tells which layers hold an object, and which templates and `roots` stand on them.
    /// `roots` is every registered root with its stack. Asks the layers' own object tables.
    ///
    /// # Errors
    /// [`CatalogError::Layers`].
    pub fn who_has(
        &self,
        object: &ObjectId,
        roots: &[(String, Stack)],
    ) -> Result<Holders, CatalogError> {
        let mut layers = BTreeSet::new();
        let unreadable = from_manifests(&self.layers, |layer, manifest| {
            if manifest.object_index(object).is_some() {
                layers.insert(layer);
            }
        })?;
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
        let mut rows = Vec::new();
        let mut layers = Vec::new();
        let unreadable = from_manifests(&self.layers, |layer, manifest| {
            layers.push(layer);
            rows.extend(manifest.objects().map(|held| (held.id, layer, held.size)));
        })?;
        rows.sort_unstable();
        Ok(Sizes { layers: sum_up(layers, rows.into_iter()), unreadable })
    }

    /// Deletes the index and makes the tables of all templates again; tells whether that was
    /// possible, which it is not while another process uses the database for longer than a second.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn rebuild(&self) -> Result<bool, CatalogError> {
        let Some(session) = self.session() else { return Ok(false) };
        session.give_up();
        drop(session);
        match fs::remove_dir_all(self.tables()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Ok(false),
            Ok(()) | Err(_) => {}
        }
        for listed in self.layers.templates().list()? {
            if let Ok(template) = listed.template {
                self.record_stack(&template.stack)?;
            }
        }
        Ok(true)
    }

    fn tables(&self) -> PathBuf {
        self.index.join("trees")
    }
}

#[cfg(test)]
mod tests;
