//! What happened, for whoever listens.

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::state::now_ms;
use crate::container::config::{ContainerConfig, ContainerId, ContainerName};

/// Events that a slow listener may be behind before it misses some.
const BACKLOG: usize = 1024;

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A container came into being.
    Created,
    /// Its init runs.
    Started,
    /// It was found running after the daemon had been away.
    Adopted,
    /// Its init ended by itself.
    Ended,
    /// It was stopped.
    Stopped,
    /// It could not be started.
    Failed,
    /// Its policy will start it again.
    Restarting,
    /// Its processes stand still.
    Paused,
    /// They go on.
    Resumed,
    /// A setting changed.
    Set,
    /// It has another name.
    Renamed,
    /// It is gone.
    Deleted,
    /// The kernel ended a process of it for want of memory.
    OutOfMemory,
    /// Its mount process died.
    RootLost,
    /// The process that watches it was killed.
    MonitorLost,
    /// Its health check succeeds.
    Healthy,
    /// Its health check fails.
    Unhealthy,
    /// It uses more than an alert allows.
    Alert,
}

impl EventKind {
    /// The word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::Adopted => "adopted",
            Self::Ended => "ended",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Restarting => "restarting",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Set => "set",
            Self::Renamed => "renamed",
            Self::Deleted => "deleted",
            Self::OutOfMemory => "out-of-memory",
            Self::RootLost => "root-lost",
            Self::MonitorLost => "monitor-lost",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Alert => "alert",
        }
    }
}

/// One thing that happened to one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// To whom.
    pub id: ContainerId,
    /// As it was named then.
    pub name: ContainerName,
    /// What.
    pub kind: EventKind,
    /// More about it, for people; may be empty.
    pub detail: String,
}

/// Where events go to.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Tells everybody who listens, and the log.
    pub fn tell(&self, config: &ContainerConfig, kind: EventKind, detail: impl Into<String>) {
        let (id, name) = (config.id.clone(), config.name.clone());
        let event = Event { at_ms: now_ms(), id, name, kind, detail: detail.into() };
        tracing::info!(container = %event.name, kind = kind.text(), detail = %event.detail, "event");
        // Nobody may be listening.
        let _listeners = self.0.send(event);
    }

    /// Listens from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
