//! The object store on the file systems that hosts have: reflinks, full disks, power cuts.
//!
//! Needs root, for loop devices.

mod support;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use mica::object::{ObjectId, ObjectReader, Objects, Published, Verdict};
use support::{Disk, DiskFormat, Scratch, Succeed, require_root};

const MIB: u64 = 1 << 20;

fn disk(scratch: &Scratch, format: DiskFormat, size_bytes: u64) -> Disk {
    let mountpoint = scratch.mountpoint("disk");
    Disk::create(&scratch.path().join("image"), &mountpoint, format, size_bytes)
}

fn pattern(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).expect("fits in memory")];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn assert_all_whole(objects: &Objects) -> u64 {
    let mut count = 0;
    for stored in objects.iter() {
        let stored = stored.expect("a store can be listed");
        let verdict = objects.verify(&stored.id).expect("an object can be read");
        assert!(matches!(verdict, Verdict::Whole { .. }), "{}: {verdict:?}", stored.id);
        count += 1;
    }
    count
}

fn a_large_file_is_stored_as(format: DiskFormat) {
    require_root();
    let scratch = Scratch::new("reflink");
    let disk = disk(&scratch, format, 600 * MIB);
    let objects = Objects::open(disk.path()).expect("a store can be made");
    let source = File::create_new(disk.path().join("source")).expect("a file can be made");
    let mut content = pattern(24 * MIB + 5, 1);
    content[8 << 20..16 << 20].fill(0);
    source.write_all_at(&content, 0).expect("the file can be written");
    source.sync_all().expect("the file can be synced");

    let free = || {
        let stat = rustix::fs::statvfs(disk.path()).expect("statvfs");
        stat.f_bfree * stat.f_frsize
    };
    let before = free();
    let staging = objects.begin().expect("an import can begin");
    let put = staging.put_file(source.as_fd(), 24 * MIB + 5).expect("put");
    assert_eq!(put.id, ObjectId::of(&content));
    assert_eq!(put.data_blocks, (16 * MIB + 4096) / 512);
    staging.publish().expect("publish");
    staging.finish().expect("finish");

    let staging = objects.begin().expect("an import can begin");
    assert!(staging.put_file(source.as_fd(), 24 * MIB + 5).expect("put").hit);
    assert_eq!(staging.publish().expect("publish"), Published::default());
    drop(staging);

    let stored = objects.iter().next().expect("one object").expect("listed");
    assert_eq!((stored.id, stored.len_bytes), (put.id, put.len_bytes));
    assert!(stored.allocated_bytes <= 17 * MIB, "zero blocks are holes: {stored:?}");
    if format != DiskFormat::Ext4 {
        // Only what the clone shares can be missing from the bill.
        assert!(before - free() < 4 * MIB, "{} bytes more on the disk", before - free());
    }
    // The object is an inode of its own: writing to the source does not reach it.
    source.write_all_at(b"changed", 0).expect("the file can be written");
    assert!(assert_all_whole(&objects) == 1);
}

#[test]
fn a_large_file_becomes_a_reflink_on_xfs() {
    a_large_file_is_stored_as(DiskFormat::Xfs);
}

#[test]
fn a_large_file_becomes_a_reflink_on_btrfs() {
    a_large_file_is_stored_as(DiskFormat::Btrfs);
}

#[test]
fn a_large_file_becomes_a_sparse_copy_on_ext4() {
    a_large_file_is_stored_as(DiskFormat::Ext4);
}

#[test]
fn a_full_disk_leaves_nothing_half_made() {
    require_root();
    let scratch = Scratch::new("full");
    let disk = disk(&scratch, DiskFormat::Ext4, 24 * MIB);
    let objects = Objects::open(disk.path()).expect("a store can be made");
    let first = objects.begin().expect("an import can begin");
    let kept = first.put_bytes(b"kept").expect("put").id;
    first.publish().expect("publish");

    let staging = objects.begin().expect("an import can begin");
    let mut full = 0;
    for seed in 0..40 {
        let content = pattern(MIB, seed);
        match staging.put_bytes(&content) {
            Ok(put) => assert_eq!(put.id, ObjectId::of(&content)),
            Err(error) => {
                assert!(error.is_no_space(), "{error:?}");
                full += 1;
            }
        }
    }
    assert!(full > 0, "40 MiB do not fit on 24");
    let streamed = staging.put_reader(&mut io::repeat(7), None).expect_err("endless content");
    assert!(streamed.is_no_space(), "{streamed:?}");
    drop(staging);
    assert_eq!(std::fs::read_dir(disk.path().join("staging")).expect("listed").count(), 1);
    drop(first);

    // There is room again, and what was there is whole.
    let staging = objects.begin().expect("an import can begin");
    staging.put_bytes(&pattern(8 * MIB, 99)).expect("there is room again");
    staging.publish().expect("publish");
    assert_eq!(assert_all_whole(&objects), 2);
    assert!(objects.contains(&kept).expect("looked up"));
}

/// Cuts the power: nothing that is not on the disk yet gets there any more.
fn cut_power(disk: &Path) {
    Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(disk).succeed();
}

fn power_cuts_leave_whole_objects_on(format: DiskFormat) {
    require_root();
    let scratch = Scratch::new("cut");
    let mut disk = disk(&scratch, format, 600 * MIB);
    let seed = support::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut acknowledged = Vec::new();
    for round in 0..12 {
        let objects = Objects::open(disk.path()).expect("a store opens after a power cut");
        objects.sweep_staging().expect("dead imports can be swept");
        let staging = objects.begin().expect("an import can begin");
        let batches = random.u64(1..6);
        let cut_in_batch = random.u64(0..batches);
        let sizes: Vec<u64> = (0..40).map(|_| random.u64(0..60_000)).collect();
        for batch in 0..batches {
            let ids: Vec<ObjectId> = (0..)
                .zip(&sizes)
                .map(|(n, len)| pattern(*len, (round * 10 + batch) * 100 + n))
                .map(|content| staging.put_bytes(&content).expect("put").id)
                .collect();
            if batch == cut_in_batch {
                break;
            }
            staging.publish().expect("publish");
            acknowledged.extend(ids);
        }
        // At a random moment of publishing, or before it.
        std::thread::scope(|scope| {
            let delay_us = random.u64(0..30_000);
            scope.spawn(|| staging.publish().map(drop).unwrap_or_default());
            spin_us(delay_us);
            cut_power(disk.path());
        });
        drop(staging);
        drop(objects);
        disk.detach();
        disk = Disk::attach(&scratch.path().join("image"), &scratch.mountpoint("disk"));
        let objects = Objects::open(disk.path()).expect("a store opens after a power cut");
        assert_all_whole(&objects);
        for id in &acknowledged {
            assert!(objects.contains(id).expect("looked up"), "{id} was acknowledged");
        }
    }
}

/// Lets some time pass, so that the cut comes at another point of the import each time.
fn spin_us(time_us: u64) {
    let start = std::time::Instant::now();
    while start.elapsed().as_micros() < u128::from(time_us) {
        std::hint::spin_loop();
    }
}

#[test]
fn a_power_cut_at_any_moment_leaves_only_whole_objects_on_ext4() {
    power_cuts_leave_whole_objects_on(DiskFormat::Ext4);
}

#[test]
fn a_power_cut_at_any_moment_leaves_only_whole_objects_on_xfs() {
    power_cuts_leave_whole_objects_on(DiskFormat::Xfs);
}

/// The negative control of the two above: the same cut, after a rename of unsynced content.
#[test]
fn a_rename_without_syncfs_is_an_empty_file_after_a_power_cut() {
    require_root();
    let scratch = Scratch::new("control");
    let disk = disk(&scratch, DiskFormat::Ext4, 200 * MIB);
    let (staged, published) = (disk.path().join("staged"), disk.path().join("published"));
    std::fs::write(&staged, pattern(50_000, 1)).expect("written");
    std::fs::rename(&staged, &published).expect("renamed");
    // Metadata reaches the journal by the fsync of something else.
    File::create_new(disk.path().join("other")).and_then(|f| f.sync_all()).expect("synced");
    cut_power(disk.path());
    disk.detach();
    let disk = Disk::attach(&scratch.path().join("image"), &scratch.mountpoint("disk"));
    let metadata = std::fs::metadata(disk.path().join("published")).expect("the name is there");
    assert_eq!(metadata.size(), 0, "so this disk would show what a missing syncfs does");
}

#[test]
fn a_reader_holds_no_lock_that_keeps_the_disk_from_being_unmounted_afterwards() {
    require_root();
    let scratch = Scratch::new("reader");
    let disk = disk(&scratch, DiskFormat::Ext4, 64 * MIB);
    let objects = Objects::open(disk.path()).expect("a store can be made");
    let reader = ObjectReader::open(disk.path()).expect("a reader opens");
    assert!(reader.locks().readonly_mount && reader.locks().immutable);
    drop((objects, reader));
    disk.detach();
}
