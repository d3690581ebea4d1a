//! Memory cgroups of the run's own: made below the one it is in, removed with it.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::error::{BenchError, Result};
use crate::host::mount_table;

/// Where memory is accounted.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    /// Where the hierarchy is mounted.
    top: PathBuf,
    /// The file with the bytes in use.
    usage: &'static str,
    /// The cgroup that this process was started in.
    home: PathBuf,
}

/// The memory controller's file in version 1 and in version 2.
const USAGE: [&str; 2] = ["memory.usage_in_bytes", "memory.current"];

impl Cgroup {
    /// The cgroup of the run `name`, as a directory that does not exist yet.
    ///
    /// # Errors
    /// A sentence, for [`super::session::Session::skip`], where the host accounts no memory.
    pub(super) fn of_run(name: &str) -> Result<Self, String> {
        let entries = mount_table::read().map_err(|error| error.to_string())?;
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let path_in = |wanted: &str| {
            own.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let controllers = parts.next()?;
                let path = parts.next()?;
                let found = controllers.split(',').any(|controller| controller == wanted);
                found.then(|| path.trim_start_matches('/').to_owned())
            })
        };
        for entry in entries.iter().filter(|entry| entry.fs_type == "cgroup") {
            if let Some(path) = path_in("memory") {
                let base = entry.mountpoint.join(path);
                // The one hierarchy that has the controller.
                if base.join(USAGE[0]).exists() {
                    let top = entry.mountpoint.clone();
                    return Ok(Self { path: base.join(name), top, usage: USAGE[0], home: base });
                }
            }
        }
        for entry in entries.iter().filter(|entry| entry.fs_type == "cgroup2") {
            // Below the top alone may cgroups lie beside processes (cgroups(7), "no internal
            // processes").
            let given = fs::read_to_string(entry.mountpoint.join("cgroup.subtree_control"));
            if given.is_ok_and(|given| given.split_whitespace().any(|one| one == "memory")) {
                let home = entry.mountpoint.join(path_in("").unwrap_or_default());
                let top = entry.mountpoint.clone();
                return Ok(Self { path: top.join(name), top, usage: USAGE[1], home });
            }
        }
        Err("no cgroup hierarchy with the memory controller is mounted".to_owned())
    }

    /// Makes it, and lets cgroups below it account memory.
    pub(super) fn make(&self) -> Result<()> {
        fs::create_dir(&self.path).map_err(BenchError::at("make", &self.path))?;
        let control = self.path.join("cgroup.subtree_control");
        if self.usage == USAGE[1] {
            fs::write(&control, "+memory").map_err(BenchError::at("write", control))?;
        }
        Ok(())
    }

    /// Makes one below it, for processes.
    pub(super) fn child(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        fs::create_dir(&path).map_err(BenchError::at("make", &path))?;
        Ok(Self { path, ..self.clone() })
    }

    /// How it is called.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The file that moves whoever writes 0 into it.
    pub(super) fn door(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Moves this process; returns the way back.
    pub(super) fn enter(&self) -> Result<Visit> {
        let back = self.home.join("cgroup.procs");
        let door = self.door();
        fs::write(&door, "0").map_err(BenchError::at("enter", door))?;
        Ok(Visit { back })
    }

    /// Bytes that its processes use, or used and left behind.
    pub(super) fn bytes(&self) -> Result<u64> {
        let path = self.path.join(self.usage);
        let text = fs::read_to_string(&path).map_err(BenchError::at("read", &path))?;
        Ok(text.trim().parse().unwrap_or_default())
    }

    /// Of these bytes, those of page cache: files that its processes touched first.
    pub(super) fn cache_bytes(&self) -> Result<u64> {
        let path = self.path.join("memory.stat");
        let text = fs::read_to_string(&path).map_err(BenchError::at("read", &path))?;
        // With all groups below it: version 2 counts so by itself, version 1 under another name.
        let field = if self.usage == USAGE[0] { "total_cache " } else { "file " };
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        Ok(value.and_then(|value| value.trim().parse().ok()).unwrap_or_default())
    }

    /// The cgroup of this path below the top of the hierarchy, which others make and remove.
    pub(super) fn elsewhere(&self, path: &str) -> Self {
        Self { path: self.top.join(path), ..self.clone() }
    }

    /// Its processes, and those of the cgroups below it.
    pub(super) fn processes(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        let mut todo = vec![self.path.clone()];
        while let Some(path) = todo.pop() {
            let door = path.join("cgroup.procs");
            let text = match fs::read_to_string(&door) {
                // Whoever made it has removed it again.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                text => text.map_err(BenchError::at("read", door))?,
            };
            all.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            todo.extend(below(&path));
        }
        Ok(all)
    }

    /// Ends its processes.
    pub(super) fn kill(&self) {
        for pid in self.processes().unwrap_or_default() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It ended by itself, which is as good.
                let _killed = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Removes it with those below it; processes that still end there are waited for.
    pub(super) fn remove(&self) {
        remove(&self.path);
    }
}

/// Somewhere else than where this process belongs; dropping it goes back.
pub(super) struct Visit {
    back: PathBuf,
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.back, "0") {
            tracing::warn!(%error, "cannot leave the cgroup of the mount processes");
        }
    }
}

/// The cgroups right below the one at `path`.
fn below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.map(|entry| entry.path()).collect()
}

/// Removes the cgroup at `path`, and those below it; it is well if there is none.
fn remove(path: &Path) {
    for path in below(path) {
        remove(&path);
    }
    // A process that was killed a moment ago leaves its cgroup when it is reaped.
    for _ in 0..1000 {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            _removed => return,
        }
    }
    tracing::warn!(?path, "a cgroup stays");
}
