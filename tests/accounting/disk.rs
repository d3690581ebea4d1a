//! Bytes on the disk.

use std::fs;

use rustix::fs::{statvfs, syncfs};

use crate::stage::{Stage, apparent, bytes, change, du, root, template};
use crate::support::{Disk, DiskFormat, Scratch, Succeed};

#[test]
fn the_sums_are_those_of_du_and_find() {
    let stage = Stage::new("df-sums");
    let one = stage.mount("debian:1", "one");
    let two = stage.mount("debian:1", "two");
    let other = stage.mount("debian:2", "other");
    change(one.path());
    // Nothing that a root does meanwhile may change what is measured.
    let usage = stage.df();
    let disk = &usage["disk"];
    assert_eq!(bytes(disk, "store_bytes"), du(stage.store.path()));
    assert_eq!(
        bytes(disk, "private_bytes"),
        ["one", "two", "other"].map(|n| du(&stage.private(n))).iter().sum::<u64>()
    );
    let parts = |names: [&str; 4]| names.iter().map(|name| bytes(disk, name)).sum::<u64>();
    let by_holder = ["exclusive_bytes", "shared_bytes", "unreferenced_bytes", "overhead_bytes"];
    assert_eq!(parts(by_holder), bytes(disk, "store_bytes"));
    let by_kind = ["objects_bytes", "layers_bytes", "trees_bytes", "records_bytes"];
    assert_eq!(parts(by_kind) + bytes(disk, "overhead_bytes"), bytes(disk, "store_bytes"));
    for (kind, member) in [("layers", "layers_bytes"), ("trees", "trees_bytes")] {
        let directory = stage.store.path().join(kind);
        let files = fs::read_dir(&directory).unwrap().map(|entry| du(&entry.unwrap().path()));
        assert_eq!(bytes(disk, member), files.sum::<u64>(), "{kind}");
    }
    for mounted in [&one, &two, &other] {
        let name = mounted.path().file_name().unwrap().to_str().unwrap();
        let root = root(&usage, name);
        assert_eq!(bytes(root, "apparent_bytes"), apparent(mounted.path()), "{name}: {root:#}");
        assert_eq!(bytes(root, "private_bytes"), du(&stage.private(name)), "{name}");
    }
    // Two shows its template as it is; the template's files are what find sees there.
    let first = template(&usage, "debian:1");
    assert_eq!(bytes(first, "apparent_bytes"), apparent(two.path()));
    assert_eq!(first["used_by"].as_array().unwrap().len(), 2);
    for name in ["debian:1", "debian:2"] {
        let one = template(&usage, name);
        let sum = bytes(one, "exclusive_bytes") + bytes(one, "shared_bytes");
        assert_eq!(sum, bytes(one, "disk_bytes"), "{one:#}");
    }
}

#[test]
fn what_deleting_frees_is_what_it_gives_back() {
    let stage = Stage::new("df-frees");
    let store = stage.store.path();
    let used = || {
        du(store)
            + ["one", "two"]
                .map(|n| stage.private(n))
                .iter()
                .filter(|p| p.exists())
                .map(|p| du(p))
                .sum::<u64>()
    };
    let one = stage.mount("debian:1", "one");
    change(one.path());
    one.unmount();
    // Another name for the same stack: then neither frees anything but its own file.
    let shared = stage.scratch.path().join("source");
    stage.store.import("debian:same", &shared);
    let usage = stage.df();
    assert_eq!(bytes(template(&usage, "debian:1"), "freed_bytes"), 0, "a root uses it");
    let refused = stage.store.mica(["template", "delete", "debian:1"]).refuse();
    assert!(refused.contains("one"), "{refused}");
    assert!(bytes(template(&usage, "debian:2"), "freed_bytes") < 20_000, "it has a twin");

    let delete = |name: &str| {
        let freed = bytes(template(&stage.df(), name), "freed_bytes");
        let before = used();
        stage.store.mica(["template", "delete", name]).succeed();
        stage.store.mica(["store", "gc"]).succeed();
        assert_eq!(before - used(), freed, "{name}");
        freed
    };
    delete("debian:same");
    assert!(delete("debian:2") > 4_000_000, "libone and libtwo were its own");

    // The name moves on; the root alone keeps the old stack.
    stage.store.mica(["template", "import", "--replace", "debian:1"]).arg(&shared).succeed();
    let usage = stage.df();
    let freed = bytes(root(&usage, "one"), "freed_bytes");
    let before = used();
    fs::remove_dir_all(stage.private("one")).unwrap();
    stage.store.mica(["store", "forget", "one"]).succeed();
    stage.store.mica(["store", "gc"]).succeed();
    assert_eq!(before - used(), freed);
    assert!(freed > 5_000_000, "its stack went with it: {freed}");
    let left = stage.df();
    assert_eq!(bytes(&left["disk"], "unreferenced_bytes"), 0);
    assert!(delete("debian:1") > 5_000_000);
    assert_eq!(bytes(&stage.df()["disk"], "objects_bytes"), 0);
}

#[test]
fn a_disk_has_as_much_more_room_as_was_promised() {
    let scratch = Scratch::new("df-statfs");
    let disk = scratch.directory("disk");
    let image = scratch.path().join("image");
    let disk = Disk::create(&image, &disk, DiskFormat::Ext4, 512 << 20);
    let stage = Stage::in_directory(scratch, "disk");
    let used = || {
        syncfs(fs::File::open(disk.path()).unwrap()).unwrap();
        let room = statvfs(disk.path()).unwrap();
        (room.f_blocks - room.f_bfree) * room.f_frsize
    };
    let usage = stage.df();
    assert_eq!(bytes(&usage["disk"], "file_system_used_bytes"), used());
    let freed = bytes(template(&usage, "debian:2"), "freed_bytes");
    let before = used();
    stage.store.mica(["template", "delete", "debian:2"]).succeed();
    stage.store.mica(["store", "gc"]).succeed();
    assert_eq!(before - used(), freed);
    // What du counts of the store is what the disk has lost to it, but for the file system's own.
    assert!(bytes(&stage.df()["disk"], "store_bytes") <= used());
    disk.detach();
}

#[test]
fn what_nothing_refers_to_is_unreferenced_until_it_is_collected() {
    let stage = Stage::new("df-garbage");
    stage.store.mica(["template", "delete", "debian:2"]).succeed();
    let unreferenced = bytes(&stage.df()["disk"], "unreferenced_bytes");
    let before = du(stage.store.path());
    stage.store.mica(["store", "gc"]).succeed();
    assert_eq!(before - du(stage.store.path()), unreferenced);
    assert!(unreferenced > 4_000_000);
    let names = stage.store.mica(["store", "df", "-q"]).succeed();
    assert_eq!(names, "debian:1\n");
}

#[test]
fn a_damaged_template_or_layer_is_named_and_the_rest_counted() {
    let stage = Stage::new("df-damage");
    let before = stage.df();
    fs::write(stage.store.path().join("templates/debian/broken.json"), b"{").unwrap();
    let told = stage.store.mica(["store", "df", "--json"]).capture();
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&told.stderr).contains("broken.json"), "{told:?}");
    let after: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(after["templates"], before["templates"]);
    assert_eq!(after["damaged"].as_array().unwrap().len(), 1);
}
