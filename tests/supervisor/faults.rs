//! One container's fault is no other's.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::stage::{Stage, TEMPLATE, processes};
use crate::support::{Succeed, again_until};

/// The mount process of a container's root.
fn mount_process(stage: &Stage, name: &str) -> u32 {
    let root = stage.info(name)["root"].as_str().expect("a path").to_owned();
    let found = processes()
        .into_iter()
        .find(|(_, words)| words.contains("mount-process") && words.trim_end().ends_with(&root));
    found.expect("a mount process").0
}

#[test]
fn a_dead_mount_process_fails_its_container_and_its_policy_starts_it_again() {
    let stage = Stage::new("supervisor-mount");
    stage.create("other", &[], &["sleep", "1000"]);
    stage.create("again", &["restart=on-failure"], &["sleep", "1000"]);
    stage.create("stays-down", &[], &["sleep", "1000"]);
    stage.mica(["start", "--all"]);
    let other = stage.info("other")["pid"].clone();
    stage.mica(["exec", "again", "--", "sh", "-c", "echo kept > /root/file; sync /root/file"]);
    for name in ["again", "stays-down"] {
        let pid = mount_process(&stage, name);
        Command::new("kill").args(["-KILL", &pid.to_string()]).succeed();
    }
    let seen = stage.await_info("stays-down", "it failed", |info| info["phase"] == "failed");
    assert!(seen["failure"].as_str().expect("a reason").contains("mount process"), "{seen}");
    stage.await_info("again", "it runs again", |info| {
        info["phase"] == "running" && info["restarts"] == 1
    });
    assert_eq!(stage.mica(["exec", "again", "--", "cat", "/root/file"]).trim(), "kept");
    assert_eq!(stage.info("other")["pid"], other);
    stage.mica(["start", "stays-down"]);
    assert_eq!(stage.mica(["exec", "stays-down", "--", "hostname"]).trim(), "stays-down");
    stage.remember();
    stage.mica(["delete", "--force", "--all"]);
    stage.assert_nothing_left("after dead mount processes");
}

#[test]
fn a_memory_hog_is_killed_in_its_own_container_and_told_of() {
    let stage = Stage::new("supervisor-oom");
    stage.create("other", &[], &["sleep", "1000"]);
    let hog = "a = []\nwhile True: a.append(bytearray(1 << 20))";
    stage.create("hog", &["limits.memory=48MiB", "limits.swap=0"], &["python3", "-c", hog]);
    stage.mica(["start", "other", "hog"]);
    let seen = stage.await_info("hog", "it was killed", |info| info["phase"] == "stopped");
    assert_eq!(seen["exit"]["status"], 137, "{seen}");
    assert_eq!(seen["exit"]["out_of_memory"], true, "{seen}");
    assert!(stage.mica(["ps", "-a"]).contains("out of memory"));
    assert_eq!(stage.mica(["exec", "other", "--", "echo", "well"]).trim(), "well");
}

#[test]
fn a_killed_monitor_loses_the_status_and_nothing_else() {
    let stage = Stage::new("supervisor-monitor");
    stage.create("c1", &[], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    let id = stage.info("c1")["id"].as_str().expect("an identity").to_owned();
    let monitor = processes()
        .into_iter()
        .find(|(_, words)| words.contains("container-monitor") && words.contains(&id))
        .expect("a monitor");
    assert_eq!(stage.info("c1")["unwatched"], false);
    Command::new("kill").args(["-KILL", &monitor.0.to_string()]).succeed();
    stage.await_info("c1", "its loss is told", |info| info["unwatched"] == true);
    assert!(stage.mica(["ps"]).contains("unwatched"));
    assert!(stage.mica(["info", "c1"]).contains("mica restart c1"));
    stage.kill_daemon();
    stage.start_daemon(&[]);
    assert_eq!(stage.info("c1")["unwatched"], true);
    assert_eq!(stage.mica(["exec", "c1", "--", "echo", "here"]).trim(), "here");
    stage.mica(["stop", "--kill", "c1"]);
    assert_eq!(stage.phase("c1"), "stopped");
    stage.remember();
    stage.mica(["delete", "c1"]);
    stage.assert_nothing_left("after a killed monitor");
}

#[test]
fn a_copy_of_the_mounts_elsewhere_keeps_no_container_from_stopping() {
    let stage = Stage::new("supervisor-namespace");
    stage.create("c1", &[], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    let root = stage.info("c1")["root"].as_str().expect("a path").to_owned();
    let script =
        format!("mount --make-rprivate /; grep -q {root} /proc/self/mounts && exec sleep 1000");
    let mut elsewhere = Command::new("unshare").args(["--mount", "sh", "-c", &script]).start();
    let comm = format!("/proc/{}/comm", elsewhere.id());
    again_until("another namespace has the root", || {
        std::fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n")
    });
    stage.mica(["stop", "--kill", "c1"]);
    stage.mica(["start", "c1"]);
    assert_eq!(stage.mica(["exec", "c1", "--", "echo", "here"]).trim(), "here");
    stage.remember();
    stage.mica(["delete", "--force", "c1"]);
    elsewhere.kill().expect("ours");
    elsewhere.wait().expect("ours");
    stage.assert_nothing_left("after a copy of the mounts");
}

/// A whole machine whose init makes groups, in every tree that is its own, that no path leads to.
const NEST: &str = r#"
import os, time
trees = "/sys/fs/cgroup"
for tree in [""] + os.listdir(trees):
    top = os.path.join(trees, tree)
    if not os.access(os.path.join(top, "cgroup.procs"), os.W_OK):
        continue
    os.chdir(top)
    try:
        for _ in range(20):
            os.mkdir("x" * 250)
            os.chdir("x" * 250)
        with open("cgroup.procs", "w") as group:
            group.write("0")
        print("deep", tree, flush=True)
    except PermissionError:
        pass
print("all", flush=True)
time.sleep(1000)
"#;

#[test]
fn groups_that_no_path_leads_to_keep_no_container_from_ending() {
    let stage = Stage::new("supervisor-deep");
    for runtime in ["embedded", "runc"] {
        let runtime = format!("runtime={runtime}");
        let words = ["create", "c1", TEMPLATE, "network=none", "--system", &runtime];
        stage.mica(words.into_iter().chain(["--", "python3", "-c", NEST]));
        stage.mica(["start", "c1"]);
        let mut said = String::new();
        again_until("it is at the bottom", || {
            said = stage.mica(["logs", "c1"]);
            said.lines().any(|line| line.ends_with("all"))
        });
        assert!(said.contains("deep pids") && said.contains("deep unified"), "{said}");
        stage.remember();
        stage.mica(["stop", "--kill", "c1"]);
        stage.mica(["start", "c1"]);
        stage.mica(["delete", "--force", "c1"]);
        stage.assert_nothing_left("after groups that no path leads to");
    }
}

#[test]
fn a_damaged_container_keeps_nobody_from_running_and_nobody_gets_what_it_has() {
    let stage = Stage::with_network("supervisor-damaged");
    for name in ["one", "two", "three"] {
        stage.mica(["create", name, TEMPLATE, "--", "sleep", "1000"]);
    }
    stage.mica(["start", "one", "two", "three"]);
    let two = stage.info("two");
    let before = ["one", "three"].map(|name| stage.info(name)["pid"].clone());
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let address = text(&two["addresses"][0]);
    let directory = stage.store.path().join("containers").join(text(&two["id"]));
    let users = |id: &str| {
        let state = stage.store.path().join("containers").join(id).join("state.json");
        let state: Value = serde_json::from_slice(&fs::read(state).expect("there")).expect("JSON");
        state["users"].clone()
    };
    let mut taken = vec![users(&text(&two["id"]))];
    let config = fs::read(directory.join("config.json")).expect("there");
    let damage =
        |name: &str| fs::write(directory.join(name), b"{\"version\": 1, ").expect("written");
    let pings = || stage.ask(["exec", "one", "--", "ping", "-c", "1", "-W", "5", &address]);
    let again = || {
        stage.mica(["node", "stop"]);
        stage.start_daemon(&[]);
    };

    damage("config.json");
    again();
    assert_eq!(["one", "three"].map(|name| stage.info(name)["pid"].clone()), before);
    let seen = stage.info("two");
    assert_eq!((&seen["phase"], &seen["damaged"]), (&"failed".into(), &true.into()), "{seen}");
    assert!(text(&seen["failure"]).contains("config.json is damaged"), "{seen}");
    assert!(stage.mica(["ps"]).contains("failed, damaged"));
    for words in [
        &["start", "two"][..],
        &["set", "two", "limits.pids=50"],
        &["copy", "two", "four"],
        &["delete", "two"],
    ] {
        let said = stage.refused(words.iter().copied());
        assert!(said.contains("two cannot be used") && said.contains("delete --force"), "{said}");
    }
    assert!(pings().status.success(), "its processes run on, where they were");
    stage.mica(["restart", "--kill", "three"]);
    stage.mica(["create", "four", TEMPLATE, "--", "sleep", "1000"]);
    stage.mica(["start", "four"]);
    let four = stage.info("four");
    taken.push(users(&text(&four["id"])));
    assert_ne!(taken[0], taken[1]);
    assert_ne!(text(&four["addresses"][0]), address);

    // Mended, it is what it was.
    fs::write(directory.join("config.json"), &config).expect("written");
    again();
    let mended = stage.info("two");
    assert_eq!((&mended["phase"], &mended["pid"]), (&"running".into(), &two["pid"]));

    // Nothing that says what it has is left: nothing is handed out.
    for name in ["config.json", "state.json", "claim.json"] {
        damage(name);
    }
    again();
    assert_eq!(stage.phase("one"), "running");
    let name = format!("damaged-{}", &text(&two["id"])[..12]);
    let said = stage.refused(["create", "five", TEMPLATE, "--", "sleep", "1000"]);
    assert!(said.contains(&format!("mica delete --force {name}")), "{said}");
    stage.mica(["stop", "--kill", "four"]);
    stage.mica(["start", "four"]);
    let named = ["create", "six", TEMPLATE, "userns=1900000000:65536", "network=none"];
    stage.mica(named.into_iter().chain(["--", "sleep", "1000"]));
    stage.remember();
    stage.mica(["delete", "--force", &name]);
    stage.mica(["create", "five", TEMPLATE, "--", "sleep", "1000"]);
    stage.mica(["start", "five"]);
    stage.mica(["delete", "--all", "--force"]);
    stage.assert_nothing_left("after a damaged container");
}
