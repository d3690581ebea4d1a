//! Everything that changes a store at once, and afterwards everything is whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{MountOptions, Succeed};
use crate::{Desk, content};

/// How long each works.
fn span() -> Duration {
    match std::env::var("MICA_TEST_COUNTS").as_deref() {
        Ok("quick") => Duration::from_secs(4),
        Ok("long") => Duration::from_secs(600),
        _ => Duration::from_secs(6),
    }
}

/// What a worker's round needs: the desk, its own scratch directory, the number of the round.
type Round = fn(&Desk, &Path, u64);

/// A template comes and goes whose content partly belongs to others too.
fn import(desk: &Desk, own: &Path, round: u64) {
    let tree = own.join("tree");
    fs::create_dir_all(tree.join("srv")).unwrap();
    for seed in [1, 100 + round % 5, 1000 + round] {
        fs::write(tree.join(format!("srv/{seed}")), content(seed)).unwrap();
    }
    desk.store.import("passing:1", &tree);
    let read = own.join("read");
    desk.store.mica(["template", "export", "passing:1"]).arg(&read).succeed();
    for seed in [1, 100 + round % 5, 1000 + round] {
        assert_eq!(fs::read(read.join(format!("srv/{seed}"))).unwrap(), content(seed));
    }
    desk.store.mica(["template", "delete", "passing:1"]).succeed();
    fs::remove_dir_all(tree).unwrap();
    fs::remove_dir_all(read).unwrap();
}

/// A root is mounted, changed, unmounted, mounted again, and has what it had.
fn mount(desk: &Desk, own: &Path, round: u64) {
    let private = own.join("private");
    let mountpoint = own.join("root");
    fs::create_dir_all(&mountpoint).unwrap();
    let options = MountOptions::private(&private);
    for again in [false, true] {
        let root = desk.store.mount("base:1", &mountpoint, &options);
        assert_eq!(fs::read(root.path().join("usr/lib/a")).unwrap(), content(1));
        if !again {
            fs::write(root.path().join("etc/c"), content(2000 + round)).unwrap();
        }
        assert_eq!(fs::read(root.path().join("etc/c")).unwrap(), content(2000 + round));
    }
}

/// A mounted root becomes a template, which is checked and goes.
fn commit(desk: &Desk, own: &Path, round: u64) {
    let mountpoint = own.join("root");
    fs::create_dir_all(&mountpoint).unwrap();
    let options = MountOptions::private(&own.join("private")).with("--name=committed");
    let root = desk.store.mount("base:1", &mountpoint, &options);
    fs::write(root.path().join("usr/lib/new"), content(3000 + round)).unwrap();
    desk.store.mica(["commit", "committed", "made:1"]).succeed();
    let made = desk.store.mica(["template", "cat", "made:1", "/usr/lib/new"]).capture();
    assert!(made.stdout == content(3000 + round));
    desk.store.mica(["template", "check", "made:1"]).succeed();
    drop(root);
    desk.store.mica(["template", "delete", "made:1"]).succeed();
}

fn collect(desk: &Desk, _own: &Path, _round: u64) {
    desk.store.mica(["store", "gc"]).succeed();
}

fn scrub(desk: &Desk, _own: &Path, _round: u64) {
    desk.store.mica(["store", "scrub"]).succeed();
}

/// Two roots at rest and one that is mounted hold alike what the template has elsewhere; after
/// the re-share, and beside it, each still reads the same.
fn reshare(desk: &Desk, own: &Path, round: u64) {
    let privates = ["one", "two", "three"].map(|name| own.join(name));
    let mountpoint = own.join("root");
    fs::create_dir_all(&mountpoint).unwrap();
    let mounted =
        |private: &Path| desk.store.mount("base:1", &mountpoint, &MountOptions::private(private));
    for private in &privates {
        let root = mounted(private);
        fs::create_dir_all(root.path().join("usr/lib/more")).unwrap();
        for seed in [1, 4000 + round % 3] {
            fs::write(root.path().join(format!("usr/lib/more/{seed}")), content(seed)).unwrap();
        }
    }
    let root = mounted(&privates[0]);
    desk.store.mica(["store", "reshare", "--all"]).succeed();
    for seed in [1, 4000 + round % 3] {
        let path = root.path().join(format!("usr/lib/more/{seed}"));
        assert!(fs::read(&path).unwrap() == content(seed));
        fs::write(&path, content(seed + 1)).unwrap();
        assert!(fs::read(&path).unwrap() == content(seed + 1));
    }
    drop(root);
    for private in &privates[1..] {
        let root = mounted(private);
        for seed in [1, 4000 + round % 3] {
            let path = root.path().join(format!("usr/lib/more/{seed}"));
            assert!(fs::read(&path).unwrap() == content(seed));
        }
    }
}

#[test]
fn imports_mounts_commits_scrubs_and_reshares_go_on_while_the_store_is_collected() {
    let desk = Desk::new("together");
    let workers: [(&str, Round); 6] = [
        ("import", import),
        ("mount", mount),
        ("commit", commit),
        ("collect", collect),
        ("scrub", scrub),
        ("reshare", reshare),
    ];
    let failed = AtomicBool::new(false);
    let rounds: Vec<u64> = std::thread::scope(|scope| {
        let started = workers.map(|(name, work)| {
            let own: PathBuf = desk.scratch.directory(name);
            let (desk, failed) = (&desk, &failed);
            scope.spawn(move || {
                // Tells the others to stop when this one panics.
                let tell = Tell(failed);
                let begun = Instant::now();
                let mut round = 0;
                while begun.elapsed() < span() && !failed.load(Ordering::Relaxed) {
                    work(desk, &own, round);
                    round += 1;
                }
                std::mem::forget(tell);
                round
            })
        });
        started.map(|thread| thread.join().unwrap()).into()
    });
    assert!(rounds.iter().all(|rounds| *rounds > 0), "{rounds:?}");

    let whole = desk.store.mica(["store", "check", "--rehash"]).succeed();
    assert!(whole.starts_with("whole"), "{whole}");
    for seed in 1..=3 {
        assert!(desk.object(seed).exists());
    }
    let private = desk.scratch.path().join("mount/private");
    let mountpoint = desk.scratch.path().join("mount/root");
    let root = desk.store.mount("base:1", &mountpoint, &MountOptions::private(&private));
    assert_eq!(fs::read(root.path().join("etc/c")).unwrap(), content(2000 + rounds[1] - 1));
    // What came and went is gone, and the last collection says so to the object.
    desk.store.mica(["store", "gc"]).succeed();
    let left = desk.store.mica(["store", "gc", "--dry-run", "--json"]).succeed();
    let left: serde_json::Value = serde_json::from_str(&left).unwrap();
    assert_eq!(left["objects"], 0, "{left}");
    // What is kept beside the template's is what private files refer to: nothing of that went.
    let whole = desk.store.mica(["store", "check", "--rehash"]).succeed();
    assert!(whole.starts_with("whole"), "{whole}");
}

struct Tell<'a>(&'a AtomicBool);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
