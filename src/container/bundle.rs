//! The directory in which one container's running state lives, and what its files are called.
//!
//! ```text
//! BUNDLE/
//!   config.json     what an OCI runtime reads
//!   bundle.json     what Mica's own processes need beside it
//!   runtime/        the runtime's own state
//!   init.json       the running init and its monitor
//!   exit.json       how the last init ended; durable
//!   attach.sock     the monitor's door
//! ```
//! Everything but `exit.json` may vanish when the container is not running, so nothing else waits for
//! the disk. A power cut ends the container too; files that it left without content count as absent.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::config::{ContainerId, LogLimits, RuntimeChoice};
use super::idmap::IdRange;
use crate::sys::durable::{Existing, write_file};
use crate::sys::namespace::Process;

/// One container's directory of running state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    directory: PathBuf,
}

/// A file or directory of the host that is bound into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bind {
    pub(super) source: PathBuf,
    /// Its name beside the root while the container is made.
    pub(super) name: String,
    /// What holds for it and all that is mounted beneath it: `ro`, `nosuid`, `nodev`, `noexec`; a runtime
    /// applies them to the topmost mount alone.
    #[serde(default)]
    pub(super) options: Vec<String>,
    /// Where it goes in the container.
    #[serde(default)]
    pub(super) target: PathBuf,
    /// A device that is to belong to the container's root: its type and numbers.
    #[serde(default)]
    pub(super) device: Option<Device>,
}

/// A device, by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Device {
    pub(super) block: bool,
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// What Mica's own processes need beside `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: ContainerId,
    pub(super) runtime: RuntimeChoice,
    pub(super) root: PathBuf,
    pub(super) range: Option<IdRange>,
    /// The container's cgroup in every hierarchy, as directories.
    pub(super) cgroups: Vec<PathBuf>,
    /// Those of them that runtimes leave alone.
    pub(super) cgroups_ours: Vec<PathBuf>,
    /// Whether nodes of devices in the root are devices.
    #[serde(default)]
    pub(super) devices_in_root: bool,
    pub(super) binds: Vec<Bind>,
    pub(super) terminal: bool,
    pub(super) interactive: bool,
    pub(super) log: PathBuf,
    pub(super) log_limits: LogLimits,
}

/// A running init.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The init, as the host numbers it.
    pub pid: u32,
    /// When it started, in clock ticks since the host did.
    pub start_ticks: u64,
    /// The process that watches it.
    pub monitor_pid: u32,
    /// When that one started.
    pub monitor_start_ticks: u64,
}

/// How an init ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its status: what it said, or 128 and the number of the signal that ended it.
    pub status: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

impl Exit {
    /// Whether the machine switched itself off: reboot(2) in a pid namespace ends the init with
    /// SIGINT.
    #[must_use]
    pub fn is_power_off(self) -> bool {
        self.signal == Some(libc::SIGINT)
    }

    /// Whether the machine wants to be started again: reboot(2) ends the init with SIGHUP then.
    #[must_use]
    pub fn is_reboot(self) -> bool {
        self.signal == Some(libc::SIGHUP)
    }
}

/// What has become of a container that was created once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// Never created, or deleted.
    Absent,
    /// Its init is there.
    Running {
        /// It.
        created: Created,
        /// Whether its monitor is there too; without, its status will not be known.
        watched: bool,
    },
    /// Its init ended.
    Exited(Exit),
    /// Its init is gone and nobody saw how: the host went down, or the monitor was killed.
    Lost,
}

impl Bundle {
    /// The bundle in `directory`, be it written or not.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The socket on which the monitor is attached to.
    #[must_use]
    pub fn attach_socket(&self) -> PathBuf {
        self.file("attach.sock")
    }

    pub(super) fn runtime_root(&self) -> PathBuf {
        self.file("runtime")
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What has become of it.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn observe(&self) -> io::Result<Observed> {
        let created: Option<Created> = self.read("init.json")?;
        let exit: Option<Exit> = self.read("exit.json")?;
        let alive = |pid, ticks| match Process::open(pid, ticks) {
            Ok(process) => process.has_ended().map(|ended| !ended),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        };
        let Some(created) = created else {
            return Ok(exit.map_or(Observed::Absent, Observed::Exited));
        };
        let watched = alive(created.monitor_pid, created.monitor_start_ticks)?;
        if alive(created.pid, created.start_ticks)? {
            return Ok(Observed::Running { created, watched });
        }
        // The monitor may be about to say how it ended: it writes that before it goes, durably,
        // which a busy disk takes its time for.
        if watched
            && let Ok(monitor) = Process::open(created.monitor_pid, created.monitor_start_ticks)
        {
            let mut fds = [rustix::event::PollFd::new(&monitor, rustix::event::PollFlags::IN)];
            let patience = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&patience))?;
        }
        Ok(self.read("exit.json")?.map_or(Observed::Lost, Observed::Exited))
    }

    pub(super) fn record(&self) -> io::Result<Record> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no bundle.json");
        self.read("bundle.json")?.ok_or_else(missing)
    }

    pub(super) fn created(&self) -> io::Result<Option<Created>> {
        self.read("init.json")
    }

    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.file(name)) {
            // Renamed into place, and the power went before its content came to the disk.
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => Ok(None),
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a file of the bundle: whole whenever it is read, and gone with the host.
    pub(super) fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let staged = self.file(&format!(".{name}.{}-{number}.staged", std::process::id()));
        let text = serde_json::to_vec_pretty(value)?;
        let written = private_file(&staged)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&staged, self.file(name)));
        if written.is_err() {
            // The first error is the one that matters; the whole directory goes some time.
            let _unstaged = fs::remove_file(&staged);
        }
        written
    }

    /// Writes a file of the bundle, whole and durable.
    pub(super) fn write_durable<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let directory = File::open(&self.directory)?;
        let text = serde_json::to_vec_pretty(value)?;
        write_file(directory.as_fd(), OsStr::new(name), &text, Existing::Replace)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn private_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

pub(super) fn now_ms() -> u64 {
    let since: Duration = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_power_cut_left_without_content_counts_as_absent() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(directory.path());
        let created = Created { pid: 1, start_ticks: 2, monitor_pid: 3, monitor_start_ticks: 4 };
        bundle.write("init.json", &created).unwrap();
        assert_eq!(bundle.created().unwrap(), Some(created));
        for left in [&b""[..], &[0; 99]] {
            fs::write(bundle.file("init.json"), left).unwrap();
            assert_eq!(bundle.observe().unwrap(), Observed::Absent);
        }
        fs::write(bundle.file("init.json"), "{").unwrap();
        assert!(bundle.observe().is_err());
        let names = fs::read_dir(directory.path()).unwrap();
        assert_eq!(names.count(), 1, "what was staged is gone");
    }
}
