//! `mica store check`: what is derived against what it is derived from, and what private layers
//! refer to; `--fix` makes derived things again and touches nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mica::object::ObjectId;
use mica::private::marks;
use rustix::fs::{XattrFlags, setxattr};
use serde_json::Value;

use crate::stage::{Stage, flip, loosen};
use crate::support::{Step, Succeed};

/// Runs it; the answer, and whether all is whole by its status.
fn check(stage: &Stage, more: &[&str]) -> (Value, bool) {
    let mut check = stage.mica(["store", "check", "--json"]);
    let done = check.args(more).capture();
    assert!(matches!(done.status.code(), Some(0 | 1)), "{done:?}");
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(answer["whole"] == true, done.status.success());
    (answer, done.status.success())
}

fn findings(answer: &Value) -> Vec<String> {
    let findings = answer["findings"].as_array().unwrap().iter();
    findings.map(|one| one["text"].as_str().unwrap().to_owned()).collect()
}

/// Every file of the store but the derived ones, with what is in it.
fn truth(stage: &Stage) -> String {
    let script = "find . -path ./trees -prune -o -path ./index -prune -o -type f -print0 |
                  sort -z | xargs -0 sha256sum";
    Command::new("bash").args(["-ec", script]).current_dir(stage.store.path()).succeed()
}

fn derived(stage: &Stage) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = ["trees", "index/trees"].into_iter().flat_map(|directory| {
        fs::read_dir(stage.store.path().join(directory)).unwrap().map(|one| one.unwrap().path())
    });
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn set(path: &Path, name: &[u8], value: &[u8]) {
    setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

#[test]
fn derived_things_are_held_against_the_truth_and_made_again_on_demand_only() {
    let stage = Stage::new("checkderived");
    // A second template, whose tree has the same shape, and a root whose files were hashed.
    let source = stage.scratch.path().join("source");
    fs::write(source.join("etc/conf"), b"key=other\n").unwrap();
    stage.store.import("more", &source);
    let root = stage.mount("a");
    fs::write(root.path().join("etc/fine"), b"private\n").unwrap();
    root.unmount();
    stage.mica(["store", "who-has", "/etc/fine", "--scan"]).succeed();
    stage.mica(["store", "who-has", "/etc/conf"]).succeed();
    let (good, whole) = check(&stage, &[]);
    assert!(whole && findings(&good).is_empty() && good["fixed"] == serde_json::json!([]));
    assert!(good["private_files"].as_u64() > Some(0), "{good}");

    let (truth_before, files) = (truth(&stage), derived(&stage));
    assert_eq!(files.len(), 4, "two trees, two tables: {:?}", files.keys());
    let contents: Vec<Vec<u8>> = files.values().cloned().collect();
    for (at, path) in files.keys().enumerate() {
        let other = contents[at ^ 1].clone();
        let mut flipped = contents[at].clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        // What does not even look like it is made again by whoever looks at a root first.
        let obvious = [other, Vec::new(), contents[at][..40].to_vec()];
        for (hidden, damage) in [(true, flipped)].into_iter().chain(obvious.map(|one| (false, one)))
        {
            fs::write(path, &damage).unwrap();
            let (found, whole) = check(&stage, &[]);
            assert!(!whole && findings(&found)[0].contains("store check --fix"), "{found}");
            if hidden {
                assert!(fs::read(path).unwrap() == damage, "a check alone changes nothing");
                let (fixed, whole) = check(&stage, &["--fix"]);
                assert!(whole && fixed["fixed"].as_array().unwrap().len() == 1, "{fixed}");
            }
            assert!(check(&stage, &["--fix"]).1);
            assert!(derived(&stage) == files, "{path:?} is as it was");
        }
        // What is not there is made when it is needed.
        fs::remove_file(path).unwrap();
        assert!(check(&stage, &[]).1);
        fs::write(path, &contents[at]).unwrap();
    }
    fs::remove_dir_all(stage.store.path().join("index")).unwrap();
    assert!(check(&stage, &["--fix"]).1);
    assert_eq!(truth(&stage), truth_before);
}

#[test]
fn what_cannot_be_derived_is_told_and_left() {
    let stage = Stage::new("checktruth");
    let root = stage.mount("a");
    let at = |path: &str| root.path().join(path);
    fs::write(at("etc/fine"), b"private\n").unwrap();
    fs::write(at("etc/born"), b"").unwrap();
    fs::rename(at("srv/deep"), at("srv/away")).unwrap();
    Command::new("chmod").arg("600").args([at("etc/conf"), at("usr/bin/tool")]).succeed();
    root.unmount();
    stage.mount("b").unmount();
    let upper = stage.private("a").join("upper");
    assert!(check(&stage, &[]).1);
    // An origin that fits nothing, a reference to nothing, and a copy of nothing.
    set(&upper.join("usr/bin/tool"), marks::ORIGIN, b"no origin");
    let lost = ObjectId::of(b"nobody has this");
    set(&upper.join("etc/conf"), marks::OBJECT, lost.digest().as_bytes());
    set(&upper.join("etc/born"), marks::METACOPY, b"");
    // A record, an object, a layer.
    let roots = fs::read_dir(stage.store.path().join("roots")).unwrap();
    let record = roots.map(|one| one.unwrap().path()).find(|path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.contains("\"b\"") && path.extension().is_some_and(|end| end == "json")
    });
    let record = record.unwrap();
    fs::write(&record, b"{").unwrap();
    flip(&stage.object(b"deep\n"), 1);
    let gone = stage.object(b"deeper\n");
    loosen(&gone);
    fs::remove_file(&gone).unwrap();
    let before = truth(&stage);
    for fix in [&["--rehash"][..], &["--rehash", "--fix"]] {
        let (found, whole) = check(&stage, fix);
        let texts = findings(&found);
        assert!(!whole);
        for told in [
            "/usr/bin/tool of root a is damaged",
            "/etc/conf of root a is object",
            "/etc/born of root a is damaged",
            "a root's record cannot be used",
            "was altered",
            "is missing",
        ] {
            assert!(texts.iter().any(|text| text.contains(told)), "{told}: {texts:#?}");
        }
        assert_eq!(found["fixed"], serde_json::json!([]));
        assert_eq!(truth(&stage), before, "nothing that cannot be derived was touched");
    }
    // A disk that is not mounted is no damage, and forgetting the root is a person's to decide.
    fs::remove_file(&record).unwrap();
    fs::rename(stage.private("a"), stage.private("elsewhere")).unwrap();
    let (found, _) = check(&stage, &["--fix"]);
    assert!(findings(&found).iter().any(|text| text.contains("store forget a")), "{found}");
    assert_eq!(stage.roots(), ["a"]);
    stage.mica(["store", "forget", "a", "--dry-run"]).succeed();
    assert_eq!(stage.roots(), ["a"]);
    stage.mica(["store", "forget", "a"]).succeed();
    assert!(stage.roots().is_empty());
}

#[test]
fn killed_at_any_step_a_repair_is_completed_by_the_next_and_a_root_is_forgotten_or_not() {
    let stage = Stage::new("checkcuts");
    let root = stage.mount("a");
    fs::write(root.path().join("etc/fine"), b"private\n").unwrap();
    root.unmount();
    stage.mica(["store", "who-has", "/etc/fine", "--scan"]).succeed();
    let (before, files) = (truth(&stage), derived(&stage));
    assert_eq!(files.len(), 2, "a tree and its table: {:?}", files.keys());
    let every = match std::env::var("MICA_TEST_COUNTS").as_deref() {
        Ok("ci" | "long") => 1,
        _ => 5,
    };
    let steps = Step::each(every, |step| {
        for (path, good) in &files {
            let mut bad = good.clone();
            *bad.last_mut().unwrap() ^= 1;
            fs::write(path, bad).unwrap();
        }
        let through = step.cut(&stage.mica(["store", "check", "--fix"]));
        assert!(check(&stage, &["--fix"]).1, "{step:?}");
        for (path, good) in &files {
            assert!(fs::read(path).unwrap() == *good, "{step:?}: {path:?}");
        }
        assert!(truth(&stage) == before, "{step:?}");
        through
    });
    assert!(steps > 1, "{steps} steps");
    let private = stage.private("a");
    fs::rename(&private, stage.private("kept")).unwrap();
    let record = fs::read_dir(stage.store.path().join("roots")).unwrap();
    let record = record.map(|one| one.unwrap().path());
    let record = record.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let record = record.collect::<Vec<_>>().pop().unwrap();
    let text = fs::read(&record).unwrap();
    Step::each(1, |step| {
        fs::write(&record, &text).unwrap();
        let through = step.cut(&stage.mica(["store", "forget", "a"]));
        if through || stage.roots().is_empty() {
            assert!(stage.roots().is_empty() && !record.exists(), "{step:?}");
        } else {
            stage.mica(["store", "forget", "a"]).succeed();
        }
        through
    });
}

#[test]
fn an_object_that_only_a_mark_names_gets_into_the_log_that_keeps_it() {
    let stage = Stage::new("checkrefs");
    let root = stage.mount("a");
    Command::new("chmod").arg("600").arg(root.path().join("etc/conf")).succeed();
    root.unmount();
    let upper = stage.private("a").join("upper");
    let id = ObjectId::of(b"fine\n");
    set(&upper.join("etc/conf"), marks::OBJECT, id.digest().as_bytes());
    let before = truth(&stage);
    let (found, whole) = check(&stage, &[]);
    assert!(!whole && findings(&found)[0].contains("log of references"), "{found}");
    assert_eq!(truth(&stage), before, "a check alone changes nothing");
    let (fixed, whole) = check(&stage, &["--fix"]);
    assert!(whole && fixed["fixed"].as_array().unwrap().len() == 1, "{fixed}");
    assert!(check(&stage, &[]).1);
    let added: Vec<String> = {
        let before: std::collections::BTreeSet<&str> = before.lines().collect();
        let after = truth(&stage);
        after.lines().filter(|line| !before.contains(line)).map(str::to_owned).collect()
    };
    assert!(added.len() == 1 && added[0].contains("./roots/"), "{added:?}");
}
