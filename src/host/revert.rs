//! Giving up what a container changed: by its mount process, or on its private directory.

use std::path::Path;

use super::error::HostError;
use super::roots::RootRecord;
use super::store::Store;
use crate::layer::{LayerPath, Layers};
use crate::object::ObjectReader;
use crate::private::{PrivateLayer, PrivateView};
use crate::union::{SharedSet, Union};

/// Drops what the private directory `private` has at `paths` and below, in this order.
///
/// A mounted root does it itself and shows it at once. What was done stays done if a later
/// step fails; doing it again does the rest.
///
/// # Errors
/// [`HostError::Control`] with the mount process's reason, [`HostError::Private`] if somebody
/// else uses the directory, [`HostError::Revert`].
pub fn revert(
    store: &Store,
    record: Option<&RootRecord>,
    private: &Path,
    paths: &[LayerPath],
) -> Result<(), HostError> {
    if let Some(mut client) = record.and_then(RootRecord::living) {
        for path in paths {
            client.revert(&path.to_bytes())?;
        }
        return Ok(());
    }
    let _store = store.share()?;
    let stack = PrivateView::open(private)?.record().stack.clone();
    let layer = PrivateLayer::open(private, &stack)?;
    let tree = Layers::open(store.path())?.tree(&stack)?;
    let shared = SharedSet::resolve(&tree, &[])?;
    let union = Union::new(tree, ObjectReader::open(store.path())?, Some(layer), shared)?;
    for path in paths {
        union
            .revert(path, false, &mut |_| {})
            .map_err(|source| HostError::Revert { path: path.clone(), source })?;
    }
    Ok(())
}
