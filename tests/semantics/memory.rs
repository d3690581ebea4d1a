//! Memory: one copy of a shared file's pages, and inodes that go when the kernel forgets them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use mica::sys::cache::resident_bytes;
use rustix::fs::{Advice, fadvise};

use crate::support::{Mounted, Succeed};
use crate::{BIG_BYTES, Desk, raw};

/// The object of `bytes` bytes in the store.
fn object_of(store: &Path, bytes: u64) -> PathBuf {
    let directories = fs::read_dir(store.join("objects")).unwrap().flatten();
    let mut objects = directories.flat_map(|entry| fs::read_dir(entry.path()).unwrap().flatten());
    let found = objects.find(|entry| entry.metadata().unwrap().len() == bytes);
    found.unwrap().path()
}

#[test]
fn two_roots_that_read_one_program_hold_one_copy_of_it() {
    let desk = Desk::new();
    let object = File::open(object_of(desk.store.path(), BIG_BYTES)).unwrap();
    let (one, two) = (desk.root("one", true), desk.root("two", true));
    object.sync_all().unwrap();
    fadvise(&object, 0, None, Advice::DontNeed).unwrap();
    assert_eq!(resident_bytes(object.as_fd()).unwrap(), 0, "nobody has read it yet");
    let read = |root: &Mounted| {
        let mut file = File::open(root.path().join("usr/lib/big")).unwrap();
        io::copy(&mut file, &mut io::sink()).unwrap();
        let mapped = raw::map(&file);
        let sum = mapped.iter().step_by(4096).fold(0_u64, |sum, byte| sum + u64::from(*byte));
        assert!(sum < u64::MAX);
        (resident_bytes(file.as_fd()).unwrap(), resident_bytes(object.as_fd()).unwrap())
    };
    assert_eq!(read(&one), (0, BIG_BYTES), "(in the root's own cache, in the object's)");
    assert_eq!(read(&two), (0, BIG_BYTES), "(in the root's own cache, in the object's)");
}

/// KiB of memory that only the process `pid` has.
fn private_kib(pid: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

/// Makes the kernel forget every inode that nobody uses.
fn forget_all() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

#[test]
fn what_the_kernel_forgets_the_mount_process_forgets() {
    let long = std::env::var("MICA_TEST_COUNTS").is_ok_and(|counts| counts == "long");
    let (files, rounds) = if long { (20_000, 250) } else { (10_000, 4) };
    let desk = Desk::new();
    let root = desk.root("root", true);
    let info = desk.store.mica(["info", "root.private", "--json"]).succeed();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let pid = info["pid"].as_u64().unwrap();
    let directory = root.path().join("srv");
    for number in 0..files {
        File::create_new(directory.join(format!("file {number}"))).unwrap();
    }
    let look = |round: u32| {
        for number in 0..files {
            assert!(fs::metadata(directory.join(format!("file {number}"))).is_ok());
            assert!(fs::metadata(directory.join(format!("none {round} {number}"))).is_err());
        }
    };
    look(0);
    forget_all();
    let first = private_kib(pid);
    for round in 1..=rounds {
        look(round);
        forget_all();
    }
    let last = private_kib(pid);
    // What one round makes would stay `rounds` times over if it stayed at all.
    assert!(last < first + 8 * 1024, "{first} KiB before {rounds} rounds and {last} KiB after");
}
