//! Runs that end early, and runs that do not begin.

use std::fs;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Disk, DiskFormat, Scratch, Succeed, again_until, require_root};
use crate::{alone, assert_nothing_left, bench, template};

/// Starts a run and waits until something of it is there whose name begins so.
fn started(scratch: &Scratch, until: &str) -> std::process::Child {
    let store = template(scratch);
    let dir = scratch.directory("runs");
    let mut command = bench(&store, &dir, &["memory", "--quick", "--containers", "40"]);
    command.args(["--template", "small:1", "--out"]).arg(scratch.path().join("out"));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.start();
    let run = dir.join(format!("mica-bench-{}", child.id()));
    again_until("the run has begun", || {
        let entries = fs::read_dir(&run).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(until))
    });
    child
}

fn pid(child: &std::process::Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

/// The one process that another has started.
fn child_of(pid: u32) -> u32 {
    let told = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    told.trim().parse().unwrap_or_else(|error| panic!("{error}: children of {pid}: {told:?}"))
}

#[test]
fn an_interrupted_run_leaves_nothing_and_says_so() {
    require_root();
    let _alone = alone();
    for signal in [Signal::INT, Signal::TERM] {
        let scratch = Scratch::new("bench-interrupt");
        let child = started(&scratch, "memory-");
        kill_process(pid(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("interrupted"), "{said}");
        assert_nothing_left(&scratch.path().join("runs"));
        assert_eq!(fs::read_dir(scratch.path().join("out")).unwrap().count(), 0);
    }
}

#[test]
fn what_a_killed_run_leaves_the_next_one_sweeps() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new("bench-kill");
    let mut child = started(&scratch, "copies-");
    let dir = scratch.path().join("runs");
    // The first process of the run's own namespace: when it has ended, so have all others there.
    let first = child_of(child_of(child.id()));
    kill_process(pid(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    again_until("its processes outlive it", || {
        let stat = fs::read_to_string(format!("/proc/{first}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    let left = dir.join(format!("mica-bench-{}", child.id()));
    assert!(left.exists());
    // Its processes ended with it: none has the directory as its own any more.
    let store = crate::support::Store::at(&scratch.path().join("store"));
    // Sweeping comes first, also in a run that is refused.
    let mut next = bench(&store, &dir, &["memory", "--quick", "--workload", "ngnix"]);
    assert!(next.arg("--out").arg(scratch.path().join("out")).refuse().contains("ngnix"));
    assert!(!left.exists());
    assert_nothing_left(&dir);
}

#[test]
fn a_disk_that_is_too_small_is_refused_with_what_it_takes() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new("bench-small");
    let store = template(&scratch);
    let mountpoint = scratch.mountpoint("disk");
    let image = scratch.path().join("disk.img");
    let disk = Disk::create(&image, &mountpoint, DiskFormat::Ext4, 64 << 20);
    let out = scratch.path().join("out");
    for part in ["savings", "speed"] {
        let mut command = bench(&store, disk.path(), &[part, "--quick", "--template", "small:1"]);
        let said = command.arg("--out").arg(&out).refuse();
        assert!(said.contains("this run needs") && said.contains("name another disk"), "{said}");
        assert!(said.contains(&*disk.path().to_string_lossy()), "{said}");
    }
    // Names alone: an entry keeps its directory open, and the disk in use.
    let entries = fs::read_dir(disk.path()).unwrap().flatten();
    let left: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| name == "lost+found"), "{left:?}");
    disk.detach();
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_made() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new("bench-refused");
    let store = template(&scratch);
    let dir = scratch.directory("runs");
    let out = scratch.path().join("out");
    let refused = |arguments: &[&str], why: &str| {
        let mut command = bench(&store, &dir, arguments);
        let said = command.arg("--out").arg(&out).refuse();
        assert!(said.contains(why), "{arguments:?}: {said}");
    };
    refused(&["memory", "--workload", "ngnix"], "there are shell, python, nginx, systemd");
    refused(&["savings", "--template", "smal:1"], "small:1");
    refused(&["memory", "--containers", "1000"], "fewer --containers");
    refused(&["--containers", "0"], "--containers");
    assert_nothing_left(&dir);
    let mut in_memory = bench(&store, std::path::Path::new("/dev/shm"), &["savings", "--quick"]);
    let said = in_memory.arg("--out").arg(&out).refuse();
    assert!(said.contains("in memory"), "{said}");
}
