//! Telling mounts to let go of objects that were damaged.

use std::time::Duration;

use super::roots::Roots;
use super::store::Store;
use crate::object::ObjectId;

/// How long one mount process may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Has every mounted root of the store forget what it keeps of `objects`: they were set aside, or
/// replaced by whole ones. One that does not answer, or is of a version that knows no such request,
/// goes on with what it has until it is mounted again.
pub(super) fn recall(store: &Store, objects: &[ObjectId]) {
    let records = match Roots::open(store).and_then(|roots| roots.list_each()) {
        Ok(records) => records,
        Err(error) => return tracing::warn!(%error, "no mount was told of damaged objects"),
    };
    for record in records.into_iter().flatten() {
        let Some(mut client) = record.living() else { continue };
        let told = client.set_patience(PATIENCE).and_then(|()| client.forget_objects(objects));
        if let Err(error) = told {
            tracing::warn!(%error, root = %record.name, "it may go on showing damaged objects");
        }
    }
}
