//! What is asked and answered, in JSON.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::config::{ContainerId, ContainerName, Kind};
use crate::node::health::Health;
use crate::node::machine::View;
use crate::node::phase::Phase;
use crate::node::registry::Places;
use crate::node::state::Exit;

/// What the daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAnswer {
    /// Mica's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its store.
    pub store: PathBuf,
    /// Seconds since it began.
    pub uptime_s: u64,
    /// Containers by phase.
    pub containers: BTreeMap<Phase, usize>,
    /// Bytes of memory that it holds alone.
    pub memory_bytes: u64,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerAnswer {
    /// What never changes about it.
    pub id: ContainerId,
    /// What people call it.
    pub name: ContainerName,
    /// The template its root was made from.
    pub template: String,
    /// What runs in it.
    pub kind: Kind,
    /// What it is doing.
    pub phase: Phase,
    /// Whether it lost its root.
    pub degraded: bool,
    /// Whether the process that watches it was killed: its output is not kept, and how it ends will not
    /// be known.
    #[serde(default)]
    pub unwatched: bool,
    /// Whether its description cannot be read.
    #[serde(default)]
    pub damaged: bool,
    /// Whether it may do nearly everything that the host's root may.
    pub privileged: bool,
    /// What its health check says, if it has one.
    pub health: Option<Health>,
    /// What it runs, as words; none: its template's init.
    pub command: Vec<String>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// When it was last started.
    pub started_ms: Option<u64>,
    /// Its init, as the host numbers it.
    pub pid: Option<u32>,
    /// How its init last ended.
    pub exit: Option<Exit>,
    /// Times that its restart policy started it.
    pub restarts: u32,
    /// Why it failed.
    pub failure: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Every setting that is not the default's, as `set` takes it.
    pub settings: BTreeMap<String, String>,
    /// Where its root is mounted while it is up.
    pub root: PathBuf,
    /// Where its changes are.
    pub private: PathBuf,
    /// Where its output is kept.
    pub log: PathBuf,
}

impl ContainerAnswer {
    /// What there is to say of a container.
    #[must_use]
    pub fn of(view: &View, places: &Places) -> Self {
        let (config, state) = (&view.recorded.config, &view.recorded.state);
        Self {
            id: config.id.clone(),
            name: config.name.clone(),
            template: config.template.clone(),
            kind: config.kind,
            phase: view.phase,
            degraded: view.degraded,
            unwatched: view.unwatched,
            damaged: view.damage.is_some(),
            privileged: config.privileged,
            health: view.health,
            command: config.command.clone(),
            created_ms: config.created_ms,
            started_ms: state.started_ms,
            pid: view.init,
            exit: state.exit.clone(),
            restarts: state.restarts,
            failure: state.failure.clone(),
            addresses: state.addresses.clone(),
            settings: settings(config),
            root: places.root(),
            private: places.private(config),
            log: places.log(),
        }
    }
}

fn settings(config: &crate::container::config::ContainerConfig) -> BTreeMap<String, String> {
    use crate::container::config::{ContainerConfig, KEYS};
    let bare =
        ContainerConfig::new(config.id.clone(), config.name.clone(), &config.template, config.kind);
    let mut settings = BTreeMap::new();
    for key in KEYS {
        // A key of the table is never unknown.
        let (now, default) = (config.get(key.name), bare.get(key.name));
        if let Ok(Some(value)) = now.clone()
            && now != default
        {
            settings.insert(key.name.to_owned(), value);
        }
    }
    for (prefix, map) in [("environment", &config.env), ("label", &config.labels)] {
        for (name, value) in map {
            settings.insert(format!("{prefix}.{name}"), value.clone());
        }
    }
    settings
}

/// What a container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsageAnswer {
    /// Which.
    pub name: String,
    /// When this was counted, in milliseconds since 1970.
    pub at_ms: u64,
    /// Processor time since it was started, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Memory charged to it, page cache included, in bytes.
    pub memory_bytes: Option<u64>,
    /// Of it, what its processes hold as their own.
    pub memory_exclusive_bytes: Option<u64>,
    /// Of it, pages of files, which others may use too.
    pub memory_shared_bytes: Option<u64>,
    /// Swap in use, in bytes.
    pub swap_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read from disks.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to disks.
    pub io_written_bytes: Option<u64>,
    /// Bytes received.
    pub received_bytes: Option<u64>,
    /// Bytes sent.
    pub sent_bytes: Option<u64>,
    /// Times that the kernel killed a process of it for want of memory.
    pub oom_kills: Option<u64>,
    /// Bytes of its private files on disk; none while it was not asked for.
    pub disk_bytes: Option<u64>,
}

/// One container with what it uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InfoAnswer {
    /// It.
    #[serde(flatten)]
    pub container: ContainerAnswer,
    /// What it uses, while it is up.
    pub usage: Option<UsageAnswer>,
    /// Settings that this host does not hold, or holds in part.
    pub shortfalls: BTreeMap<String, String>,
}

/// `POST /v1/node/stop`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopNode {
    /// Whether all containers are stopped first.
    pub containers: bool,
}

/// `POST /v1/containers/CT/stop` and `restart`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stop {
    /// Whether its processes are killed at once.
    pub kill: bool,
}

/// `PATCH /v1/containers/CT`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Set {
    /// Settings, as they were written, in order.
    pub settings: Vec<(String, String)>,
}

/// `POST /v1/containers/CT/copy`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// The new one's name.
    pub name: String,
    /// Settings that are its own, as they were written, in order.
    #[serde(default)]
    pub settings: Vec<(String, String)>,
}

/// `POST /v1/containers/CT/rename`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// The new name.
    pub name: String,
    /// Whether also a running one is renamed.
    #[serde(default)]
    pub force: bool,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Letters in a line.
    pub columns: u16,
}

/// `POST /v1/containers/CT/exec`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exec {
    /// What to run, as words.
    pub command: Vec<String>,
    /// `NAME=VALUE` each, beside what the container has.
    pub env: Vec<String>,
    /// `USER`, `UID`, `USER:GROUP` or `UID:GID`; none: the container's.
    pub user: Option<String>,
    /// Where it starts; none: the container's.
    pub workdir: Option<PathBuf>,
    /// The terminal that it gets; none: pipes.
    pub terminal: Option<Size>,
    /// Whether what is typed reaches it; otherwise its input is empty.
    pub interactive: bool,
}

/// How a request ended that asked for something to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The container's name.
    pub name: String,
    /// Whether there was nothing to do.
    pub already: bool,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A sentence: what, why, what to do.
    pub error: String,
    /// What kind of refusal, for programs.
    pub kind: String,
}
