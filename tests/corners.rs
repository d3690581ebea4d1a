//! Corners of a root that plain use hardly reaches, each once a defect or nearly one.
//!
//! Needs root and /dev/fuse.

// Helpers outside #[test] functions fail their test just as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mica::fs::{Caller, FileSystem, How, OpenRequest};
use mica::layer::Layers;
use mica::layer::Stack;
use mica::object::ObjectReader;
use mica::private::PrivateLayer;
use mica::union::{Attributes, Change, NewEntry, NodeId, SetTime, SharedSet, Union};
use rustix::fs::{RenameFlags, XattrFlags};
use support::library::{Root, at, file_system, regular, run, store_with, template};
use support::{Disk, DiskFormat, LogFlush, Scratch, Succeed, shut_down};

/// A child that another test forks holds our locks until it executes: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const MIB: u64 = 1 << 20;

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };

/// What `path` names, looked up step by step as the kernel does.
fn walk(fs: &FileSystem, path: &str) -> Attributes {
    let mut found = fs.attributes(NodeId::ROOT).unwrap();
    for name in path.split('/') {
        found = fs.lookup(found.id, name.as_bytes()).unwrap().unwrap();
    }
    found
}

/// Who makes an overwrite durable after it was written into a copied-up file.
#[derive(Clone, Copy, Debug)]
enum Sync {
    Fdatasync,
    DsyncOpen,
    Msync,
}

fn overwrite(path: &Path, sync: Sync) {
    let flags = if matches!(sync, Sync::DsyncOpen) { libc::O_DSYNC } else { 0 };
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap();
    match sync {
        Sync::Fdatasync => {
            file.write_all_at(b"ours", 4096).unwrap();
            file.sync_data().unwrap();
        }
        Sync::DsyncOpen => file.write_all_at(b"ours", 4096).unwrap(),
        Sync::Msync => msync_over(&file),
    }
}

fn msync_over(file: &fs::File) {
    #[allow(unsafe_code)]
    // SAFETY: nobody truncates the file while it is mapped.
    let mut page =
        unsafe { memmap2::MmapOptions::new().offset(4096).len(4096).map_mut(file) }.unwrap();
    page[..4].copy_from_slice(b"ours");
    page.flush().unwrap();
}

fn an_overwrite_in_place_survives(sync: Sync, passthrough: bool) {
    let _alone = alone();
    let scratch = Scratch::new("overwrite");
    let store = scratch.directory("store");
    let stack = store_with(&store, |builder, staging| {
        builder.put(&at("etc/table"), regular(staging, 0o644, &[7; 65536])).unwrap();
    });
    let (image, mounted) = (scratch.path().join("disk.img"), scratch.mountpoint("disk"));
    let disk = Disk::create(&image, &mounted, DiskFormat::Ext4, 64 * MIB);
    let private = mounted.join("private");
    let mountpoint = scratch.mountpoint("root");
    {
        let fs = file_system(&store, &stack, Some(&private));
        let root = Root::serve(fs, &mountpoint, passthrough, 2);
        overwrite(&root.mountpoint.join("etc/table"), sync);
        shut_down(&mounted, LogFlush::Lost).unwrap();
    }
    disk.detach();
    let disk = Disk::attach(&image, &mounted);
    {
        let root =
            Root::serve(file_system(&store, &stack, Some(&private)), &mountpoint, passthrough, 2);
        let found = fs::read(root.mountpoint.join("etc/table")).unwrap();
        assert_eq!(found.len(), 65536);
        assert_eq!(&found[4096..4100], b"ours", "{sync:?}, passthrough {passthrough}");
    }
    disk.detach();
}

#[test]
fn an_overwrite_in_place_survives_a_power_cut_after_fdatasync() {
    an_overwrite_in_place_survives(Sync::Fdatasync, true);
    an_overwrite_in_place_survives(Sync::Fdatasync, false);
}

#[test]
fn an_overwrite_in_place_survives_a_power_cut_after_a_synchronous_write() {
    an_overwrite_in_place_survives(Sync::DsyncOpen, true);
    an_overwrite_in_place_survives(Sync::DsyncOpen, false);
}

#[test]
fn an_overwrite_in_place_survives_a_power_cut_after_msync() {
    an_overwrite_in_place_survives(Sync::Msync, true);
    an_overwrite_in_place_survives(Sync::Msync, false);
}

/// A store with one big file, `etc/blob`, whose content no host can share.
fn blob_store(scratch: &Scratch) -> (std::path::PathBuf, Stack) {
    let store = scratch.directory("store");
    let stack = store_with(&store, |builder, staging| {
        let bytes: Vec<u8> = (0..BLOB / 8).flat_map(|n: u64| n.to_le_bytes()).collect();
        builder.put(&at("etc/blob"), regular(staging, 0o644, &bytes)).unwrap();
    });
    (store, stack)
}

const BLOB: u64 = 48 * MIB;

/// Times that something is tried which this machine may be too busy for in the right moment.
const TRIES: u32 = 30;

/// Starts to copy `id` up in another thread, runs `then` in the middle, and returns how it ended.
/// It may have ended before: nobody says when this thread gets a processor again.
fn in_a_copy_up(fs: &FileSystem, id: NodeId, upper: &Path, then: impl FnOnce()) -> bool {
    // A metadata-only copy first, so that the data alone is what is under way.
    fs.change(id, &Change { mode: Some(0o640), ..Change::default() }).unwrap();
    let before = fs::metadata(upper).unwrap().blocks();
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| fs.set_size(id, BLOB + 1, ROOT).is_ok());
        while fs::metadata(upper).unwrap().blocks() == before && !copying.is_finished() {
            std::hint::spin_loop();
        }
        then();
        copying.join().unwrap()
    })
}

#[test]
fn a_time_that_is_set_during_a_copy_up_stays() {
    let scratch = Scratch::new("times");
    let (store, stack) = blob_store(&scratch);
    let private = scratch.path().join("p");
    let fs = file_system(&store, &stack, Some(&private));
    let id = walk(&fs, "etc/blob").id;
    let copied = in_a_copy_up(&fs, id, &private.join("upper/etc/blob"), || {
        let atime = Some(SetTime::At((77, 0)));
        fs.change(id, &Change { atime, ..Change::default() }).unwrap();
    });
    assert!(copied);
    assert_eq!(fs.attributes(id).unwrap().atime, (77, 0));
}

#[test]
fn a_copy_up_that_a_power_cut_ends_leaves_the_file_as_it_was() {
    let _alone = alone();
    // A copy that was over before the cut is no torn one, and says nothing.
    assert!((0..TRIES).any(|_| cut_in_a_copy_up()), "none was cut in {TRIES}");
}

/// Cuts the power during a copy-up; false if that was over before.
fn cut_in_a_copy_up() -> bool {
    let scratch = Scratch::new("torn");
    let (store, stack) = blob_store(&scratch);
    let (image, mounted) = (scratch.path().join("disk.img"), scratch.mountpoint("disk"));
    let disk = Disk::create(&image, &mounted, DiskFormat::Ext4, 256 * MIB);
    let private = mounted.join("private");
    let upper = private.join("upper/etc/blob");
    let (before, whole) = {
        let fs = file_system(&store, &stack, Some(&private));
        let id = walk(&fs, "etc/blob").id;
        let before = fs.attributes(id).unwrap();
        let cut = || shut_down(&mounted, LogFlush::Flushed).unwrap();
        (before, in_a_copy_up(&fs, id, &upper, cut))
    };
    disk.detach();
    if whole {
        return false;
    }
    let disk = Disk::attach(&image, &mounted);
    {
        let fs = file_system(&store, &stack, Some(&private));
        let after = walk(&fs, "etc/blob");
        assert_eq!((after.mtime, after.size), (before.mtime, before.size));
        let room = fs::metadata(&upper).unwrap().blocks() * 512;
        assert!(room < MIB, "{room} bytes of a copy that is no content");
        assert_eq!(fs.read(after.id, 8 * 1000, 8).unwrap(), 1000u64.to_le_bytes());
    }
    disk.detach();
    true
}

/// Directories within directories: more than a thread's stack has room to recurse into. An import
/// takes templates of 16,384.
const DEEP: usize = 6_000;

#[test]
fn a_very_deep_file_of_a_template_can_be_changed() {
    let scratch = Scratch::new("deep");
    let store = scratch.directory("store");
    let stack = store_with(&store, |builder, staging| {
        let path = format!("{}f", "d/".repeat(DEEP - 1));
        builder.put(&at(&path), regular(staging, 0o644, b"deep")).unwrap();
    });
    let fs = file_system(&store, &stack, Some(&scratch.path().join("p")));
    let mut found = fs.attributes(NodeId::ROOT).unwrap();
    for _ in 1..DEEP {
        found = fs.lookup(found.id, b"d").unwrap().unwrap();
    }
    found = fs.lookup(found.id, b"f").unwrap().unwrap();
    fs.change(found.id, &Change { mode: Some(0o600), ..Change::default() }).unwrap();
    assert_eq!(fs.attributes(found.id).unwrap().mode, 0o600);
    drop(fs);
    remove_deep(&scratch.path().join("p/upper"));
}

#[test]
fn a_moved_directory_is_found_again_beside_very_deep_ones() {
    let scratch = Scratch::new("moved");
    let store = scratch.directory("store");
    let stack = template(&store);
    let private = scratch.path().join("p");
    {
        let fs = file_system(&store, &stack, Some(&private));
        let (srv, etc) = (walk(&fs, "srv").id, walk(&fs, "etc").id);
        fs.rename((NodeId::ROOT, b"srv"), (etc, b"moved"), RenameFlags::empty(), ROOT).unwrap();
        assert_eq!(walk(&fs, "etc/moved").id, srv);
        let mut at = NodeId::ROOT;
        for _ in 0..DEEP {
            at = fs.create(at, b"d", NewEntry::Directory, 0o755, ROOT).unwrap().id;
        }
    }
    let fs = file_system(&store, &stack, Some(&private));
    let three = walk(&fs, "etc/three").id;
    fs.change(three, &Change { mode: Some(0o600), ..Change::default() }).unwrap();
    assert_eq!(walk(&fs, "etc/moved/one").mode, 0o600);
    assert_eq!(walk(&fs, "etc/moved/one").id, three);
    drop(fs);
    let upper = private.join("upper/etc/moved/one");
    assert!(upper.exists(), "the name must be made where the directory is now");
    remove_deep(&private.join("upper"));
}

/// Empties a directory too deep for a path.
fn remove_deep(top: &Path) {
    let removed = std::process::Command::new("rm").arg("-rf").arg(top).start().wait().unwrap();
    assert!(removed.success());
}

/// Takes every inode and then every block of the disk at `mounted`.
fn fill_up(mounted: &Path) {
    let dir = mounted.join("fill");
    fs::create_dir(&dir).unwrap();
    while tempfile::NamedTempFile::new_in(&dir).is_ok_and(|file| file.keep().is_ok()) {}
    let filler = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let filler = OpenOptions::new().append(true).open(filler).unwrap();
    while std::io::Write::write(&mut &filler, &[1; 512]).is_ok_and(|written| written > 0) {}
}

#[test]
fn names_that_a_full_disk_leaves_unmade_are_made_later() {
    let _alone = alone();
    let scratch = Scratch::new("unmade");
    let store = scratch.directory("store");
    let stack = template(&store);
    let (image, mounted) = (scratch.path().join("disk.img"), scratch.mountpoint("disk"));
    let disk = Disk::create(&image, &mounted, DiskFormat::Ext4, 8 * MIB);
    let private = mounted.join("private");
    let chmod = |fs: &FileSystem, mode| {
        let id = walk(fs, "etc/three").id;
        fs.change(id, &Change { mode: Some(mode), ..Change::default() })
    };
    chmod(&file_system(&store, &stack, Some(&private)), 0o600).unwrap();
    // What a cut leaves after the first of the three names.
    let index = fs::read_dir(private.join("index")).unwrap().next().unwrap().unwrap().path();
    rustix::fs::removexattr(&index, "trusted.mica.names").unwrap();
    fs::remove_dir_all(private.join("upper/etc")).unwrap();
    fill_up(&mounted);
    {
        let fs = file_system(&store, &stack, Some(&private));
        assert_eq!((walk(&fs, "etc/three").nlink, walk(&fs, "etc/three").mode), (3, 0o600));
        assert_eq!(fs.read(walk(&fs, "etc/conf").id, 0, 3).unwrap(), b"key");
        assert!(chmod(&fs, 0o640).is_err());
        fs::remove_dir_all(mounted.join("fill")).unwrap();
        chmod(&fs, 0o640).unwrap();
        assert_eq!(walk(&fs, "srv/one").nlink, 3);
        assert!(private.join("upper/etc/three").exists());
    }
    disk.detach();
}

#[test]
fn a_layer_that_takes_names_leaves_the_rest_counted() {
    let scratch = Scratch::new("taken");
    let store = scratch.directory("store");
    let stack = template(&store);
    let private = scratch.path().join("p");
    {
        let fs = file_system(&store, &stack, Some(&private));
        let id = walk(&fs, "srv/one").id;
        fs.change(id, &Change { mode: Some(0o600), ..Change::default() }).unwrap();
        let srv = walk(&fs, "srv").id;
        fs.unlink(srv, b"one").unwrap();
    }
    let above = store_with(&store, |builder, _| {
        for name in ["srv/one", "srv/two"] {
            builder.whiteout(&at(name));
        }
    });
    let stack = stack.extended(above.layers()[0]);
    let fs = file_system(&store, &stack, Some(&private));
    // The private layer has them, whatever is below now.
    assert_eq!(walk(&fs, "srv/two").nlink, 2);
    assert_eq!(walk(&fs, "etc/three").nlink, 2);
}

const READ: OpenRequest =
    OpenRequest { write: false, truncate: false, execute: false, durable: false };
const WRITE: OpenRequest = OpenRequest { write: true, ..READ };

#[test]
fn a_copy_up_holds_up_nobody_who_reads() {
    // One that waited for the copy would never be done before it.
    assert!((0..TRIES).any(|_| is_read_during_a_copy_up()), "readers wait for the copy-up");
}

/// Reads during a copy-up; whether that went on afterwards.
fn is_read_during_a_copy_up() -> bool {
    let scratch = Scratch::new("readers");
    let (store, stack) = blob_store(&scratch);
    let private = scratch.path().join("p");
    let fs = file_system(&store, &stack, Some(&private));
    let id = walk(&fs, "etc/blob").id;
    let upper = private.join("upper/etc/blob");
    let mark = "trusted.overlay.metacopy";
    let mut during = false;
    in_a_copy_up(&fs, id, &upper, || {
        let opened = fs.open(id, READ, ROOT).unwrap();
        assert_eq!(fs.read(id, 8 * 1000, 8).unwrap(), 1000u64.to_le_bytes());
        fs.close(opened.handle).unwrap();
        during = rustix::fs::getxattr(&upper, mark, &mut [0; 8][..]).is_ok();
    });
    during
}

#[test]
fn what_is_opened_while_it_is_removed_can_be_read_or_is_not_opened() {
    const FILES: usize = 200;
    let scratch = Scratch::new("removed");
    let store = scratch.directory("store");
    let stack = store_with(&store, |builder, staging| {
        for number in 0..FILES {
            builder.put(&at(&format!("etc/{number}")), regular(staging, 0o644, b"x")).unwrap();
        }
    });
    let fs = file_system(&store, &stack, Some(&scratch.path().join("p")));
    let etc = walk(&fs, "etc").id;
    let ids: Vec<NodeId> = (0..FILES)
        .map(|number| {
            let id = walk(&fs, &format!("etc/{number}")).id;
            fs.set_size(id, 0, ROOT).unwrap();
            let opened = fs.open(id, WRITE, ROOT).unwrap();
            fs.write(id, 0, b"ours", None).unwrap();
            fs.close(opened.handle).unwrap();
            id
        })
        .collect();
    let together = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..FILES {
                together.wait();
                fs.unlink(etc, number.to_string().as_bytes()).unwrap();
            }
        });
        for id in &ids {
            together.wait();
            let Ok(opened) = fs.open(*id, READ, ROOT) else { continue };
            assert_eq!(fs.read(*id, 0, 9).unwrap(), b"ours");
            fs.close(opened.handle).unwrap();
        }
    });
    // Removed and closed: what opens it now must be told at once, not at the first read.
    for id in ids {
        assert!(fs.open(id, READ, ROOT).is_err());
    }
}

#[test]
fn files_opened_while_the_kernel_refuses_passthrough_are_all_served() {
    let scratch = Scratch::new("refused");
    let store = scratch.directory("store");
    let stack = template(&store);
    let fs = file_system(&store, &stack, Some(&scratch.path().join("p")));
    fs.allow_passthrough();
    let id = walk(&fs, "usr/bin/tool").id;
    let opened: Vec<_> = (0..3).map(|_| fs.open(id, READ, ROOT).unwrap()).collect();
    for file in &opened {
        assert!(matches!(file.how, How::Passthrough(_)));
        fs.demote(file.handle).unwrap();
    }
    let writer = fs.open(id, WRITE, ROOT).unwrap();
    assert!(matches!(writer.how, How::Cached { .. }));
    for file in opened.into_iter().chain([writer]) {
        fs.close(file.handle).unwrap();
    }
}

#[test]
fn a_removed_file_that_others_read_is_not_copied_for_a_writer_who_cannot_have_it() {
    let scratch = Scratch::new("nameless");
    let store = scratch.directory("store");
    let stack = template(&store);
    let fs = file_system(&store, &stack, Some(&scratch.path().join("p")));
    fs.allow_passthrough();
    let (bin, id) = (walk(&fs, "usr/bin").id, walk(&fs, "usr/bin/big").id);
    let reader = fs.open(id, READ, ROOT).unwrap();
    fs.unlink(bin, b"big").unwrap();
    // As open("/proc/self/fd/N", O_WRONLY) does.
    assert!(fs.open(id, WRITE, ROOT).is_err());
    assert_eq!(fs.statistics().copy_ups, 0);
    fs.close(reader.handle).unwrap();
}

#[test]
fn what_the_host_directory_passes_on_to_its_children_stays_out() {
    let _alone = alone();
    let scratch = Scratch::new("inherit");
    let store = scratch.directory("store");
    let stack = template(&store);
    let dir = scratch.directory("shared");
    std::os::unix::fs::chown(&dir, Some(0), Some(50)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).unwrap();
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let acl = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 7, none),
        entry(2, 7, 1000),
        entry(4, 7, none),
        entry(0x10, 7, none),
        entry(0x20, 5, none),
    ]
    .concat();
    let (name, flags) = ("system.posix_acl_default", XattrFlags::empty());
    rustix::fs::setxattr(&dir, name, &acl, flags).unwrap();
    let private = dir.join("private");
    let fs = file_system(&store, &stack, Some(&private));
    let root = Root::serve(fs, &scratch.mountpoint("root"), true, 2);
    run(&root.mountpoint, "touch new; mkdir dir; touch dir/new; chmod 644 etc/conf");
    for path in ["", "new", "dir", "dir/new", "etc/conf"] {
        let path = root.mountpoint.join(path);
        assert_eq!(fs::metadata(&path).unwrap().gid(), 0, "{path:?}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7000, 0, "{path:?}");
        let mut names = Vec::with_capacity(256);
        rustix::fs::listxattr(&path, rustix::buffer::spare_capacity(&mut names)).unwrap();
        assert_eq!(String::from_utf8_lossy(&names), "", "{path:?}");
    }
}

#[test]
fn the_names_kept_of_a_shared_file_do_not_grow_with_its_renames() {
    let scratch = Scratch::new("renames");
    let stack = template(scratch.path());
    let tree = Layers::open(scratch.path()).unwrap().tree(&stack).unwrap();
    let private = PrivateLayer::open(&scratch.path().join("p"), &stack).unwrap();
    let shared = SharedSet::resolve(&tree, &[]).unwrap();
    let objects = ObjectReader::open(scratch.path()).unwrap();
    let union = Union::new(tree, objects, Some(private), shared).unwrap();
    for (dir, file) in [("etc", "conf"), ("srv", "one")] {
        let dir = union.lookup(NodeId::ROOT, dir.as_bytes()).unwrap().id;
        let id = union.lookup(dir, file.as_bytes()).unwrap().id;
        union.change(id, &Change { mode: Some(0o600), ..Change::default() }).unwrap();
        let before = union.names(id).len();
        let mut name = file.as_bytes().to_vec();
        for turn in 0..500 {
            let next = format!("{file}-{turn}").into_bytes();
            union.rename((dir, &name), (dir, &next), RenameFlags::empty(), (0, 0)).unwrap();
            assert_eq!(union.lookup(dir, &next).unwrap().id, id);
            // And a second name that comes and goes.
            union.link(id, dir, b"more").unwrap();
            union.lookup(dir, b"more").unwrap();
            union.unlink(dir, b"more").unwrap();
            name = next;
        }
        let after = union.names(id).len();
        assert!(after <= before + 2, "{file}: {before} names, then {after}");
    }
}
