//! The `mica` command without a mount: grammar, templates, the store, and every refusal.
//!
//! Needs root: a store belongs to root.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Scratch, Store, Succeed, mica, require_root};

struct Desk {
    scratch: Scratch,
    store: Store,
}

impl Desk {
    fn new() -> Self {
        require_root();
        let scratch = Scratch::new("cli");
        let store = Store::at(&scratch.path().join("store"));
        Self { scratch, store }
    }

    /// A directory with these files and their texts.
    fn tree(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let tree = self.scratch.directory(name);
        for (file, text) in files {
            let path = tree.join(file);
            fs::create_dir_all(path.parent().expect("beneath the tree")).expect("made");
            fs::write(path, text).expect("written");
        }
        tree
    }

    fn mica<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        self.store.mica(arguments)
    }

    fn json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Value {
        let text = self.mica(arguments).arg("--json").succeed();
        serde_json::from_str(&text).expect("JSON")
    }
}

/// One sentence: one line that starts with the program's name and has no error number.
fn sentence(text: &str) -> &str {
    let line = text.trim_end();
    assert!(line.starts_with("mica: "), "{line:?}");
    assert!(!line.contains('\n') && !line.contains("os error"), "{line:?}");
    line
}

#[test]
fn mistakes_in_the_grammar_are_answered_with_what_was_meant() {
    let output = mica().arg("tempalte").arg("list").capture();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("'template'"), "{said}");
    let output = mica().args(["store", "destroy"]).capture();
    assert_eq!(output.status.code(), Some(2));
    let said = mica().args(["exec", "c1", "hostname"]).capture();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("mica exec c1 -- hostname") && !said.contains("--store"), "{said}");
    // What this program starts of itself is nobody's to type.
    let completed = mica().args(["completions", "bash"]).succeed();
    assert!(completed.contains("template"));
    for internal in ["user-namespace", "bench-process", "mount-process", "reference"] {
        assert!(!completed.contains(internal), "{internal}");
    }
    assert!(mica().arg("--help").succeed().contains("demo"));
    assert!(mica().arg("--version").succeed().starts_with("mica "));
}

#[test]
fn nothing_is_made_before_the_first_import_and_then_for_root_alone() {
    let desk = Desk::new();
    let refused = desk.mica(["template", "list"]).refuse();
    assert!(sentence(&refused).contains("there is no store"), "{refused}");
    assert!(!desk.store.path().exists());
    let refused = desk.mica(["template", "import", "a:1", "/nowhere"]).refuse();
    assert!(sentence(&refused).contains("/nowhere"), "{refused}");
    desk.store.import("a:1", &desk.tree("a", &[("file", "text")]));
    let mode = fs::metadata(desk.store.path()).expect("made").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_template_lives_from_import_to_collection() {
    let desk = Desk::new();
    let one = desk.tree("one", &[("shared", "in both"), ("only", "in one"), ("log/x", "noise")]);
    let two = desk.tree("two", &[("shared", "in both"), ("only", "in two")]);
    let mut import = desk.mica(["template", "import", "one:1", "--exclude", "log"]);
    let done = import.arg(&one).capture();
    assert!(done.status.success());
    assert!(done.stderr.is_empty(), "progress is for terminals: {:?}", done.stderr);
    desk.store.import("two", &two);

    let listed = desk.json(["template", "list"]);
    let names: Vec<&str> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|t| t["template"]["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["one:1", "two:latest"]);
    let shown = desk.json(["template", "show", "one:1"]);
    assert_eq!(shown["inodes"], 3, "{shown}");
    assert_eq!(shown["content_bytes"], 13);

    let refused = desk.mica(["template", "import", "one:1"]).arg(&two).refuse();
    assert!(sentence(&refused).contains("--replace"), "{refused}");
    let refused = desk.mica(["template", "show", "noe:1"]).refuse();
    assert!(sentence(&refused).contains("did you mean \"one:1\"?"), "{refused}");

    desk.mica(["template", "delete", "one:*", "--dry-run"]).succeed();
    desk.mica(["template", "show", "one:1"]).succeed();
    desk.mica(["template", "delete", "one:*"]).succeed();
    let would = desk.json(["store", "gc", "--dry-run"]);
    let did = desk.json(["store", "gc"]);
    for what in ["objects", "layers", "trees", "bytes"] {
        assert_eq!(would[what], did[what], "{what}");
    }
    assert_eq!((did["objects"].as_u64(), did["layers"].as_u64()), (Some(1), Some(1)));
    assert!(desk.mica(["store", "check", "--rehash"]).succeed().starts_with("whole: 1 template"));
}

#[test]
fn a_layer_on_a_template_is_pinned_to_what_that_was() {
    let desk = Desk::new();
    desk.store.import("base:1", &desk.tree("base", &[("a", "base")]));
    let upper = desk.tree("upper", &[("b", "upper"), (".wh.a", "")]);
    desk.mica(["template", "import", "tools:1", "--on", "base:1"]).arg(&upper).succeed();
    let before = desk.json(["template", "show", "tools:1"]);
    assert_eq!(before["template"]["stack"].as_array().expect("layers").len(), 2);
    desk.mica(["template", "import", "base:1", "--replace"]).arg(&upper).succeed();
    assert_eq!(desk.json(["template", "show", "tools:1"])["stack_id"], before["stack_id"]);
    let refused = desk.mica(["template", "import", "x", "--on", "bsae:1"]).arg(&upper).refuse();
    assert!(sentence(&refused).contains("did you mean \"base:1\"?"), "{refused}");
    // Without --on a .wh. name is a file like any other.
    assert_eq!(desk.json(["template", "show", "base:1"])["inodes"], 3);
}

#[test]
fn a_stream_is_imported_and_the_same_stream_gives_the_same_template() {
    let desk = Desk::new();
    let tree = desk.tree("tree", &[("etc/name", "value"), ("usr/bin/tool", "#!/bin/sh\n")]);
    for name in ["one:1", "two:1"] {
        let mut tar = Command::new("tar")
            .args(["-C", tree.to_str().expect("text"), "-cz", "."])
            .stdout(Stdio::piped())
            .start();
        let stream = tar.stdout.take().expect("piped");
        let status = desk.mica(["template", "import", name, "-"]).stdin(stream).status();
        assert!(status.expect("mica runs").success());
        assert!(tar.wait().expect("tar ends").success());
    }
    let stack = |name: &str| desk.json(["template", "show", name])["stack_id"].clone();
    assert_eq!(stack("one:1"), stack("two:1"));
}

#[test]
fn an_interrupted_import_leaves_the_store_clean() {
    let desk = Desk::new();
    desk.store.import("kept:1", &desk.tree("tree", &[("file", "text")]));
    for signal in [Signal::INT, Signal::KILL] {
        let mut import = desk
            .mica(["template", "import", "never:1", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .start();
        // Half an archive: enough to be staged, and then it waits for the rest.
        let half = Command::new("tar")
            .args(["-C", "/usr/share", "-c", "common-licenses"])
            .output()
            .expect("tar runs")
            .stdout;
        let mut stdin = import.stdin.take().expect("piped");
        stdin.write_all(&half[..half.len() / 2]).expect("it reads");
        let pid = i32::try_from(import.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it lives");
        let output = import.wait_with_output().expect("it ends");
        drop(stdin);
        assert!(!output.status.success());
        if signal == Signal::INT {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(sentence(&said).contains("cancelled"), "{said}");
            assert_eq!(fs::read_dir(desk.store.path().join("staging")).expect("there").count(), 0);
        }
    }
    // What the killed one left is swept by the next that comes along.
    desk.store.import("next:1", &desk.tree("next", &[("file", "other")]));
    assert_eq!(fs::read_dir(desk.store.path().join("staging")).expect("there").count(), 0);
    assert!(desk.mica(["store", "check", "--rehash"]).succeed().starts_with("whole: 2 templates"));
    assert_eq!(desk.json(["store", "gc"])["objects"], 0);
}

#[test]
fn damage_is_found_named_and_made_good() {
    let desk = Desk::new();
    let tree = desk.tree("tree", &[("file", "precious")]);
    desk.store.import("a:1", &tree);
    let objects = desk.store.path().join("objects");
    Command::new("chattr").args(["-R", "-f", "-i"]).arg(&objects).succeed();
    fs::remove_dir_all(&objects).expect("removed");
    let found = desk.mica(["store", "check"]).refuse();
    assert!(sentence(&found).contains("is missing"), "{found}");
    assert_eq!(desk.mica(["store", "check"]).capture().status.code(), Some(1));
    desk.mica(["template", "import", "a:1", "--replace"]).arg(&tree).succeed();
    desk.mica(["store", "check", "--rehash"]).succeed();
}

#[test]
fn a_store_of_another_version_is_not_touched() {
    let desk = Desk::new();
    desk.store.import("a:1", &desk.tree("tree", &[("file", "text")]));
    let meta = desk.store.path().join("meta.json");
    let text = fs::read_to_string(&meta).expect("there");
    fs::write(&meta, text.replace("\"format\": 1", "\"format\": 2")).expect("written");
    for arguments in [
        &["template", "list"][..],
        &["store", "gc"],
        &["store", "destroy", "--yes"],
        &["template", "import", "b:1", "/etc"],
        &["mount"],
    ] {
        let refused = desk.mica(arguments.iter().copied()).refuse();
        assert!(sentence(&refused).contains("has format 2"), "{arguments:?}: {refused}");
    }
    fs::write(&meta, text).expect("written");
    desk.mica(["store", "destroy", "--yes"]).succeed();
    assert!(!desk.store.path().exists());
    let foreign = desk.tree("foreign", &[("letter", "dear")]);
    let refused =
        mica().arg("--store").arg(&foreign).args(["template", "import", "a:1", "/etc"]).refuse();
    assert!(sentence(&refused).contains("not empty"), "{refused}");
}

#[test]
fn a_reader_that_had_enough_is_no_error() {
    let desk = Desk::new();
    desk.store.import("a:1", &desk.tree("tree", &[("file", "text")]));
    let mut child = desk
        .mica(["template", "show", "a:1", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .start();
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_full_disk_is_a_sentence_and_the_store_stays_whole() {
    use support::{Disk, DiskFormat};
    let desk = Desk::new();
    let mountpoint = desk.scratch.mountpoint("disk");
    let image = desk.scratch.path().join("disk.img");
    let disk = Disk::create(&image, &mountpoint, DiskFormat::Ext4, 24 << 20);
    let store = Store::at(&disk.path().join("store"));
    store.import("small:1", &desk.tree("small", &[("file", "text")]));
    let big = desk.scratch.directory("big");
    let mut random = 1_u64;
    for number in 0..32 {
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random.to_be_bytes()[0]
        })
        .take(1 << 20)
        .collect();
        fs::write(big.join(number.to_string()), noise).expect("written");
    }
    let refused = store.mica(["template", "import", "big:1"]).arg(&big).refuse();
    assert!(sentence(&refused).contains("No space left"), "{refused}");
    assert!(store.mica(["store", "check", "--rehash"]).succeed().starts_with("whole: 1 template"));
    assert_eq!(fs::read_dir(store.path().join("staging")).expect("there").count(), 0);
    store.mica(["store", "destroy", "--yes"]).succeed();
}

#[test]
fn the_demo_shows_all_it_promises_and_leaves_nothing_also_when_interrupted() {
    let desk = Desk::new();
    let place = desk.scratch.directory("demo");
    let demo = |arguments: &[&str]| {
        let mut command = mica();
        command.args(["demo", "--dir"]).arg(&place).args(arguments);
        command
    };
    let shown = demo(&[]).succeed();
    for expected in ["web2 sees: 1 one two no sha256sum", "bytes on disk", "hashed again"] {
        assert!(shown.contains(expected), "{shown}");
    }
    let measured: Value =
        serde_json::from_str(&demo(&["--no-passthrough", "--json"]).succeed()).expect("JSON");
    assert_eq!(measured["passthrough"], false);
    assert!(measured["disk_bytes_mica"].as_u64() < measured["disk_bytes_copies"].as_u64());
    assert_eq!(fs::read_dir(&place).expect("there").count(), 0);

    let mut running = demo(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    let mut first = [0];
    let mut stdout = running.stdout.take().expect("piped");
    std::io::Read::read_exact(&mut stdout, &mut first).expect("it says something");
    let pid = i32::try_from(running.id()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::INT).expect("it lives");
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut stdout, &mut rest).expect("it ends");
    let output = running.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(sentence(&said).contains("interrupted"), "{said}");
    assert_eq!(fs::read_dir(&place).expect("there").count(), 0);
}

#[test]
fn the_demo_gives_no_memory_figure_where_files_live_in_memory() {
    require_root();
    let place = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let measured = mica().args(["demo", "--json", "--dir"]).arg(place.path()).succeed();
    let measured: Value = serde_json::from_str(&measured).expect("JSON");
    assert_eq!(measured["cache_bytes_mica"], Value::Null);
    assert!(measured["disk_bytes_mica"].as_u64() > Some(0));
}
