//! Directories of groups: making, listing, giving away, removing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::error::CgroupError;
use super::layout::{Controller, Hierarchy, Version};
use super::read;
use super::walk::{self, Order};

/// How long the kernel may take to let go of a group whose last process has just ended.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(2);

/// What a container's init must own to make groups of its own; `/sys/kernel/cgroup/delegate` lists
/// more, all of it pressure files that are of no use without the controllers.
const DELEGATED: [&str; 4] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"];

/// Most groups that a container makes in a cgroup2 tree: nobody is charged for the some 9 KiB that the
/// kernel keeps of each. systemd with hundreds of services has hundreds.
const MOST_BENEATH: u64 = 4096;

/// How deep they lie at most.
const DEEPEST: u64 = 64;

/// Makes the group at `path` in `hierarchy`, and those above it, each with its controllers.
pub(super) fn make(hierarchy: &Hierarchy, path: &str) -> Result<(), CgroupError> {
    let _alone = lock(hierarchy)?;
    let mut directory = hierarchy.mountpoint.clone();
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    for name in &names {
        if hierarchy.version == Version::V2 {
            enable(&directory, hierarchy)?;
        }
        let above = directory.clone();
        directory.push(name);
        match fs::create_dir(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(CgroupError::system("make the group", &directory)(error)),
        }
        if hierarchy.version == Version::V1 && hierarchy.controllers.contains(&Controller::Cpuset) {
            inherit_cpuset(&above, &directory)?;
        }
    }
    Ok(())
}

/// Bounds how many groups there are beneath the one at `directory`, and how deep, where the kernel can:
/// cgroup v1 cannot.
pub(super) fn bound(hierarchy: &Hierarchy, directory: &Path) -> Result<(), CgroupError> {
    if hierarchy.version == Version::V1 {
        return Ok(());
    }
    for (name, most) in [("cgroup.max.descendants", MOST_BENEATH), ("cgroup.max.depth", DEEPEST)] {
        let file = directory.join(name);
        // Linux before 4.14 has no such file.
        if read(&file)?.is_some_and(|now| now.trim() != most.to_string()) {
            fs::write(&file, most.to_string()).map_err(CgroupError::system("write", &file))?;
        }
    }
    Ok(())
}

/// Removes the group at `path` of `hierarchy` if nothing is in it.
pub(super) fn remove_empty(hierarchy: &Hierarchy, path: &str) -> Result<(), CgroupError> {
    let _alone = lock(hierarchy)?;
    // Refused as long as somebody has a group in it, which is the question.
    let _kept = fs::remove_dir(hierarchy.mountpoint.join(path));
    Ok(())
}

/// Keeps whoever removes an empty group, in this process or in another store's daemon, from doing
/// it between the making of a group and of the one beneath; until the file is closed.
fn lock(hierarchy: &Hierarchy) -> Result<File, CgroupError> {
    let failed = |error| CgroupError::system("lock", &hierarchy.mountpoint)(error);
    let directory = File::open(&hierarchy.mountpoint).map_err(failed)?;
    rustix::io::retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive))
        .map_err(|error| failed(error.into()))?;
    Ok(directory)
}

/// Gives the groups beneath `directory` the controllers of a v2 tree.
fn enable(directory: &Path, hierarchy: &Hierarchy) -> Result<(), CgroupError> {
    let file = directory.join("cgroup.subtree_control");
    let enabled = read(&file)?.unwrap_or_default();
    let enabled: BTreeSet<&str> = enabled.split_whitespace().collect();
    for controller in &hierarchy.controllers {
        let name = controller.v2_name();
        if enabled.contains(name) {
            continue;
        }
        // One by one: a controller that cannot be had (cpu, while a process runs in real time)
        // is named when a limit asks for it, and keeps nobody from the others.
        if let Err(error) = fs::write(&file, format!("+{name}")) {
            tracing::debug!(controller = name, file = %file.display(), %error, "not enabled");
        }
    }
    Ok(())
}

/// A new v1 group has no processors and no memory nodes, and takes no process until it has.
fn inherit_cpuset(above: &Path, directory: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = directory.join(name);
        if read(&file)?.is_some_and(|text| text.trim().is_empty()) {
            let inherited = read(&above.join(name))?.unwrap_or_default();
            fs::write(&file, inherited.trim()).map_err(CgroupError::system("write", &file))?;
        }
    }
    Ok(())
}

/// Adds the processes of all groups from `directory` down.
pub(super) fn processes(directory: &Path, all: &mut BTreeSet<u32>) -> Result<(), CgroupError> {
    walk::each(directory, Order::TopDown, |group| {
        let text = match group.read("cgroup.procs") {
            Ok(text) => text.unwrap_or_default(),
            // A threaded group: its processes are listed where its threads' processes belong.
            Err(CgroupError::System { source, .. })
                if source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // 0 stands for a process of another pid namespace, which cannot be named from here.
        let pids = text.lines().filter_map(|line| line.parse::<u32>().ok());
        all.extend(pids.filter(|pid| *pid != 0));
        Ok(())
    })
}

/// Makes the group at `directory` the property of a container's root.
pub(super) fn delegate(directory: &Path, uid: u32, gid: u32) -> Result<(), CgroupError> {
    let own = |path: &Path| match chown(path, Some(uid), Some(gid)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::system("give away", path)(error))
        }
        _ => Ok(()),
    };
    own(directory)?;
    DELEGATED.iter().try_for_each(|name| own(&directory.join(name)))
}

/// Removes the group at `directory` and all beneath it.
pub(super) fn remove(directory: &Path) -> Result<(), CgroupError> {
    patiently(directory, remove_once)
}

/// Removes all beneath the group at `directory`.
pub(super) fn remove_beneath(directory: &Path) -> Result<(), CgroupError> {
    patiently(directory, walk::remove_beneath)
}

fn patiently(
    directory: &Path,
    remove: impl Fn(&Path) -> Result<(), CgroupError>,
) -> Result<(), CgroupError> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        match remove(directory) {
            // The last process was just reaped, or somebody makes groups while we remove them.
            Err(CgroupError::System { source, .. })
                if source.raw_os_error() == Some(libc::EBUSY)
                    && begun.elapsed() < REMOVAL_PATIENCE
                    && !is_populated(directory)? =>
            {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

fn remove_once(directory: &Path) -> Result<(), CgroupError> {
    walk::remove_beneath(directory)?;
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::system("remove the group", directory)(error))
        }
        _ => Ok(()),
    }
}

/// Whether a process is in the group or beneath.
fn is_populated(directory: &Path) -> Result<bool, CgroupError> {
    let mut all = BTreeSet::new();
    processes(directory, &mut all)?;
    Ok(!all.is_empty())
}
