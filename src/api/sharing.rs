//! The background work that shares again what containers hold alike.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::refusal::Refused;
use super::routes::{Answer, Asked, Door};
use crate::node::sharing::{SharingAnswer, SharingChange};

pub(super) async fn tell(State(door): State<Door>) -> Json<SharingAnswer> {
    Json(door.node.sharing().answer())
}

pub(super) async fn change(
    State(door): State<Door>,
    Asked(change): Asked<SharingChange>,
) -> Answer<SharingAnswer> {
    let node = Arc::clone(&door.node);
    // It waits for the disk.
    let changed = tokio::task::spawn_blocking(move || node.sharing().change(change)).await;
    let changed = changed.map_err(|_| Refused::malformed("the daemon failed; see its log"))?;
    Ok(Json(changed?))
}
