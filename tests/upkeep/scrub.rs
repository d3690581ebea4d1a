//! `mica store scrub`: what it finds, sets aside and puts back.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Stdio;

use mica::object::ObjectId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::MountOptions;
use crate::support::{Disk, DiskFormat, Scratch, Succeed};
use crate::{Desk, content};

#[test]
fn a_whole_store_is_whole_and_nothing_is_sealed_where_the_kernel_cannot() {
    let desk = Desk::new("scrub-whole");
    let (status, answer) = desk.scrub(&[]);
    assert_eq!(status, Some(0));
    let bytes: usize = (1..=3).map(|seed| content(seed).len()).sum();
    assert_eq!(
        answer,
        json!({
            "dry_run": false, "whole": true, "complete": true, "resumed": false, "objects": 3,
            "bytes": bytes, "sealed": 0, "found": [], "unreadable_layers": [],
            "unsealed": "Operation not supported (os error 95)",
        })
    );
    let said = desk.store.mica(["store", "scrub"]).succeed();
    assert!(said.starts_with("whole: 3 objects read"), "{said}");
}

#[test]
fn what_is_damaged_is_set_aside_and_everyone_who_has_it_named() {
    let desk = Desk::new("scrub-damaged");
    let root = desk.root("web1");
    desk.flip(1);
    let damaged = fs::read(desk.object(1)).unwrap();
    let before = fs::read_dir(desk.store.path()).unwrap().count();

    let (status, dry) = desk.scrub(&["--dry-run"]);
    assert_eq!((status, &dry["whole"]), (Some(1), &json!(false)));
    assert!(desk.object(1).exists());
    assert!(!desk.store.path().join("scrub.json").exists());
    assert!(fs::read_dir(desk.store.path()).unwrap().count() <= before + 1);

    let output = desk.store.mica(["store", "scrub"]).capture();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let id = ObjectId::of(&content(1)).to_string();
    for word in [id.as_str(), "altered", "set aside", "template base:1 (/usr/lib/a)", "root web1"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    // Missing is noticed; wrong bytes were not.
    assert!(!desk.object(1).exists());
    assert_eq!(fs::read(desk.store.path().join("quarantine").join(&id)).unwrap(), damaged);
    let error = fs::read(root.path().join("usr/lib/a")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));

    // It stays known as missing until it is back, and then its remains go.
    let (status, again) = desk.scrub(&[]);
    assert_eq!((status, &again["found"][0]["damage"]), (Some(1), &json!("missing")));
    assert_eq!(again["found"][0]["templates"][0]["template"], "base:1");
    let tree = desk.tree.to_str().unwrap().to_owned();
    desk.store.mica(["template", "check", "base:1", "--fix", &tree]).succeed();
    let (status, last) = desk.scrub(&[]);
    assert_eq!((status, &last["found"]), (Some(0), &json!([])));
    assert_eq!(fs::read_dir(desk.store.path().join("quarantine")).unwrap().count(), 0);
    assert_eq!(fs::read(root.path().join("usr/lib/a")).unwrap(), content(1));
}

/// What a mount keeps ready is a registration with the kernel, pages of its own, or a descriptor to
/// serve reads from: one for each way of opening.
#[test]
fn a_mount_lets_go_of_what_it_keeps_of_a_damaged_object() {
    let desk = Desk::new("scrub-recall");
    let passing = desk.root("web1");
    let cached = desk.store.mount(
        "base:1",
        &desk.scratch.mountpoint("web2"),
        &MountOptions::private(&desk.scratch.path().join("web2.private")).passthrough(false),
    );
    let paths = [("usr/lib/a", 1), ("etc/c", 3)];
    let roots = [passing.path(), cached.path()];
    let read = |root: &Path, path: &str| fs::read(root.join(path));
    for (root, (path, seed)) in roots.iter().flat_map(|root| paths.map(|of| (root, of))) {
        assert_eq!(read(root, path).unwrap(), content(seed));
    }
    let open = fs::File::open(cached.path().join("usr/lib/a")).unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).unwrap();
    desk.flip(1);
    desk.flip(3);
    let (status, _) = desk.scrub(&[]);
    assert_eq!(status, Some(1));
    for (root, (path, _)) in roots.iter().flat_map(|root| paths.map(|of| (root, of))) {
        let error = read(root, path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{path} of {root:?}");
    }
    assert!(open.read_exact_at(&mut byte, 200_000).is_err(), "served from here, so it is noticed");
    drop(open);
    // And of altered ones that are replaced in one step.
    let tree = desk.tree.to_str().unwrap().to_owned();
    desk.store.mica(["template", "check", "base:1", "--fix", &tree]).succeed();
    for (root, (path, seed)) in roots.iter().flat_map(|root| paths.map(|of| (root, of))) {
        assert!(read(root, path).unwrap() == content(seed), "{path} of {root:?}");
    }
    desk.flip(1);
    desk.store.mica(["template", "check", "base:1", "--fix", &tree]).succeed();
    for root in roots {
        assert!(read(root, "usr/lib/a").unwrap() == content(1), "{root:?}");
    }
}

#[test]
fn content_that_a_container_still_has_in_a_private_file_comes_back() {
    let desk = Desk::new("scrub-repair");
    {
        let root = desk.root("web1");
        // The same content under another name, deep below, and something else of the same length.
        fs::create_dir_all(root.path().join("srv/deep/down")).unwrap();
        fs::write(root.path().join("srv/deep/down/copy"), content(2)).unwrap();
        let mut other = content(2);
        other[5] ^= 1;
        fs::write(root.path().join("srv/deep/other"), other).unwrap();
    }
    desk.flip(2);
    desk.flip(3);
    let (status, answer) = desk.scrub(&[]);
    assert_eq!(status, Some(1), "nobody has the third");
    let found = answer["found"].as_array().unwrap();
    let of = |seed: u64| {
        let id = json!(ObjectId::of(&content(seed)));
        found.iter().find(|one| one["object"] == id).unwrap()
    };
    assert_eq!((&of(2)["repaired"], &of(3)["repaired"]), (&json!(true), &json!(false)));
    assert_eq!(fs::read(desk.object(2)).unwrap(), content(2));
    let flags = std::process::Command::new("lsattr").arg(desk.object(2)).succeed();
    assert!(flags.split(' ').next().unwrap().contains('i'), "{flags}");
    assert!(!desk.object(3).exists());
    desk.store.mica(["store", "check"]).capture();
}

#[test]
fn a_scrub_that_was_interrupted_goes_on_where_it_was() {
    let desk = Desk::new("scrub-interrupted");
    let mut slow = desk.store.mica(["store", "scrub", "--json", "--rate", "20K"]);
    let mut slow = slow.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    let place = desk.store.path().join("quarantine");
    while !place.is_dir() || is_free(&place) {
        assert!(slow.try_wait().unwrap().is_none(), "it ended though it reads 20 KiB a second");
    }
    let output = desk.store.mica(["store", "scrub"]).capture();
    assert_eq!(output.status.code(), Some(2));
    let refused = String::from_utf8(output.stderr).unwrap();
    assert!(refused.contains("being scrubbed already"), "{refused}");
    kill_process(Pid::from_child(&slow), Signal::INT).unwrap();
    let output = slow.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("goes on from there"), "{said}");
    let first: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(first["complete"], json!(false));
    let (status, rest) = desk.scrub(&[]);
    assert_eq!((status, &rest["complete"], &rest["objects"]), (Some(0), &json!(true), &json!(3)));
    assert_eq!(rest["resumed"], json!(first["objects"] != 0));
}

#[test]
fn what_the_disk_does_not_give_back_is_damaged_too() {
    let scratch = Scratch::new("scrub-unreadable");
    let (image, at) = (scratch.path().join("disk"), scratch.mountpoint("disk"));
    let disk = Disk::create(&image, &at, DiskFormat::Btrfs, 256 << 20);
    let desk = Desk::with_store(scratch, &at.join("store"));
    // Its checksum no longer fits then, and btrfs answers EIO.
    disk.detach();
    let bytes = fs::read(&image).unwrap();
    let needle = &content(3)[4096..4128];
    let file = fs::File::options().write(true).open(&image).unwrap();
    let mut hits = 0;
    for (offset, _) in
        bytes.windows(needle.len()).enumerate().step_by(16).filter(|(_, w)| *w == needle)
    {
        file.write_all_at(b"rot", offset as u64).unwrap();
        hits += 1;
    }
    assert!(hits > 0, "the content is on the disk");
    let _disk = Disk::attach(&image, &at);
    let (status, answer) = desk.scrub(&[]);
    assert_eq!(status, Some(1));
    let damage = answer["found"][0]["damage"].as_str().unwrap();
    assert_eq!(damage, "unreadable (Input/output error (os error 5))");
    assert!(!desk.object(3).exists());
    assert_eq!(answer["objects"], json!(3), "the others were read all the same");
}

#[test]
fn on_a_full_disk_a_scrub_still_sets_aside_and_says_what_it_could_not_note() {
    let scratch = Scratch::new("scrub-full");
    let (image, at) = (scratch.path().join("disk"), scratch.mountpoint("disk"));
    let _disk = Disk::create(&image, &at, DiskFormat::Ext4, 64 << 20);
    let desk = Desk::with_store(scratch, &at.join("store"));
    desk.scrub(&[]);
    desk.flip(1);
    let filler = fs::File::create(at.join("filler")).unwrap();
    let piece = vec![7; 4096];
    let mut offset = 0;
    while filler.write_all_at(&piece, offset).is_ok() {
        offset += 4096;
    }
    rustix::fs::fsync(&filler).unwrap_or_default();
    let (status, answer) = desk.scrub(&[]);
    assert_eq!((status, &answer["found"][0]["damage"]), (Some(1), &json!("altered")));
    assert!(!desk.object(1).exists());
    fs::remove_file(at.join("filler")).unwrap();
    let (_, again) = desk.scrub(&[]);
    assert_eq!(again["found"][0]["damage"], json!("missing"));
}

/// Whether nobody locks a directory; looking at the list of locks takes none.
fn is_free(path: &Path) -> bool {
    let inode = fs::metadata(path).unwrap().ino().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let mut of = locks.lines().filter(|line| line.contains("FLOCK"));
    !of.any(|line| line.split([':', ' ']).any(|field| field == inode))
}
