//! What a failure is in HTTP: the one place where it gets a status.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::wire::Refusal;
use crate::host::roots::RootError;
use crate::host::{HostError, StoreError};
use crate::node::NodeError;
use crate::node::queue::Denial;

/// Of a container whose command is not there.
pub(super) const NOT_FOUND: &str = "command-not-found";

/// Of one whose command cannot be executed.
pub(super) const NOT_EXECUTABLE: &str = "command-not-executable";

/// A request that was not done.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    kind: &'static str,
    sentence: String,
}

impl Refused {
    /// For a request that is none.
    pub(super) fn malformed(sentence: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "malformed", sentence: sentence.into() }
    }

    /// For what went wrong in the daemon itself.
    pub(super) fn broken() -> Self {
        let sentence = "the daemon failed; its log says where (mica node status)".to_owned();
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, kind: "failed", sentence }
    }

    /// For a place where nothing is.
    pub(super) fn nothing_there() -> Self {
        let sentence =
            "there is nothing at this path; docs/CONTAINERS.md lists what there is".to_owned();
        Self { status: StatusCode::NOT_FOUND, kind: "no-route", sentence }
    }

    /// For a method that a path does not know.
    pub(super) fn wrong_method() -> Self {
        let sentence = "this path knows no such method; docs/CONTAINERS.md lists them".to_owned();
        Self { status: StatusCode::METHOD_NOT_ALLOWED, kind: "no-method", sentence }
    }

    /// For a body that is longer than any request.
    pub(super) fn too_long() -> Self {
        let sentence = "the request is too long".to_owned();
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, kind: "too-long", sentence }
    }
}

/// What kind of refusal an error is, for programs, and its HTTP status.
#[must_use]
pub fn kind_of(error: &NodeError) -> (&'static str, StatusCode) {
    use NodeError as E;
    match error.command_status() {
        Some(126) => return (NOT_EXECUTABLE, StatusCode::UNPROCESSABLE_ENTITY),
        Some(_) => return (NOT_FOUND, StatusCode::UNPROCESSABLE_ENTITY),
        None => {}
    }
    match error {
        E::Spec(_) | E::User(_) => ("cannot-work", StatusCode::UNPROCESSABLE_ENTITY),
        E::Name(_) | E::Key(_) | E::NothingToRun { .. } | E::Swapped { .. } => {
            ("malformed", StatusCode::BAD_REQUEST)
        }
        E::Problem(_) => ("cannot-work", StatusCode::UNPROCESSABLE_ENTITY),
        E::Several { reasons } => of_several(reasons),
        E::DiskImageFixed { .. } | E::DiskShrinks { .. } | E::DiskImage { .. } => {
            ("limit", StatusCode::CONFLICT)
        }
        E::NoContainer { .. } => ("no-container", StatusCode::NOT_FOUND),
        E::Ambiguous { .. } => ("ambiguous", StatusCode::BAD_REQUEST),
        E::NameTaken { .. } | E::UsersTaken { .. } | E::PortTaken { .. } => {
            ("taken", StatusCode::CONFLICT)
        }
        E::Denied { denial: Denial::Deleted, .. } => ("deleted", StatusCode::GONE),
        E::Denied { denial: Denial::Full, .. } => ("busy", StatusCode::TOO_MANY_REQUESTS),
        E::Denied { denial: Denial::NotRunning | Denial::Paused | Denial::Running, .. }
        | E::NotDown { .. }
        | E::RunningRename { .. }
        | E::NotRunning { .. } => ("phase", StatusCode::CONFLICT),
        E::OverCommitted(_) | E::NoUsersLeft | E::NoRangeLeft | E::RangeTaken { .. } => {
            ("no-room", StatusCode::INSUFFICIENT_STORAGE)
        }
        E::Host(error) => of_host(error),
        E::Inspect(_) => ("no-template", StatusCode::NOT_FOUND),
        E::Network(_) => ("network", StatusCode::CONFLICT),
        E::Cgroup(_) => ("limit", StatusCode::CONFLICT),
        E::Unreadable { .. } => ("damaged", StatusCode::CONFLICT),
        E::ClaimsUnknown { .. } => ("no-room", StatusCode::INSUFFICIENT_STORAGE),
        E::Ending => ("ending", StatusCode::SERVICE_UNAVAILABLE),
        E::Launch(_)
        | E::Runtime(_)
        | E::Step { .. }
        | E::AlreadyRuns { .. }
        | E::Damaged { .. }
        | E::Newer { .. }
        | E::Misplaced { .. }
        | E::System { .. } => ("failed", StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// What all reasons are, if they are all of a kind.
fn of_several(reasons: &[NodeError]) -> (&'static str, StatusCode) {
    let mut kinds = reasons.iter().map(kind_of);
    let first = kinds.next().filter(|first| kinds.all(|kind| kind == *first));
    first.unwrap_or(("cannot-work", StatusCode::UNPROCESSABLE_ENTITY))
}

/// What the host could not do is, but for these, nothing that the client can change.
fn of_host(error: &HostError) -> (&'static str, StatusCode) {
    let root_taken =
        matches!(error, HostError::Root(RootError::NameTaken { .. } | RootError::Name(_)));
    if matches!(error, HostError::NoTemplate { .. }) {
        ("no-template", StatusCode::NOT_FOUND)
    } else if root_taken
        || matches!(error, HostError::PrivateInUse { .. } | HostError::OtherTemplate { .. })
    {
        ("taken", StatusCode::CONFLICT)
    } else if matches!(error, HostError::Store(StoreError::Busy { .. })) {
        ("busy", StatusCode::TOO_MANY_REQUESTS)
    } else {
        ("failed", StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<NodeError> for Refused {
    fn from(error: NodeError) -> Self {
        let (kind, status) = kind_of(&error);
        Self { status, kind, sentence: crate::host::sentence(&error) }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let refusal = Refusal { error: self.sentence, kind: self.kind.to_owned() };
        (self.status, Json(refusal)).into_response()
    }
}
