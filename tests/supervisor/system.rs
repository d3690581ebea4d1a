//! Whole machines.

use crate::stage::{Stage, TEMPLATE};
use crate::support::again_until;

#[test]
fn systemd_boots_and_shuts_down_with_both_runtimes() {
    let stage = Stage::new("supervisor-system");
    for runtime in ["embedded", "runc"] {
        let setting = format!("runtime={runtime}");
        // No command, and /sbin/init is there: a whole machine.
        stage.mica(["create", "s1", TEMPLATE, "network=none", "limits.memory=256MiB", &setting]);
        stage.mica(["start", "s1"]);
        again_until("systemd is up", || {
            let said = stage.ask(["exec", "s1", "--", "systemctl", "is-system-running"]);
            String::from_utf8_lossy(&said.stdout).trim() == "running"
        });
        assert_eq!(stage.info("s1")["kind"], "system");
        let failed =
            stage.mica(["exec", "s1", "--", "systemctl", "--failed", "--plain", "--no-legend"]);
        assert_eq!(failed, "", "{runtime}");
        stage.mica(["set", "s1", "--userpasswd", "root:secret words"]);
        let shadow = stage.mica(["exec", "s1", "--", "grep", "^root:", "/etc/shadow"]);
        assert!(shadow.starts_with("root:$"), "{shadow}");
        // It ends by itself when asked, well before it would be killed.
        stage.mica(["stop", "s1"]);
        let seen = stage.info("s1");
        assert_eq!(seen["phase"], "stopped", "{runtime}: {seen}");
        assert_ne!(seen["exit"]["status"], 137, "{runtime}: it was killed: {seen}");
        let ended = seen["exit"]["at_ms"].as_u64().expect("a time");
        assert!(ended - seen["started_ms"].as_u64().expect("a time") < 60_000, "{seen}");
        stage.remember();
        stage.mica(["delete", "s1"]);
        stage.assert_nothing_left(runtime);
    }
}

#[test]
fn an_ordered_shutdown_stops_all_and_a_later_daemon_knows_what_was_wanted() {
    let stage = Stage::new("supervisor-shutdown");
    let polite = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];
    stage.create("first", &["boot.priority=10", "restart=always"], &polite);
    stage.create("last", &[], &polite);
    stage.mica(["start", "--all"]);
    stage.mica(["node", "stop", "--containers"]);
    stage.start_daemon(&[]);
    assert_eq!(stage.phase("last"), "stopped");
    let (first, last) = (stage.info("first"), stage.info("last"));
    let ended = |info: &serde_json::Value| info["exit"]["at_ms"].as_u64().expect("a time");
    assert!(ended(&first) >= ended(&last), "what starts first stops last");
}
