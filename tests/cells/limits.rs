//! Each limit, on processes that want more.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Instant;

use mica::container::cgroup::{
    CgroupError, Controller, CpuQuota, Disk, Guarantee, Holds, IoLimit, Limits, protect_parent,
};
use mica::container::config::Priority;

use crate::group::{Group, Parent};
use crate::support::{Scratch, Succeed, again_until};

const MIB: u64 = 1024 * 1024;
const BUSY: &str = "while :; do :; done";

fn memory(bytes: u64) -> Limits {
    Limits { memory_bytes: Some(bytes), swap_bytes: Some(0), ..Limits::default() }
}

#[test]
fn a_memory_hog_is_killed_in_its_own_group_only() {
    let parent = Parent::here();
    let (hog, neighbour) = (parent.group("hog"), parent.group("neighbour"));
    hog.hold(&memory(32 * MIB));
    neighbour.hold(&memory(32 * MIB));
    let mut quiet = neighbour.run("exec sleep 1000");
    // Reads a line that never ends.
    let mut greedy = hog.run("exec tail /dev/zero");
    let ended = greedy.0.wait().unwrap();
    assert_eq!(ended.signal(), Some(9), "{ended}");
    assert!(quiet.is_running());
    let used = hog.usage().unwrap();
    assert_eq!(used.oom_kills, Some(1), "{used:?}");
    // What the kernel takes for itself on behalf of a process that it is killing may go over.
    let peak = used.memory_peak_bytes.unwrap();
    assert!((30 * MIB..33 * MIB).contains(&peak), "{peak}");
    let used = neighbour.usage().unwrap();
    assert_eq!(used.oom_kills, Some(0), "{used:?}");
}

#[test]
fn memory_in_use_is_not_taken_away_and_nothing_else_changes_then() {
    let group = Parent::here().group("full");
    group.hold(&memory(200 * MIB));
    let mut holder =
        group.run("exec python3 -c 'import time; held = b\"x\" * (100 << 20); time.sleep(1000)'");
    let held = |used: u64| used > 90 * MIB;
    again_until("the memory is held", || {
        held(group.usage().unwrap().memory_anonymous_bytes.unwrap())
    });
    let mut less = memory(20 * MIB);
    less.pids = Some(5);
    let refused = group.apply(&less).unwrap_err();
    assert!(
        matches!(refused, CgroupError::MemoryInUse { used_bytes, .. } if held(used_bytes)),
        "{refused}"
    );
    assert!(refused.to_string().contains("stop something"), "{refused}");
    // Upwards and back, also past what memory and swap were limited to together.
    group.hold(&memory(400 * MIB));
    group.hold(&memory(150 * MIB));
    group.hold(&Limits::default());
    assert!(holder.is_running());
    assert_eq!(group.usage().unwrap().oom_kills, Some(0));
}

/// Processor time that a group has had, in seconds.
fn had(group: &Group) -> f64 {
    group.usage().unwrap().cpu_ns.unwrap() as f64 / 1e9
}

/// Periods in which a group had used up its quota.
fn throttled(parent: &Parent, group: &Group) -> f64 {
    let hierarchy = parent.layout.with(Controller::Cpu).expect("this host has quotas");
    let stat = hierarchy.mountpoint.join(group.path().as_str()).join("cpu.stat");
    let text = fs::read_to_string(&stat).unwrap();
    let periods = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
    periods.unwrap().parse().unwrap()
}

/// Processor time that groups have had by the time that the first has had `seconds` of it, however
/// long that takes beside whatever else this machine does.
fn shares(groups: [&Group; 2], seconds: f64) -> [f64; 2] {
    let before = groups.map(had);
    again_until("it gets no processor", || had(groups[0]) - before[0] >= seconds);
    let after = groups.map(had);
    [after[0] - before[0], after[1] - before[1]]
}

#[test]
fn a_processor_quota_is_measured_and_changed_live() {
    let parent = Parent::here();
    let group = parent.group("busy");
    protect_parent(&parent.layout, &parent.path, Guarantee { cpu_thousandths: 1, memory_bytes: 0 })
        .unwrap();
    let _loops = [group.run(BUSY), group.run(BUSY)];
    // How much of a quota there is time to use is this machine's to say. That there is no more than
    // that, and that nobody is stopped before it is used up, is not.
    const PERIOD: f64 = 0.1;
    for quota in [0.5, 0.2] {
        let cpu_quota = Some(CpuQuota::from_processors(quota).unwrap());
        group.hold(&Limits { cpu_quota, ..Limits::default() });
        let (begun, before, stopped) = (Instant::now(), had(&group), throttled(&parent, &group));
        again_until("it meets its quota", || throttled(&parent, &group) >= stopped + 15.0);
        let periods = throttled(&parent, &group) - stopped;
        let used = had(&group) - before;
        let most = quota * (begun.elapsed().as_secs_f64() + PERIOD);
        assert!(used < most * 1.15, "{used} s, of {most} at {quota}");
        let least = quota * PERIOD * periods;
        assert!(used > least * 0.8, "{used} s, used up {periods} times at {quota}");
    }
    assert!(group.usage().unwrap().cpu_throttled_ns.unwrap() > 100_000_000);
    group.hold(&Limits::default());
    let stopped = throttled(&parent, &group);
    let [used, _] = shares([&group, &group], 1.0);
    assert_eq!(throttled(&parent, &group), stopped, "unlimited again, for {used} s");
}

#[test]
fn under_contention_processors_go_by_weight() {
    let parent = Parent::here();
    let (low, high) = (parent.group("low"), parent.group("high"));
    // The machine may be busy with other things; these two are to have a processor to quarrel for.
    protect_parent(&parent.layout, &parent.path, Guarantee { cpu_thousandths: 1, memory_bytes: 0 })
        .unwrap();
    let limits = |priority: Priority| Limits {
        cpu_weight: priority.into(),
        cpu_set: Some("0".parse().unwrap()),
        ..Limits::default()
    };
    low.hold(&limits(Priority::Low));
    high.hold(&limits(Priority::High));
    let _loops = [low.run(BUSY), high.run(BUSY)];
    let used = shares([&low, &high], 0.25);
    let (ratio, wanted) = (used[1] / used[0], 16.0);
    assert!((wanted * 0.8..wanted * 1.2).contains(&ratio), "{ratio}, of {used:?}");
    // And live: now they are alike.
    low.set_cpu_weight(Priority::Normal.into()).unwrap();
    high.set_cpu_weight(Priority::Normal.into()).unwrap();
    let used = shares([&low, &high], 1.0);
    let ratio = used[1] / used[0];
    assert!((0.8..1.2).contains(&ratio), "{ratio}, of {used:?}");
}

#[test]
fn a_set_of_processors_narrows_also_groups_that_the_container_made() {
    let parent = Parent::here();
    let group = parent.group("set");
    let child = group.run("exec sleep 1000");
    let allowed = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    let before = allowed();
    let set = |text: &str| Limits { cpu_set: Some(text.parse().unwrap()), ..Limits::default() };
    group.hold(&set("0"));
    assert_eq!(allowed(), "0");
    group.hold(&set("1"));
    assert_eq!(allowed(), "1", "disjoint from what it was");
    let refused = group.apply(&set("0,4000")).unwrap_err().to_string();
    assert!(refused.contains("this host has processors"), "{refused}");
    group.hold(&Limits::default());
    assert_eq!(allowed(), before);
}

#[test]
fn a_fork_bomb_ends_at_the_limit_of_processes() {
    let group = Parent::here().group("bomb");
    group.hold(&Limits { pids: Some(12), ..Limits::default() });
    // Each goes on for ever. A shell that cannot fork ends, and with it the bomb, maybe before
    // anybody has looked.
    let _bomb = group.run("exec perl -e 'fork while 1'");
    again_until("it has all it can get", || group.usage().unwrap().pids.unwrap() >= 11);
    // Only a frozen group can be counted. While it runs, a list may name more than there ever are at
    // once, and the kernel's counter holds the attempt that it is about to refuse.
    for _ in 0..20 {
        group.freeze().unwrap();
        let (listed, counted) = (group.processes().unwrap(), group.usage().unwrap().pids.unwrap());
        group.thaw().unwrap();
        assert!(listed.len() <= 12 && counted <= 12, "{counted}: {listed:?}");
    }
    group.kill_all().unwrap();
    assert_eq!(group.processes().unwrap().len(), 0);
}

#[test]
fn a_disk_is_read_no_faster_than_allowed() {
    let parent = Parent::here();
    let (group, free) = (parent.group("reader"), parent.group("free"));
    let scratch = Scratch::new("cells");
    let Some(disk) = Disk::beneath(scratch.path()).unwrap() else {
        panic!("the tests' scratch directory is on no disk; set MICA_TEST_SCRATCH");
    };
    let file = scratch.path().join("data");
    Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=12"])
        .arg(format!("of={}", file.display()))
        .args(["oflag=direct"])
        .succeed();
    // So slow that without it the busiest disk is quicker.
    const SLOW: u64 = MIB / 4;
    let limits = |bytes_per_s| Limits {
        io: Some(IoLimit { disk, bytes_per_s: Some(bytes_per_s), requests_per_s: None }),
        ..Limits::default()
    };
    let shortfalls = group.apply(&limits(SLOW)).unwrap();
    let in_part: Vec<_> = shortfalls.iter().map(|short| (short.key, short.holds)).collect();
    match parent.layout.with(Controller::Io) {
        None => {
            assert_eq!(in_part, [("limits.io", Holds::NotAtAll)]);
            return;
        }
        Some(known) if known.version == mica::container::cgroup::Version::V1 => {
            assert_eq!(in_part, [("limits.io", Holds::InPart)]);
            assert!(shortfalls[0].why.contains("buffered writes"), "{shortfalls:?}");
        }
        Some(_) => assert_eq!(in_part, []),
    }
    let read = |group: &Group, bytes: u64| {
        let begun = Instant::now();
        let mut running = group.run(&format!(
            "dd if={} of=/dev/null bs=128K count={} iflag=direct 2>/dev/null; echo $?",
            file.display(),
            bytes / (128 << 10)
        ));
        let mut said = String::new();
        running.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "0\n");
        begun.elapsed().as_secs_f64()
    };
    let (slow, quick) = (read(&group, MIB), read(&free, 12 * MIB));
    // Of 4 s, what goes at once is less than one.
    assert!(slow > 3.0, "{slow} s");
    let limited = (12 * MIB / SLOW) as f64;
    assert!(quick < limited / 2.0, "{quick} s without a limit");
    assert!(group.usage().unwrap().io_read_bytes.unwrap() >= MIB);
    group.apply(&Limits::default()).unwrap();
    let again = read(&group, 12 * MIB);
    assert!(again < limited / 2.0, "{again} s, the limit is off");
}
