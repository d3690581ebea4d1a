//! Every path that the daemon answers, and what it does.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::refusal::Refused;
use super::wire::{
    ContainerAnswer, Copy, Done, InfoAnswer, Name, NodeAnswer, Set, Stop, StopNode, UsageAnswer,
};
use super::{exec, logs, metrics, observe, sharing};
use crate::node::Node;
use crate::node::create::Wanted;
use crate::node::daemon::SetDone;
use crate::node::machine::Handle;
use crate::node::phase::Phase;
use crate::node::queue::{Ended, Request as Ask};

/// Longest request, in bytes.
const LIMIT: usize = 1 << 20;

/// What every route has.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) node: Arc<Node>,
    /// Asks the daemon to end.
    pub(super) end: mpsc::Sender<()>,
}

pub(super) type Answer<T> = Result<Json<T>, Refused>;

/// A request's JSON; an empty body is an empty object.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Asked<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        read(request.into_body()).await.map(Self)
    }
}

/// Reads a body as JSON.
pub(super) async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refused> {
    let bytes = to_bytes(body, LIMIT).await.map_err(|_| Refused::too_long())?;
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    // A list would do for a structure, its members in their order, which is nobody's intention.
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Refused::malformed("the request is not a JSON object"));
    }
    serde_json::from_slice(text)
        .map_err(|error| Refused::malformed(format!("the request is not understood: {error}")))
}

pub(super) fn router(door: Door) -> Router {
    Router::new()
        .route("/v1/node", get(node))
        .route("/v1/node/stop", post(stop_node))
        .route("/v1/sharing", get(sharing::tell).patch(sharing::change))
        .route("/v1/containers", get(list).post(create))
        .route("/v1/containers/{ct}", get(info).patch(set).delete(delete))
        .route("/v1/containers/{ct}/start", post(start))
        .route("/v1/containers/{ct}/stop", post(stop))
        .route("/v1/containers/{ct}/restart", post(restart))
        .route("/v1/containers/{ct}/pause", post(pause))
        .route("/v1/containers/{ct}/resume", post(resume))
        .route("/v1/containers/{ct}/rename", post(rename))
        .route("/v1/containers/{ct}/copy", post(copy))
        .route("/v1/containers/{ct}/wait", get(wait))
        .route("/v1/containers/{ct}/exec", post(exec::exec))
        .route("/v1/containers/{ct}/attach", post(exec::attach))
        .route("/v1/containers/{ct}/password", post(exec::password))
        .route("/v1/containers/{ct}/logs", get(logs::logs))
        .route("/v1/usage", get(usage))
        .route("/v1/events", get(observe::events))
        .route("/metrics", get(metrics::metrics))
        .fallback(|| async { Refused::nothing_there() })
        .method_not_allowed_fallback(|| async { Refused::wrong_method() })
        .with_state(door)
}

async fn node(State(door): State<Door>) -> Json<NodeAnswer> {
    Json(status(&door.node))
}

pub(super) fn status(node: &Node) -> NodeAnswer {
    let mut containers: BTreeMap<Phase, usize> = BTreeMap::new();
    for handle in node.all() {
        *containers.entry(handle.view().phase).or_default() += 1;
    }
    NodeAnswer {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        store: node.driver().store().path().to_owned(),
        uptime_s: node.began().elapsed().as_secs(),
        containers,
        memory_bytes: crate::host::footprint::own_bytes(),
    }
}

async fn stop_node(State(door): State<Door>, Asked(asked): Asked<StopNode>) -> Json<NodeAnswer> {
    if asked.containers {
        door.node.stop_all().await;
    }
    // Ending already is as good.
    let _asked = door.end.try_send(());
    Json(status(&door.node))
}

#[derive(Debug, Deserialize)]
pub(super) struct Words {
    /// Words between commas that mean containers; none: all of them.
    #[serde(default)]
    ct: Option<String>,
}

impl Words {
    /// The containers that are meant.
    pub(super) fn handles(&self, node: &Node) -> Result<Vec<Handle>, Refused> {
        match &self.ct {
            None => Ok(node.all()),
            Some(words) => {
                let words: Vec<String> = words.split(',').map(str::to_owned).collect();
                Ok(node.resolve(&words)?)
            }
        }
    }
}

fn answer(node: &Node, handle: &Handle) -> ContainerAnswer {
    let view = handle.view();
    ContainerAnswer::of(&view, &node.driver().places(&view.recorded))
}

async fn list(
    State(door): State<Door>,
    words: Result<Query<Words>, axum::extract::rejection::QueryRejection>,
) -> Answer<Vec<ContainerAnswer>> {
    let words = words.map_err(|error| Refused::malformed(error.to_string()))?;
    let handles = words.handles(&door.node)?;
    Ok(Json(handles.iter().map(|handle| answer(&door.node, handle)).collect()))
}

async fn create(
    State(door): State<Door>,
    Asked(wanted): Asked<Wanted>,
) -> Result<(StatusCode, Json<ContainerAnswer>), Refused> {
    // A client that goes away leaves a whole container or none.
    let node = Arc::clone(&door.node);
    let made = tokio::spawn(async move { node.create(wanted).await });
    let handle = made.await.map_err(|_| Refused::broken())??;
    Ok((StatusCode::CREATED, Json(answer(&door.node, &handle))))
}

async fn info(State(door): State<Door>, Path(ct): Path<String>) -> Answer<InfoAnswer> {
    let handle = door.node.find(&ct)?;
    let container = answer(&door.node, &handle);
    let seen = observe::observed(&door.node, &handle, true).await?;
    let (usage, shortfalls) = (seen.usage, seen.shortfalls);
    Ok(Json(InfoAnswer { container, usage, shortfalls }))
}

async fn usage(
    State(door): State<Door>,
    words: Result<Query<Words>, axum::extract::rejection::QueryRejection>,
) -> Answer<Vec<UsageAnswer>> {
    let words = words.map_err(|error| Refused::malformed(error.to_string()))?;
    let mut all = Vec::new();
    for handle in words.handles(&door.node)? {
        all.extend(observe::observed(&door.node, &handle, false).await?.usage);
    }
    Ok(Json(all))
}

async fn set(
    State(door): State<Door>,
    Path(ct): Path<String>,
    Asked(asked): Asked<Set>,
) -> Answer<Vec<SetDone>> {
    let handle = door.node.find(&ct)?;
    Ok(Json(door.node.set(&handle, asked.settings).await?))
}

async fn ask(door: &Door, ct: &str, request: Ask) -> Answer<Done> {
    let handle = door.node.find(ct)?;
    let name = handle.view().recorded.config.name.to_string();
    let ended = door.node.ask(&handle, request).await?;
    Ok(Json(Done { name, already: ended == Ended::AlreadySo }))
}

async fn start(State(door): State<Door>, Path(ct): Path<String>) -> Answer<Done> {
    ask(&door, &ct, Ask::Start).await
}

async fn stop(
    State(door): State<Door>,
    Path(ct): Path<String>,
    Asked(asked): Asked<Stop>,
) -> Answer<Done> {
    ask(&door, &ct, Ask::Stop { kill: asked.kill }).await
}

async fn restart(
    State(door): State<Door>,
    Path(ct): Path<String>,
    Asked(asked): Asked<Stop>,
) -> Answer<Done> {
    ask(&door, &ct, Ask::Restart { kill: asked.kill }).await
}

async fn pause(State(door): State<Door>, Path(ct): Path<String>) -> Answer<Done> {
    ask(&door, &ct, Ask::Pause).await
}

async fn resume(State(door): State<Door>, Path(ct): Path<String>) -> Answer<Done> {
    ask(&door, &ct, Ask::Resume).await
}

#[derive(Debug, Deserialize)]
struct Force {
    #[serde(default)]
    force: bool,
}

async fn delete(
    State(door): State<Door>,
    Path(ct): Path<String>,
    asked: Result<Query<Force>, axum::extract::rejection::QueryRejection>,
) -> Answer<Done> {
    let asked = asked.map_err(|error| Refused::malformed(error.to_string()))?;
    ask(&door, &ct, Ask::Delete { force: asked.force }).await
}

async fn rename(
    State(door): State<Door>,
    Path(ct): Path<String>,
    Asked(asked): Asked<Name>,
) -> Answer<ContainerAnswer> {
    let handle = door.node.find(&ct)?;
    door.node.rename(&handle, &asked.name, asked.force).await?;
    Ok(Json(answer(&door.node, &handle)))
}

async fn copy(
    State(door): State<Door>,
    Path(ct): Path<String>,
    Asked(asked): Asked<Copy>,
) -> Result<(StatusCode, Json<ContainerAnswer>), Refused> {
    let from = door.node.find(&ct)?;
    let node = Arc::clone(&door.node);
    let made = tokio::spawn(async move { node.copy(&from, &asked.name, asked.settings).await });
    let handle = made.await.map_err(|_| Refused::broken())??;
    Ok((StatusCode::CREATED, Json(answer(&door.node, &handle))))
}

/// Answers once the container is down, and how it ended.
async fn wait(State(door): State<Door>, Path(ct): Path<String>) -> Answer<ContainerAnswer> {
    let handle = door.node.find(&ct)?;
    handle.until(|view| !view.phase.is_up() || view.deleted).await;
    Ok(Json(answer(&door.node, &handle)))
}
