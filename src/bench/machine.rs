//! The machine: what it is, where things run on it, what it remembers.

use std::fs;
use std::path::Path;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use super::error::{BenchError, Result};
use super::place;

/// Where the client runs, and the servers with it.
pub(super) const CLIENT: usize = 0;
/// Where the servers run when they are to run elsewhere.
pub(super) const OTHER: usize = 1;

/// What the figures were measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's own name.
    pub cpu: String,
    /// How many of them.
    pub cpus: usize,
    /// Whether a hypervisor says that it is there.
    pub virtual_machine: bool,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The file system that everything was made on.
    pub file_system: String,
    /// What overlayfs does by default here.
    pub overlayfs: String,
    /// The version of fuse-overlayfs; empty if it is not installed.
    pub fuse_overlayfs: String,
    /// One, five and fifteen minutes' load at the start.
    pub load: String,
    /// Whether Mica was built with optimisations; otherwise its figures mean little.
    pub optimised: bool,
}

impl Machine {
    /// Looks around.
    pub(super) fn describe(scratch: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
            line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let overlayfs: Vec<String> = ["metacopy", "redirect_dir", "index", "xino_auto"]
            .map(|name| {
                let value = fs::read_to_string(format!("/sys/module/overlay/parameters/{name}"));
                format!("{name}={}", value.unwrap_or_default().trim())
            })
            .into();
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: field("model name"),
            cpus: processors(),
            virtual_machine: field("flags").split(' ').any(|flag| flag == "hypervisor"),
            memory_bytes: meminfo("MemTotal"),
            file_system: place::file_system(scratch),
            overlayfs: overlayfs.join(","),
            fuse_overlayfs: super::contender::fuse_overlayfs_version(),
            load: load(),
            optimised: !cfg!(debug_assertions),
        }
    }

    /// In one line, for under a picture.
    #[must_use]
    pub fn line(&self) -> String {
        let kind = if self.virtual_machine { ", virtual machine" } else { "" };
        let build = if self.optimised { "" } else { ", unoptimised build" };
        format!(
            "Linux {}, {} × {}{kind}, {} GiB, {}{build}",
            self.kernel,
            self.cpus,
            self.cpu,
            (self.memory_bytes + (1 << 29)) >> 30,
            self.file_system
        )
    }
}

/// A line of /proc/meminfo, in bytes; 0 if the kernel has none.
pub(super) fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

/// Keeps this thread, and what it starts from now on, on one processor.
pub(super) fn pin_self(cpu: usize) -> Result<()> {
    Ok(sched_setaffinity(None, &only(cpu))?)
}

/// The processors that this process was given at its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Everywhere(CpuSet);

impl Everywhere {
    pub(super) fn look() -> Result<Self> {
        Ok(Self(sched_getaffinity(None)?))
    }

    /// Lets this thread, and what it starts from now on, run everywhere.
    pub(super) fn restore(&self) -> Result<()> {
        Ok(sched_setaffinity(None, &self.0)?)
    }
}

/// Moves every thread of a process to one processor.
pub(super) fn pin_process(pid: u32, cpu: usize) -> Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let tid = name.to_str().and_then(|tid| tid.parse().ok()).and_then(Pid::from_raw);
        sched_setaffinity(tid, &only(cpu))?;
    }
    Ok(())
}

/// How many processors there are.
pub(super) fn processors() -> usize {
    let list = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    list.lines().filter(|line| line.starts_with("processor")).count().max(1)
}

/// Makes the kernel forget clean pages, names and inodes of the whole machine.
pub(super) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    let path = "/proc/sys/vm/drop_caches";
    fs::write(path, "3").map_err(BenchError::at("drop the caches by", path))
}

/// More than any processor's caches hold.
const BEYOND_CACHES: usize = 96 << 20;

/// Fills the processor's caches with something else.
///
/// Overlayfs and the plain directory read the same pages: whoever comes second would find them
/// in the processor's cache.
pub(super) fn chill(scrap: &mut Vec<u8>) {
    scrap.resize(BEYOND_CACHES, 0);
    scrap.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
    std::hint::black_box(scrap);
}

/// Memory of one process, in bytes (/proc/PID/smaps_rollup).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessMemory {
    /// Its share of what it has mapped: a page that n map counts 1/n.
    pub(super) pss: u64,
    /// Pages that nobody else maps and that were written to.
    pub(super) private_dirty: u64,
    /// Pages that nobody else maps and that a file holds as well.
    pub(super) private_clean: u64,
}

/// What /proc says of a process; `None` if it has ended.
pub(super) fn process_memory(pid: u32) -> Option<ProcessMemory> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let bytes = |field: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some(ProcessMemory {
        pss: bytes("Pss:")?,
        private_dirty: bytes("Private_Dirty:")?,
        private_clean: bytes("Private_Clean:")?,
    })
}

/// One, five and fifteen minutes' load.
pub(super) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
