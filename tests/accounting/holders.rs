//! `mica store who-has`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::stage::{Stage, change};
use crate::support::{Mounted, Succeed, library};

/// Who has what, as text to be compared: `template a:1 /path`, `root web1 /path private`.
fn holders(answer: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for content in answer["contents"].as_array().unwrap() {
        for (list, kind) in [("templates", "template"), ("roots", "root")] {
            for holder in content[list].as_array().unwrap() {
                for file in holder["files"].as_array().unwrap() {
                    let (name, path) = (&holder[kind], file["path"].as_str().unwrap());
                    let held = file["held"].as_str().unwrap_or_default();
                    found.insert(format!("{kind} {} {path} {held}", name.as_str().unwrap()));
                }
            }
        }
    }
    found
}

/// What a walk with find(1) and cmp(1) over a mounted root says: where it has `content`.
fn where_it_is(root: &Mounted, content: &Path) -> BTreeSet<String> {
    let len = fs::metadata(content).unwrap().len();
    let found = Command::new("find")
        .current_dir(root.path())
        .args([".", "-type", "f", "-size", &format!("{len}c")])
        .args(["-exec", "cmp", "-s", content.to_str().unwrap(), "{}", ";", "-printf", "%P\\n"])
        .succeed();
    found.lines().map(|line| format!("/{line}")).collect()
}

/// Where a root has it according to an answer.
fn told(answer: &Value, root: &str) -> BTreeSet<String> {
    let all = holders(answer);
    let of = format!("root {root} ");
    let paths = all.iter().filter_map(|line| line.strip_prefix(&of)?.split(' ').next());
    paths.map(str::to_owned).collect()
}

impl Stage {
    fn who_has(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["store", "who-has", "--json"];
        all.extend(arguments);
        let told = self.store.mica(all).capture();
        assert!(told.status.code().is_some_and(|code| code < 2), "{told:?}");
        serde_json::from_slice(&told.stdout).unwrap()
    }
}

#[test]
fn every_holder_is_named_as_find_and_cmp_would() {
    let stage = Stage::new("who-all");
    let (one, two) = (stage.mount("debian:1", "one"), stage.mount("debian:2", "two"));
    let source = stage.scratch.path().join("source");
    let kept = stage.scratch.directory("kept");
    for file in ["usr/bin/ls", "srv/data/table", "srv/data/log.1", "srv/data/hole", "etc/passwd"] {
        let name = file.rsplit('/').next().unwrap();
        fs::copy(source.join(file), kept.join(name)).unwrap();
    }
    change(one.path());
    library::run(
        one.path(),
        "cp srv.moved/data/log.1 etc/copied
         mv srv.moved/data srv.moved/elsewhere
         mkdir -p deep/er && mv srv.moved deep/er/again
         rm deep/er/again/elsewhere/log.1",
    );
    fs::write(two.path().join("etc/passwd"), fs::read(kept.join("passwd")).unwrap()).unwrap();
    for file in fs::read_dir(&kept).unwrap() {
        let file = file.unwrap().path();
        let answer = stage.who_has(&["--host", file.to_str().unwrap(), "--scan"]);
        for (root, name) in [(&one, "one"), (&two, "two")] {
            assert_eq!(told(&answer, name), where_it_is(root, &file), "{name} {file:?}");
        }
        assert_eq!(answer["private"]["unhashed"], 0);
        assert_eq!(answer["damaged"].as_array().unwrap().len(), 0);
    }
    // The same again: as remembered, then at rest, then without the index.
    let log = kept.join("log.1");
    let ask = || stage.who_has(&["--host", log.to_str().unwrap()]);
    let mounted = ask();
    assert!(holders(&mounted).contains("root one /etc/copied private"), "{mounted:#}");
    one.unmount();
    two.unmount();
    assert_eq!(holders(&ask()), holders(&mounted));
    assert_eq!(ask(), ask());
    assert_eq!(ask()["private"]["unhashed"], 0);
    fs::remove_dir_all(stage.store.path().join("index")).unwrap();
    let lost = ask();
    let shared = |answer: &Value| -> BTreeSet<String> {
        holders(answer).into_iter().filter(|line| !line.ends_with(" private")).collect()
    };
    assert_eq!(shared(&lost), shared(&mounted));
    assert!(lost["private"]["unhashed"].as_u64().unwrap() > 0, "said, not passed over");
    let again = stage.who_has(&["--host", log.to_str().unwrap(), "--scan"]);
    assert_eq!(holders(&again), holders(&mounted));
}

#[test]
fn a_path_finds_its_content_wherever_it_lies() {
    let stage = Stage::new("who-path");
    let one = stage.mount("debian:1", "one");
    // /usr/bin/sh is a link to bash; log and log.1 have one content.
    let by_link = stage.who_has(&["/usr/bin/sh"]);
    assert_eq!(holders(&by_link), holders(&stage.who_has(&["usr/bin/bash"])));
    assert_eq!(by_link["contents"].as_array().unwrap().len(), 1);
    let log = holders(&stage.who_has(&["srv/data/log"]));
    for expected in [
        "template debian:1 /srv/data/log ",
        "template debian:1 /srv/data/log.1 ",
        "template debian:2 /srv/data/log.1 ",
        "root one /srv/data/log template",
        "root one /srv/data/log.1 template",
    ] {
        assert!(log.contains(expected), "{expected}: {log:?}");
    }
    assert_eq!(log.len(), 5, "{log:?}");
    // Both versions of a file that the templates differ in.
    let library = stage.who_has(&["/usr/lib/libone.so.1"]);
    assert_eq!(library["contents"].as_array().unwrap().len(), 2);

    // A whiteout hides it, a change of metadata does not, a private copy is another holder.
    library::run(
        one.path(),
        "rm srv/data/log && chmod 600 srv/data/log.1
         cp srv/data/log.1 etc/mine
         echo other > usr/lib/libone.so.1",
    );
    let log = stage.who_has(&["srv/data/log", "--scan"]);
    let of_one: BTreeSet<String> =
        holders(&log).into_iter().filter(|line| line.starts_with("root one")).collect();
    assert_eq!(
        of_one.into_iter().collect::<Vec<_>>(),
        ["root one /etc/mine private", "root one /srv/data/log.1 metadata"]
    );
    let library = stage.who_has(&["/usr/lib/libone.so.1"]);
    assert_eq!(library["contents"].as_array().unwrap().len(), 3, "its own is known by now");
    fs::write(one.path().join("usr/lib/libone.so.1"), "changed once more").unwrap();
    let library = stage.who_has(&["/usr/lib/libone.so.1"]);
    assert_eq!(library["contents"].as_array().unwrap().len(), 2);
    assert_eq!(library["unknown"][0]["root"], "one");
    assert_eq!(library["private"]["changed"], 1, "{:#}", library["private"]);
    assert_eq!(library["private"]["unhashed"], 0);

    let nobody = stage.store.mica(["store", "who-has", "/no/such"]).capture();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("has a file /no/such"));
}

#[test]
fn a_link_that_a_root_changed_leads_elsewhere() {
    let stage = Stage::new("who-link");
    let one = stage.mount("debian:1", "one");
    library::run(one.path(), "ln -sf sort usr/bin/sh");
    let answer = stage.who_has(&["/usr/bin/sh"]);
    let asked: Vec<&Value> =
        answer["contents"].as_array().unwrap().iter().map(|content| &content["asked"]).collect();
    assert_eq!(asked.len(), 2, "{answer:#}");
    let all = holders(&answer);
    assert!(all.contains("root one /usr/bin/sort template"), "{all:?}");
    assert!(all.contains("root one /usr/bin/bash template"), "still has it: {all:?}");
}

#[test]
fn versions_and_patterns_and_digits() {
    let stage = Stage::new("who-versions");
    let one = stage.mount("debian:2", "one");
    fs::write(one.path().join("usr/lib/libone.so.1"), vec![7; 1000]).unwrap();
    fs::write(one.path().join("etc/libone.so.1"), vec![7; 1000]).unwrap();
    let versions = stage.who_has(&["--versions", "libone*", "--scan"]);
    let contents = versions["contents"].as_array().unwrap();
    assert_eq!(contents.len(), 3, "{versions:#}");
    let all = holders(&versions);
    assert_eq!(
        all.into_iter().collect::<Vec<_>>(),
        [
            "root one /etc/libone.so.1 private",
            "root one /usr/lib/libone.so.1 private",
            "template debian:1 /usr/lib/libone.so.1 ",
            "template debian:2 /usr/lib/libone.so.1 ",
        ]
    );
    // A pattern of paths: every holder of what fits.
    let bin = stage.who_has(&["/usr/b?n/d[a-i]r"]);
    let all = holders(&bin);
    assert!(all.contains("template debian:1 /usr/bin/ls "), "the other name: {all:?}");
    assert!(all.contains("template debian:1 /usr/bin/dir "), "{all:?}");
    assert_eq!(stage.who_has(&["/srv/**/tab*"])["contents"].as_array().unwrap().len(), 1);

    let object = bin["contents"][0]["object"].as_str().unwrap();
    assert_eq!(holders(&stage.who_has(&[object])), all);
    assert_eq!(holders(&stage.who_has(&[&object[..12]])), all);
    // Two objects with the same first digits are both told.
    let digits = &object[..6];
    let twin = format!("{digits}{}", "0".repeat(58));
    fs::write(stage.store.path().join("objects").join(&twin[..2]).join(&twin[2..]), b"x").unwrap();
    let refused = stage.store.mica(["store", "who-has", digits]).refuse();
    assert!(refused.contains(object) && refused.contains(&twin), "{refused}");
    let names = stage.store.mica(["store", "who-has", "-q", object]).succeed();
    assert_eq!(names, "template debian:1\ntemplate debian:2\nroot one\n");
}

#[test]
fn a_locked_or_deleted_index_costs_time_and_no_answer() {
    let stage = Stage::new("who-locked");
    let one = stage.mount("debian:1", "one");
    change(one.path());
    one.unmount();
    let ask = || {
        ["/srv/data/table", "/usr/bin/ls", "etc/hole", "/etc/passwd"]
            .map(|path| stage.who_has(&[path]))
    };
    let fresh = ask();
    assert_eq!(ask(), fresh, "from the index");
    let index = stage.store.path().join("index");
    let lock = fs::File::open(&index).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    assert_eq!(ask(), fresh, "while somebody has it");
    fs::remove_dir_all(index.join("trees")).unwrap();
    assert_eq!(ask(), fresh, "and deletes half of it");
    drop(lock);
    fs::remove_dir_all(&index).unwrap();
    assert_eq!(ask(), fresh, "without any");
    fs::set_permissions(&index, fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_dir_all(&index).unwrap();
    fs::write(&index, b"a letter").unwrap();
    assert_eq!(ask(), fresh, "where none can be made");
}

#[test]
fn the_index_may_go_in_the_middle_of_a_question() {
    let stage = Stage::new("who-middle");
    let one = stage.mount("debian:1", "one");
    change(one.path());
    one.unmount();
    let fresh = stage.who_has(&["/srv/data/table"]);
    let index = stage.store.path().join("index");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            for _ in 0..20 {
                assert_eq!(stage.who_has(&["/srv/data/table"]), fresh);
            }
        });
        let mut deleted = 0;
        while !asking.is_finished() {
            deleted += u32::from(fs::remove_dir_all(&index).is_ok());
        }
        asking.join().unwrap();
        assert!(deleted > 0);
    });
}

#[test]
fn a_root_that_is_gone_is_named_and_the_others_answer() {
    let stage = Stage::new("who-gone");
    stage.mount("debian:1", "one").unmount();
    let two = stage.mount("debian:1", "two");
    fs::remove_dir_all(stage.private("one")).unwrap();
    let told = stage.store.mica(["store", "who-has", "--json", "/srv/data/table"]).capture();
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&told.stderr).contains("root one"), "{told:?}");
    let answer: Value = serde_json::from_slice(&told.stdout).unwrap();
    let all = holders(&answer);
    assert!(all.contains("root two /srv/data/table template"));
    assert!(!all.iter().any(|line| line.starts_with("root one")), "who knows what it hid: {all:?}");
    drop(two);
}

#[test]
fn nobody_hides_a_file_behind_more_directories_than_there_are_descriptors() {
    let stage = Stage::new("who-many");
    let root = stage.mount("debian:1", "one");
    library::run(
        root.path(),
        "mkdir -p deep/{a,b,c,d,e,f,g,h}/{1..99}; echo vulnerable >deep/a/50/lib; echo other >x
         dir=deeper; for i in {1..400}; do mkdir $dir; cd $dir; dir=d; done
         echo vulnerable >lib",
    );
    root.unmount();
    let mica = stage.store.mica([]).get_program().to_owned();
    let limited = |arguments: &[&str]| {
        let mut shell = Command::new("bash");
        shell.args(["-c", "ulimit -n 200; exec \"$0\" \"$@\""]).arg(&mica).args(arguments);
        shell.env("MICA_STORE", stage.store.path()).answer()
    };
    let wanted = blake3::hash(b"vulnerable\n").to_hex().to_string();
    let answer = limited(&["store", "who-has", &wanted, "--scan", "--json"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["contents"][0]["roots"][0]["files"].as_array().unwrap().len(), 2);
    assert_eq!(answer["damaged"], Value::Array(Vec::new()), "{answer:#}");
    assert!(limited(&["diff", "one", "-q"]).lines().count() > 1000);
    limited(&["commit", "one", "made:1"]);
    limited(&["store", "df"]);
}

#[test]
fn a_tree_deeper_than_any_path_is_counted_and_takes_no_memory_by_the_square() {
    const LEVELS: u32 = 4000;
    let stage = Stage::new("deep-memory");
    stage.mount("debian:1", "one").unmount();
    // As the root would have made them: what has no marks is new.
    let upper = stage.private("one").join("upper");
    let script = format!(
        "mkdir \"d\", 0755 and chdir \"d\" or die for 1..{LEVELS};
         open F, \">file\" or die; print F \"x\" x 2097152; close F or die"
    );
    let made = Command::new("perl").args(["-e", &script]).current_dir(&upper).status().unwrap();
    assert!(made.success());
    rustix::fs::syncfs(std::fs::File::open(&upper).unwrap()).unwrap();

    let usage = stage.df();
    let one = crate::stage::root(&usage, "one");
    assert!(crate::stage::bytes(one, "private_bytes") >= 2 << 20, "{one:#}");
    assert!(one["note"].is_null(), "{one:#}");

    let mica = stage.store.mica([]).get_program().to_owned();
    let limited = |arguments: &[&str]| {
        let mut shell = Command::new("bash");
        // KiB of private memory; components of all paths at once would be eight million.
        shell.args(["-c", "ulimit -d 131072; exec \"$0\" \"$@\""]).arg(&mica).args(arguments);
        shell.env("MICA_STORE", stage.store.path()).answer()
    };
    let shown = limited(&["diff", "one"]);
    // The file and the time of the root directory too.
    assert_eq!(shown.lines().count(), usize::try_from(LEVELS).unwrap() + 2);
    limited(&["diff", "one", "--stat"]);
    limited(&["commit", "one", "made:1"]);
    assert!(Command::new("rm").arg("-rf").arg(upper.join("d")).status().unwrap().success());
}
