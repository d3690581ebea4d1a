//! The daemon brings containers back together on its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::stage::Stage;
use crate::support::{Succeed, again_until};

/// What the private layer of a container has at `path`.
fn upper(stage: &Stage, name: &str, path: &str) -> PathBuf {
    let id = stage.info(name)["id"].as_str().expect("an identity").to_owned();
    stage.store.path().join("containers").join(id).join("private/upper").join(path)
}

fn is_shared(stage: &Stage, name: &str, path: &str) -> bool {
    let mut getfattr = Command::new("getfattr");
    getfattr.args(["--absolute-names", "-n", "trusted.mica.object"]).arg(upper(stage, name, path));
    getfattr.capture().status.success()
}

/// Installs the same thing in a container, as an upgrade would.
fn change(stage: &Stage, name: &str, path: &str) {
    let script = format!("head -c 90000 /bin/bash > /{path}.new && mv /{path}.new /{path}");
    stage.mica(["exec", name, "--", "sh", "-c", &script]);
}

fn sharing(stage: &Stage, words: &[&str]) -> Value {
    let words = ["node", "sharing", "--json"].iter().chain(words).copied();
    serde_json::from_str(&stage.mica(words)).expect("JSON")
}

#[test]
fn running_containers_come_to_share_what_they_changed_alike_by_themselves() {
    let stage = Stage::new("supervisor-sharing");
    for (name, settings) in [("c1", &[][..]), ("c2", &[]), ("c3", &["reshare=off"])] {
        stage.create(name, settings, &["sleep", "1000"]);
        stage.mica(["start", name]);
        change(&stage, name, "usr/lib/first");
    }
    let told = sharing(&stage, &[]);
    assert_eq!((&told["paused"], &told["last"]), (&Value::Bool(false), &Value::Null), "{told}");
    // Not yet: what changed within the hour may change again.
    assert!(!is_shared(&stage, "c1", "usr/lib/first"));
    let told = sharing(&stage, &["--every", "10ms", "--min-age", "0s", "--rate", "0"]);
    assert_eq!((&told["every_ms"], &told["least_age_ms"]), (&10.into(), &0.into()), "{told}");
    again_until("two containers do not share", || {
        is_shared(&stage, "c1", "usr/lib/first") && is_shared(&stage, "c2", "usr/lib/first")
    });
    assert!(!is_shared(&stage, "c3", "usr/lib/first"), "it is set to share with nobody");
    again_until("no run is told of", || sharing(&stage, &[])["last"]["failed"].is_null());
    for name in ["c1", "c2"] {
        let script = "head -c 90000 /bin/bash | cmp - /usr/lib/first";
        stage.mica(["exec", name, "--", "sh", "-c", script]);
    }
    // Held, and the next daemon holds it too.
    assert_eq!(sharing(&stage, &["--pause"])["paused"], Value::Bool(true));
    stage.kill_daemon();
    stage.start_daemon(&[]);
    let told = sharing(&stage, &[]);
    assert_eq!((&told["paused"], &told["every_ms"]), (&Value::Bool(true), &10.into()), "{told}");
    for name in ["c1", "c2"] {
        change(&stage, name, "usr/lib/second");
    }
    assert_eq!(sharing(&stage, &[])["last"], Value::Null, "nothing ran while it was held");
    assert!(!is_shared(&stage, "c1", "usr/lib/second"));
    stage.mica(["set", "c3", "reshare=all"]);
    sharing(&stage, &["--resume"]);
    again_until("three containers do not share", || {
        is_shared(&stage, "c3", "usr/lib/first") && is_shared(&stage, "c1", "usr/lib/second")
    });
    assert!(fs::metadata(upper(&stage, "c3", "usr/lib/first")).is_ok());
    let said = stage.mica(["node", "sharing"]);
    assert!(said.contains("last run") && said.contains("runs every"), "{said}");
    let refused = stage.refused(["node", "sharing", "--every", "soon"]);
    assert!(refused.contains("soon"), "{refused}");
}

#[test]
fn with_whom_a_container_shares_is_one_setting_whichever_command_makes_it() {
    let stage = Stage::new("supervisor-policy");
    stage.create("c1", &[], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    let of_root = || {
        let roots = fs::read_dir(stage.store.path().join("roots")).expect("listed");
        let records = roots.map(|entry| entry.expect("listed").path());
        let mut records = records.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let record = fs::read(records.next().expect("one")).expect("read");
        let record: Value = serde_json::from_slice(&record).expect("JSON");
        record["reshare"].clone()
    };
    let of_container = || stage.info("c1")["settings"]["reshare"].clone();
    stage.mica(["store", "reshare", "c1", "--policy", "off"]);
    assert_eq!((of_root(), of_container()), ("off".into(), "off".into()));
    stage.mica(["restart", "--kill", "c1"]);
    assert_eq!((of_root(), of_container()), ("off".into(), "off".into()));
    stage.mica(["set", "c1", "reshare=templates"]);
    assert_eq!((of_root(), of_container()), ("templates".into(), "templates".into()));
    stage.mica(["node", "stop"]);
    let said = stage.refused(["store", "reshare", "c1", "--policy", "all"]);
    assert!(said.contains("mica set c1 reshare=all"), "{said}");
    stage.start_daemon(&[]);
    assert_eq!((of_root(), of_container()), ("templates".into(), "templates".into()));
    stage.mica(["store", "reshare", "--all", "--policy", "all"]);
    assert_eq!((of_root(), of_container()), ("all".into(), Value::Null));
}
