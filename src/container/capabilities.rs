//! What root in a container may do beside owning its files.

use super::config::{ContainerConfig, Kind, UserNamespace};

/// capabilities(7), in the order of their numbers.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What docker and podman leave to a container by default.
const APPLICATION: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What even a whole machine in a user namespace of its own does without: these would act on
/// the host, if the kernel ever honoured them there (as LXC drops them, but for the time and boot:
/// both are refused by the kernel or kept to the container).
const NEVER: [&str; 7] = [
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_TIME",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
];

/// Whether a name, without `CAP_`, is one of capabilities(7).
#[must_use]
pub fn is_capability(name: &str) -> bool {
    ALL.contains(&name)
}

/// The capabilities of a container's init, in the order of their numbers, without `CAP_`.
///
/// `held` is what this process itself may do: with the host's user namespace nobody can hand on more.
#[must_use]
pub fn of(config: &ContainerConfig, held: u64) -> Vec<&'static str> {
    let of_host = config.userns == UserNamespace::Host;
    let base = |name: &str| match (config.privileged, config.kind) {
        (true, _) => true,
        (false, Kind::System) if !of_host => !NEVER.contains(&name),
        (false, Kind::System | Kind::Application) => APPLICATION.contains(&name),
    };
    let named = |list: &[String], name: &str| list.iter().any(|other| other == name);
    let wanted = ALL.iter().enumerate().filter(|(number, name)| {
        let wanted = (base(name) || named(&config.capabilities_added, name))
            && !named(&config.capabilities_dropped, name);
        wanted && (!of_host || held >> number & 1 == 1)
    });
    wanted.map(|(_, name)| *name).collect()
}

/// The bit of a capability by its full name, such as `CAP_CHOWN`.
pub(super) fn bit(name: &str) -> Option<u64> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    ALL.iter().position(|other| *other == name).map(|number| 1 << number)
}
