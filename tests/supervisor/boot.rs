//! What runs again after the host went down, and in which order.

use crate::stage::Stage;

const SLEEP: [&str; 2] = ["sleep", "1000"];

#[test]
fn after_a_boot_what_is_wanted_starts_in_order_and_nothing_else() {
    let stage = Stage::new("supervisor-boot");
    let (early, late) = (["a1", "a2", "a3"], ["b1", "b2", "b3"]);
    for name in early {
        stage.create(name, &["autostart=yes", "boot.priority=10"], &SLEEP);
    }
    for name in late {
        stage.create(name, &["autostart=yes"], &SLEEP);
    }
    stage.create("always", &["restart=always"], &SLEEP);
    stage.create("failed", &["restart=on-failure"], &SLEEP);
    stage.create("once", &[], &SLEEP);
    stage.create("stopped", &["restart=always"], &SLEEP);
    stage.create("imaged", &["--disk-image", "limits.disk=16MiB"], &SLEEP);
    stage.mica(["start", "always", "failed", "once", "stopped", "imaged"]);
    stage.mica(["exec", "imaged", "--", "sh", "-c", "echo kept > /root/file; sync /root/file"]);
    stage.mica(["stop", "--kill", "stopped"]);
    stage.reboot();
    for name in early.iter().chain(&late).chain(&["always", "failed"]) {
        stage.await_info(name, "it runs", |info| info["phase"] == "running");
    }
    let started = |names: [&str; 3]| {
        names.map(|name| stage.info(name)["started_ms"].as_u64().expect("it was started"))
    };
    let (early, late) = (started(early), started(late));
    assert!(early.iter().max() <= late.iter().min(), "{early:?} before {late:?}");
    for name in ["once", "stopped"] {
        assert_eq!(stage.phase(name), "stopped", "{name}");
    }
    // The disk of one that does not run is there all the same.
    assert_eq!(stage.phase("imaged"), "stopped");
    let private = stage.info("imaged")["private"].as_str().expect("a path").to_owned();
    let file = format!("{private}/upper/root/file");
    assert_eq!(std::fs::read(file).expect("it is mounted"), b"kept\n");
    // Another daemon of the same boot starts nothing: not what was made or told to start since.
    stage.mica(["stop", "--kill", "a1"]);
    stage.mica(["set", "once", "autostart=yes"]);
    stage.create("new", &["autostart=yes"], &SLEEP);
    stage.kill_daemon();
    stage.start_daemon(&[]);
    for (name, phase) in [("a1", "stopped"), ("once", "stopped"), ("new", "created")] {
        assert_eq!(stage.phase(name), phase, "{name}");
    }
    stage.remember();
    stage.mica(["delete", "--force", "--all"]);
    stage.assert_nothing_left("after a boot");
}
