//! Files that are nearly all hole: a few bytes that claim terabytes, made in one call.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use mica::object::ObjectId;

use crate::archives::{Archive, nothing_is_left};
use crate::stage::{Stage, refused};
use crate::support::{MountOptions, Succeed};

/// Longer than anybody waits for them to be hashed.
const TERABYTES: u64 = 8 << 40;
/// Far more than reading none of that takes, and far less than reading it.
const SOON: Duration = Duration::from_secs(60);

/// A file of that length, with a few bytes of data in it.
fn nearly_all_hole(path: &Path, len: u64) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    file.write_all_at(b"data", len / 2 + 3).unwrap();
}

#[test]
fn a_tiny_archive_that_claims_terabytes_is_refused_at_once() {
    let stage = Stage::new("holes");
    let before = Instant::now();
    for pax in [true, false] {
        let mut archive = Archive::default();
        archive.file(b"fine", b"fine\n");
        if pax {
            archive.sparse(b"vast", TERABYTES, &[(12345, b"data")]);
        } else {
            archive.sparse_gnu(b"vast", TERABYTES, &[(12345, b"data")]);
        }
        let file = archive.write(&stage.scratch.path().join("vast.tar"));
        assert!(fs::metadata(&file).unwrap().len() < 10 << 10);
        let words = ["vast", "8191 GiB of holes", "leave it out"];
        refused(stage.mica(["template", "import", "vast"]).arg(&file), &words);
        nothing_is_left(&stage, "vast");
    }
    let source = stage.scratch.directory("tree");
    nearly_all_hole(&source.join("vast"), TERABYTES);
    let words = ["vast", "8191 GiB of holes"];
    refused(stage.mica(["template", "import", "vast"]).arg(&source), &words);
    nothing_is_left(&stage, "vast");
    assert!(before.elapsed() < SOON, "{:?}", before.elapsed());
    stage.check();
}

#[test]
fn holes_of_an_archive_hash_as_the_zeros_they_are() {
    let stage = Stage::new("holes");
    let len = (150 << 20) + 4097;
    let parts: [(u64, &[u8]); 4] =
        [(3, b"odd"), (5 << 20, &[7; 5000]), ((90 << 20) + 513, &[8; 70_000]), (len - 1, b"z")];
    for parts in [&parts[..], &parts[1..3], &parts[..1], &[]] {
        let mut content = vec![0; usize::try_from(len).unwrap()];
        for (at, data) in parts {
            let at = usize::try_from(*at).unwrap();
            content[at..at + data.len()].copy_from_slice(data);
        }
        let id = ObjectId::of(&content);
        let source = stage.scratch.directory(&format!("tree{}", parts.len()));
        let file = File::create(source.join("holes")).unwrap();
        file.set_len(len).unwrap();
        for (at, data) in parts {
            file.write_all_at(data, *at).unwrap();
        }
        let mut archive = Archive::default();
        archive.sparse(b"holes", len, parts);
        let tar = archive.write(&stage.scratch.path().join("holes.tar"));
        for (name, from) in [("tree", &source), ("tar", &tar)] {
            stage.mica(["template", "import", "--replace", name]).arg(from).succeed();
            let at = stage.scratch.mountpoint(name);
            let root = stage.store.mount(name, &at, &MountOptions::read_only());
            assert!(fs::read(root.path().join("holes")).unwrap() == content, "{name}");
            let blocks = fs::metadata(root.path().join("holes")).unwrap().blocks();
            assert!(blocks < 200, "{blocks} blocks");
            root.unmount();
            assert!(stage.object(&content).exists(), "{name}: not {id}");
        }
    }
    stage.check();
}

#[test]
fn holes_of_terabytes_in_a_root_keep_nobody_waiting() {
    let stage = Stage::new("holes");
    let before = Instant::now();
    for name in ["one", "two"] {
        let root = stage.mount(name);
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        nearly_all_hole(&root.path().join("usr/lib/vast"), TERABYTES);
        // Many that are less vast come to the same.
        for number in 0..50 {
            nearly_all_hole(&root.path().join(format!("usr/lib/{number}")), 300 << 30);
        }
        root.unmount();
    }
    let root = stage.mount("one");
    let words = ["/usr/lib/", "GiB of holes", "commit again"];
    refused(&mut stage.mica(["commit", "one", "made"]), &words);
    root.unmount();
    refused(&mut stage.mica(["commit", "two", "made"]), &words);
    nothing_is_left(&stage, "made");
    let told = stage.mica(["store", "reshare", "--all", "--json"]).succeed();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["files"], &told["skipped"]["sparse"]), (&0.into(), &102.into()), "{told:#}");
    // It does not say that nobody has it.
    let mut who = stage.mica(["store", "who-has", "--scan", "--json", "/usr/lib/vast"]);
    let told: serde_json::Value = serde_json::from_slice(&who.capture().stdout).unwrap();
    assert_eq!(told["private"]["unhashed"], 102, "{told:#}");
    assert_eq!(told["unknown"].as_array().unwrap().len(), 2, "{told:#}");
    assert!(before.elapsed() < SOON, "{:?}", before.elapsed());
    stage.check();
}
