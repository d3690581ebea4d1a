//! Bytes in memory.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::stage::{Stage, bytes, du, root, template};
use crate::support::Succeed;

/// A line of /proc/meminfo, in bytes.
fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Takes a file's pages out of memory.
fn drop_pages(path: &Path) {
    let file = fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn drop_objects(stage: &Stage) {
    for fan_out in fs::read_dir(stage.store.path().join("objects")).unwrap() {
        for object in fs::read_dir(fan_out.unwrap().path()).unwrap() {
            drop_pages(&object.unwrap().path());
        }
    }
}

#[test]
fn the_parts_add_up_to_the_page_cache_of_the_host() {
    let stage = Stage::new("df-cached");
    // Others use this host too: what the page cache held at any time meanwhile.
    let done = AtomicBool::new(false);
    let (memory, least, most) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (mut least, mut most) = (u64::MAX, 0);
            while !done.load(Ordering::Relaxed) {
                let now = meminfo("Cached:");
                (least, most) = (least.min(now), most.max(now));
            }
            (least, most)
        });
        let memory = stage.df()["memory"].clone();
        done.store(true, Ordering::Relaxed);
        let (least, most) = watching.join().unwrap();
        (memory, least, most)
    });
    let parts =
        ["objects_bytes", "private_bytes", "cached_bytes", "store_bytes", "remainder_bytes"];
    let sum: u64 = parts.iter().map(|part| bytes(&memory, part)).sum();
    assert_eq!(sum, bytes(&memory, "page_cache_bytes"), "{memory:#}");
    let slack = 256 << 20;
    let told = bytes(&memory, "page_cache_bytes");
    assert!(told + slack >= least && told <= most + slack, "{told} of {least} to {most}");
    assert_eq!(bytes(&memory, "total_bytes"), meminfo("MemTotal:"));
}

/// Fails unless a figure is that of what was read, once. A host short of memory takes pages back at
/// any time; a second copy would double it.
fn is_resident(found: u64, read: u64) {
    assert!((read - read / 8..=read).contains(&found), "{found} of {read} bytes");
}

#[test]
fn two_roots_that_read_a_shared_file_have_one_copy_of_it() {
    let stage = Stage::new("df-shared");
    let (one, two) = (stage.mount("debian:1", "one"), stage.mount("debian:1", "two"));
    drop_objects(&stage);
    let empty = stage.df();
    assert_eq!(bytes(&empty["memory"], "objects_bytes"), 0);
    let len = fs::read(one.path().join("usr/lib/libone.so.1")).unwrap().len() as u64;
    let pages = len.next_multiple_of(rustix::param::page_size() as u64);
    let once = stage.df();
    is_resident(bytes(&once["memory"], "objects_bytes"), pages);
    fs::read(two.path().join("usr/lib/libone.so.1")).unwrap();
    let twice = stage.df();
    is_resident(bytes(&twice["memory"], "objects_bytes"), pages);
    // It is in the first template alone.
    is_resident(bytes(template(&twice, "debian:1"), "resident_exclusive_bytes"), pages);
    assert_eq!(bytes(template(&twice, "debian:2"), "resident_bytes"), 0);
    for name in ["one", "two"] {
        let root = root(&twice, name);
        is_resident(bytes(root, "resident_shared_bytes"), pages);
        assert_eq!(bytes(root, "resident_cached_bytes"), 0);
        // mica.json alone.
        assert!(bytes(root, "resident_private_bytes") <= rustix::param::page_size() as u64);
    }
    // What both templates have is shared between them.
    let bash = fs::read(one.path().join("usr/bin/bash")).unwrap().len() as u64;
    let bash = bash.next_multiple_of(rustix::param::page_size() as u64);
    let usage = stage.df();
    is_resident(bytes(&usage["memory"], "objects_shared_bytes"), bash);
    is_resident(bytes(template(&usage, "debian:2"), "resident_bytes"), bash);
    assert_eq!(bytes(template(&usage, "debian:2"), "resident_exclusive_bytes"), 0);
}

#[test]
fn each_root_has_its_own_cache_of_what_does_not_pass_through() {
    let stage = Stage::new("df-own");
    let one = stage.mount("debian:1", "one");
    let two = stage.mount_with("debian:1", "two", |options| options.passthrough(false));
    let page = |len: u64| len.next_multiple_of(rustix::param::page_size() as u64);
    let count = |name: &str| bytes(root(&stage.df(), name), "resident_cached_bytes");
    assert_eq!((count("one"), count("two")), (0, 0));
    // In /srv files are coherent: cached by the root itself.
    let table = fs::read(one.path().join("srv/data/table")).unwrap().len() as u64;
    is_resident(count("one"), page(table));
    // In /usr they pass through, unless nothing does.
    let library = fs::read(one.path().join("usr/lib/libone.so.1")).unwrap().len() as u64;
    is_resident(count("one"), page(table));
    fs::read(two.path().join("usr/lib/libone.so.1")).unwrap();
    fs::write(two.path().join("etc/new"), vec![7; 300_000]).unwrap();
    fs::read(two.path().join("etc/new")).unwrap();
    is_resident(count("two"), page(library) + page(300_000));
    let usage = stage.df();
    let both = page(table) + page(library) + page(300_000);
    is_resident(bytes(&usage["memory"], "cached_bytes"), both);
    drop_pages(&two.path().join("usr/lib/libone.so.1"));
    is_resident(count("two"), page(300_000));
}

#[test]
fn looking_changes_nothing() {
    let stage = Stage::new("df-looking");
    let one = stage.mount("debian:1", "one");
    library_like_use(one.path());
    let private = stage.private("one");
    let described = || {
        let info = stage.store.mica(["info", "one", "--json"]).succeed();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let counted = |name: &str| info["statistics"][name].clone();
        let times = std::process::Command::new("find")
            // Reading mica.json moves its own access time; what the container made stays.
            .arg(private.join("upper"))
            .args(["-printf", "%p %s %A@ %T@ %C@\\n"])
            .succeed();
        (du(&private), times, counted("copy_ups"), counted("passthrough_opens"))
    };
    described();
    let before = described();
    let resident = || bytes(root(&stage.df(), "one"), "resident_cached_bytes");
    let seen = resident();
    let after = described();
    assert_eq!(before, after);
    is_resident(resident(), seen);
}

fn library_like_use(root: &Path) {
    fs::read(root.join("srv/data/table")).unwrap();
    fs::read(root.join("usr/lib/libone.so.1")).unwrap();
    fs::write(root.join("srv/data/log"), b"private").unwrap();
    fs::read(root.join("srv/data/log")).unwrap();
}
