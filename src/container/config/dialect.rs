//! Values as other tools write them under names of their own, made those of our settings.
//!
//! A number means what its name says: pages under `physpages`, KiB under `diskspace`, a processor under
//! `cpuset-cpus`. What has no one meaning here is refused, with what to write instead.

use std::borrow::Cow;

use super::parse_bytes;
use super::units::{ValueError, error};

/// Names under which a value means something else than under the setting's own.
pub const OWN_UNITS: [&str; 13] = [
    "physpages",
    "swappages",
    "vmguarpages",
    "oomguarpages",
    "diskspace",
    "iolimit",
    "iopslimit",
    "rate",
    "cpuunits",
    "cpu-shares",
    "ioprio",
    "cpumask",
    "cpuset-cpus",
];

/// What vzctl's configurations have for "no limit".
const UNLIMITED: [&str; 4] =
    ["unlimited", "9223372036854775807", "2147483647", "18446744073709551615"];

/// What `value`, given under `name` to the setting `key`, is under the setting's own name.
pub(super) fn plain<'a>(key: &str, name: &str, value: &'a str) -> Result<Cow<'a, str>, ValueError> {
    match (key, name) {
        (
            "limits.memory" | "limits.swap" | "limits.disk" | "limits.pids" | "guarantee.memory",
            _,
        ) => limit(key, name, value),
        ("limits.cpu.percent", _) | (_, "iolimit" | "iopslimit" | "rate")
            if none(value) || value == "0" =>
        {
            Ok("".into())
        }
        (_, "iolimit") if whole(value) => Ok(format!("{value}MiB/s").into()),
        (_, "rate") => rate(value),
        (_, "cpuunits") => beside(value, 1000, 8..=500_000),
        (_, "cpu-shares") => beside(value, 1024, 2..=262_144),
        (_, "ioprio") if whole(value) => match value {
            "0" | "1" | "2" | "3" => Ok("low".into()),
            "4" => Ok("normal".into()),
            "5" | "6" | "7" => Ok("high".into()),
            _ => Err(error(value, "low, normal or high, or vzctl's 0 to 7 with 4 in the middle")),
        },
        (_, "cpumask") if value == "all" => Ok("".into()),
        (_, "cpumask" | "cpuset-cpus") if whole(value) => Ok(format!("{value}-{value}").into()),
        ("cap.add", _) => each(value, capability),
        ("device", _) => each(value, device),
        _ => Ok(value.into()),
    }
}

fn none(value: &str) -> bool {
    UNLIMITED.contains(&value)
}

fn whole(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit())
}

/// `BARRIER:LIMIT` as vzctl has it: a limit is the second, what is guaranteed the first.
fn limit<'a>(key: &str, name: &str, value: &'a str) -> Result<Cow<'a, str>, ValueError> {
    const BOTH: &str = "a limit, or vzctl's BARRIER:LIMIT with the larger one second";
    let guarantee = key == "guarantee.memory";
    let one = match value.split_once(':') {
        None => value,
        Some((barrier, limit)) => {
            let size = |half| if none(half) { Ok(u64::MAX) } else { parse_bytes(half) };
            let (low, high) = (size(barrier), size(limit));
            let (Ok(low), Ok(high)) = (low, high) else { return Err(error(value, BOTH)) };
            if low > high {
                return Err(error(value, BOTH));
            }
            if guarantee { barrier } else { limit }
        }
    };
    if none(one) && !guarantee {
        return Ok("".into());
    }
    let pages = one.strip_suffix(['p', 'P']).filter(|pages| whole(pages));
    let unit = match name {
        "physpages" | "swappages" | "vmguarpages" | "oomguarpages" if whole(one) => 4,
        "diskspace" if whole(one) => 1,
        _ if pages.is_some() && key != "limits.pids" => 4,
        _ => return Ok(one.into()),
    };
    let number = pages.unwrap_or(one);
    let kibibytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    kibibytes.map(|kibibytes| format!("{kibibytes}KiB").into()).ok_or_else(|| error(value, BOTH))
}

/// `INTERFACE:CLASS:KBITS` as vzctl has it.
fn rate(value: &str) -> Result<Cow<'_, str>, ValueError> {
    match value.split(':').collect::<Vec<_>>().as_slice() {
        [_interface, "1", kilobits] if whole(kilobits) => Ok(format!("{kilobits}kbit").into()),
        [plain] => Ok((*plain).into()),
        _ => Err(error(value, "a rate, such as 50Mbit, or vzctl's INTERFACE:1:KBITS")),
    }
}

/// Weights beside others, `middle` for everybody: the nearest of ours, which are 1 : 4 : 16.
fn beside(
    value: &str,
    middle: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Cow<'_, str>, ValueError> {
    if !whole(value) {
        return Ok(value.into());
    }
    let wanted = "low, normal or high, or cpuunits (1000 for everybody), or cpu-shares (1024)";
    let weight = value.parse().ok().filter(|weight| range.contains(weight));
    match weight.ok_or_else(|| error(value, wanted))? {
        weight if weight < middle / 2 => Ok("low".into()),
        weight if weight > middle * 2 => Ok("high".into()),
        _ => Ok("normal".into()),
    }
}

fn each<'a>(
    value: &'a str,
    one: impl Fn(&str) -> Result<Cow<'_, str>, ValueError>,
) -> Result<Cow<'a, str>, ValueError> {
    let words: Result<Vec<String>, ValueError> =
        value.split(',').map(|word| one(word.trim()).map(Cow::into_owned)).collect();
    Ok(words?.join(",").into())
}

/// `NAME:on`.
fn capability(word: &str) -> Result<Cow<'_, str>, ValueError> {
    match word.split_once(':') {
        None => Ok(word.into()),
        Some((name, "on")) => Ok(name.into()),
        Some(_) => {
            Err(error(word, "a capability, such as NET_RAW; to take one away write cap.drop=NAME"))
        }
    }
}

/// `NAME:rw`, beneath `/dev`.
fn device(word: &str) -> Result<Cow<'_, str>, ValueError> {
    match word.split_once(':') {
        Some((name, "rw")) if !name.starts_with('/') => Ok(format!("/dev/{name}").into()),
        Some((path, "rw")) => Ok(path.into()),
        Some((_, "r" | "w" | "q" | "none")) => {
            Err(error(word, "a device that can be read and written, such as /dev/fuse"))
        }
        Some(_) | None => Ok(word.into()),
    }
}

#[cfg(test)]
mod tests {
    use crate::container::config::{ContainerConfig, ContainerId, Kind, key};

    #[test]
    fn values_are_what_their_names_say_in_the_tools_that_have_them() {
        for (name, value, meant) in [
            ("limits.disk", "1G:1.5G", "1536MiB"),
            ("diskspace", "1048576:1153434", "1153434KiB"),
            ("diskspace", "2G", "2GiB"),
            ("physpages", "65536:65536", "256MiB"),
            ("physpages", "0:unlimited", ""),
            ("physpages", "0:9223372036854775807", ""),
            ("physpages", "0:64M", "64MiB"),
            ("swappages", "0:512M", "512MiB"),
            ("ram", "65536P", "256MiB"),
            ("vmguarpages", "33792:9223372036854775807", "132MiB"),
            ("numproc", "240:240", "240"),
            ("cpuunits", "1000", ""),
            ("cpuunits", "250", "low"),
            ("cpuunits", "4000", "high"),
            ("cpu-shares", "1024", ""),
            ("ioprio", "7", "high"),
            ("cpumask", "3", "3-3"),
            ("cpumask", "0-1", "0-1"),
            ("cpuset-cpus", "0", "0-0"),
            ("cpumask", "all", ""),
            ("cpus", "2", "2"),
            ("iolimit", "10", "10MiB/s"),
            ("iolimit", "0", ""),
            ("iopslimit", "0", ""),
            ("rate", "eth0:1:2048", "2048kbit"),
            ("capability", "net_admin:on,sys_time:on", "NET_ADMIN,SYS_TIME"),
            ("devnodes", "net/tun:rw", "/dev/net/tun"),
        ] {
            let mut config = config();
            config.set(name, value).unwrap_or_else(|error| panic!("{name}={value}: {error}"));
            let kept = config.get(name).expect("a key").unwrap_or_default();
            let default =
                if meant.is_empty() { self::config().get(name).expect("a key") } else { None };
            assert_eq!(kept, default.unwrap_or_else(|| meant.to_owned()), "{name}={value}");
            assert!(key(name).is_some());
        }
        let mut config = config();
        config.set("cpulimit", "50").expect("half a processor");
        config.set("cpulimit", "0").expect("none");
        assert_eq!(config.limits.cpu, None);
    }

    #[test]
    fn what_has_no_one_meaning_is_refused() {
        for (name, value) in [
            ("limits.disk", "2G:1G"),
            ("limits.disk", "1G:"),
            ("limits.disk", "a:1G"),
            ("diskspace", "99999999999999999999"),
            ("cpuunits", "7"),
            ("ioprio", "8"),
            ("rate", "eth0:2:2048"),
            ("capability", "net_admin:off"),
            ("devnodes", "fuse:none"),
            ("blkio-weight", "500"),
            ("vmguarpages", "unlimited"),
        ] {
            config().set(name, value).expect_err(value);
        }
    }

    fn config() -> ContainerConfig {
        let id = ContainerId::random().expect("random numbers");
        ContainerConfig::new(id, "web1".parse().expect("a name"), "debian:12", Kind::System)
    }
}
