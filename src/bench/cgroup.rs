//! Memory cgroups of the run's own: made below the one it is in, removed with it.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{BenchError, Result};
use crate::host::mount_table;

/// Where memory is accounted.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
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
                    return Ok(Self { path: base.join(name), usage: USAGE[0], home: base });
                }
            }
        }
        for entry in entries.iter().filter(|entry| entry.fs_type == "cgroup2") {
            // Below the top alone may cgroups lie beside processes (cgroups(7), "no internal
            // processes").
            let given = fs::read_to_string(entry.mountpoint.join("cgroup.subtree_control"));
            if given.is_ok_and(|given| given.split_whitespace().any(|one| one == "memory")) {
                let home = entry.mountpoint.join(path_in("").unwrap_or_default());
                return Ok(Self { path: entry.mountpoint.join(name), usage: USAGE[1], home });
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

    /// Its processes.
    pub(super) fn processes(&self) -> Result<Vec<u32>> {
        let door = self.door();
        let text = fs::read_to_string(&door).map_err(BenchError::at("read", door))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
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

/// Removes the cgroup at `path`, and those below it.
pub(super) fn remove(path: &Path) {
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path());
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
