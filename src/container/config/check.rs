//! What cannot work together.

use std::collections::BTreeSet;

use super::{ContainerConfig, Kind, NetworkMode, UserNamespace};

/// One reason why a container cannot be as described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing to run.
    #[error("an application container needs a command; give one after \"--\"")]
    NoCommand,
    /// Root of the host without saying so.
    #[error(
        "a system container with the host's users needs privileged=yes; leave userns=auto for an isolated one"
    )]
    HostUsers,
    /// Groups for containers inside, in one that has none.
    #[error("nesting=yes is for system containers; make it with --system")]
    NestingApplication,
    /// The embedded filter could not be installed.
    #[error("privileged=yes means the host's users; userns={0} contradicts it")]
    PrivilegedRange(String),
    /// An address, with nothing to have it.
    #[error(
        "network={mode} has no addresses of its own; take ip={address} back or use network=bridge"
    )]
    AddressWithoutNetwork {
        /// The mode.
        mode: &'static str,
        /// The address.
        address: String,
    },
    /// A published port, with nothing to publish.
    #[error("network={mode} publishes no ports; take port={port} back or use network=bridge")]
    PortWithoutNetwork {
        /// The mode.
        mode: &'static str,
        /// The port.
        port: String,
    },
    /// One port of the host for two.
    #[error("port {0} of the host is published twice")]
    PortTwice(String),
    /// More than the limit is promised.
    #[error("guarantee.{what} is more than limits.{what}; raise the limit or lower the guarantee")]
    GuaranteeOverLimit {
        /// Of what.
        what: &'static str,
    },
    /// A share of nothing.
    #[error("alert.{what} is a share of limits.{what}, which is not set")]
    AlertWithoutLimit {
        /// Of what.
        what: &'static str,
    },
    /// An image of no size.
    #[error("disk-image=yes needs its size: set limits.disk")]
    ImageWithoutSize,
    /// An image, and a directory of somebody else's.
    #[error("disk-image=yes makes the private directory itself; leave --private out")]
    ImageOfPrivate,
    /// Two inits.
    #[error("init=yes is for a command; a system container has an init of its own")]
    InitOfSystem,
    /// No init for this processor.
    #[error(
        "init=yes is not made for this processor; leave it out, or have an init in the template"
    )]
    NoInit,
    /// A health check of nothing.
    #[error("a health check needs health.command")]
    HealthWithoutCommand,
    /// Too little to start at all.
    #[error("limits.memory={given} is too little to start anything; {least} is the least")]
    TooLittleMemory {
        /// What was set.
        given: String,
        /// What is needed.
        least: String,
    },
    /// Two things in one place.
    #[error("two volumes are at {0}")]
    VolumeTwice(String),
    /// Over the root itself.
    #[error("a volume cannot be at {0}; that is the container's own")]
    VolumeTarget(String),
    /// Added and dropped.
    #[error("capability {0} is both added and dropped")]
    CapabilityBoth(String),
}

impl Problem {
    /// Whether it may be none once the value of `key` is known: one that was refused is not.
    #[must_use]
    pub fn hangs_on(&self, key: &str) -> bool {
        match self {
            Self::NoCommand => key == "command",
            Self::HostUsers | Self::PrivilegedRange(_) => ["privileged", "userns"].contains(&key),
            Self::NestingApplication => key == "nesting",
            Self::AddressWithoutNetwork { .. } => ["network", "ip"].contains(&key),
            Self::PortWithoutNetwork { .. } => ["network", "port"].contains(&key),
            Self::PortTwice(_) => key == "port",
            Self::GuaranteeOverLimit { what } => {
                [format!("limits.{what}"), format!("guarantee.{what}")]
                    .iter()
                    .any(|own| key.starts_with(own))
            }
            Self::AlertWithoutLimit { what } => key.starts_with(&format!("limits.{what}")),
            Self::ImageWithoutSize => ["limits.disk", "disk-image"].contains(&key),
            Self::ImageOfPrivate => key == "disk-image",
            Self::InitOfSystem | Self::NoInit => key == "init",
            Self::HealthWithoutCommand => key == "health.command",
            Self::TooLittleMemory { .. } => key == "limits.memory",
            Self::VolumeTwice(_) | Self::VolumeTarget(_) => key == "volume",
            Self::CapabilityBoth(_) => ["cap.add", "cap.drop"].contains(&key),
        }
    }

    /// Whether it is one for containers of one kind only.
    #[must_use]
    pub fn hangs_on_kind(&self) -> bool {
        matches!(
            self,
            Self::NoCommand | Self::HostUsers | Self::NestingApplication | Self::InitOfSystem
        )
    }
}

/// The runtime itself runs in the container's memory for a moment.
const LEAST_MEMORY: u64 = 6 << 20;

pub(super) fn check(config: &ContainerConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    if config.kind == Kind::Application && config.command.is_empty() {
        problems.push(Problem::NoCommand);
    }
    if config.nesting && config.kind == Kind::Application {
        problems.push(Problem::NestingApplication);
    }
    match (config.privileged, config.userns) {
        (false, UserNamespace::Host) if config.kind == Kind::System => {
            problems.push(Problem::HostUsers);
        }
        (true, UserNamespace::Range(range)) => {
            let range = format!("{}:{}", range.first(), range.count());
            problems.push(Problem::PrivilegedRange(range));
        }
        (true | false, _) => {}
    }
    network(config, &mut problems);
    resources(config, &mut problems);
    if config.disk_image && config.limits.disk_bytes.is_none() {
        problems.push(Problem::ImageWithoutSize);
    }
    if config.disk_image && config.private.is_some() {
        problems.push(Problem::ImageOfPrivate);
    }
    if config.init && config.kind == Kind::System {
        problems.push(Problem::InitOfSystem);
    }
    if config.init && !crate::container::init::is_there() {
        problems.push(Problem::NoInit);
    }
    if config.health.as_ref().is_some_and(|health| health.command.is_empty()) {
        problems.push(Problem::HealthWithoutCommand);
    }
    let mut targets = BTreeSet::new();
    for volume in &config.volumes {
        let target = volume.target.display().to_string();
        if ["/", "/proc", "/sys", "/dev"].contains(&target.as_str()) {
            problems.push(Problem::VolumeTarget(target));
        } else if !targets.insert(&volume.target) {
            problems.push(Problem::VolumeTwice(target));
        }
    }
    for name in &config.capabilities_added {
        if config.capabilities_dropped.contains(name) {
            problems.push(Problem::CapabilityBoth(name.clone()));
        }
    }
    problems
}

fn network(config: &ContainerConfig, problems: &mut Vec<Problem>) {
    let network = &config.network;
    if network.mode != NetworkMode::Bridge {
        let mode = network.mode.text();
        let addresses = network.addresses.iter();
        problems.extend(
            addresses.map(|address| Problem::AddressWithoutNetwork {
                mode,
                address: address.to_string(),
            }),
        );
        let ports = network.ports.iter();
        problems
            .extend(ports.map(|port| Problem::PortWithoutNetwork { mode, port: port.to_string() }));
    }
    for (at, port) in network.ports.iter().enumerate() {
        if network.ports.iter().take(at).any(|other| other.collides(port)) {
            problems.push(Problem::PortTwice(port.host.to_string()));
        }
    }
}

fn resources(config: &ContainerConfig, problems: &mut Vec<Problem>) {
    let (limits, guarantees, alerts) = (&config.limits, &config.guarantees, &config.alerts);
    if let Some(memory) = limits.memory_bytes {
        if memory < LEAST_MEMORY {
            let (given, least) = (super::bytes(memory), super::bytes(LEAST_MEMORY));
            problems.push(Problem::TooLittleMemory { given, least });
        }
        if guarantees.memory_bytes.is_some_and(|guarantee| guarantee > memory) {
            problems.push(Problem::GuaranteeOverLimit { what: "memory" });
        }
    }
    if let (Some(super::CpuLimit::Quota(quota)), Some(guarantee)) = (&limits.cpu, guarantees.cpu)
        && guarantee > *quota
    {
        problems.push(Problem::GuaranteeOverLimit { what: "cpu" });
    }
    let pairs = [
        ("memory", alerts.memory, limits.memory_bytes.is_some()),
        ("disk", alerts.disk, limits.disk_bytes.is_some()),
        ("pids", alerts.pids, limits.pids.is_some()),
        ("cpu", alerts.cpu, limits.cpu.is_some()),
    ];
    for (what, alert, limit) in pairs {
        if alert.is_some() && !limit {
            problems.push(Problem::AlertWithoutLimit { what });
        }
    }
}
