//! What was acknowledged survives: power cuts, dead mount processes, killed imports.
//!
//! Workers change files in a mounted root, each change synced, and keep a ledger of what they began
//! and what was acknowledged outside of everything that is cut. After a cut the root must hold
//! every acknowledged change, and of the one that was under way nothing or all of it, or for a plain
//! write some of its blocks; never half a copied-up file. Every object must hash to its name, and
//! the store must take the import that was cut off again.
//!
//! `MICA_TEST_COUNTS` is `quick` (40 cuts, also when it is not set), `ci` (200) or `long` (5,000).
//! `MICA_TEST_SEED` sets the seed, `random` takes a fresh one; each run prints its own.

mod operation;
mod site;
#[path = "../support/mod.rs"]
mod support;
mod tree;
mod workload;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use operation::Operation;
use site::{Import, Site, Subject, check_objects};
use support::{
    Disk, DiskFormat, LogFlush, Scratch, Succeed, require_root, seed, shut_down, unmount_beneath,
};
use tree::{Content, Tree};

const MIB: u64 = 1 << 20;

/// Cuts made in one site before the next starts on a fresh disk.
const CUTS_PER_SITE: usize = 20;

/// With and without passthrough.
const BOTH: [Subject; 2] =
    [Subject::Mica { passthrough: true }, Subject::Mica { passthrough: false }];

/// This kind of cut's part, in hundredths, of the cuts of a run.
fn cuts(percent: usize) -> usize {
    let all = match std::env::var("MICA_TEST_COUNTS").as_deref() {
        Ok("ci") => 200,
        Ok("long") => 5000,
        Ok(_) | Err(_) => 40,
    };
    (all * percent / 100).max(1)
}

/// How many cuts each site of a run gets, and the number of the site.
fn sites(cuts: usize) -> impl Iterator<Item = (usize, usize)> {
    let sites = cuts.div_ceil(CUTS_PER_SITE).max(BOTH.len());
    (0..sites).map(move |site| (site, cuts / sites + usize::from(site < cuts % sites)))
}

/// Copies the disk image under a running workload `cuts` times; returns what was found wanting.
fn cut_by_copying(subject: Subject, cuts: usize, seed: u64) -> Option<String> {
    let scratch = Scratch::new("crash-copy");
    let mut random = fastrand::Rng::with_seed(seed);
    let backing = Disk::create(
        &scratch.path().join("xfs.img"),
        &scratch.mountpoint("backing"),
        DiskFormat::Xfs,
        4096 * MIB,
    );
    let (image, copy) = (backing.path().join("live.img"), backing.path().join("copy.img"));
    let live = Disk::create(&image, &scratch.mountpoint("live"), DiskFormat::Ext4, 512 * MIB);
    let source = scratch.directory("source");
    let site =
        Site::prepare(subject, live.path(), &scratch.mountpoint("root"), &source, random.u64(..));
    let root = site.open();
    let mut workers = site.start(&root, random.u64(..));
    let mut wanting = None;
    for cut in 0..cuts {
        let import = (subject != Subject::Disk).then(|| {
            let source = scratch.directory(&format!("import-{cut}"));
            Import::start(site.store(), &format!("cut:{cut}"), &source, random.u64(..))
        });
        workers.await_more(random.usize(..2), random.usize(1..24));
        let mut acknowledged = false;
        let mut import = import;
        let known = workers.around(|| {
            acknowledged = import.as_mut().is_some_and(Import::acknowledged);
            Command::new("cp").arg("--reflink=always").arg(&image).arg(&copy).succeed();
        });
        if let Some(import) = &mut import {
            import.wait();
        }
        assert_eq!(workers.error(), None, "the live root failed");
        let at = scratch.mountpoint("copy");
        let disk = Disk::attach(&copy, &at);
        let mut copied = site.copied(disk.path(), &scratch.mountpoint("copied-root"));
        let copied_root = copied.open();
        let mut verdict = copied.judge(&copied_root, &workers, &known);
        copied_root.close();
        if let (Ok(()), Some(import)) = (&verdict, &import) {
            let mountpoint = scratch.mountpoint("imported");
            verdict = import.judge(&copied.store(), &mountpoint, acknowledged);
        }
        disk.detach();
        std::fs::remove_file(&copy).expect("the copy is ours");
        if let Err(told) = verdict {
            wanting = Some(format!("{subject:?}, cut {cut}, seed {seed}: {told}"));
            break;
        }
    }
    workers.stop();
    root.close();
    wanting
}

/// Stops the disk under a running workload `cuts` times; returns what was found wanting.
fn cut_by_shutdown(
    subject: Subject,
    format: DiskFormat,
    log: impl Fn(usize) -> LogFlush,
    cuts: usize,
    seed: u64,
) -> Option<String> {
    let scratch = Scratch::new("crash-shutdown");
    let mut random = fastrand::Rng::with_seed(seed);
    let (image, at) = (scratch.path().join("disk.img"), scratch.mountpoint("disk"));
    let mountpoint = scratch.mountpoint("root");
    let mut disk = Disk::create(&image, &at, format, 512 * MIB);
    let source = scratch.directory("source");
    let mut site = Site::prepare(subject, disk.path(), &mountpoint, &source, random.u64(..));
    for cut in 0..cuts {
        let mut root = site.open();
        site.tidy(&root);
        let mut import = (subject != Subject::Disk).then(|| {
            let source = scratch.directory(&format!("import-{cut}"));
            Import::start(site.store(), &format!("cut:{cut}"), &source, random.u64(..))
        });
        let mut workers = site.start(&root, random.u64(..));
        workers.await_more(random.usize(..2), random.usize(1..24));
        let mut acknowledged = false;
        let known = workers.around(|| {
            acknowledged = import.as_mut().is_some_and(Import::acknowledged);
            shut_down(&at, log(cut)).expect("the disk can be shut down");
        });
        workers.stop();
        if let Some(import) = &mut import {
            import.wait();
        }
        // After a power cut nothing of the machine is left but the disk.
        root.kill();
        unmount_beneath(&mountpoint);
        drop(root);
        disk.detach();
        disk = Disk::attach(&image, &at);

        let root = site.open();
        let mut verdict = site.judge(&root, &workers, &known);
        root.close();
        if let (Ok(()), Some(import)) = (&verdict, &import) {
            verdict = import.judge(&site.store(), &scratch.mountpoint("imported"), acknowledged);
        }
        if let Err(told) = verdict {
            return Some(format!("{subject:?} on {format:?}, cut {cut}, seed {seed}: {told}"));
        }
    }
    None
}

#[test]
fn acknowledged_changes_survive_in_a_copy_of_the_live_disk() {
    require_root();
    let seed = seed();
    for (site, cuts) in sites(cuts(40)) {
        let wanting = cut_by_copying(BOTH[site % 2], cuts, seed ^ site as u64);
        assert_eq!(wanting, None);
    }
}

#[test]
fn acknowledged_changes_survive_a_shutdown_of_the_disk() {
    require_root();
    let seed = seed();
    let log = |cut: usize| if cut.is_multiple_of(2) { LogFlush::Lost } else { LogFlush::Flushed };
    for (site, cuts) in sites(cuts(30)) {
        let format = if site % 4 < 2 { DiskFormat::Ext4 } else { DiskFormat::Xfs };
        let wanting = cut_by_shutdown(BOTH[site % 2], format, log, cuts, seed ^ site as u64);
        assert_eq!(wanting, None);
    }
}

#[test]
fn acknowledged_changes_survive_a_killed_mount_process() {
    require_root();
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    for (site, cuts) in sites(cuts(15)) {
        let scratch = Scratch::new("crash-kill");
        let (disk, mountpoint) = (scratch.directory("disk"), scratch.mountpoint("root"));
        let source = scratch.directory("source");
        let mut site = Site::prepare(BOTH[site % 2], &disk, &mountpoint, &source, random.u64(..));
        let mut root = site.open();
        for cut in 0..cuts {
            let mut workers = site.start(&root, random.u64(..));
            workers.await_more(random.usize(..2), random.usize(1..24));
            let known = workers.around(|| root.kill());
            workers.stop();
            // Mounting detaches what the dead process left.
            root = site.open();
            let verdict = site.judge(&root, &workers, &known);
            assert_eq!(verdict, Ok(()), "cut {cut}, seed {seed}");
            site.tidy(&root);
        }
        root.close();
        assert_eq!(check_objects(&site.store()), Ok(()), "seed {seed}");
    }
}

#[test]
fn a_killed_import_leaves_a_store_that_takes_it_again() {
    require_root();
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    for (_, cuts) in sites(cuts(15)) {
        let scratch = Scratch::new("crash-import");
        let store = || support::Store::at(&scratch.path().join("store"));
        let started = Instant::now();
        let whole = scratch.directory("whole");
        let mut import = Import::start(store(), "whole:1", &whole, random.u64(..));
        assert!(import.wait(), "an import that nobody kills succeeds");
        let duration = started.elapsed();
        for cut in 0..cuts {
            let source = scratch.directory(&format!("source-{cut}"));
            let template = format!("cut:{cut}");
            let mut import = Import::start(store(), &template, &source, random.u64(..));
            std::thread::sleep(duration.mul_f64(random.f64()).min(Duration::from_secs(5)));
            let acknowledged = import.acknowledged();
            import.kill();
            let verdict = import.judge(&store(), &scratch.mountpoint("imported"), acknowledged);
            assert_eq!(verdict, Ok(()), "cut {cut}, seed {seed}");
        }
    }
}

/// The harness asks for nothing that a plain ext4 does not give.
#[test]
fn the_bare_disk_passes() {
    require_root();
    let seed = seed();
    assert_eq!(cut_by_copying(Subject::Disk, 4, seed), None);
    for log in [LogFlush::Lost, LogFlush::Flushed] {
        assert_eq!(cut_by_shutdown(Subject::Disk, DiskFormat::Ext4, |_| log, 4, seed), None);
        assert_eq!(cut_by_shutdown(Subject::Disk, DiskFormat::Xfs, |_| log, 4, seed), None);
    }
}

/// The harness notices when syncs do nothing.
#[test]
fn a_mount_process_that_ignores_syncs_is_found_out() {
    require_root();
    let seed = seed();
    let subject = Subject::MicaIgnoringSyncs;
    let wanting = cut_by_shutdown(subject, DiskFormat::Ext4, |_| LogFlush::Lost, 8, seed).unwrap();
    eprintln!("found, as it has to be: {wanting}");
}

/// The harness notices when an import is acknowledged before it is durable.
#[test]
fn an_import_that_ignores_syncs_is_found_out() {
    require_root();
    let seed = seed();
    let scratch = Scratch::new("crash-ignore");
    let (image, at) = (scratch.path().join("disk.img"), scratch.mountpoint("disk"));
    let disk = Disk::create(&image, &at, DiskFormat::Ext4, 512 * MIB);
    let store = support::Store::at(&disk.path().join("store"));
    let first = scratch.directory("first");
    assert!(Import::start(support::Store::at(store.path()), "first:1", &first, seed).wait());
    // Nor does the disk make anything durable of its own accord before it is cut.
    let mut remount = Command::new("mount");
    remount.args(["-o", "remount,commit=3600"]).arg(disk.path()).succeed();
    let source = scratch.directory("source");
    let mut import = Import::start_ignoring_syncs(
        support::Store::at(store.path()),
        "cut:1",
        &source,
        seed.wrapping_add(1),
    );
    assert!(import.wait());
    shut_down(&at, LogFlush::Lost).unwrap();
    disk.detach();
    let _disk = Disk::attach(&image, &at);
    let wanting = import.judge(&store, &scratch.mountpoint("imported"), true).unwrap_err();
    eprintln!("found, as it has to be: {wanting}");
}

#[test]
fn the_judgement_knows_half_a_copy_from_half_a_write() {
    let scratch = Scratch::new("crash-judgement");
    let top = scratch.directory("top");
    let before = workload::first_tree(7);
    before.write(&top).unwrap();
    let read = || Tree::read(&top).unwrap();
    assert_eq!(read().difference(&before), None);

    let path = "d0/file0".to_owned();
    let old = before.node(&path).unwrap().content.clone();
    let write = Operation::Write { path: path.clone(), first: 3, stamps: vec![1, 2] };
    let forgiven = |found: &Tree| {
        let mut found = found.clone();
        write.forgive(&mut found, &before);
        found.difference(&before).is_none()
    };
    let file = OpenOptions::new().write(true).open(top.join(&path)).unwrap();
    // One of two blocks written: what a cut may leave of a write.
    file.write_all_at(&Content::whole(vec![1]).bytes(), 3 * 4096).unwrap();
    assert!(forgiven(&read()));
    // A block the write has nothing to do with.
    file.write_all_at(&Content::whole(vec![9]).bytes(), 7 * 4096).unwrap();
    assert!(!forgiven(&read()));
    file.write_all_at(&Content::whole(old.stamps()[7..8].to_vec()).bytes(), 7 * 4096).unwrap();
    assert!(forgiven(&read()));
    // A copy that stopped half way: short, then with zeros behind.
    file.set_len(20 * 4096).unwrap();
    assert!(!forgiven(&read()));
    file.set_len(40 * 4096).unwrap();
    assert!(!forgiven(&read()));
    // Part of a block.
    file.write_all_at(&[1; 512], 30 * 4096).unwrap();
    assert!(Tree::read(&top).unwrap_err().contains("block 30 is torn"));
}

/// A file that vanished, came back, changed its mode or lost a name is told.
#[test]
fn the_judgement_tells_every_difference() {
    let scratch = Scratch::new("crash-judgement");
    let before = workload::first_tree(11);
    let told = |change: &dyn Fn(&Path)| {
        let top = scratch.directory(&format!("{}", fastrand::u64(..)));
        before.write(&top).unwrap();
        change(&top);
        Tree::read(&top).unwrap().difference(&before).unwrap()
    };
    let remove = |top: &Path| std::fs::remove_file(top.join("d1/file3")).unwrap();
    assert_eq!(told(&remove), "d1/file3 is missing");
    let add = |top: &Path| std::fs::write(top.join("d1/more"), b"").unwrap();
    assert_eq!(told(&add), "d1/more should not be there");
    let rename = |top: &Path| std::fs::rename(top.join("d1"), top.join("d9")).unwrap();
    assert!(told(&rename).starts_with("directories"));
    let unlink = |top: &Path| {
        std::fs::copy(top.join("d0/file1"), top.join("copy")).unwrap();
        std::fs::rename(top.join("copy"), top.join("d0/link1")).unwrap();
    };
    assert!(told(&unlink).contains("has the names"));
}
