//! The table of settings: one row each, under every name that hands know.
//!
//! A row is one setting, so this file is as long as there are settings.

use super::units::{
    bit_rate, byte_rate, error, parse_bit_rate, parse_byte_rate, parse_flag, parse_number,
    parse_percent,
};
use super::values::{
    flag, items, parse_absolute, parse_capability, parse_hostname, parse_network, parse_priority,
    parse_reshare, parse_restart, parse_runtime, parse_share, parse_signal, parse_userns,
    parse_volume, path, percent, positive, reshare, restart, runtime, signal_text, size,
    text_value, unwords, userns, volume, words,
};
use super::{
    Address, ContainerConfig, CpuLimit, HealthCheck, NetworkMode, Port, Priority, ValueError,
    bytes, duration_text, parse_bytes, parse_duration,
};

type Setter = fn(&mut ContainerConfig, &str) -> Result<(), ValueError>;
type Shower = fn(&ContainerConfig) -> Option<String>;

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// What Mica calls it.
    pub name: &'static str,
    /// Every other name, as vzctl, Incus, docker and podman have it; no leading dashes.
    pub aliases: &'static [&'static str],
    /// What it means, and an example.
    pub help: &'static str,
    /// Whether a running container follows at once; otherwise at its next start.
    pub live: bool,
    /// Whether giving it twice adds to what was given, as with `--ip`.
    pub repeats: bool,
    set: Setter,
    show: Shower,
}

/// Why a setting was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing is called so.
    #[error("there is no setting \"{name}\"{}", nearest.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default())]
    Unknown {
        /// What was given.
        name: String,
        /// The name that is most like it.
        nearest: Option<&'static str>,
    },
    /// The value is none.
    #[error("{key}: {source}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Why.
        source: ValueError,
    },
    /// `environment.` and `label.` need a name behind the dot.
    #[error("{key}: \"{name}\" is no name")]
    Name {
        /// The setting.
        key: &'static str,
        /// What was given.
        name: String,
    },
}

impl KeyError {
    /// The setting that was meant, as far as one was.
    #[must_use]
    pub fn key(&self) -> Option<&'static str> {
        match self {
            Self::Unknown { nearest, .. } => *nearest,
            Self::Value { key, .. } | Self::Name { key, .. } => Some(key),
        }
    }
}

/// Sets an option from a text; an empty one takes it back.
macro_rules! option {
    ($place:ident $(. $more:ident)*, $parse:expr, $show:expr) => {
        (
            (|config, text| {
                config.$place $(. $more)* = if text.is_empty() { None } else { Some($parse(text)?) };
                Ok(())
            }) as Setter,
            (|config| config.$place $(. $more)*.as_ref().map($show)) as Shower,
        )
    };
}

/// Sets a plain value from a text; an empty one makes it the default.
macro_rules! plain {
    ($place:ident $(. $more:ident)*, $parse:expr, $show:expr) => {
        (
            (|config, text| {
                config.$place $(. $more)* = if text.is_empty() { Default::default() } else { $parse(text)? };
                Ok(())
            }) as Setter,
            (|config| {
                let shown: String = $show(&config.$place $(. $more)*);
                Some(shown).filter(|shown| !shown.is_empty())
            }) as Shower,
        )
    };
}

/// Sets a list from words between commas; empty clears it.
macro_rules! list {
    ($place:ident $(. $more:ident)*, $parse:expr) => {
        (
            (|config, text| {
                config.$place $(. $more)* = items(text, $parse)?;
                Ok(())
            }) as Setter,
            (|config| {
                let items = config.$place $(. $more)*.iter().map(ToString::to_string);
                let text = items.collect::<Vec<_>>().join(",");
                Some(text).filter(|text| !text.is_empty())
            }) as Shower,
        )
    };
}

/// Sets one detail of the health check.
macro_rules! health {
    ($place:ident, $parse:expr, $show:expr) => {
        (
            (|config, text| {
                let value = match text {
                    "" => HealthCheck::default().$place,
                    text => $parse(text)?,
                };
                config.health.get_or_insert_with(HealthCheck::default).$place = value;
                Ok(())
            }) as Setter,
            (|config| config.health.as_ref().map(|health| $show(health.$place))) as Shower,
        )
    };
}

macro_rules! key {
    ($name:literal, $aliases:expr, $live:literal, $repeats:literal, $help:literal, $do:expr) => {
        Key {
            name: $name,
            aliases: &$aliases,
            help: $help,
            live: $live,
            repeats: $repeats,
            set: $do.0,
            show: $do.1,
        }
    };
}

/// Every setting but `environment.NAME` and `label.NAME`.
pub const KEYS: &[Key] = &[
    key!(
        "limits.memory",
        ["memory", "ram", "m", "physpages"],
        true,
        false,
        "memory, page cache included: 512MiB",
        option!(limits.memory_bytes, size, |v| bytes(*v))
    ),
    key!(
        "limits.swap",
        ["limits.memory.swap", "swap", "memory-swap", "swappages"],
        true,
        false,
        "swap space beside the memory: 1GiB",
        option!(limits.swap_bytes, parse_bytes, |v| bytes(*v))
    ),
    key!(
        "limits.cpu",
        ["cpus", "limits.cpu.allowance", "cpuset-cpus", "cpumask"],
        true,
        false,
        "processor time (1.5, or 150%), or which processors (0-3)",
        option!(limits.cpu, CpuLimit::parse, CpuLimit::text)
    ),
    key!(
        "limits.cpu.percent",
        ["cpulimit"],
        true,
        false,
        "processor time in percent, as vzctl has it: 150",
        (
            (|config, text| {
                config.limits.cpu = match text.trim_end_matches('%') {
                    "" => None,
                    percent => Some(CpuLimit::parse(&format!("{percent}%"))?),
                };
                Ok(())
            }) as Setter,
            (|_| None) as Shower
        )
    ),
    key!(
        "limits.pids",
        ["limits.processes", "pids-limit", "numproc"],
        true,
        false,
        "processes and threads: 512",
        option!(limits.pids, |text| positive(text, "a number of processes"), u64::to_string)
    ),
    key!(
        "limits.io",
        ["iolimit", "device-read-bps", "device-write-bps", "limits.read", "limits.write"],
        true,
        false,
        "disk traffic, reads and writes each: 20MB/s",
        option!(limits.io_bytes_per_s, parse_byte_rate, |v| byte_rate(*v))
    ),
    key!(
        "limits.iops",
        ["iopslimit", "device-read-iops", "device-write-iops"],
        true,
        false,
        "disk requests in a second, reads and writes each: 500",
        option!(
            limits.io_requests_per_s,
            |text| positive(text, "a number of requests in a second"),
            u64::to_string
        )
    ),
    key!(
        "limits.network",
        ["rate", "limits.egress", "limits.ingress"],
        true,
        false,
        "network traffic, in and out each: 50Mbit",
        option!(limits.network_bits_per_s, parse_bit_rate, |v| bit_rate(*v))
    ),
    key!(
        "limits.disk",
        ["diskspace", "size", "storage-opt"],
        true,
        false,
        "bytes of its private files: 2GiB",
        option!(limits.disk_bytes, size, |v| bytes(*v))
    ),
    key!(
        "priority",
        ["limits.cpu.priority", "cpuunits", "cpu-shares", "ioprio", "blkio-weight"],
        true,
        false,
        "low, normal or high, where several want the same",
        plain!(priority, parse_priority, |v: &Priority| v.text().to_owned())
    ),
    key!(
        "guarantee.cpu",
        ["cpu-guarantee"],
        true,
        false,
        "processors' worth of time in any case: 0.5",
        option!(guarantees.cpu, parse_share, f64::to_string)
    ),
    key!(
        "guarantee.memory",
        ["memory-reservation", "vmguarpages", "oomguarpages", "memguarantee"],
        true,
        false,
        "memory in any case: 128MiB",
        option!(guarantees.memory_bytes, parse_bytes, |v| bytes(*v))
    ),
    key!(
        "alert.memory",
        [],
        true,
        false,
        "share of the memory limit that raises an event: 90%",
        option!(alerts.memory, parse_percent, percent)
    ),
    key!(
        "alert.disk",
        [],
        true,
        false,
        "share of the disk limit that raises an event: 90%",
        option!(alerts.disk, parse_percent, percent)
    ),
    key!(
        "alert.pids",
        [],
        true,
        false,
        "share of the limit of processes that raises an event: 90%",
        option!(alerts.pids, parse_percent, percent)
    ),
    key!(
        "alert.cpu",
        [],
        true,
        false,
        "share of the processor time that raises an event: 90%",
        option!(alerts.cpu, parse_percent, percent)
    ),
    key!(
        "hostname",
        ["h"],
        false,
        false,
        "what it calls itself; by default its name",
        option!(hostname, parse_hostname, Clone::clone)
    ),
    key!(
        "description",
        ["notes"],
        true,
        false,
        "a sentence for people",
        plain!(description, |text: &str| Ok::<_, ValueError>(text.to_owned()), Clone::clone)
    ),
    key!(
        "network",
        ["net", "network-mode"],
        false,
        false,
        "bridge, none or host",
        plain!(network.mode, parse_network, |v: &NetworkMode| v.text().to_owned())
    ),
    key!(
        "ip",
        ["ipadd", "ip6", "ipv4.address", "ipv6.address", "ip-address"],
        true,
        true,
        "its address, IPv4 or IPv6; may repeat: 10.88.0.11",
        list!(network.addresses, str::parse::<Address>)
    ),
    key!(
        "port",
        ["p", "publish", "ports"],
        true,
        true,
        "a port of the host that leads in; may repeat: 8080:80",
        list!(network.ports, str::parse::<Port>)
    ),
    key!(
        "nameserver",
        ["dns"],
        true,
        true,
        "who resolves names; may repeat: 9.9.9.9",
        list!(network.nameservers, |text: &str| text
            .parse::<std::net::IpAddr>()
            .map_err(|_| error(text, "an address")))
    ),
    key!(
        "searchdomain",
        ["dns-search"],
        true,
        true,
        "a domain that short names are looked up in; may repeat",
        list!(network.search, parse_hostname)
    ),
    key!(
        "restart",
        ["restart-policy"],
        true,
        false,
        "no, on-failure, on-failure:5 or always",
        plain!(restart, parse_restart, restart)
    ),
    key!(
        "autostart",
        ["onboot", "boot.autostart"],
        true,
        false,
        "whether it is started with the host: yes",
        plain!(autostart, parse_flag, flag)
    ),
    key!(
        "boot.priority",
        ["bootorder", "boot.autostart.priority", "boot.stop.priority"],
        true,
        false,
        "higher ones start earlier and stop later: 10",
        plain!(boot_priority, |text| parse_number(text, "a whole number"), |v: &i32| if *v == 0 {
            String::new()
        } else {
            v.to_string()
        })
    ),
    key!(
        "stop.signal",
        ["stop-signal"],
        true,
        false,
        "what asks the init to end: SIGRTMIN+3, TERM or 15",
        option!(stop_signal, parse_signal, |v| signal_text(*v))
    ),
    key!(
        "stop.timeout",
        ["stop-timeout", "boot.host-shutdown-timeout"],
        true,
        false,
        "how long it may take to stop before it is killed: 90s",
        option!(stop_timeout_s, parse_duration, |v| duration_text(*v))
    ),
    key!(
        "health.command",
        ["health-cmd"],
        true,
        false,
        "a command whose success means that it works: curl -f localhost",
        (
            (|config, text| {
                let command = words(text)?;
                if command.is_empty() {
                    config.health = None;
                } else {
                    config.health.get_or_insert_with(HealthCheck::default).command = command;
                }
                Ok(())
            }) as Setter,
            (|config| config
                .health
                .as_ref()
                .map(|health| unwords(&health.command))
                .filter(|c| !c.is_empty())) as Shower
        )
    ),
    key!(
        "health.interval",
        ["health-interval"],
        true,
        false,
        "time between two checks: 30s",
        health!(interval_s, parse_duration, duration_text)
    ),
    key!(
        "health.timeout",
        ["health-timeout"],
        true,
        false,
        "how long a check may take: 5s",
        health!(timeout_s, parse_duration, duration_text)
    ),
    key!(
        "health.retries",
        ["health-retries"],
        true,
        false,
        "failures in a row that mean unhealthy: 3",
        health!(retries, |text| parse_number::<u32>(text, "a number of tries"), |v: u32| v
            .to_string())
    ),
    key!(
        "health.grace",
        ["health-start-period"],
        true,
        false,
        "time after the start in which failures don't count: 10s",
        health!(grace_s, parse_duration, duration_text)
    ),
    key!(
        "user",
        ["u"],
        false,
        false,
        "whose command it is: USER, UID or UID:GID",
        option!(user, text_value, Clone::clone)
    ),
    key!(
        "workdir",
        ["w", "cwd"],
        false,
        false,
        "where the command starts: /srv",
        option!(workdir, parse_absolute, |v| path(v))
    ),
    key!(
        "command",
        ["entrypoint", "cmd"],
        false,
        false,
        "the init, with its arguments",
        plain!(command, words, |v: &Vec<String>| unwords(v))
    ),
    key!(
        "init",
        [],
        false,
        false,
        "whether an init of Mica's runs the command: it reaps what is left behind, and passes signals on: no",
        plain!(init, parse_flag, flag)
    ),
    key!(
        "terminal",
        ["tty", "t"],
        false,
        false,
        "whether the command has a terminal: yes",
        plain!(terminal, parse_flag, flag)
    ),
    key!(
        "interactive",
        ["i", "stdin-open"],
        false,
        false,
        "whether its standard input stays open: yes",
        plain!(interactive, parse_flag, flag)
    ),
    key!(
        "privileged",
        ["security.privileged"],
        false,
        false,
        "whether it may do what the host's root may: no",
        plain!(privileged, parse_flag, flag)
    ),
    key!(
        "nesting",
        ["security.nesting"],
        false,
        false,
        "whether docker or podman may run inside: no",
        plain!(nesting, parse_flag, flag)
    ),
    key!(
        "userns",
        ["security.idmap.base"],
        false,
        false,
        "which users of the host its users are: auto, FIRST:COUNT or host",
        plain!(userns, parse_userns, userns)
    ),
    key!(
        "cap.add",
        ["cap-add", "capability"],
        false,
        true,
        "a capability beside the default ones; may repeat: NET_RAW",
        list!(capabilities_added, parse_capability)
    ),
    key!(
        "cap.drop",
        ["cap-drop"],
        false,
        true,
        "a default capability it does without; may repeat: CHOWN",
        list!(capabilities_dropped, parse_capability)
    ),
    key!(
        "device",
        ["devices", "devnodes"],
        false,
        true,
        "a device of the host; may repeat: /dev/fuse",
        (
            (|config, text| {
                config.devices = items(text, parse_absolute)?;
                Ok(())
            }) as Setter,
            (|config| {
                let text =
                    config.devices.iter().map(|device| path(device)).collect::<Vec<_>>().join(",");
                Some(text).filter(|text| !text.is_empty())
            }) as Shower
        )
    ),
    key!(
        "volume",
        ["v", "volumes", "bind-mount"],
        false,
        true,
        "a directory of the host; may repeat: /srv/data:/data:ro",
        (
            (|config, text| {
                config.volumes = items(text, parse_volume)?;
                Ok(())
            }) as Setter,
            (|config| {
                let text = config.volumes.iter().map(volume).collect::<Vec<_>>().join(",");
                Some(text).filter(|text| !text.is_empty())
            }) as Shower
        )
    ),
    key!(
        "read-only",
        ["readonly"],
        false,
        false,
        "whether its root cannot be changed: no",
        plain!(read_only, parse_flag, flag)
    ),
    key!(
        "runtime",
        [],
        false,
        false,
        "embedded, or an OCI runtime: runc, crun or a path",
        plain!(runtime, parse_runtime, runtime)
    ),
    key!(
        "disk-image",
        [],
        false,
        false,
        "whether its private files are in an image of limits.disk bytes, from its creation on: no",
        plain!(disk_image, parse_flag, flag)
    ),
    key!(
        "reshare",
        [],
        true,
        false,
        "with whom what it changed may be shared again: off, templates or all",
        plain!(reshare, parse_reshare, reshare)
    ),
    key!(
        "log.size",
        ["max-size"],
        false,
        false,
        "bytes of output after which a new log is begun: 10MiB",
        (
            (|config, text| {
                config.logs.max_bytes = if text.is_empty() {
                    super::LogLimits::default().max_bytes
                } else {
                    size(text)?
                };
                Ok(())
            }) as Setter,
            (|config| Some(bytes(config.logs.max_bytes))) as Shower
        )
    ),
    key!(
        "log.files",
        ["max-file"],
        false,
        false,
        "logs that are kept: 3",
        (
            (|config, text| {
                let files = if text.is_empty() {
                    u64::from(super::LogLimits::default().files)
                } else {
                    positive(text, "a number of files")?
                };
                config.logs.files =
                    u32::try_from(files).map_err(|_| error(text, "a number of files"))?;
                Ok(())
            }) as Setter,
            (|config| Some(config.logs.files.to_string())) as Shower
        )
    ),
];

/// Every setting as a table for docs/CONTAINERS.md.
#[must_use]
pub fn table() -> String {
    let mut text =
        String::from("| setting | also called | when running | what |\n|---|---|---|---|\n");
    for key in KEYS.iter().chain([&ENVIRONMENT, &LABEL]) {
        let name = match key.name {
            "environment" => "environment.NAME",
            "label" => "label.NAME",
            name => name,
        };
        let aliases: Vec<String> = key.aliases.iter().map(|alias| format!("`{alias}`")).collect();
        let live = if key.live { "at once" } else { "next start" };
        text.push_str(&format!("| `{name}` | {} | {live} | {} |\n", aliases.join(" "), key.help));
    }
    text
}

const PREFIXES: &[(&str, &[&str])] =
    &[("environment", &["env", "e"]), ("label", &["user", "labels", "l"])];

/// A name as the table has it.
fn plain_name(name: &str) -> String {
    name.trim().trim_start_matches('-').to_ascii_lowercase().replace('_', "-")
}

/// The row that has this name, as the setting's own or one of its aliases.
#[must_use]
pub fn key(name: &str) -> Option<&'static Key> {
    let name = plain_name(name);
    let named = |key: &&Key| key.name == name || key.aliases.contains(&name.as_str());
    KEYS.iter().find(named)
}

/// `environment.NAME`, `env.NAME`, `label.NAME`, `user.NAME`: which of them, and the name as written.
fn prefixed(name: &str) -> Option<(&'static str, &str)> {
    let (prefix, rest) = name.trim().trim_start_matches('-').split_once('.')?;
    let (prefix, rest) = (prefix.to_ascii_lowercase(), rest);
    let found =
        PREFIXES.iter().find(|(own, others)| *own == prefix || others.contains(&&*prefix))?;
    Some((found.0, rest))
}

/// `--env NAME=VALUE` and `--label NAME=VALUE` come as one value.
fn paired(name: &str) -> Option<&'static str> {
    let name = plain_name(name);
    PREFIXES
        .iter()
        .find(|(own, others)| name != "user" && (*own == name || others.contains(&&*name)))
        .map(|found| found.0)
}

fn unknown(name: &str) -> KeyError {
    let plain = plain_name(name);
    let every = KEYS.iter().flat_map(|key| std::iter::once(&key.name).chain(key.aliases));
    let likeness = |candidate: &&&str| strsim::normalized_damerau_levenshtein(candidate, &plain);
    let best = every.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let nearest = best.filter(|best| likeness(best) > 0.6).copied();
    KeyError::Unknown { name: name.to_owned(), nearest }
}

/// Rows for what has no row of its own.
static ENVIRONMENT: Key = Key {
    name: "environment",
    aliases: &["env", "e"],
    help: "a variable of the environment: environment.LANG=C.UTF-8",
    live: false,
    repeats: true,
    set: |_, _| Ok(()),
    show: |_| None,
};
static LABEL: Key = Key {
    name: "label",
    aliases: &["user", "labels", "l"],
    help: "a word to find it by: label.tier=web",
    live: true,
    repeats: true,
    set: |_, _| Ok(()),
    show: |_| None,
};

pub(super) fn set(
    config: &mut ContainerConfig,
    name: &str,
    value: &str,
) -> Result<&'static Key, KeyError> {
    if let Some(key) = key(name) {
        let value = value.trim();
        let mut changed = config.clone();
        super::dialect::plain(key.name, &plain_name(name), value)
            .and_then(|value| (key.set)(&mut changed, &value))
            .map_err(|source| KeyError::Value { key: key.name, source })?;
        *config = changed;
        return Ok(key);
    }
    let (prefix, word, value) = match (prefixed(name), paired(name)) {
        (Some((prefix, word)), _) => (prefix, word, value),
        (None, Some(prefix)) => {
            let (word, value) = value.split_once('=').unwrap_or((value, ""));
            (prefix, word, value)
        }
        (None, None) => return Err(unknown(name)),
    };
    let (key, map) = match prefix {
        "environment" => (&ENVIRONMENT, &mut config.env),
        _ => (&LABEL, &mut config.labels),
    };
    if word.is_empty() || word.contains(['=', '\0']) || value.contains('\0') {
        return Err(KeyError::Name { key: key.name, name: word.to_owned() });
    }
    // A label needs no value to be one; a variable without one is taken back.
    if value.is_empty() && (prefix == "environment" || prefixed(name).is_some()) {
        map.remove(word);
    } else {
        map.insert(word.to_owned(), value.to_owned());
    }
    Ok(key)
}

pub(super) fn get(config: &ContainerConfig, name: &str) -> Result<Option<String>, KeyError> {
    if let Some(key) = key(name) {
        return Ok((key.show)(config));
    }
    match prefixed(name) {
        Some(("environment", word)) => Ok(config.env.get(word).cloned()),
        Some((_, word)) => Ok(config.labels.get(word).cloned()),
        None => Err(unknown(name)),
    }
}
