//! `mica revert` and `mica commit`, killed at every step.
//!
//! A step is a system call that changes something; strace(1) kills the process when it is about
//! to make the n-th of its kind, for each n until one run gets through. `MICA_TEST_COUNTS` is
//! `quick` (every eleventh step, also when it is not set), `ci` (every second) or `long` (each).

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::fs::{FileType, statfs};
use serde_json::Value;

use crate::revert::CHANGES;
use crate::stage::{Stage, script};
use crate::support::{MountOptions, Snapshot, Step, Succeed, assert_same, snapshot};

/// Kills may come this many steps apart.
pub(crate) fn stride() -> usize {
    match std::env::var("MICA_TEST_COUNTS").as_deref() {
        Ok("ci") => 2,
        Ok("long") => 1,
        _ => 11,
    }
}

/// Runs `mica` on `stage` up to a step; true if it came to an end before.
pub(crate) fn cut(stage: &Stage, arguments: &[&str], private: &Path, step: Step) -> bool {
    let mut mica = stage.store.mica(arguments.first().copied());
    step.cut(mica.arg(private).args(&arguments[1..]))
}

/// Each path shows what it showed before, or what it shows when all is done, or in between the
/// two nothing where they are of different types.
pub(crate) fn is_between(shown: &Snapshot, before: &Snapshot, after: &Snapshot, step: Step) {
    for (path, found) in shown {
        let same = |tree: &Snapshot| {
            tree.get(path).is_some_and(|one| {
                (one.kind, &one.content, &one.target, one.rdev)
                    == (found.kind, &found.content, &found.target, found.rdev)
            })
        };
        assert!(same(before) || same(after), "{step:?}: {path}: {found:?}");
    }
    for (path, one) in before {
        let Some(other) = after.get(path).filter(|_| !shown.contains_key(path)) else { continue };
        // What is in a directory goes with it.
        let above = path.rsplit_once('/').is_some_and(|(dir, _)| !shown.contains_key(dir));
        // Another directory goes before the template's comes back.
        let replaced = one.kind != other.kind || one.kind == FileType::Directory;
        assert!(replaced || above, "{step:?}: {path} is gone");
    }
}

/// Changes without those that only a name or a time of a directory makes.
pub(crate) fn changed(stage: &Stage, private: &Path) -> Value {
    stage.json(["diff", private.to_str().unwrap()])["changes"].clone()
}

pub(crate) fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    Command::new("cp").arg("-a").args([from, to]).succeed();
}

fn prepared(name: &str) -> (Stage, Snapshot, Snapshot) {
    changed_in(Stage::new(name))
}

/// With the private directory `master`, which has all kinds of changes; what it shows, and what
/// the template does.
pub(crate) fn changed_in(stage: Stage) -> (Stage, Snapshot, Snapshot) {
    let root = stage.mount("master");
    script(root.path(), CHANGES);
    let before = snapshot(root.path());
    root.unmount();
    let after = stage.shown("base");
    (stage, before, after)
}

#[test]
fn a_revert_at_rest_that_is_cut_loses_nothing_and_is_completed_by_the_next() {
    let (stage, before, after) = prepared("cutrest");
    let private = stage.private("ct");
    let options = MountOptions::private(&private);
    let mountpoint = stage.scratch.mountpoint("ct");
    let steps = Step::each(stride(), |step| {
        copy(&stage.private("master"), &private);
        let through = cut(&stage, &["revert", "/"], &private, step);
        let kinds = changed(&stage, &private);
        assert!(kinds.as_array().unwrap().iter().all(|change| change["kind"] != "damaged"));
        let root = stage.store.mount("base", &mountpoint, &options);
        is_between(&snapshot(root.path()), &before, &after, step);
        root.unmount();
        stage.store.mica(["revert"]).arg(&private).arg("/").succeed();
        assert_eq!(changed(&stage, &private), Value::Array(Vec::new()), "{step:?}");
        through
    });
    assert!(steps * stride() > 60, "{steps} steps");
    let root = stage.store.mount("base", &mountpoint, &options);
    assert_same(&snapshot(root.path()), &after);
    root.unmount();
}

#[test]
fn a_mounted_root_whose_process_dies_in_a_revert_loses_nothing() {
    let (stage, before, after) = prepared("cutlive");
    let private = stage.private("ct");
    let options = MountOptions::private(&private);
    let mountpoint = stage.scratch.mountpoint("ct");
    let every = 2 * stride();
    let steps = Step::each(every, |step| {
        copy(&stage.private("master"), &private);
        let root = stage.store.serve("base", &mountpoint, &options);
        let traced = Traced::of(&stage, &mountpoint, step);
        let done = stage.store.mica(["revert"]).arg(&mountpoint).arg("/").capture();
        traced.end();
        // Nobody kills it any more, and one that was killed answers no more, even if it did before.
        let through = done.status.success() && statfs(&mountpoint).is_ok();
        if through {
            root.unmount();
        } else {
            root.kill();
        }
        let root = stage.store.mount("base", &mountpoint, &options);
        is_between(&snapshot(root.path()), &before, &after, step);
        stage.store.mica(["revert"]).arg(&mountpoint).arg("/").succeed();
        assert_eq!(changed(&stage, &private), Value::Array(Vec::new()), "{step:?}");
        assert_same(&snapshot(root.path()), &after);
        root.unmount();
        through
    });
    assert!(steps * every > 60, "{steps} steps");
}

/// A mount process under strace.
pub(crate) struct Traced {
    strace: Child,
    // It goes on telling, and must be heard.
    _told: BufReader<ChildStderr>,
}

impl Traced {
    pub(crate) fn of(stage: &Stage, mountpoint: &Path, step: Step) -> Self {
        let roots = stage.json(["mount"]);
        let root = roots.as_array().unwrap().iter().find(|root| {
            root["mountpoint"].as_str() == mountpoint.to_str() && root["mounted"] == true
        });
        let pid = root.unwrap()["pid"].to_string();
        let mut strace = step.strace();
        strace.args(["-p", &pid]).stderr(Stdio::piped()).stdin(Stdio::null());
        let mut strace = strace.start();
        let mut told = BufReader::new(strace.stderr.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{line}");
        Self { strace, _told: told }
    }

    pub(crate) fn end(mut self) {
        // It may have ended with whom it traced.
        let _ended = self.strace.kill();
        self.strace.wait().unwrap();
    }
}

#[test]
fn a_commit_that_is_cut_leaves_the_container_and_the_store_whole() {
    let (stage, before, _) = prepared("cutcommit");
    let private = stage.private("master");
    let changes = changed(&stage, &private);
    let whole = || {
        stage.store.mica(["template", "check", "-q"]).succeed();
        assert_eq!(changed(&stage, &private), changes);
    };
    let steps = Step::each(stride(), |step| {
        let through = cut(&stage, &["commit", "made:1"], &private, step);
        whole();
        // It is there only if it is all there.
        let listed = stage.store.mica(["template", "list", "-q"]).succeed();
        assert!(!through || listed.contains("made:1"), "{step:?}");
        if listed.contains("made:1") {
            assert_same(&stage.shown("made:1"), &before);
        }
        stage.store.mica(["commit"]).arg(&private).args(["made:1", "--replace"]).succeed();
        whole();
        stage.store.mica(["template", "delete", "made:1"]).succeed();
        // As new as the first time.
        stage.store.mica(["store", "gc"]).succeed();
        through
    });
    assert!(steps * stride() > 60, "{steps} steps");
    stage.store.mica(["commit"]).arg(&private).arg("made:1").succeed();
    whole();
    assert_same(&stage.shown("made:1"), &before);
    let staging = fs::read_dir(stage.store.path().join("staging")).unwrap();
    let left = staging.filter(|one| one.as_ref().unwrap().file_type().unwrap().is_dir()).count();
    assert_eq!(left, 0);
}
