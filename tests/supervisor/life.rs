//! From create to delete, and what survives the daemon.

use std::process::Stdio;

use serde_json::Value;

use crate::stage::{Stage, TEMPLATE};
use crate::support::{Scratch, Succeed, again_until};

#[test]
fn a_command_runs_once_and_its_status_passes_through() {
    let stage = Stage::new("supervisor-run");
    for (script, status) in [("exit 0", 0), ("exit 3", 3), ("sh -c 'kill -TERM $$'", 143)] {
        let done = stage.ask(["run", "--rm", TEMPLATE, "network=none", "--", "sh", "-c", script]);
        assert_eq!(done.status.code(), Some(status), "{script}: {done:?}");
    }
    let said = stage.ask([
        "run",
        "--rm",
        "--name",
        "once",
        TEMPLATE,
        "network=none",
        "-e",
        "A=b c",
        "--",
        "sh",
        "-c",
        "hostname; echo \"$A\"; id -u; echo no >&2",
    ]);
    assert_eq!(String::from_utf8_lossy(&said.stdout), "once\nb c\n0\n", "{said:?}");
    assert_eq!(String::from_utf8_lossy(&said.stderr), "no\n");
    stage.assert_nothing_left("after containers that ran once");
}

#[test]
fn places_for_mounts_are_no_change_and_a_revert_leaves_them() {
    let stage = Stage::new("supervisor-places");
    let volume = "volume=/etc/hostname:/srv/name";
    stage.create("c1", &[volume], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    assert_eq!(stage.mica(["diff", "c1"]), "");
    stage.mica(["exec", "c1", "--", "touch", "/etc/own"]);
    assert!(stage.refused(["revert", "c1", "/etc/hosts"]).contains("place for a mount"));
    stage.mica(["revert", "c1", "/etc", "/srv"]);
    let there = "! [ -e /etc/own ] && [ -s /srv/name ] && grep -q c1 /etc/hosts";
    stage.mica(["exec", "c1", "--", "sh", "-c", there]);
    stage.mica(["stop", "--kill", "c1"]);
    assert_eq!(stage.mica(["diff", "c1"]), "");
    stage.mica(["revert", "c1", "/"]);
    stage.mica(["start", "c1"]);
    stage.mica(["exec", "c1", "--", "sh", "-c", there]);
    // What the container itself puts there is its own.
    stage.mica(["stop", "--kill", "c1"]);
    let private = stage.info("c1")["private"].as_str().expect("a path").to_owned();
    std::fs::write(format!("{private}/upper/srv/name"), "used").expect("written");
    let changed = stage.ask(["diff", "c1"]).stdout;
    assert!(String::from_utf8_lossy(&changed).contains("A /srv/name"), "{changed:?}");
}

#[test]
fn a_command_that_cannot_run_is_told_alike_by_both_runtimes() {
    let stage = Stage::new("supervisor-command");
    // A volume may bring the command, so that only the runtime knows.
    let volume = "volume=/etc/hostname:/mnt/name";
    for runtime in ["runtime=embedded", "runtime=runc"] {
        for (command, status, word) in [
            ("no-such-command", 127, "PATH"),
            ("/no/such/command", 127, "/no/such/command"),
            ("/etc/passwd", 126, "mode"),
            ("/etc", 126, "directory"),
        ] {
            let words = ["run", "--rm", TEMPLATE, "network=none", runtime, "--", command];
            let said = stage.ask(words);
            let complaint = String::from_utf8_lossy(&said.stderr);
            assert_eq!(said.status.code(), Some(status), "{runtime} {command}: {complaint}");
            assert!(complaint.contains(word), "{runtime} {command}: {complaint}");
            let more = ["run", "--rm", TEMPLATE, "network=none", runtime, volume, "--", command];
            let said = stage.ask(more);
            let complaint = String::from_utf8_lossy(&said.stderr);
            assert_eq!(said.status.code(), Some(status), "{runtime} {command}: {complaint}");
            assert_eq!(complaint.matches("cannot create").count(), 1, "{complaint}");
        }
        stage.create("lost", &[runtime], &["sh", "-c", "rm /lib64/ld-linux-x86-64.so.2"]);
        stage.mica(["start", "lost"]);
        stage.await_info("lost", "it ended", |info| info["phase"] == "stopped");
        let said = stage.ask(["start", "lost"]);
        let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(127), "{runtime}: {complaint}");
        assert!(complaint.contains("sh in the container needs /lib64/ld-linux"), "{complaint}");
        assert_eq!(
            stage.info("lost")["failure"].as_str().map(|f| complaint.contains(f)),
            Some(true)
        );
        stage.remember();
        stage.mica(["delete", "lost"]);
        stage.assert_nothing_left(runtime);
    }
}

#[test]
fn input_passes_into_a_command_and_a_pipe_of_any_length_comes_back() {
    let stage = Stage::new("supervisor-exec");
    stage.create("c1", &[], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    let mut command = stage.store.mica(["exec", "-i", "c1", "--", "sh", "-c", "cat; exit 5"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).start();
    let mut stdin = child.stdin.take().expect("a pipe");
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let writer = {
        let sent = sent.clone();
        std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &sent))
    };
    let got = child.wait_with_output().expect("it ends");
    writer.join().expect("written").expect("written");
    assert_eq!(got.status.code(), Some(5));
    assert!(got.stdout == sent, "{} of {} bytes came back", got.stdout.len(), sent.len());
    // A client that goes away takes its command with it.
    let mut gone = stage.store.mica(["exec", "c1", "--", "sleep", "777"]).start();
    again_until("the command runs", || {
        stage.mica(["exec", "c1", "--", "ps", "ax"]).contains("sleep 777")
    });
    gone.kill().expect("ours");
    gone.wait().expect("ours");
    again_until("the command ends", || {
        !stage.mica(["exec", "c1", "--", "ps", "ax"]).contains("sleep 777")
    });
}

#[test]
fn commands_fan_out_by_pattern_and_label_and_the_worst_status_counts() {
    let stage = Stage::new("supervisor-fan-out");
    for (name, label) in [("web1", "role=web"), ("web2", "role=web"), ("db1", "role=db")] {
        stage.create(name, &["-l", label], &["sleep", "1000"]);
    }
    stage.mica(["start", "--all"]);
    let said = stage.mica(["exec", "web*", "--", "hostname"]);
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["web1  web1", "web2  web2"]);
    // In the order of their names, whoever is faster.
    let slow = "[ $(hostname) = web1 ] && sleep 0.3; hostname";
    let said = stage.mica(["exec", "web*", "--", "sh", "-c", slow]);
    let names: Vec<&str> = said.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.is_sorted() && names.len() > 1, "{said}");
    let worst = stage.ask(["exec", "--all", "--", "sh", "-c", "[ $(hostname) = db1 ] && exit 9"]);
    assert_eq!(worst.status.code(), Some(9), "{worst:?}");
    assert_eq!(stage.mica(["exec", "label=role=db", "--", "hostname"]).trim(), "db1  db1");
    let unknown = stage.refused(["stop", "wbe1"]);
    assert!(unknown.contains("did you mean \"web1\"?"), "{unknown}");
    stage.mica(["stop", "--kill", "label=role=web"]);
    assert_eq!(stage.mica(["ps", "-q"]).trim(), "db1");
    stage.remember();
    stage.mica(["delete", "--force", "--all"]);
    stage.assert_nothing_left("after all were deleted");
}

#[test]
fn containers_outlive_a_killed_daemon_and_are_found_again() {
    let stage = Stage::new("supervisor-adopt");
    stage.create("stays", &[], &["sleep", "1000"]);
    stage.create("paused", &[], &["sleep", "1000"]);
    let until = "until [ -e /root/go ]; do sleep 0.1; done; exit 4";
    stage.create("ends", &[], &["sh", "-c", until]);
    stage.mica(["start", "stays", "paused"]);
    stage.mica(["pause", "paused"]);
    let before = stage.info("stays")["pid"].clone();
    stage.mica(["start", "ends"]);
    let ends = stage.info("ends");
    let init = ends["pid"].as_u64().expect("it runs");
    stage.kill_daemon();
    let root = std::path::Path::new(ends["root"].as_str().expect("a path"));
    std::fs::write(root.join("root/go"), b"").expect("its mount process serves on");
    stage.await_end_of(u32::try_from(init).expect("a pid"));
    let refused = stage.refused(["ps"]);
    assert!(refused.contains("mica node start"), "{refused}");
    stage.start_daemon(&[]);
    assert_eq!(stage.info("stays")["pid"], before, "the same process goes on");
    assert_eq!(stage.mica(["exec", "stays", "--", "echo", "here"]).trim(), "here");
    assert_eq!(stage.phase("paused"), "paused");
    // It ended while nobody looked, and its status is known all the same.
    let ended = stage.info("ends");
    assert_eq!(ended["phase"], "stopped");
    assert_eq!(ended["exit"]["status"], 4, "{ended}");
    // A daemon that is asked to end leaves them too.
    stage.mica(["node", "stop"]);
    stage.start_daemon(&[]);
    assert_eq!(stage.info("stays")["pid"], before);
    stage.mica(["resume", "paused"]);
    stage.mica(["stop", "--kill", "--all"]);
    stage.remember();
    stage.mica(["delete", "--all"]);
    stage.assert_nothing_left("after adoption and deletion");
}

#[test]
fn two_clients_that_race_start_one_init() {
    let stage = Stage::new("supervisor-race");
    stage.create("c1", &[], &["sleep", "1000"]);
    for _round in 0..5 {
        let started: Vec<_> = (0..4)
            .map(|_| stage.store.mica(["start", "c1"]).stdout(Stdio::null()).start())
            .collect();
        for mut client in started {
            assert!(client.wait().expect("ends").success());
        }
        let inside = stage.mica(["exec", "c1", "--", "ps", "ax"]);
        assert_eq!(inside.matches("sleep 1000").count(), 1, "{inside}");
        let words = [["stop", "--kill", "c1"], ["start", "-q", "c1"], ["restart", "--kill", "c1"]];
        let racing: Vec<_> = words
            .iter()
            .map(|words| stage.store.mica(*words).stdout(Stdio::null()).start())
            .collect();
        for mut client in racing {
            client.wait().expect("ends");
        }
        stage.mica(["stop", "--kill", "c1"]);
        assert_eq!(stage.phase("c1"), "stopped");
    }
    stage.remember();
    stage.mica(["delete", "c1"]);
    stage.assert_nothing_left("after races");
}

#[test]
fn a_policy_starts_again_with_longer_and_longer_waits_and_gives_up() {
    let stage = Stage::new("supervisor-restart");
    stage.create("fails", &["restart=on-failure:3"], &["sh", "-c", "echo again; exit 1"]);
    stage.create("works", &["restart=on-failure"], &["true"]);
    stage.mica(["start", "fails", "works"]);
    let seen = stage.await_info("fails", "it was given up", |info| {
        info["phase"] == "stopped" && info["restarts"] == 3
    });
    assert_eq!(seen["exit"]["status"], 1);
    assert_eq!(stage.mica(["logs", "fails"]).matches("again").count(), 4);
    let works = stage.await_info("works", "it ended", |info| info["phase"] == "stopped");
    assert_eq!(works["restarts"], 0);
    stage.create("always", &["restart=always"], &["sleep", "1000"]);
    stage.mica(["start", "always"]);
    let first = stage.info("always")["pid"].as_u64().expect("it runs");
    std::process::Command::new("kill").args(["-KILL", &first.to_string()]).succeed();
    let again = stage.await_info("always", "it runs again", |info| {
        info["phase"] == "running" && info["pid"].as_u64() != Some(first)
    });
    assert_eq!(again["restarts"], 1);
    // Who stops it means it.
    stage.mica(["stop", "--kill", "always"]);
    assert_eq!(stage.phase("always"), "stopped");
}

#[test]
fn a_health_check_tells_what_works_and_what_does_not() {
    let stage = Stage::new("supervisor-health");
    let check = ["health.command=test -e /tmp/works", "health.interval=1", "health.retries=2"];
    stage.create("c1", &check, &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    stage.await_info("c1", "it is unhealthy", |info| info["health"] == "unhealthy");
    stage.mica(["exec", "c1", "--", "touch", "/tmp/works"]);
    stage.await_info("c1", "it is healthy", |info| info["health"] == "healthy");
    assert!(stage.mica(["ps"]).contains("healthy"));
}

#[test]
fn what_was_written_is_kept_in_order_and_followed_to_the_end() {
    let stage = Stage::new("supervisor-logs");
    let script = "for i in $(seq 2000); do echo line $i; done; printf end";
    stage.create("c1", &["log.size=8KiB", "log.files=3"], &["sh", "-c", script]);
    stage.mica(["start", "c1"]);
    stage.await_info("c1", "it ended", |info| info["phase"] == "stopped");
    let kept = stage.mica(["logs", "c1"]);
    let lines: Vec<&str> = kept.lines().collect();
    assert_eq!(lines.last(), Some(&"end"));
    let first: usize = lines[0].strip_prefix("line ").expect("a line").parse().expect("a number");
    assert!(first > 1 && lines.len() == 2000 - first + 2, "{} lines from {first}", lines.len());
    assert_eq!(stage.mica(["logs", "-n", "2", "c1"]), "line 2000\nend\n");
    stage.create("c2", &[], &["sh", "-c", "echo one; sleep 0.3; echo two >&2"]);
    stage.mica(["start", "c2"]);
    let followed = stage.ask(["logs", "-f", "c2"]);
    assert_eq!(String::from_utf8_lossy(&followed.stdout), "one\n");
    assert_eq!(String::from_utf8_lossy(&followed.stderr), "two\n");
}

#[test]
fn a_copy_has_the_changes_and_a_name_of_its_own() {
    let stage = Stage::new("supervisor-copy");
    stage.create("c1", &["limits.memory=64MiB"], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    stage.mica([
        "exec",
        "c1",
        "--",
        "sh",
        "-c",
        "echo mine > /root/file; ln /root/file /root/two; rm /etc/motd",
    ]);
    let running = stage.refused(["rename", "c1", "c9"]);
    assert!(running.contains("--force"), "{running}");
    stage.mica(["stop", "--kill", "c1"]);
    stage.mica(["copy", "c1", "c2"]);
    stage.mica(["rename", "c1", "first"]);
    stage.mica(["start", "first", "c2"]);
    stage.mica(["exec", "first", "--", "sh", "-c", "echo theirs > /root/file"]);
    let seen = stage.mica([
        "exec",
        "c2",
        "--",
        "sh",
        "-c",
        "cat /root/two; ls /etc/motd 2>&1; hostname; stat -c %h /root/file",
    ]);
    assert!(seen.starts_with("mine\n") && seen.ends_with("c2\n2\n"), "{seen}");
    assert!(seen.contains("No such file"), "{seen}");
    assert_eq!(stage.info("c2")["settings"]["limits.memory"], "64MiB");
    let taken = stage.refused(["rename", "--force", "first", "c2"]);
    assert!(taken.contains("already"), "{taken}");
    // The root goes by the container's name everywhere.
    let differences = stage.ask(["diff", "first"]);
    assert!(String::from_utf8_lossy(&differences.stdout).contains("/root/file"), "{differences:?}");
    stage.remember();
    stage.mica(["delete", "--force", "--all"]);
    stage.assert_nothing_left("after copies");
}

/// Two files, one opened shared and one coherently, of which the second is never ahead of the first,
/// nor behind by more than one step; through descriptors that stay open.
const STEPS: &str = "
import os
a = os.open('/root/a', os.O_RDWR | os.O_CREAT)
b = os.open('/usr/b', os.O_RDWR | os.O_CREAT)
n = 0
while True:
    n += 1
    os.pwrite(a, n.to_bytes(8, 'little'), 0)
    os.pwrite(b, n.to_bytes(8, 'little'), 0)
";

#[test]
fn the_root_of_a_container_is_not_unmounted_by_hand() {
    let stage = Stage::new("supervisor-umount");
    stage.create("c1", &[], &["sleep", "infinity"]);
    stage.mica(["start", "c1"]);
    let said = stage.refused(["umount", "c1"]);
    assert!(said.contains("mica stop c1"), "{said}");
    let said = stage.ask(["umount", "--all"]);
    assert!(said.status.success(), "{said:?}");
    assert_eq!(stage.mica(["exec", "c1", "--", "cat", "/proc/1/comm"]).trim(), "sleep");
    let root = stage.info("c1")["root"].as_str().map(std::path::PathBuf::from);
    assert!(
        root.is_some_and(|root| crate::support::is_mountpoint(&root)),
        "{:#}",
        stage.info("c1")
    );
}

#[test]
fn a_copy_of_a_running_container_is_of_one_moment() {
    let stage = Stage::new("supervisor-copy-running");
    stage.create("c1", &[], &["python3", "-c", STEPS]);
    stage.mica(["start", "c1"]);
    let init = stage.info("c1")["pid"].clone();
    let number = |name: &str, path: &str| {
        let private = stage.info(name)["private"].as_str().expect("a path").to_owned();
        let bytes = std::fs::read(format!("{private}/upper/{path}")).unwrap_or_default();
        bytes.try_into().map_or(0, u64::from_le_bytes)
    };
    again_until("it writes", || number("c1", "usr/b") > 1000);
    let mut before = 0;
    for name in ["c2", "c3", "c4"] {
        let seen = number("c1", "root/a");
        stage.mica(["copy", "c1", name]);
        let (a, b) = (number(name, "root/a"), number(name, "usr/b"));
        assert!(a == b || a == b + 1, "{name}: {a} and {b}");
        assert!(a >= seen && a > before, "{name}: {a} after {seen} and {before}");
        before = a;
        again_until("it goes on", || number("c1", "root/a") > a);
    }
    assert_eq!(stage.info("c1")["pid"], init);
    // One that is paused stays so.
    stage.mica(["pause", "c1"]);
    stage.mica(["copy", "c1", "c5"]);
    assert_eq!(stage.phase("c1"), "paused");
    assert_eq!(number("c5", "root/a"), number("c1", "root/a"));
    stage.mica(["start", "c4"]);
    again_until("the copy runs", || number("c4", "root/a") > 0);
    stage.remember();
    stage.mica(["delete", "--force", "--all"]);
    stage.assert_nothing_left("after copies of a running container");
}

#[test]
fn everything_that_is_listed_is_also_json() {
    let stage = Stage::new("supervisor-json");
    stage.create("c1", &["label.tier=web"], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    let list: Value = serde_json::from_str(&stage.mica(["ps", "--json"])).expect("JSON");
    assert_eq!(list[0]["name"], "c1");
    assert_eq!(list[0]["settings"]["label.tier"], "web");
    let top: Value = serde_json::from_str(&stage.mica(["top", "--json"])).expect("JSON");
    assert!(top[0]["usage"]["memory_bytes"].as_u64().expect("counted") > 0, "{top}");
    let node: Value =
        serde_json::from_str(&stage.mica(["node", "status", "--json"])).expect("JSON");
    assert_eq!(node["containers"]["running"], 1);
    let unit = stage.mica(["node", "unit"]);
    assert!(unit.contains("KillMode=process") && unit.contains("node run"), "{unit}");
}

#[test]
fn a_volume_is_read_only_with_all_that_is_mounted_in_it() {
    let stage = Stage::new("supervisor-volume");
    let scratch = Scratch::new("supervisor-volume-host");
    let host = scratch.path().join("volume");
    let within = host.join("within");
    std::fs::create_dir_all(&within).unwrap();
    std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "mode=777", "mica"])
        .arg(&within)
        .succeed();
    std::fs::write(within.join("file"), "the host's").unwrap();
    let volume = format!("volume={}:/data:ro", host.display());
    for runtime in ["runtime=embedded", "runtime=runc"] {
        let script = "echo x >/data/within/file; \
            awk '$5 == \"/\" || $5 ~ \"^/data\" { print $5, $6 }' /proc/self/mountinfo";
        let words =
            ["run", "--rm", TEMPLATE, "network=none", runtime, &volume, "--", "sh", "-c", script];
        let said = stage.ask(words);
        let complaint = String::from_utf8_lossy(&said.stderr);
        assert!(complaint.contains("Read-only file system"), "{runtime}: {complaint}");
        let mounts = String::from_utf8_lossy(&said.stdout);
        assert_eq!(mounts.lines().count(), 3, "{runtime}: {mounts}");
        for mount in mounts.lines() {
            let has = |option: &str| mount.contains(option);
            assert!(has("nodev"), "{runtime}: {mount}");
            assert!(
                mount.starts_with("/ ") || (has(" ro,") && has("nosuid")),
                "{runtime}: {mount}"
            );
        }
    }
}
