//! The machine: what it is, where things run on it, what it remembers.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use super::support::Succeed;

/// Where the client runs, and the servers with it.
pub(super) const CLIENT: usize = 0;
/// Where the servers run when they are to run elsewhere.
pub(super) const OTHER: usize = 1;

/// The priority that [`prefer`] gives.
static NICE: AtomicI32 = AtomicI32::new(0);

/// Gives this process, and what it starts from now on, the priority `nice`.
pub(super) fn prefer_self(nice: i32) {
    NICE.store(nice, Ordering::Relaxed);
    if nice != 0 {
        rustix::process::setpriority_process(None, nice).expect("root may set any priority");
        prefer(std::process::id());
    }
}

/// Gives the session of process `pid` that priority: a priority counts within a session alone
/// where the kernel groups processes by them (sched(7), "The autogroup feature").
pub(super) fn prefer(pid: u32) {
    let nice = NICE.load(Ordering::Relaxed);
    if nice != 0 {
        // Missing where the kernel does not group them.
        let _ungrouped = fs::write(format!("/proc/{pid}/autogroup"), nice.to_string());
    }
}

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

/// Where this thread may run.
pub(super) fn affinity() -> CpuSet {
    sched_getaffinity(None).expect("a thread knows where it may run")
}

/// Lets this thread, and what it starts from now on, run where `set` says.
pub(super) fn restore(set: &CpuSet) {
    sched_setaffinity(None, set).expect("a processor of this machine");
}

/// Keeps this thread, and what it starts from now on, on one processor.
pub(super) fn pin_self(cpu: usize) {
    restore(&only(cpu));
}

/// Lets this thread, and what it starts from now on, run everywhere.
pub(super) fn unpin_self() {
    let mut all = CpuSet::new();
    (0..processors()).for_each(|cpu| all.set(cpu));
    restore(&all);
}

/// Moves every thread of a process to one processor.
pub(super) fn pin_process(pid: u32, cpu: usize) {
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("a living process") {
        let name = task.expect("a thread").file_name();
        let tid = name.to_str().and_then(|tid| tid.parse().ok()).and_then(Pid::from_raw);
        sched_setaffinity(tid, &only(cpu)).expect("a thread of ours");
    }
}

/// How many processors there are.
pub(super) fn processors() -> usize {
    let list = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    list.lines().filter(|line| line.starts_with("processor")).count().max(1)
}

/// Makes the kernel forget clean pages, names and inodes of the whole machine.
pub(super) fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
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

/// Bytes of memory that no other process shares: dirty, and clean.
pub(super) fn private_bytes(pid: u32) -> (u64, u64) {
    let rollup =
        fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a living process of ours");
    let kib = |field: &str| -> u64 {
        let line = rollup.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("a count")
    };
    (kib("Private_Dirty:") << 10, kib("Private_Clean:") << 10)
}

/// One, five and fifteen minutes' load.
pub(super) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// What the figures were measured on.
pub(super) fn describe(scratch: &Path) -> Value {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let host = Command::new("stat").args(["-f", "-c", "%T"]).arg(scratch).succeed();
    let overlayfs: Vec<String> = ["metacopy", "redirect_dir", "index", "xino_auto"]
        .map(|name| {
            let value = fs::read_to_string(format!("/sys/module/overlay/parameters/{name}"));
            format!("{name}={}", value.unwrap_or_default().trim())
        })
        .into();
    json!({
        "kernel": rustix::system::uname().release().to_string_lossy(),
        "cpu": field("/proc/cpuinfo", "model name"),
        "cpus": processors(),
        "memory": field("/proc/meminfo", "MemTotal"),
        "file_system": host.trim(),
        "overlayfs": overlayfs.join(","),
        "fuse_overlayfs": super::contender::fuse_overlayfs_version(),
        "load": load(),
        "optimised": !cfg!(debug_assertions),
    })
}
