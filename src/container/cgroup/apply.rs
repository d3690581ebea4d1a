//! Writing a plan, and taking it back when a step of it is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::error::CgroupError;
use super::layout::{Controller, Layout, Version};
use super::limits::{CpuSet, Limits, Weight};
use super::plan::{Holds, Plan, Scope, Shortfall, Speeds, Value, Write, current_disks, disk_lines};
use super::{Cgroup, GroupPath, INSIDE, read, tree, usage};

/// Writes what `limits` mean here, whole or not at all.
pub(super) fn apply(group: &Cgroup, limits: &Limits) -> Result<Vec<Shortfall>, CgroupError> {
    if let Some(set) = &limits.cpu_set {
        check_processors(&group.layout, set)?;
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
struct Undo(Vec<(PathBuf, Before)>);

enum Before {
    Text(String),
    Disks(Version, BTreeMap<Disk, Speeds>),
}

impl Undo {
    /// Last written, first restored: memory and swap have an order to keep.
    fn take_back(self) {
        for (file, before) in self.0.into_iter().rev() {
            let restored = match before {
                Before::Text(text) => fs::write(&file, text),
                Before::Disks(version, disks) => fs::read_to_string(&file).and_then(|now| {
                    let lines = disk_lines(version, &now, &disks);
                    lines.iter().try_for_each(|line| fs::write(&file, line))
                }),
            };
            if let Err(error) = restored {
                tracing::warn!(file = %file.display(), %error, "a limit is not restored");
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
    let groups = match write.scope {
        Scope::Outer => vec![outer],
        Scope::Both => vec![outer.clone(), outer.join(INSIDE)],
        Scope::All => tree::deepest_first(&outer)?,
    };
    for directory in groups {
        let file = directory.join(write.file);
        // Gone with its group, which a tenant may do at any time.
        let Some(before) = read(&file)? else { continue };
        match &write.value {
            Value::Text(text) => {
                if before.trim() == text {
                    continue;
                }
                done.0.push((file.clone(), Before::Text(before.trim().to_owned())));
                put(&file, text, write.key)?;
            }
            Value::Disks(wanted) => {
                let lines = disk_lines(write.version, &before, wanted);
                let disks = current_disks(&before);
                done.0.push((file.clone(), Before::Disks(write.version, disks)));
                lines.iter().try_for_each(|line| put(&file, line, write.key))?;
            }
            // Handled above: several groups at once.
            Value::Processors(_) => {}
        }
    }
    Ok(Done::Written)
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
            done.0.push((file.clone(), Before::Text(format!("{before}\n"))));
            put(&file, &text, write.key)?;
        }
        return Ok(Done::Written);
    }
    let above = outer.parent().unwrap_or(outer).join(write.file);
    // None: gone with its group, or of a new group of the tenant's, which holds nobody yet.
    let processors = |file: &Path| -> Result<Option<CpuSet>, CgroupError> {
        let text = read(file)?.unwrap_or_default();
        if text.trim().is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| CgroupError::garbled(file, &text))
    };
    let wanted = match set {
        Some(set) => set.clone(),
        None => processors(&above)?.ok_or_else(|| CgroupError::garbled(&above, ""))?,
    };
    let bottom_up = tree::deepest_first(outer)?;
    for directory in bottom_up.iter().rev() {
        let file = directory.join(write.file);
        let Some(before) = processors(&file)? else { continue };
        let wide = before.union(&wanted);
        if wide != before {
            done.0.push((file.clone(), Before::Text(before.to_string())));
            put(&file, &wide.to_string(), write.key)?;
        }
    }
    for directory in &bottom_up {
        let file = directory.join(write.file);
        let Some(before) = processors(&file)? else { continue };
        if before != wanted {
            done.0.push((file.clone(), Before::Text(before.to_string())));
            put(&file, &wanted.to_string(), write.key)?;
        }
    }
    Ok(Done::Written)
}

fn put(file: &Path, text: &str, key: Option<&'static str>) -> Result<(), CgroupError> {
    fs::write(file, text).map_err(|error| match (key, error.raw_os_error()) {
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
    })
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
