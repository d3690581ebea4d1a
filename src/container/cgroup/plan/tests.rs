//! What is written where, on each layout.

use std::fs;

use super::*;
use crate::container::cgroup::limits::{CpuQuota, Weight};

fn layout(mountinfo: &str, controllers: &str) -> Layout {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in
        [("proc/self/mountinfo", mountinfo), ("sys/fs/cgroup/cgroup.controllers", controllers)]
    {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Layout::detect_in(root.path()).unwrap()
}

fn v2() -> Layout {
    layout(
        "30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
        "cpuset cpu io memory pids\n",
    )
}

fn v1() -> Layout {
    let line =
        |name: &str| format!("32 31 0:29 / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n");
    layout(&["cpu", "cpuset", "memory", "pids", "blkio"].map(line).concat(), "")
}

fn all() -> Limits {
    let disk = Disk { major: 254, minor: 0 };
    Limits {
        memory_bytes: Some(1 << 30),
        swap_bytes: Some(1 << 20),
        memory_guarantee_bytes: Some(1 << 28),
        cpu_quota: Some(CpuQuota::from_thousandths(1500).unwrap()),
        cpu_set: Some("0-1".parse().unwrap()),
        cpu_weight: Weight::new(400).unwrap(),
        pids: Some(100),
        io: Some(IoLimit { disk, bytes_per_s: Some(5_000_000), requests_per_s: Some(300) }),
        nesting: false,
    }
}

fn texts(plan: &Plan) -> Vec<(&'static str, String)> {
    let text = |write: &Write| match &write.value {
        Value::Text(text) => text.clone(),
        Value::Processors(set) => set.as_ref().map_or(String::new(), ToString::to_string),
        Value::Disks(disks) => disk_lines(write.version, "", disks).join(";"),
    };
    plan.writes.iter().map(|write| (write.file, text(write))).collect()
}

#[test]
fn everything_is_one_file_each_on_v2() {
    let plan = Plan::new(&v2(), &all(), None);
    let wanted = [
        ("cpu.max", "150000 100000"),
        ("cpu.weight", "400"),
        ("cpuset.cpus", "0-1"),
        ("memory.max", "1073741824"),
        ("memory.swap.max", "1048576"),
        ("memory.min", "268435456"),
        ("pids.max", "100"),
        ("io.max", "254:0 rbps=5000000 wbps=5000000 riops=300 wiops=300"),
    ];
    assert_eq!(texts(&plan), wanted.map(|(file, text)| (file, text.to_owned())));
    assert_eq!(plan.shortfalls, [], "v2 holds all of it");
}

#[test]
fn v1_says_what_it_holds_in_part() {
    let plan = Plan::new(&v1(), &all(), Some(u64::MAX));
    let wanted = [
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "150000"),
        ("cpu.shares", "4096"),
        ("cpuset.cpus", "0-1"),
        ("memory.limit_in_bytes", "1073741824"),
        ("memory.memsw.limit_in_bytes", "1074790400"),
        ("memory.soft_limit_in_bytes", "268435456"),
        ("pids.max", "100"),
        ("blkio.throttle.read_bps_device", "254:0 5000000"),
        ("blkio.throttle.write_bps_device", "254:0 5000000"),
        ("blkio.throttle.read_iops_device", "254:0 300"),
        ("blkio.throttle.write_iops_device", "254:0 300"),
    ];
    assert_eq!(texts(&plan), wanted.map(|(file, text)| (file, text.to_owned())));
    let short: Vec<_> = plan.shortfalls.iter().map(|short| (short.key, short.holds)).collect();
    assert_eq!(short, [("guarantee.memory", Holds::InPart), ("limits.io", Holds::InPart)]);
}

#[test]
fn nothing_asked_is_nothing_limited() {
    let free = |layout| texts(&Plan::new(&layout, &Limits::default(), Some(1 << 20)));
    let v2 = free(v2());
    assert!(v2.contains(&("cpu.max", "max 100000".to_owned())), "{v2:?}");
    assert!(v2.contains(&("memory.max", "max".to_owned())), "{v2:?}");
    assert!(v2.contains(&("memory.min", "0".to_owned())), "{v2:?}");
    assert!(v2.contains(&("cpuset.cpus", String::new())), "{v2:?}");
    let v1 = free(v1());
    assert!(v1.contains(&("cpu.cfs_quota_us", "-1".to_owned())), "{v1:?}");
    assert!(v1.contains(&("cpu.shares", "1024".to_owned())), "{v1:?}");
    assert!(v1.contains(&("pids.max", "max".to_owned())), "{v1:?}");
}

#[test]
fn memory_never_exceeds_memory_and_swap_on_the_way() {
    let limits =
        |memory| Limits { memory_bytes: Some(memory), swap_bytes: Some(0), ..Limits::default() };
    let order = |memory, current| {
        let plan = Plan::new(&v1(), &limits(memory), Some(current));
        let files = plan.writes.iter().map(|write| write.file);
        files.filter(|file| file.contains("limit_in") && !file.contains("soft")).collect::<Vec<_>>()
    };
    let (memory, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
    assert_eq!(order(2 << 20, 1 << 20), [both, memory], "up: the wider limit first");
    assert_eq!(order(1 << 20, 2 << 20), [memory, both], "down: the narrower first");
}

#[test]
fn what_no_hierarchy_controls_is_named_with_its_key() {
    let bare = layout("30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "hugetlb\n");
    let plan = Plan::new(&bare, &all(), None);
    assert_eq!(plan.writes, []);
    let mut keys: Vec<_> = plan.shortfalls.iter().map(|short| short.key).collect();
    keys.dedup();
    let asked = [
        "limits.cpu",
        "limits.cpu.weight",
        "limits.cpu",
        "limits.memory",
        "limits.memory.swap",
        "guarantee.memory",
        "limits.processes",
        "limits.io",
    ];
    assert_eq!(keys, asked);
    assert!(plan.shortfalls.iter().all(|short| short.holds == Holds::NotAtAll));
    assert_eq!(Plan::new(&bare, &Limits::default(), None).shortfalls, [], "nothing was asked");
}

#[test]
fn a_disk_no_longer_limited_is_cleared() {
    let disk = |minor| Disk { major: 254, minor };
    let bytes = |bytes| Speeds { bytes: Some(bytes), requests: None };
    let wanted = BTreeMap::from([(disk(16), bytes(7))]);
    assert_eq!(disk_lines(Version::V1, "254:0 5000000\n", &wanted), ["254:0 0", "254:16 7"]);
    let current =
        "254:0 rbps=5 wbps=5 riops=max wiops=max\n254:16 rbps=max wbps=max riops=9 wiops=9\n";
    assert_eq!(
        disk_lines(Version::V2, current, &wanted),
        ["254:0 rbps=max wbps=max riops=max wiops=max", "254:16 rbps=7 wbps=7 riops=max wiops=max"]
    );
    let requests = Speeds { bytes: None, requests: Some(9) };
    assert_eq!(current_disks(current), BTreeMap::from([(disk(0), bytes(5)), (disk(16), requests)]));
    assert_eq!(current_disks("garbage\n1:x 5\n:\n"), BTreeMap::new());
}
