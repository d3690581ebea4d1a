//! What refers to objects: templates, roots and running imports, by way of their layers; and private
//! files.

use std::collections::HashSet;

use super::error::HostError;
use super::referred;
use super::roots::Roots;
use super::store::Store;
use crate::layer::{LayerId, Layers, LayersError, Manifest, Stack};
use crate::object::ObjectId;

/// Parts of the digests after which what was read of the manifests is given back.
const LET_GO_EVERY: u8 = 8;

/// The layers of a store that count, opened.
pub(super) struct References {
    manifests: Vec<Manifest>,
    unreadable: Vec<(LayerId, LayersError)>,
    /// What private files refer to, in order.
    private: Vec<ObjectId>,
}

impl References {
    /// The stacks of all templates and roots.
    ///
    /// Read under the registry's lock: a root that is just being mounted either has its record
    /// already, or will find its template as it is now.
    pub(super) fn stacks(store: &Store, layers: &Layers) -> Result<HashSet<Stack>, HostError> {
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

    /// Opens the layers of `stacks`, and those that running imports keep.
    pub(super) fn of(layers: &Layers, stacks: &HashSet<Stack>) -> Result<Self, HostError> {
        let mut ids: HashSet<LayerId> =
            stacks.iter().flat_map(|stack| stack.layers().iter().copied()).collect();
        ids.extend(layers.pinned()?);
        let mut references =
            Self { manifests: Vec::new(), unreadable: Vec::new(), private: Vec::new() };
        for id in ids {
            // By digest: an altered object table would name the living dead.
            match layers.load_authentic(&id) {
                Ok(manifest) => {
                    // Comparing digests read all of it; of most only the object table is wanted.
                    if let Err(error) = manifest.let_go() {
                        tracing::debug!(%error, %id, "a manifest stays in memory");
                    }
                    references.manifests.push(manifest);
                }
                Err(error) => references.unreadable.push((id, error)),
            }
        }
        Ok(references)
    }

    /// Everything that counts now, beside collections and deletions that go on.
    pub(super) fn now(store: &Store, layers: &Layers) -> Result<Self, HostError> {
        let mut references = Self::of(layers, &Self::stacks(store, layers)?)?.private(store)?;
        if !references.unreadable.is_empty() {
            // Their template may have been deleted, and they collected, in between.
            let stacks = Self::stacks(store, layers)?;
            let counts = |id: &LayerId| stacks.iter().any(|stack| stack.layers().contains(id));
            references.unreadable.retain(|(id, _)| counts(id));
        }
        Ok(references)
    }

    /// These, and what private files refer to; read once the sweep began: whoever notes more of that
    /// later has it pinned until the sweep has ended.
    ///
    /// # Errors
    /// A log that cannot be read: what it names is unknown.
    pub(super) fn private(mut self, store: &Store) -> Result<Self, HostError> {
        self.private = referred::of_all(store)?.into_iter().collect();
        self.private.sort_unstable();
        Ok(self)
    }

    /// These, if they are all there are.
    ///
    /// # Errors
    /// Why a layer cannot be read: what that refers to is unknown.
    pub(super) fn complete(mut self) -> Result<Self, HostError> {
        match self.unreadable.pop() {
            Some((_, error)) => Err(error.into()),
            None => Ok(self),
        }
    }

    /// The layers that cannot be read, and why.
    pub(super) fn unreadable(&self) -> &[(LayerId, LayersError)] {
        &self.unreadable
    }

    /// The objects referred to whose digests begin with `first`, in order.
    pub(super) fn beginning(&self, first: u8) -> Vec<ObjectId> {
        let mut ids: Vec<ObjectId> =
            self.manifests.iter().flat_map(|manifest| manifest.objects_beginning(first)).collect();
        let byte = |id: &ObjectId| id.digest().as_bytes().first().copied().unwrap_or_default();
        let from = self.private.partition_point(|id| byte(id) < first);
        let to = self.private.partition_point(|id| byte(id) <= first);
        ids.extend(self.private.get(from..to).unwrap_or_default());
        ids.sort_unstable();
        ids.dedup();
        // The tables lie in order of the digests: no part is wanted again.
        if first % LET_GO_EVERY == LET_GO_EVERY - 1 {
            for manifest in &self.manifests {
                if let Err(error) = manifest.let_go() {
                    tracing::debug!(%error, "a manifest stays in memory");
                }
            }
        }
        ids
    }

    /// Whether anything refers to an object.
    pub(super) fn holds(&self, id: &ObjectId) -> bool {
        self.private.binary_search(id).is_ok() || self.len_bytes(id).is_some()
    }

    /// How long an object's content is, in bytes, if a layer refers to it.
    pub(super) fn len_bytes(&self, id: &ObjectId) -> Option<u64> {
        self.manifests.iter().find_map(|manifest| manifest.object_size(id))
    }
}
