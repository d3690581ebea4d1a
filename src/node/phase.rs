//! What a container is doing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a container is doing. `ps` shows these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It was never started.
    Created,
    /// Its root, network and processes are being put together.
    Starting,
    /// Its init runs.
    Running,
    /// Its processes stand still.
    Paused,
    /// Its processes are being ended, or what they used is being taken down.
    Stopping,
    /// It ran, and ended or was stopped.
    Stopped,
    /// It could not be started, or lost what it stood on.
    Failed,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
    ];

    /// Whether processes of it may exist: `ps` shows these without `-a`.
    #[must_use]
    pub fn is_up(self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Paused | Self::Stopping => true,
            Self::Created | Self::Stopped | Self::Failed => false,
        }
    }

    /// The word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}
