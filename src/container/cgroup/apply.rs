//! Writing a plan, and taking it back when a step of it is refused.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::error::CgroupError;
use super::layout::{Controller, Layout, Version};
use super::limits::{CpuSet, Limits, Weight};
use super::plan::{Holds, Plan, Scope, Shortfall, Speeds, Value, Write, current_disks, disk_lines};
use super::walk::{self, Order};
use super::{Cgroup, GroupPath, INSIDE, read, tree, usage};

/// How much of each period a group of v1 may use of the processors, and how long that is.
const QUOTA: &str = "cpu.cfs_quota_us";
const PERIOD: &str = "cpu.cfs_period_us";

/// Writes what `limits` mean here, whole or not at all.
pub(super) fn apply(group: &Cgroup, limits: &Limits) -> Result<Vec<Shortfall>, CgroupError> {
    if let Some(set) = &limits.cpu_set {
        check_processors(&group.layout, set)?;
    }
    // Of groups that an older version made, too.
    for hierarchy in group.layout.hierarchies() {
        tree::bound(hierarchy, &group.outer(hierarchy))?;
    }
    if let Some(wanted_bytes) = limits.memory_bytes {
        check_memory(group, wanted_bytes)?;
    }
    let memsw = match group.controlled(Controller::Memory) {
        Some((directory, Version::V1)) => read(&directory.join("memory.memsw.limit_in_bytes"))?,
        _ => None,
    };
    let memsw = memsw.and_then(|text| text.trim().parse().ok());
    let Plan { writes, mut shortfalls } = Plan::new(&group.layout, limits, memsw);
    let mut done = Undo::default();
    for write in &writes {
        match carry_out(group, write, &mut done) {
            Ok(Done::Written) => {}
            Ok(Done::NoSuchFile(file)) => shortfalls.extend(write.key.map(|key| Shortfall {
                key,
                holds: Holds::NotAtAll,
                why: format!("this kernel has no {}", file.display()),
            })),
            Err(error) => {
                done.take_back();
                return Err(error);
            }
        }
    }
    Ok(shortfalls)
}

pub(super) fn set_cpu_weight(
    layout: &Layout,
    path: &GroupPath,
    weight: Weight,
) -> Result<(), CgroupError> {
    let Some(hierarchy) = layout.with(Controller::Cpu) else { return Ok(()) };
    let directory = hierarchy.mountpoint.join(path.as_str());
    let (file, value) = match hierarchy.version {
        Version::V1 => (directory.join("cpu.shares"), weight.shares()),
        Version::V2 => (directory.join("cpu.weight"), u64::from(weight.get())),
    };
    fs::write(&file, value.to_string()).map_err(CgroupError::system("write", &file))
}

enum Done {
    Written,
    NoSuchFile(PathBuf),
}

/// What stood in the files that were written.
#[derive(Default)]
struct Undo(Vec<Written>);

enum Written {
    /// One file.
    File(PathBuf, Before),
    /// The file of this name in groups from the one at `top` down, which were written in this order.
    Files { top: PathBuf, name: &'static str, order: Order, before: HashMap<u64, Before> },
}

enum Before {
    Text(String),
    Disks(Version, BTreeMap<Disk, Speeds>),
}

impl Before {
    /// What is written into a file that reads `now`, to have it as it was.
    fn lines(&self, now: &str) -> Vec<String> {
        match self {
            Self::Text(text) => vec![text.clone()],
            Self::Disks(version, disks) => disk_lines(*version, now, disks),
        }
    }
}

impl Undo {
    /// Last written, first restored: memory and swap have an order to keep, and so have groups.
    fn take_back(self) {
        for written in self.0.into_iter().rev() {
            match written {
                Written::File(file, before) => {
                    let restored = fs::read_to_string(&file).and_then(|now| {
                        before.lines(&now).iter().try_for_each(|line| fs::write(&file, line))
                    });
                    if let Err(error) = restored {
                        tracing::warn!(file = %file.display(), %error, "a limit is not restored");
                    }
                }
                Written::Files { top, name, order, before } => {
                    let restored = walk::each(&top, order.reversed(), |group| {
                        let Some(before) = before.get(&group.number()?) else { return Ok(()) };
                        let Some(now) = group.read(name)? else { return Ok(()) };
                        before
                            .lines(&now)
                            .iter()
                            .try_for_each(|line| put_in(group, name, line, None))
                    });
                    if let Err(error) = restored {
                        tracing::warn!(%error, "a limit is not restored");
                    }
                }
            }
        }
    }
}

fn carry_out(group: &Cgroup, write: &Write, done: &mut Undo) -> Result<Done, CgroupError> {
    let Some((outer, _)) = group.controlled(write.controller) else { return Ok(Done::Written) };
    if !outer.join(write.file).exists() {
        return Ok(Done::NoSuchFile(outer.join(write.file)));
    }
    if let Value::Processors(set) = &write.value {
        return set_processors(&outer, write, set.as_ref(), done);
    }
    if write.version == Version::V1 && write.file == QUOTA {
        return lower_quota(group, &outer, write, done);
    }
    if write.scope == Scope::All {
        return everywhere(&outer, write, done);
    }
    let mut groups = vec![outer.clone()];
    groups.extend((write.scope == Scope::Both).then(|| outer.join(INSIDE)));
    for directory in groups {
        let file = directory.join(write.file);
        // Gone with its group, which a tenant may do at any time.
        let Some(now) = read(&file)? else { continue };
        let Some((before, lines)) = change(write, &now) else { continue };
        done.0.push(Written::File(file.clone(), before));
        lines.iter().try_for_each(|line| put(&file, line, write.key))?;
    }
    Ok(Done::Written)
}

/// No group of v1 may have a greater quota than the one above it, so one that a tenant set keeps ours
/// from going below: those that are greater are taken off first, and have what the container has.
fn lower_quota(
    group: &Cgroup,
    outer: &Path,
    write: &Write,
    done: &mut Undo,
) -> Result<Done, CgroupError> {
    let attempt = |done: &mut Undo| {
        let file = outer.join(QUOTA);
        let Some(now) = read(&file)? else { return Ok(()) };
        let Some((before, lines)) = change(write, &now) else { return Ok(()) };
        if let Some(quota) = lines.first().and_then(|line| line.parse::<i64>().ok())
            && quota >= 0
        {
            let period = quota_of(read(&outer.join(PERIOD))?);
            take_off_greater(outer, (quota, period), write, done)?;
        }
        done.0.push(Written::File(file.clone(), before));
        lines.iter().try_for_each(|line| put(&file, line, write.key))
    };
    let first = attempt(done);
    if !matches!(first, Err(CgroupError::BadLimit { .. })) || group.is_frozen()? {
        return first.map(|()| Done::Written);
    }
    // Somebody inside sets it again and again: nobody does who stands still.
    group.freeze()?;
    let second = attempt(done);
    group.thaw()?;
    second.map(|()| Done::Written)
}

/// A quota or period, in microseconds; none is less than all.
fn quota_of(text: Option<String>) -> i64 {
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(-1)
}

/// Takes quotas off all groups beneath `outer` that have a greater part of a processor than `most`.
fn take_off_greater(
    outer: &Path,
    (quota, period): (i64, i64),
    write: &Write,
    done: &mut Undo,
) -> Result<(), CgroupError> {
    let top = walk::number_of(outer)?;
    let mut before = HashMap::new();
    let taken_off = walk::each(outer, Order::TopDown, |group| {
        let now = quota_of(group.read(QUOTA)?);
        let own_period = quota_of(group.read(PERIOD)?);
        let greater =
            i128::from(now) * i128::from(period) > i128::from(quota) * i128::from(own_period);
        let number = group.number()?;
        if now < 0 || !greater || Some(number) == top {
            return Ok(());
        }
        before.insert(number, Before::Text(now.to_string()));
        put_in(group, QUOTA, "-1", write.key)
    });
    let (top, name, order) = (outer.to_owned(), QUOTA, Order::TopDown);
    done.0.push(Written::Files { top, name, order, before });
    taken_off
}

/// What stands in a file that reads `now`, and the lines that make it what it shall be; none if it
/// is that already.
fn change(write: &Write, now: &str) -> Option<(Before, Vec<String>)> {
    match &write.value {
        Value::Text(text) => {
            let before = Before::Text(now.trim().to_owned());
            (now.trim() != text).then(|| (before, vec![text.clone()]))
        }
        Value::Disks(wanted) => {
            let before = Before::Disks(write.version, current_disks(now));
            Some((before, disk_lines(write.version, now, wanted)))
        }
        // Not a matter of one group.
        Value::Processors(_) => None,
    }
}

/// Writes the file of every group from `top` down.
fn everywhere(top: &Path, write: &Write, done: &mut Undo) -> Result<Done, CgroupError> {
    in_order(top, write, Order::BottomUp, done, |now| Ok(change(write, now)))?;
    Ok(Done::Written)
}

/// Has `change` say, of every group from `top` down, what becomes of its file.
fn in_order(
    top: &Path,
    write: &Write,
    order: Order,
    done: &mut Undo,
    change: impl Fn(&str) -> Result<Option<(Before, Vec<String>)>, CgroupError>,
) -> Result<(), CgroupError> {
    let mut all = HashMap::new();
    let written = walk::each(top, order, |group| {
        // Gone with its group.
        let Some(now) = group.read(write.file)? else { return Ok(()) };
        let Some((before, lines)) = change(&now)? else { return Ok(()) };
        all.insert(group.number()?, before);
        lines.iter().try_for_each(|line| put_in(group, write.file, line, write.key))
    });
    done.0.push(Written::Files { top: top.to_owned(), name: write.file, order, before: all });
    written
}

/// A v1 group's processors must be among its parent's and include its children's, so every group
/// first gets the old and the new, from the top, and then, from the bottom, the new ones alone.
fn set_processors(
    outer: &Path,
    write: &Write,
    set: Option<&CpuSet>,
    done: &mut Undo,
) -> Result<Done, CgroupError> {
    let file = outer.join(write.file);
    if write.version == Version::V2 {
        let before = read(&file)?.unwrap_or_default().trim().to_owned();
        let text = set.map_or_else(|| "\n".to_owned(), CpuSet::to_string);
        if before != text.trim() {
            done.0.push(Written::File(file.clone(), Before::Text(format!("{before}\n"))));
            put(&file, &text, write.key)?;
        }
        return Ok(Done::Written);
    }
    // None: of a new group of the tenant's, which holds nobody yet.
    let processors = |text: &str| -> Result<Option<CpuSet>, CgroupError> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| CgroupError::garbled(&file, text))
    };
    let wanted = match set {
        Some(set) => set.clone(),
        None => {
            let above = outer.parent().unwrap_or(outer).join(write.file);
            let text = read(&above)?.unwrap_or_default();
            processors(&text)?.ok_or_else(|| CgroupError::garbled(&above, &text))?
        }
    };
    let becomes = |now: &str, wide: bool| {
        let Some(before) = processors(now)? else { return Ok(None) };
        let next = if wide { before.union(&wanted) } else { wanted.clone() };
        let text = Before::Text(before.to_string());
        Ok((next != before).then(|| (text, vec![next.to_string()])))
    };
    in_order(outer, write, Order::TopDown, done, |now| becomes(now, true))?;
    in_order(outer, write, Order::BottomUp, done, |now| becomes(now, false))?;
    Ok(Done::Written)
}

fn put(file: &Path, text: &str, key: Option<&'static str>) -> Result<(), CgroupError> {
    fs::write(file, text).map_err(|error| refused(file, text, key, error))
}

fn put_in(
    group: &walk::Group<'_>,
    name: &str,
    text: &str,
    key: Option<&'static str>,
) -> Result<(), CgroupError> {
    match group.write(name, text) {
        // Gone with its group, which a tenant may do at any time; a disk that is not there answers alike.
        Err(error) if walk::is_gone(&error) && group.read(name)?.is_none() => Ok(()),
        written => written.map_err(|error| refused(&group.told(name), text, key, error)),
    }
}

fn refused(file: &Path, text: &str, key: Option<&'static str>, error: io::Error) -> CgroupError {
    match (key, error.raw_os_error()) {
        (Some(key), Some(libc::EINVAL | libc::ERANGE)) => CgroupError::BadLimit {
            key,
            value: text.trim().to_owned(),
            reason: format!("the kernel does not take it ({})", file.display()),
        },
        (Some("limits.memory" | "limits.memory.swap"), Some(libc::EBUSY)) => {
            let wanted_bytes = text.trim().parse().unwrap_or(0);
            let used = file.parent().and_then(|directory| usage::memory_held(directory).ok());
            CgroupError::MemoryInUse { wanted_bytes, used_bytes: used.flatten().unwrap_or(0) }
        }
        _ => CgroupError::system("write", file)(error),
    }
}

/// cgroup2 kills for a limit below what is in use; a person who lowers one did not ask for that.
fn check_memory(group: &Cgroup, wanted_bytes: u64) -> Result<(), CgroupError> {
    let Some((directory, _)) = group.controlled(Controller::Memory) else { return Ok(()) };
    match usage::memory_held(&directory)? {
        Some(used_bytes) if used_bytes > wanted_bytes => {
            Err(CgroupError::MemoryInUse { wanted_bytes, used_bytes })
        }
        _ => Ok(()),
    }
}

/// v2 takes processors that are not there, and then ignores the limit.
fn check_processors(layout: &Layout, set: &CpuSet) -> Result<(), CgroupError> {
    let Some(hierarchy) = layout.with(Controller::Cpuset) else { return Ok(()) };
    let names = ["cpuset.effective_cpus", "cpuset.cpus.effective", "cpuset.cpus"];
    let mut present = None;
    for name in names {
        if let Some(text) = read(&hierarchy.mountpoint.join(name))? {
            present = text.parse::<CpuSet>().ok();
            break;
        }
    }
    let Some(present) = present else { return Ok(()) };
    if present.union(set) == present {
        return Ok(());
    }
    Err(CgroupError::BadLimit {
        key: "limits.cpu",
        value: set.to_string(),
        reason: format!("this host has processors {present}"),
    })
}
