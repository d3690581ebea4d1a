//! Settings: refused with every reason, live, and for good.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::stage::{Stage, TEMPLATE};
use crate::support::Succeed;

/// What the kernel has as the limit of a container's memory.
fn kernel_memory(stage: &Stage, name: &str) -> String {
    let id = stage.info(name)["id"].as_str().expect("an identity").to_owned();
    // Others make and remove cgroups meanwhile, which find complains of otherwise.
    let mut find = Command::new("find");
    find.args(["/sys/fs/cgroup", "-ignore_readdir_race", "-name", &id, "-type", "d"]);
    let found = find.succeed();
    let files = found.lines().flat_map(|directory| {
        ["memory.limit_in_bytes", "memory.max"].map(|file| PathBuf::from(directory).join(file))
    });
    let limits: Vec<String> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    limits.first().expect("a memory cgroup").trim().to_owned()
}

#[test]
fn settings_hold_at_once_and_after_a_restart() {
    let stage = Stage::new("supervisor-set");
    stage.create("c1", &["--ram", "64M"], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    assert_eq!(kernel_memory(&stage, "c1"), (64 << 20).to_string());
    let said = stage.mica(["set", "c1", "limits.memory=96MiB", "hostname=other", "--cpus", "0.5"]);
    assert!(said.contains("c1: limits.memory=96MiB\n"), "{said}");
    assert!(said.contains("c1: hostname=other, from its next start on\n"), "{said}");
    assert_eq!(kernel_memory(&stage, "c1"), (96 << 20).to_string());
    stage.kill_daemon();
    stage.start_daemon(&[]);
    assert_eq!(kernel_memory(&stage, "c1"), (96 << 20).to_string());
    stage.mica(["restart", "--kill", "c1"]);
    assert_eq!(kernel_memory(&stage, "c1"), (96 << 20).to_string());
    assert_eq!(stage.mica(["exec", "c1", "--", "hostname"]).trim(), "other");
    // A value of nothing takes it back.
    let said = stage.mica(["set", "c1", "hostname="]);
    assert!(said.contains("c1: hostname taken back, from its next start on\n"), "{said}");
    assert!(stage.info("c1")["settings"].get("hostname").is_none());
    // All or none: the first of two is not made when the second is wrong.
    let wrong = stage.refused(["set", "c1", "limits.memory=32MiB", "limits.memroy=1", "--cpus=x"]);
    assert!(wrong.contains("did you mean") && wrong.contains("limits.cpu:"), "{wrong}");
    assert_eq!(stage.info("c1")["settings"]["limits.memory"], "96MiB");
}

#[test]
fn a_disk_limit_is_met_and_moved_while_the_container_runs() {
    let stage = Stage::new("supervisor-disk");
    stage.create("c1", &["--diskspace", "8MiB"], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    let write = |megabytes: &str| {
        let count = format!("count={megabytes}");
        let words = [
            "exec",
            "c1",
            "--",
            "dd",
            "if=/dev/zero",
            "of=/root/big",
            "bs=1M",
            &count,
            "conv=fsync",
        ];
        stage.ask(words)
    };
    assert!(write("4").status.success());
    let full = write("12");
    assert!(!full.status.success(), "{full:?}");
    assert!(String::from_utf8_lossy(&full.stderr).contains("quota"), "{full:?}");
    stage.mica(["set", "c1", "limits.disk=32MiB"]);
    let more = write("12");
    assert!(more.status.success(), "{more:?}");
    let size = stage.mica(["exec", "c1", "--", "df", "--output=size", "-BM", "/"]);
    assert!(size.contains("32M"), "{size}");
}

#[test]
fn what_cannot_work_is_refused_with_every_reason_and_leaves_nothing() {
    let stage = Stage::new("supervisor-refused");
    let both = stage.refused([
        "create",
        "c1",
        TEMPLATE,
        "network=none",
        "ip=10.88.0.5",
        "port=80:80",
        "cap.add=CHOWN",
        "cap.drop=CHOWN",
        "alert.memory=90%",
        "--",
        "true",
    ]);
    for part in ["10.88.0.5", "80:80", "CHOWN", "alert.memory"] {
        assert!(both.contains(part), "{part}: {both}");
    }
    // Values that are none, under whatever name, beside what cannot work together and a name that is
    // taken; what only a wrong value lets look wrong is not told.
    let every = stage.refused([
        "create",
        ".bad",
        "debain:12",
        "limits.memory=lots",
        "alert.memory=90%",
        "limits.memroy=1",
        "--ip",
        "10.88.0.999",
        "--ip",
        "10.88.0.11",
        "-p",
        "99999:80,nonsense",
        "cap.add=CHOWN",
        "cap.drop=CHOWN",
        "--",
        "true",
    ]);
    for part in [".bad", "debain:12", "lots", "memroy", ".999", "99999", "nonsense", "CHOWN"] {
        assert!(every.contains(part), "{part}: {every}");
    }
    assert_eq!(every.lines().count(), 9, "{every}");
    assert!(every.contains("there are 8 reasons"), "{every}");
    let swapped = stage.refused(["create", TEMPLATE, "web1", "--", "true"]);
    assert!(swapped.contains("mica create web1"), "{swapped}");
    let huge = stage.refused([
        "create",
        "c1",
        TEMPLATE,
        "network=none",
        "guarantee.memory=900GiB",
        "--",
        "true",
    ]);
    assert!(huge.contains("promised"), "{huge}");
    let unknown = stage.refused(["create", "c1", "debain:12", "--", "true"]);
    assert!(unknown.contains("template"), "{unknown}");
    assert_eq!(stage.mica(["ps", "-a", "-q"]), "");
    stage.assert_nothing_left("after refusals");
    // A template is kept for whoever was made of it, started or not.
    stage.create("c1", &[], &["true"]);
    let used = stage.refused(["template", "delete", TEMPLATE]);
    assert!(used.contains("c1"), "{used}");
    let taken = stage.refused(["create", "c1", TEMPLATE, "network=none", "--", "true"]);
    assert!(taken.contains("already"), "{taken}");
    stage.remember();
    stage.mica(["delete", "c1"]);
    stage.assert_nothing_left("after a container that never ran");
    stage.mica(["template", "delete", TEMPLATE]);
}
