//! Standing still, going on, and the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::error::CgroupError;
use super::layout::{Controller, Version};
use super::walk::{self, Order};
use super::{Cgroup, read};

/// How long processes may take to stand still: one that writes to a slow disk first finishes that.
const FREEZE_PATIENCE: Duration = Duration::from_secs(30);

/// How long processes may take to die, likewise.
const DEATH_PATIENCE: Duration = Duration::from_secs(60);

/// What freezes here: every group of a cgroup2 tree can, whatever its controllers.
enum Freezer {
    V2(PathBuf),
    V1(PathBuf),
    None,
}

impl Freezer {
    fn of(group: &Cgroup) -> Self {
        if let Some(hierarchy) = group.layout.unified()
            && group.outer(hierarchy).join("cgroup.freeze").exists()
        {
            return Self::V2(group.outer(hierarchy));
        }
        match group.controlled(Controller::Freezer) {
            Some((directory, Version::V1)) => Self::V1(directory),
            _ => Self::None,
        }
    }
}

/// Looks until `done` says so; false if it does not in time.
fn wait(
    patience: Duration,
    mut done: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<bool, CgroupError> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(100);
    while !done()? {
        if begun.elapsed() > patience {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Ok(true)
}

fn write(file: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(file, text).map_err(CgroupError::system("write", file))
}

pub(super) fn freeze(group: &Cgroup) -> Result<(), CgroupError> {
    let path = match Freezer::of(group) {
        Freezer::V2(directory) => {
            write(&directory.join("cgroup.freeze"), "1")?;
            directory
        }
        Freezer::V1(directory) => {
            write(&directory.join("freezer.state"), "FROZEN")?;
            directory
        }
        Freezer::None => {
            return Err(CgroupError::BadLimit {
                key: "pause",
                value: group.path().to_string(),
                reason: "this host has neither cgroup2 nor a freezer among its cgroups".to_owned(),
            });
        }
    };
    if wait(FREEZE_PATIENCE, || is_frozen(group))? {
        return Ok(());
    }
    thaw(group)?;
    Err(CgroupError::NotFrozen { path })
}

pub(super) fn thaw(group: &Cgroup) -> Result<(), CgroupError> {
    match Freezer::of(group) {
        Freezer::V2(directory) => write(&directory.join("cgroup.freeze"), "0"),
        Freezer::V1(directory) => write(&directory.join("freezer.state"), "THAWED"),
        Freezer::None => Ok(()),
    }
}

pub(super) fn is_frozen(group: &Cgroup) -> Result<bool, CgroupError> {
    Ok(match Freezer::of(group) {
        Freezer::V2(directory) => {
            let events = read(&directory.join("cgroup.events"))?.unwrap_or_default();
            events.lines().any(|line| line == "frozen 1")
        }
        Freezer::V1(directory) => {
            let state = read(&directory.join("freezer.state"))?.unwrap_or_default();
            state.trim() == "FROZEN"
        }
        Freezer::None => false,
    })
}

pub(super) fn kill_all(group: &Cgroup) -> Result<(), CgroupError> {
    if let Some(hierarchy) = group.layout.unified() {
        let file = group.outer(hierarchy).join("cgroup.kill");
        if file.exists() {
            write(&file, "1")?;
        }
    }
    let empty = wait(DEATH_PATIENCE, || {
        let left = group.processes()?;
        if left.is_empty() {
            return Ok(true);
        }
        kill_listed(group)?;
        Ok(false)
    })?;
    if empty {
        return Ok(());
    }
    let path = group.layout.hierarchies().first().map(|hierarchy| group.outer(hierarchy));
    let pids = group.processes()?.into_iter().take(5).collect();
    Err(CgroupError::Undying { path: path.unwrap_or_default(), pids })
}

/// Kills by number whom `cgroup.kill` did not reach. Frozen meanwhile where a v1 freezer is: then
/// nobody forks away, and no number comes to mean another process.
fn kill_listed(group: &Cgroup) -> Result<(), CgroupError> {
    let frozen = match group.controlled(Controller::Freezer) {
        Some((directory, Version::V1)) if directory.exists() => {
            Some(directory.join("freezer.state"))
        }
        _ => None,
    };
    if let Some(state) = &frozen {
        write(state, "FROZEN")?;
        let still = || {
            let now = read(state)?.unwrap_or_default();
            Ok(now.trim() == "FROZEN")
        };
        // One that waits in the kernel is killed all the same.
        let _all_still = wait(Duration::from_millis(100), still)?;
    }
    for pid in group.processes()? {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // It may have ended by itself.
        let _gone = pid.map(|pid| kill_process(pid, Signal::KILL));
    }
    let Some(state) = &frozen else { return Ok(()) };
    write(state, "THAWED")?;
    // A tenant may have frozen groups of its own, and what stands still does not die.
    let top = state.parent().unwrap_or(Path::new("/"));
    walk::each(top, Order::TopDown, |group| {
        // One that is gone meanwhile holds nobody.
        let _gone = group.write("freezer.state", "THAWED");
        Ok(())
    })
}
