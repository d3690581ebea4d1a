//! What a container is doing, as far as it must survive the daemon: `containers/<id>/state.json`.

use std::net::IpAddr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::phase::Phase;
use crate::container::idmap::IdRange;

/// The version that this program writes.
pub const VERSION: u32 = 1;

/// How an init ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// What a shell would say: the status, or 128 and the signal.
    pub status: i32,
    /// Whether the kernel ended something in the container for want of memory while it ran.
    #[serde(default)]
    pub out_of_memory: bool,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// What one container is doing, and did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Version of this description.
    pub version: u32,
    /// What it was doing when this was written, before the step that it names was begun.
    pub phase: Phase,
    /// Whether somebody wants it to run: set by start, unset by stop.
    #[serde(default)]
    pub wanted: bool,
    /// The boot of the host in which it was made, last started, or last looked at after a boot.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// When it was last started, in milliseconds since 1970.
    #[serde(default)]
    pub started_ms: Option<u64>,
    /// How its init last ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// How often it was started again by its restart policy since somebody started it.
    #[serde(default)]
    pub restarts: u32,
    /// Why it could not be started, or what it lost.
    #[serde(default)]
    pub failure: Option<String>,
    /// The users of the host that are its users, once it has a range.
    #[serde(default)]
    pub users: Option<IdRange>,
    /// Addresses that were allocated to it.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Whether it may have others, because its files are damaged.
    #[serde(skip)]
    pub claims_unknown: bool,
}

impl Default for ContainerState {
    fn default() -> Self {
        Self {
            version: VERSION,
            phase: Phase::Created,
            wanted: false,
            boot_id: None,
            started_ms: None,
            exit: None,
            restarts: 0,
            failure: None,
            users: None,
            addresses: Vec::new(),
            claims_unknown: false,
        }
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
