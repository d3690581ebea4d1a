//! What a container is meant to be: `containers/<id>/config.json`.
//!
//! Every setting has one row in the table of `keys`, under all the names that hands know from
//! vzctl, Incus, docker and podman. Setting one checks that value; [`ContainerConfig::check`] tells
//! everything that cannot work together, at once. Fields that a later version adds are ignored by
//! this one, and missing ones have their defaults.

mod check;
mod dialect;
mod keys;
mod limits;
mod names;
mod network;
mod units;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use check::Problem;
pub use dialect::OWN_UNITS;
pub use keys::{KEYS, Key, KeyError, key, table};
pub use limits::{Alerts, CpuLimit, Guarantees, Limits, Priority};
pub use names::{ContainerId, ContainerName, NameError};
pub use network::{Address, NetworkConfig, NetworkMode, Port, Protocol};
pub use units::{ValueError, bytes, duration_text, parse_bytes, parse_duration};
pub use values::{parse_signal, unwords, words};

use super::idmap::IdRange;

/// The version that this program writes.
pub const VERSION: u32 = 1;

/// What runs in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A whole machine: an init that starts services, and is asked to shut down.
    System,
    /// One command.
    Application,
}

/// What turns a bundle into processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeChoice {
    /// The one inside this program.
    #[default]
    Embedded,
    /// A program that speaks the OCI runtime command line: a name to look up, or a path.
    External(PathBuf),
}

/// Which users of the host those of the container are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserNamespace {
    /// A range of its own, chosen when the container is created.
    #[default]
    Auto,
    /// This range.
    Range(IdRange),
    /// The host's own: root inside is root outside.
    Host,
}

/// Whether a container whose init ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays stopped.
    #[default]
    No,
    /// Only after a status other than 0, at most so many times in a row (0: no limit).
    OnFailure {
        /// Tries.
        max: u32,
    },
    /// Unless somebody stopped it.
    Always,
}

/// With whom it shares what it changed, once that is the same elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResharePolicy {
    /// With nobody: its private files are left alone.
    Off,
    /// With templates alone.
    Templates,
    /// Also with other containers.
    #[default]
    All,
}

/// A command whose success means that the container works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheck {
    /// What is run inside, as words.
    pub command: Vec<String>,
    /// Seconds between two checks.
    pub interval_s: u64,
    /// Seconds after which one has failed.
    pub timeout_s: u64,
    /// Failures in a row that mean unhealthy.
    pub retries: u32,
    /// Seconds after the start in which failures don't count.
    pub grace_s: u64,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { command: Vec::new(), interval_s: 30, timeout_s: 30, retries: 3, grace_s: 0 }
    }
}

/// How much of the output of a container is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLimits {
    /// Bytes after which a new file is begun.
    pub max_bytes: u64,
    /// Files that are kept, the current one included; at least 1.
    pub files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { max_bytes: 10 << 20, files: 3 }
    }
}

/// A directory or file of the host that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Absolute, on the host.
    pub source: PathBuf,
    /// Absolute, in the container.
    pub target: PathBuf,
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// What a container is meant to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Version of this description.
    pub version: u32,
    /// What never changes about it.
    pub id: ContainerId,
    /// What people call it.
    pub name: ContainerName,
    /// The template its root was made from, as written.
    pub template: String,
    /// A private directory made by hand; none: the container's own.
    #[serde(default)]
    pub private: Option<PathBuf>,
    /// What runs in it.
    pub kind: Kind,
    /// Milliseconds since 1970 at which it was created.
    #[serde(default)]
    pub created_ms: u64,
    /// What runs it.
    #[serde(default)]
    pub runtime: RuntimeChoice,
    /// A sentence for people.
    #[serde(default)]
    pub description: String,
    /// What it calls itself; none: its name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The init, as words; none for a system container: `/sbin/init`.
    #[serde(default)]
    pub command: Vec<String>,
    /// Whether Mica's own init runs the command: it reaps, and passes signals on.
    #[serde(default)]
    pub init: bool,
    /// Environment of the init and of `exec`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where the command starts; none: `/`.
    #[serde(default)]
    pub workdir: Option<PathBuf>,
    /// `USER`, `UID`, `USER:GROUP` or `UID:GID`; none: root.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether its standard streams are a terminal. System containers always have one.
    #[serde(default)]
    pub terminal: bool,
    /// Whether standard input stays open for `attach`; otherwise it is empty.
    #[serde(default)]
    pub interactive: bool,
    /// Words to find it by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether it may do nearly everything that the host's root may.
    #[serde(default)]
    pub privileged: bool,
    /// Whether containers may run inside: it gets what their runtimes want beside the usual.
    #[serde(default)]
    pub nesting: bool,
    /// Which users of the host its users are.
    #[serde(default)]
    pub userns: UserNamespace,
    /// Capabilities beside the default ones, without `CAP_`.
    #[serde(default)]
    pub capabilities_added: Vec<String>,
    /// Default capabilities it does without.
    #[serde(default)]
    pub capabilities_dropped: Vec<String>,
    /// Devices of the host it may use, such as `/dev/fuse`.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    /// Directories and files of the host.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Whether it can change its own root.
    #[serde(default)]
    pub read_only: bool,
    /// How it is connected.
    #[serde(default)]
    pub network: NetworkConfig,
    /// What it may use at most.
    #[serde(default)]
    pub limits: Limits,
    /// What it gets in any case.
    #[serde(default)]
    pub guarantees: Guarantees,
    /// How it counts when several want the same.
    #[serde(default)]
    pub priority: Priority,
    /// What is reported.
    #[serde(default)]
    pub alerts: Alerts,
    /// Whether its disk is an image of a fixed size.
    #[serde(default)]
    pub disk_image: bool,
    /// What happens when its init ends.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Whether it is started with the host.
    #[serde(default)]
    pub autostart: bool,
    /// Higher ones start earlier and stop later.
    #[serde(default)]
    pub boot_priority: i32,
    /// What asks the init to end, as a number; none: what its kind expects.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    /// Seconds until it is killed.
    #[serde(default)]
    pub stop_timeout_s: Option<u64>,
    /// Whether it works.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// Whether its private copies are given back.
    #[serde(default)]
    pub reshare: ResharePolicy,
    /// How much of its output is kept.
    #[serde(default)]
    pub logs: LogLimits,
}

impl ContainerConfig {
    /// A container of `template` with nothing set.
    #[must_use]
    pub fn new(id: ContainerId, name: ContainerName, template: &str, kind: Kind) -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self {
            version: VERSION,
            id,
            name,
            template: template.to_owned(),
            private: None,
            kind,
            created_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            runtime: RuntimeChoice::default(),
            description: String::new(),
            hostname: None,
            command: Vec::new(),
            init: false,
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            terminal: false,
            interactive: false,
            labels: BTreeMap::new(),
            privileged: false,
            nesting: false,
            userns: UserNamespace::default(),
            capabilities_added: Vec::new(),
            capabilities_dropped: Vec::new(),
            devices: Vec::new(),
            volumes: Vec::new(),
            read_only: false,
            network: NetworkConfig::default(),
            limits: Limits::default(),
            guarantees: Guarantees::default(),
            priority: Priority::default(),
            alerts: Alerts::default(),
            disk_image: false,
            restart: RestartPolicy::default(),
            autostart: false,
            boot_priority: 0,
            stop_signal: None,
            stop_timeout_s: None,
            health: None,
            reshare: ResharePolicy::default(),
            logs: LogLimits::default(),
        }
    }

    /// What it calls itself.
    #[must_use]
    pub fn hostname(&self) -> &str {
        self.hostname.as_deref().unwrap_or(self.name.as_str())
    }

    /// The number of the signal that asks the init to end: systemd takes SIGRTMIN+3 for "halt".
    #[must_use]
    pub fn ending_signal(&self) -> i32 {
        const HALT: i32 = 37;
        const TERM: i32 = 15;
        let usual = if self.kind == Kind::System { HALT } else { TERM };
        self.stop_signal.unwrap_or(usual)
    }

    /// Sets one thing under any of its names; leading dashes don't count, `_` is `-`, and an empty
    /// value takes the setting back. Returns the key that was meant.
    ///
    /// # Errors
    /// [`KeyError`]; nothing is changed then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<&'static Key, KeyError> {
        keys::set(self, name, value)
    }

    /// What a key is set to, as [`ContainerConfig::set`] reads it; none when it is not set.
    ///
    /// # Errors
    /// [`KeyError::Unknown`].
    pub fn get(&self, name: &str) -> Result<Option<String>, KeyError> {
        keys::get(self, name)
    }

    /// Everything that cannot work, at once.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        check::check(self)
    }
}

#[cfg(test)]
mod tests;
