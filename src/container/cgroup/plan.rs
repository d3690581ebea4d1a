//! From limits to what is written where: pure, so that every layout is tested on any host.

use std::collections::BTreeMap;

use super::disk::Disk;
use super::layout::{Controller, Layout, Version};
use super::limits::{IoLimit, Limits};

/// The period of a processor quota: the kernel's own default.
const PERIOD_US: u64 = 100_000;

/// A limit that this host holds in part, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// The key as people write it: `limits.io`.
    pub key: &'static str,
    /// How much of it holds.
    pub holds: Holds,
    /// What is missing, and what would help.
    pub why: String,
}

/// How much of a limit holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Some of it.
    InPart,
    /// Nothing.
    NotAtAll,
}

/// Which groups of a container a value is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The outer one, out of the container's reach.
    Outer,
    /// The outer one and the one that the container sees as its root.
    Both,
    /// Every group there is beneath, the container's own too.
    All,
}

/// What shall stand in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// This text.
    Text(String),
    /// These processors; all that the parent has, for none.
    Processors(Option<super::limits::CpuSet>),
    /// These speeds for this disk, and none for any other.
    Disks(BTreeMap<Disk, Speeds>),
}

/// What one per-disk file says of a disk: a v1 file has one number, each way of v2 has two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Speeds {
    pub(super) bytes: Option<u64>,
    pub(super) requests: Option<u64>,
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) controller: Controller,
    pub(super) version: Version,
    pub(super) file: &'static str,
    pub(super) scope: Scope,
    pub(super) value: Value,
    /// The key to name when the host has no such file; none where nobody asked for a limit.
    pub(super) key: Option<&'static str>,
}

/// What to write in this order, and what will not hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) writes: Vec<Write>,
    pub(super) shortfalls: Vec<Shortfall>,
}

impl Plan {
    /// Plans for `limits`; `current_memsw` is what a v1 hierarchy limits memory and swap to now.
    pub(super) fn new(layout: &Layout, limits: &Limits, current_memsw: Option<u64>) -> Self {
        let mut plan = Self::default();
        plan.cpu(layout, limits);
        plan.memory(layout, limits, current_memsw);
        plan.pids(layout, limits);
        plan.io(layout, limits);
        plan
    }

    /// The interface that `controller` has here; without one, `key` does not hold if it was asked.
    fn version(
        &mut self,
        layout: &Layout,
        controller: Controller,
        keys: &[(&'static str, bool)],
    ) -> Option<Version> {
        let found = layout.with(controller).map(|hierarchy| hierarchy.version);
        if found.is_none() {
            for (key, _) in keys.iter().filter(|(_, asked)| *asked) {
                self.missing(key, controller);
            }
        }
        found
    }

    fn missing(&mut self, key: &'static str, controller: Controller) {
        let v1 = if controller == Controller::Io { "blkio" } else { controller.v2_name() };
        self.shortfalls.push(Shortfall {
            key,
            holds: Holds::NotAtAll,
            why: format!(
                "this host has no {v1} controller among its cgroups; boot without cgroup_disable={v1}"
            ),
        });
    }

    fn cpu(&mut self, layout: &Layout, limits: &Limits) {
        let quota = limits.cpu_quota;
        let weighed = limits.cpu_weight != super::limits::Weight::default();
        let keys = [("limits.cpu", quota.is_some()), ("limits.cpu.weight", weighed)];
        let quota_us = quota.map(|quota| u64::from(quota.thousandths()) * PERIOD_US / 1000);
        if let Some(version) = self.version(layout, Controller::Cpu, &keys) {
            let key = quota.map(|_| "limits.cpu");
            let mut write = |file, value, key| {
                self.writes.push(Write {
                    controller: Controller::Cpu,
                    version,
                    file,
                    scope: Scope::Outer,
                    value: Value::Text(value),
                    key,
                });
            };
            let weight_key = weighed.then_some("limits.cpu.weight");
            match version {
                Version::V1 => {
                    write("cpu.cfs_period_us", PERIOD_US.to_string(), key);
                    let quota = quota_us.map_or_else(|| "-1".to_owned(), |us| us.to_string());
                    write("cpu.cfs_quota_us", quota, key);
                    write("cpu.shares", limits.cpu_weight.shares().to_string(), weight_key);
                }
                Version::V2 => {
                    let quota = quota_us.map_or_else(|| "max".to_owned(), |us| us.to_string());
                    write("cpu.max", format!("{quota} {PERIOD_US}"), key);
                    write("cpu.weight", limits.cpu_weight.get().to_string(), weight_key);
                }
            }
        }
        let keys = [("limits.cpu", limits.cpu_set.is_some())];
        if let Some(version) = self.version(layout, Controller::Cpuset, &keys) {
            self.writes.push(Write {
                controller: Controller::Cpuset,
                version,
                file: "cpuset.cpus",
                scope: match version {
                    // A v1 group must not have a processor that its parent lacks.
                    Version::V1 => Scope::All,
                    Version::V2 => Scope::Outer,
                },
                value: Value::Processors(limits.cpu_set.clone()),
                key: limits.cpu_set.as_ref().map(|_| "limits.cpu"),
            });
        }
    }

    fn memory(&mut self, layout: &Layout, limits: &Limits, current_memsw: Option<u64>) {
        let keys = [
            ("limits.memory", limits.memory_bytes.is_some()),
            ("limits.memory.swap", limits.swap_bytes.is_some()),
            ("guarantee.memory", limits.memory_guarantee_bytes.is_some()),
        ];
        let Some(version) = self.version(layout, Controller::Memory, &keys) else { return };
        let write = |file, scope, value: Option<u64>, unlimited: &str, key| Write {
            controller: Controller::Memory,
            version,
            file,
            scope,
            value: Value::Text(
                value.map_or_else(|| unlimited.to_owned(), |value| value.to_string()),
            ),
            key,
        };
        let key = limits.memory_bytes.map(|_| "limits.memory");
        let swap_key = limits.swap_bytes.map(|_| "limits.memory.swap");
        let guarantee_key = limits.memory_guarantee_bytes.map(|_| "guarantee.memory");
        let memory = limits.memory_bytes;
        match version {
            Version::V1 => {
                let both = match (memory, limits.swap_bytes) {
                    (Some(memory), Some(swap)) => Some(memory.saturating_add(swap)),
                    (None, Some(_)) => {
                        self.shortfalls.push(Shortfall {
                            key: "limits.memory.swap",
                            holds: Holds::NotAtAll,
                            why: "cgroup v1 limits swap together with memory only; set limits.memory too"
                                .to_owned(),
                        });
                        None
                    }
                    (_, None) => None,
                };
                let memory = write("memory.limit_in_bytes", Scope::Outer, memory, "-1", key);
                let both = write("memory.memsw.limit_in_bytes", Scope::Outer, both, "-1", swap_key);
                // The kernel keeps memory ≤ memory and swap at every moment.
                let grows = match (&both.value, current_memsw) {
                    (Value::Text(wanted), Some(current)) => {
                        wanted.parse::<u64>().map_or(true, |wanted| wanted >= current)
                    }
                    _ => true,
                };
                self.writes.extend(if grows { [both, memory] } else { [memory, both] });
                let guarantee = limits.memory_guarantee_bytes;
                self.writes.push(write(
                    "memory.soft_limit_in_bytes",
                    Scope::Outer,
                    guarantee,
                    "-1",
                    guarantee_key,
                ));
                if guarantee.is_some() {
                    self.shortfalls.push(Shortfall {
                        key: "guarantee.memory",
                        holds: Holds::InPart,
                        why: "cgroup v1 has a soft limit only: when memory runs short, what a container \
                              has above it is taken first; cgroup v2 guarantees it"
                            .to_owned(),
                    });
                }
            }
            Version::V2 => self.writes.extend([
                write("memory.max", Scope::Outer, memory, "max", key),
                write("memory.swap.max", Scope::Outer, limits.swap_bytes, "max", swap_key),
                // Protection reaches no further down than it is written.
                write(
                    "memory.min",
                    Scope::Both,
                    Some(limits.memory_guarantee_bytes.unwrap_or(0)),
                    "0",
                    guarantee_key,
                ),
            ]),
        }
    }

    fn pids(&mut self, layout: &Layout, limits: &Limits) {
        let keys = [("limits.processes", limits.pids.is_some())];
        let Some(version) = self.version(layout, Controller::Pids, &keys) else { return };
        self.writes.push(Write {
            controller: Controller::Pids,
            version,
            file: "pids.max",
            scope: Scope::Outer,
            value: Value::Text(
                limits.pids.map_or_else(|| "max".to_owned(), |most| most.to_string()),
            ),
            key: limits.pids.map(|_| "limits.processes"),
        });
    }

    fn io(&mut self, layout: &Layout, limits: &Limits) {
        let keys = [("limits.io", limits.io.is_some())];
        let Some(version) = self.version(layout, Controller::Io, &keys) else { return };
        let key = limits.io.map(|_| "limits.io");
        let mut write = |file, scope, bytes: bool, requests: bool| {
            let speeds = |io: &IoLimit| Speeds {
                bytes: io.bytes_per_s.filter(|_| bytes),
                requests: io.requests_per_s.filter(|_| requests),
            };
            let wanted = limits.io.iter().map(|io| (io.disk, speeds(io)));
            let wanted = wanted.filter(|(_, speeds)| *speeds != Speeds::default()).collect();
            let value = Value::Disks(wanted);
            self.writes.push(Write {
                controller: Controller::Io,
                version,
                file,
                scope,
                value,
                key,
            });
        };
        match version {
            // v1 throttles each group by itself, whatever its parent may use.
            Version::V1 => {
                write("blkio.throttle.read_bps_device", Scope::All, true, false);
                write("blkio.throttle.write_bps_device", Scope::All, true, false);
                write("blkio.throttle.read_iops_device", Scope::All, false, true);
                write("blkio.throttle.write_iops_device", Scope::All, false, true);
            }
            Version::V2 => write("io.max", Scope::Outer, true, true),
        }
        if version == Version::V1 && key.is_some() {
            let (holds, why) = if limits.nesting {
                let why = "with nesting=yes it makes groups of its own, and cgroup v1 holds each to its \
                           own limit only; cgroup v2 holds all beneath";
                (Holds::NotAtAll, why)
            } else {
                let why = "cgroup v1 holds reads and direct writes; buffered writes are written back by the \
                           kernel, which nobody is billed for; cgroup v2 holds them too";
                (Holds::InPart, why)
            };
            self.shortfalls.push(Shortfall { key: "limits.io", holds, why: why.to_owned() });
        }
    }
}

/// The lines that turn the per-disk file that reads `current` into `wanted`.
pub(super) fn disk_lines(
    version: Version,
    current: &str,
    wanted: &BTreeMap<Disk, Speeds>,
) -> Vec<String> {
    let line = |disk: &Disk, speeds: Speeds| {
        let Disk { major, minor } = disk;
        match version {
            // The file is for one of both; 0 takes the limit off.
            Version::V1 => {
                format!("{major}:{minor} {}", speeds.bytes.or(speeds.requests).unwrap_or(0))
            }
            Version::V2 => {
                let text = |speed: Option<u64>| {
                    speed.map_or_else(|| "max".to_owned(), |speed| speed.to_string())
                };
                let (bytes, requests) = (text(speeds.bytes), text(speeds.requests));
                format!(
                    "{major}:{minor} rbps={bytes} wbps={bytes} riops={requests} wiops={requests}"
                )
            }
        }
    };
    let cleared = current_disks(current).into_keys().filter(|disk| !wanted.contains_key(disk));
    let cleared: Vec<String> = cleared.map(|disk| line(&disk, Speeds::default())).collect();
    cleared.into_iter().chain(wanted.iter().map(|(disk, speeds)| line(disk, *speeds))).collect()
}

/// The disks that a per-disk file limits, and how fast they may be read.
pub(super) fn current_disks(content: &str) -> BTreeMap<Disk, Speeds> {
    let entry = |line: &str| {
        let (numbers, rest) = line.split_once(' ')?;
        let (major, minor) = numbers.split_once(':')?;
        let disk = Disk { major: major.parse().ok()?, minor: minor.parse().ok()? };
        let word =
            |prefix: &str| rest.split(' ').find_map(|word| word.strip_prefix(prefix)?.parse().ok());
        // A v1 file has the bare number.
        let bytes = word("rbps=").or_else(|| rest.trim().parse().ok());
        let speeds = Speeds { bytes, requests: word("riops=") };
        (speeds != Speeds::default()).then_some((disk, speeds))
    };
    content.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests;
