//! `mica commit`: the new template shows what the root showed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::changes::EVERYTHING;
use crate::stage::{Stage, script};
use crate::support::{MountOptions, Snapshot, Succeed, again_until, assert_same, snapshot};

/// A directory's own link count is the host's business where a root is private.
fn comparable(mut tree: Snapshot) -> Snapshot {
    for described in tree.values_mut() {
        described.xattrs.remove(&b"security.selinux"[..]);
    }
    tree
}

#[test]
fn the_template_shows_what_the_root_shows_mounted_or_not() {
    let stage = Stage::new("commit");
    let root = stage.mount("ct");
    script(root.path(), EVERYTHING);
    let shown = comparable(snapshot(root.path()));
    let report = stage.json(["commit", "ct", "live"]);
    assert!(report["frozen_ms"].as_f64().is_some(), "{report}");
    assert_same(&comparable(stage.shown("live")), &shown);
    // Nor does diff(1) find anything, in what it can read.
    let at = stage.scratch.mountpoint("seen");
    let seen = stage.store.mount("live", &at, &MountOptions::read_only());
    let mut diff = Command::new("diff");
    diff.args([
        "-r",
        "--no-dereference",
        "-x",
        "fifo",
        "-x",
        "null",
        "-x",
        "block",
        "-x",
        "device",
    ]);
    diff.arg(&at).arg(root.path()).succeed();
    seen.unmount();
    root.unmount();
    let rest = stage.json(["commit", "ct", "rest"]);
    assert_eq!(rest["frozen_ms"], Value::Null);
    assert_eq!(rest["stack_id"], report["stack_id"], "the layer is the same, byte for byte");
    assert_eq!(rest["new_objects"], 0);
    // Whole: every object of it is there and is what its name says.
    stage.store.mica(["store", "check", "--rehash"]).succeed();
    let told = stage.store.mica(["commit", "ct", "rest"]).refuse();
    assert!(told.contains("exists already") && told.contains("--replace"), "{told}");
    stage.store.mica(["commit", "ct", "rest", "--replace"]).succeed();
}

#[test]
fn the_kernel_shows_the_same_of_the_same_changes() {
    let stage = Stage::new("commitkernel");
    let lower = stage.scratch.path().join("lower");
    stage.store.mica(["template", "export", "base"]).arg(&lower).succeed();
    // Made by the kernel's own overlayfs, and taken over.
    let (private, merged) = (stage.private("ct"), stage.scratch.mountpoint("merged"));
    for part in ["upper", "kernelwork"] {
        fs::create_dir_all(stage.scratch.path().join("ct").join(part)).unwrap();
    }
    let work = stage.scratch.directory("kernelwork");
    fs::remove_dir(private.join("kernelwork")).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=on,index=off,metacopy=on",
        lower.display(),
        private.join("upper").display(),
        work.display()
    );
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).succeed();
    // Without what an overlay of the kernel's cannot do: its own attributes and devices 0:0.
    let work: String = EVERYTHING
        .lines()
        .filter(|line| !line.contains("trusted.overlay") && !line.contains("c 0 0"))
        .filter(|line| !line.contains("srv/two") && !line.contains("srv/one"))
        .map(|line| format!("{line}\n"))
        .collect();
    script(&merged, &work);
    let mut shown = snapshot(&merged);
    again_until("a program that another test is starting holds the merge", || {
        Command::new("umount").arg(&merged).capture().status.success()
    });
    let root = stage.mount("ct");
    root.unmount();
    stage.store.mica(["commit", "ct", "taken"]).succeed();
    let mut taken = stage.shown("taken");
    for tree in [&mut shown, &mut taken] {
        for described in tree.values_mut() {
            // The kernel counts a directory's links as 1.
            described.nlink = 0;
        }
    }
    assert_same(&taken, &shown);
}

#[test]
fn a_second_commit_stacks_on_the_first_and_shares_everything() {
    let stage = Stage::new("commitstack");
    let root = stage.mount("ct");
    script(root.path(), "echo one >etc/one; chmod 600 etc/conf");
    stage.store.mica(["commit", "ct", "one"]).succeed();
    root.unmount();
    let at = stage.scratch.mountpoint("second");
    let options = MountOptions::private(&stage.private("second"));
    let _second = stage.store.mount("one", &at, &options);
    let same = stage.json(["commit", "second", "same"]);
    assert_eq!(same["changed"], false);
    script(&at, "rm etc/one; mv srv/data srv/elsewhere");
    let report = stage.json(["commit", "second", "two"]);
    // A moved directory costs names, no content.
    assert_eq!(report["new_objects"], 0, "{report}");
    assert_eq!(report["template"]["stack"].as_array().unwrap().len(), 3);
    assert_same(&comparable(stage.shown("two")), &comparable(snapshot(&at)));
    let provenance = report["template"]["provenance"]["source"].as_str().unwrap();
    assert_eq!(provenance, "root second of one:latest");
}

#[test]
fn a_file_that_is_written_all_the_time_is_named_and_nothing_is_made() {
    let stage = Stage::new("commitbusy");
    let root = stage.mount("ct");
    script(root.path(), "head -c 32000000 /dev/zero >var/log/busy; echo calm >etc/calm");
    // Open for writing and quiet: taken as it is.
    let calm = OpenOptions::new().append(true).open(root.path().join("etc/calm")).unwrap();
    stage.store.mica(["commit", "ct", "calm"]).succeed();
    (&calm).write_all(b"later\n").unwrap();
    drop(calm);
    let file = OpenOptions::new().write(true).open(root.path().join("var/log/busy")).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let mut number = 0_u64;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            number += 1;
            file.write_all_at(&number.to_le_bytes(), (number % 4_000_000) * 8).unwrap();
        }
    });
    let told = stage.store.mica(["commit", "ct", "busy"]).refuse();
    drop(stop);
    writer.join().unwrap();
    assert!(told.contains("/var/log/busy was written to while it was read"), "{told}");
    let listed = stage.store.mica(["template", "list", "-q"]).succeed();
    assert!(!listed.contains("busy"), "{listed}");
    // The root goes on, and what was written is there the next time.
    script(root.path(), "echo goes on >etc/on");
    stage.store.mica(["commit", "ct", "busy"]).succeed();
    assert_same(&comparable(stage.shown("busy")), &comparable(snapshot(root.path())));
}

#[test]
fn writers_who_open_files_never_leave_half_a_generation_in_the_template() {
    let stage = Stage::new("commitatomic");
    let root = stage.mount("ct");
    script(root.path(), "mkdir gen; echo 0 >gen/a; echo 0 >gen/b");
    // Always a before b, by a rename each: a frozen moment has a = b or a = b + 1.
    let work = "i=0; while [ -e gen/go ]; do i=$((i+1)); \
                for f in a b; do echo $i >gen/$f.new; mv gen/$f.new gen/$f; done; done";
    File::create(root.path().join("gen/go")).unwrap();
    let mut busy = Command::new("bash").args(["-ec", work]).current_dir(root.path()).start();
    for round in 0..5 {
        stage.store.mica(["commit", "ct", &format!("r{round}")]).succeed();
    }
    fs::remove_file(root.path().join("gen/go")).unwrap();
    assert!(busy.wait().unwrap().success());
    for round in 0..5 {
        let at = stage.scratch.mountpoint("round");
        let template = format!("r{round}");
        let mounted = stage.store.mount(&template, &at, &MountOptions::read_only());
        let number =
            |path: &Path| -> u64 { fs::read_to_string(path).unwrap().trim().parse().unwrap() };
        let (a, b) = (number(&at.join("gen/a")), number(&at.join("gen/b")));
        assert!(a == b || a == b + 1, "a {a}, b {b}");
        mounted.unmount();
    }
}

#[test]
fn an_interrupt_ends_the_commit_of_a_file_that_would_take_for_ever() {
    let stage = Stage::new("commithuge");
    let root = stage.mount("ct");
    script(root.path(), "truncate -s 250G srv/huge");
    root.unmount();
    let mut commit = stage.store.mica(["commit", "ct", "huge"]);
    let mut commit = commit.stderr(Stdio::piped()).start();
    let stat = format!("/proc/{}/stat", commit.id());
    // Holes are not read: proc(5), utime.
    again_until("it hashes", || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        stat.split_whitespace().nth(13).unwrap().parse::<u64>().unwrap() > 30
    });
    let pid = rustix::process::Pid::from_child(&commit);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    again_until("it ends", || commit.try_wait().unwrap().is_some());
    let mut told = String::new();
    commit.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(commit.wait().unwrap().code(), Some(2), "{told}");
    assert!(told.contains("cancelled"), "{told}");
    assert_eq!(stage.store.mica(["template", "list", "-q"]).succeed().trim(), "base:latest");
}
