//! What a container uses and has used.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::CgroupError;
use super::layout::{Controller, Version};
use super::walk::{self, Order};
use super::{Cgroup, read};

/// What a container's groups count; `None` where this host counts it not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory charged to it, page cache included, in bytes.
    pub memory_bytes: Option<u64>,
    /// The most it ever was.
    pub memory_peak_bytes: Option<u64>,
    /// Of it, what processes hold as their own.
    pub memory_anonymous_bytes: Option<u64>,
    /// Of it, pages of files.
    pub memory_file_bytes: Option<u64>,
    /// Of those, pages that nobody has used lately: given back when memory runs short.
    pub memory_idle_file_bytes: Option<u64>,
    /// Swap in use, in bytes.
    pub swap_bytes: Option<u64>,
    /// Times that the kernel killed a process of it because its memory was used up.
    pub oom_kills: Option<u64>,
    /// Processor time, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Time that it wanted to run and had no quota left, in nanoseconds.
    pub cpu_throttled_ns: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// Bytes read from disks.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to disks.
    pub io_written_bytes: Option<u64>,
}

pub(super) fn usage(group: &Cgroup) -> Result<Usage, CgroupError> {
    let mut usage = Usage::default();
    if let Some((directory, version)) = group.controlled(Controller::Memory) {
        memory(&directory, version, &mut usage)?;
    }
    processor(group, &mut usage)?;
    if let Some((directory, _)) = group.controlled(Controller::Pids) {
        usage.pids = number(&directory.join("pids.current"))?;
    }
    if let Some((directory, version)) = group.controlled(Controller::Io) {
        let (file, read_word, write_word) = match version {
            Version::V1 => ("blkio.throttle.io_service_bytes_recursive", "Read ", "Write "),
            Version::V2 => ("io.stat", "rbytes=", "wbytes="),
        };
        if let Some(text) = read(&directory.join(file))? {
            usage.io_read_bytes = Some(sum_after(&text, read_word));
            usage.io_written_bytes = Some(sum_after(&text, write_word));
        }
    }
    Ok(usage)
}

fn memory(directory: &Path, version: Version, usage: &mut Usage) -> Result<(), CgroupError> {
    let stat = pairs(&directory.join("memory.stat"))?;
    let stat = |name: &str| stat.get(name).copied();
    match version {
        Version::V1 => {
            usage.memory_bytes = number(&directory.join("memory.usage_in_bytes"))?;
            usage.memory_peak_bytes = number(&directory.join("memory.max_usage_in_bytes"))?;
            usage.memory_anonymous_bytes = stat("total_rss");
            usage.memory_file_bytes = stat("total_cache");
            usage.memory_idle_file_bytes = stat("total_inactive_file");
            usage.swap_bytes = stat("total_swap");
            // v1 counts for the killed one's own group only.
            let mut kills = None;
            walk::each(directory, Order::TopDown, |group| {
                let control = group.read("memory.oom_control")?.unwrap_or_default();
                let more = pairs_in(&control).get("oom_kill").copied();
                kills = more.map(|more| kills.unwrap_or(0) + more).or(kills);
                Ok(())
            })?;
            usage.oom_kills = kills;
        }
        Version::V2 => {
            usage.memory_bytes = number(&directory.join("memory.current"))?;
            usage.memory_peak_bytes = number(&directory.join("memory.peak"))?;
            usage.memory_anonymous_bytes = stat("anon");
            usage.memory_file_bytes = stat("file");
            usage.memory_idle_file_bytes = stat("inactive_file");
            usage.swap_bytes = number(&directory.join("memory.swap.current"))?;
            let events = pairs(&directory.join("memory.events"))?;
            usage.oom_kills = events.get("oom_kill").copied();
        }
    }
    Ok(())
}

fn processor(group: &Cgroup, usage: &mut Usage) -> Result<(), CgroupError> {
    const NS_PER_US: u64 = 1000;
    if let Some((directory, Version::V1)) = group.controlled(Controller::Cpuacct) {
        usage.cpu_ns = number(&directory.join("cpuacct.usage"))?;
    }
    match group.controlled(Controller::Cpu) {
        Some((directory, Version::V1)) => {
            let stat = pairs(&directory.join("cpu.stat"))?;
            usage.cpu_throttled_ns = stat.get("throttled_time").copied();
        }
        Some((directory, Version::V2)) => {
            let stat = pairs(&directory.join("cpu.stat"))?;
            let ns = |name: &str| stat.get(name).map(|us| us.saturating_mul(NS_PER_US));
            usage.cpu_ns = ns("usage_usec");
            usage.cpu_throttled_ns = ns("throttled_usec");
        }
        None => {}
    }
    // Every group of a cgroup2 tree counts time, whatever its controllers.
    if usage.cpu_ns.is_none()
        && let Some(hierarchy) = group.layout.unified()
    {
        let stat = pairs(&group.outer(hierarchy).join("cpu.stat"))?;
        usage.cpu_ns = stat.get("usage_usec").map(|us| us.saturating_mul(NS_PER_US));
    }
    Ok(())
}

/// Memory of the group at `directory` that no reclaim gives back, in bytes.
pub(super) fn memory_held(directory: &Path) -> Result<Option<u64>, CgroupError> {
    let stat = pairs(&directory.join("memory.stat"))?;
    let first = |names: [&str; 2]| names.iter().find_map(|name| stat.get(*name).copied());
    let Some(anonymous) = first(["total_rss", "anon"]) else { return Ok(None) };
    let shared = first(["total_shmem", "shmem"]).unwrap_or(0);
    // With swap even these may go; how much is the kernel's to find out.
    let swap = std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
    Ok((!swap).then_some(anonymous.saturating_add(shared)))
}

/// A file that holds one number.
fn number(file: &Path) -> Result<Option<u64>, CgroupError> {
    let Some(text) = read(file)? else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| CgroupError::garbled(file, &text))
}

/// A file of lines `name number`; empty when it is not there.
fn pairs(file: &Path) -> Result<BTreeMap<String, u64>, CgroupError> {
    Ok(pairs_in(&read(file)?.unwrap_or_default()))
}

fn pairs_in(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// The sum of the numbers that follow `word`, one a line.
fn sum_after(text: &str, word: &str) -> u64 {
    let number = |line: &str| {
        let (_, rest) = line.split_once(word)?;
        rest.split(' ').next()?.trim().parse::<u64>().ok()
    };
    text.lines().filter_map(number).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::container::cgroup::Layout;

    fn recorded(files: &[(&str, &str)]) -> Usage {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let layout = Layout::detect_in(root.path()).unwrap();
        Cgroup::open(&layout, "mica/web1".parse().unwrap()).usage().unwrap()
    }

    #[test]
    fn a_group_of_v2_is_read() {
        let usage = recorded(&[
            ("proc/self/mountinfo", "30 24 0:27 / /cg rw - cgroup2 cgroup2 rw\n"),
            ("cg/cgroup.controllers", "cpu io memory pids\n"),
            ("cg/mica/web1/memory.current", "5000\n"),
            ("cg/mica/web1/memory.peak", "9000\n"),
            ("cg/mica/web1/memory.stat", "anon 1000\nfile 3000\nkernel 20\ninactive_file 500\n"),
            ("cg/mica/web1/memory.events", "low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\n"),
            ("cg/mica/web1/cpu.stat", "usage_usec 12\nuser_usec 1\nthrottled_usec 3\n"),
            ("cg/mica/web1/pids.current", "4\n"),
            (
                "cg/mica/web1/io.stat",
                "254:0 rbytes=10 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n7:0 rbytes=1 wbytes=2\n",
            ),
        ]);
        let wanted = Usage {
            memory_bytes: Some(5000),
            memory_peak_bytes: Some(9000),
            memory_anonymous_bytes: Some(1000),
            memory_file_bytes: Some(3000),
            memory_idle_file_bytes: Some(500),
            swap_bytes: None,
            oom_kills: Some(2),
            cpu_ns: Some(12_000),
            cpu_throttled_ns: Some(3000),
            pids: Some(4),
            io_read_bytes: Some(11),
            io_written_bytes: Some(22),
        };
        assert_eq!(usage, wanted);
    }

    #[test]
    fn groups_of_v1_are_read_and_kills_beneath_are_counted() {
        let mounts = "\
32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu
33 31 0:30 / /cg/cpuacct rw - cgroup cgroup rw,cpuacct
34 31 0:31 / /cg/memory rw - cgroup cgroup rw,memory
35 31 0:32 / /cg/blkio rw - cgroup cgroup rw,blkio
";
        let usage = recorded(&[
            ("proc/self/mountinfo", mounts),
            ("cg/cpu/mica/web1/cpu.stat", "nr_periods 1\nnr_throttled 1\nthrottled_time 77\n"),
            ("cg/cpuacct/mica/web1/cpuacct.usage", "123\n"),
            ("cg/memory/mica/web1/memory.usage_in_bytes", "50\n"),
            ("cg/memory/mica/web1/memory.stat", "rss 1\ntotal_rss 2\ntotal_cache 3\n"),
            ("cg/memory/mica/web1/memory.oom_control", "oom_kill_disable 0\noom_kill 0\n"),
            ("cg/memory/mica/web1/inside/memory.oom_control", "oom_kill_disable 0\noom_kill 2\n"),
            ("cg/memory/mica/web1/inside/x/memory.oom_control", "oom_kill 1\n"),
            (
                "cg/blkio/mica/web1/blkio.throttle.io_service_bytes_recursive",
                "254:0 Read 5\n254:0 Write 6\n254:0 Sync 11\n254:0 Total 11\nTotal 11\n",
            ),
        ]);
        assert_eq!((usage.cpu_ns, usage.cpu_throttled_ns), (Some(123), Some(77)));
        assert_eq!((usage.memory_bytes, usage.memory_anonymous_bytes), (Some(50), Some(2)));
        assert_eq!(usage.oom_kills, Some(3));
        assert_eq!((usage.io_read_bytes, usage.io_written_bytes), (Some(5), Some(6)));
        assert_eq!(usage.pids, None, "no hierarchy counts them");
    }

    #[test]
    fn a_group_that_is_gone_uses_nothing() {
        let usage = recorded(&[
            ("proc/self/mountinfo", "30 24 0:27 / /cg rw - cgroup2 cgroup2 rw\n"),
            ("cg/cgroup.controllers", "cpu memory\n"),
        ]);
        assert_eq!(usage, Usage::default());
    }
}
