//! Whole machines.

use std::io::Write;
use std::process::Stdio;

use crate::stage::{Stage, TEMPLATE};
use crate::support::{Succeed, again_until};

#[test]
fn systemd_boots_and_shuts_down_with_both_runtimes() {
    let stage = Stage::new("supervisor-system");
    for runtime in ["embedded", "runc"] {
        let setting = format!("runtime={runtime}");
        // No command, and /sbin/init is there: a whole machine.
        let patient = ["limits.memory=256MiB", "stop.timeout=300", &setting];
        stage.mica([&["create", "s1", TEMPLATE, "network=none"][..], &patient].concat());
        stage.mica(["start", "s1"]);
        again_until("systemd is up", || {
            let said = stage.ask(["exec", "s1", "--", "systemctl", "is-system-running"]);
            String::from_utf8_lossy(&said.stdout).trim() == "running"
        });
        assert_eq!(stage.info("s1")["kind"], "system");
        assert_eq!(stage.mica(["exec", "s1", "--", "hostname"]), "s1\n");
        let failed =
            stage.mica(["exec", "s1", "--", "systemctl", "--failed", "--plain", "--no-legend"]);
        assert_eq!(failed, "", "{runtime}");
        stage.mica(["set", "s1", "--userpasswd", "root:secret words"]);
        log_in(&stage);
        // It ends by itself when asked, before it would be killed.
        stage.mica(["stop", "s1"]);
        let seen = stage.info("s1");
        assert_eq!(seen["phase"], "stopped", "{runtime}: {seen}");
        assert_ne!(seen["exit"]["status"], 137, "{runtime}: it was killed: {seen}");
        stage.remember();
        stage.mica(["delete", "s1"]);
        stage.assert_nothing_left(runtime);
    }
}

/// A password opens, and another one does not; a key is where sshd looks, and nobody else's.
fn log_in(stage: &Stage) {
    let su = |password: &str| {
        let words = ["exec", "-i", "-u", "nobody", "s1", "--", "su", "-c", "id -u", "root"];
        let mut child = stage
            .store
            .mica(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .start();
        let mut typed = child.stdin.take().expect("a pipe");
        typed.write_all(format!("{password}\n").as_bytes()).expect("it listens");
        drop(typed);
        let said = child.wait_with_output().expect("it ends");
        (said.status.success(), String::from_utf8_lossy(&said.stdout).into_owned())
    };
    assert_eq!(su("secret words"), (true, "0\n".to_owned()));
    assert!(!su("other words").0);
    let key = stage.store.path().with_file_name("key.pub");
    std::fs::write(&key, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE me\n").expect("written");
    let key = key.to_string_lossy();
    for _twice in 0..2 {
        stage.mica(["set", "s1", "--ssh-key", &key]);
    }
    let script = "stat -c '%a %u %g' /root/.ssh /root/.ssh/authorized_keys; cat /root/.ssh/a*";
    let seen = stage.mica(["exec", "s1", "--", "sh", "-c", script]);
    let expected = "700 0 0\n600 0 0\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE me\n";
    assert_eq!(seen, expected);
    let wrong = stage.refused(["set", "s1", "--ssh-key", "/etc/hostname"]);
    assert!(wrong.contains("holds no public key"), "{wrong}");
    let wrong = stage.refused(["set", "s1", "--userpasswd", "nobodyatall:x"]);
    assert!(wrong.contains("nobodyatall"), "{wrong}");
}

#[test]
fn an_ordered_shutdown_stops_all_and_a_later_daemon_knows_what_was_wanted() {
    let stage = Stage::new("supervisor-shutdown");
    let polite = ["sh", "-c", "trap 'exit 0' TERM; echo listens; while :; do sleep 0.1; done"];
    let patient = "stop.timeout=300";
    stage.create("first", &["boot.priority=10", "restart=always", patient], &polite);
    stage.create("last", &[patient], &polite);
    let deaf = ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"];
    stage.create("deaf", &["stop.timeout=1"], &deaf);
    stage.mica(["start", "--all"]);
    // A process 1 that has not said what it does with a signal is not even told of it.
    for name in ["first", "last"] {
        again_until("it listens", || stage.mica(["logs", name]).contains("listens"));
    }
    stage.mica(["node", "stop", "--containers"]);
    stage.start_daemon(&[]);
    assert_eq!(stage.phase("last"), "stopped");
    let (first, last) = (stage.info("first"), stage.info("last"));
    let ended = |info: &serde_json::Value| info["exit"]["at_ms"].as_u64().expect("a time");
    assert!(ended(&first) >= ended(&last), "what starts first stops last");
    // Who does not listen is killed when its time is over, and only then.
    let deaf = stage.info("deaf");
    assert_eq!((&deaf["phase"], &deaf["exit"]["status"]), (&"stopped".into(), &137.into()));
    assert!(ended(&first) >= ended(&deaf), "it was waited for");
    assert_eq!(first["exit"]["status"], 0);
}
