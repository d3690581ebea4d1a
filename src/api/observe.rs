//! Looking at containers: what they use, what does not hold, what happens.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use super::refusal::Refused;
use super::routes::Door;
use super::wire::UsageAnswer;
use crate::node::machine::Handle;
use crate::node::state::now_ms;
use crate::node::{Node, NodeError};

/// What was seen of a container.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// What it uses, while it is up.
    pub(super) usage: Option<UsageAnswer>,
    /// Settings that do not hold here, and why.
    pub(super) shortfalls: BTreeMap<String, String>,
}

/// Looks at a container; `disk`: also at what its private files take, which walks them.
pub(super) async fn observed(
    node: &Arc<Node>,
    handle: &Handle,
    disk: bool,
) -> Result<Observed, Refused> {
    let (node, view) = (Arc::clone(node), handle.view());
    let look = move || -> Result<Observed, NodeError> {
        let driver = node.driver();
        let recorded = &view.recorded;
        let shortfalls = driver
            .shortfalls(recorded)
            .into_iter()
            .filter(|(key, _)| *key != "limits.disk")
            .chain(driver.unheld_disk(recorded).map(|why| ("limits.disk", why)))
            .map(|(key, why)| (key.to_owned(), why))
            .collect();
        let disk_bytes = if disk { driver.disk_bytes(recorded) } else { None };
        if !view.phase.is_up() {
            return Ok(Observed { usage: None, shortfalls });
        }
        let used = driver.usage(recorded)?;
        let traffic = driver.network().counters(&recorded.config.id)?;
        let usage = UsageAnswer {
            name: recorded.config.name.to_string(),
            at_ms: now_ms(),
            cpu_ns: used.cpu_ns,
            memory_bytes: used.memory_bytes,
            memory_exclusive_bytes: used.memory_anonymous_bytes,
            memory_shared_bytes: used.memory_file_bytes,
            swap_bytes: used.swap_bytes,
            pids: used.pids,
            io_read_bytes: used.io_read_bytes,
            io_written_bytes: used.io_written_bytes,
            received_bytes: traffic.map(|traffic| traffic.received_bytes),
            sent_bytes: traffic.map(|traffic| traffic.sent_bytes),
            oom_kills: used.oom_kills,
            disk_bytes,
        };
        Ok(Observed { usage: Some(usage), shortfalls })
    };
    Ok(tokio::task::spawn_blocking(look).await.unwrap_or(Err(NodeError::Ending))?)
}

/// Everything that happens from now on, one JSON object a line. Who is too slow misses some.
pub(super) async fn events(State(door): State<Door>) -> Response {
    let listening = door.node.events().listen();
    let lines = stream::unfold(listening, |mut listening| async move {
        loop {
            match listening.recv().await {
                Ok(event) => {
                    let mut line = serde_json::to_vec(&event).unwrap_or_default();
                    line.push(b'\n');
                    return Some((Ok::<_, std::io::Error>(line), listening));
                }
                Err(RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "a listener is too slow");
                }
                Err(RecvError::Closed) => return None,
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
