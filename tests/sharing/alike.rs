//! What becomes a reference, what it shows, and what becomes of it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use crate::stage::{Stage, bytes, told};
use crate::support::{Succeed, library};

/// Changes that two roots make alike.
const ALIKE: &str = "head -c 700000 /dev/zero | tr '\\0' x > usr/lib/new.so
     printf hello | dd of=usr/lib/new.so conv=notrunc seek=50000 bs=1 status=none
     cp usr/lib/data usr/lib/copy
     printf again | dd of=usr/lib/old.so conv=notrunc status=none
     chmod 755 usr/lib/new.so; touch -d 2020-01-01T00:00:00.123456789 usr/lib/new.so
     chown 12:34 usr/lib/copy; setfattr -n user.colour -v blue usr/lib/copy
     setfacl -m u:1000:r usr/lib/copy
     cp usr/bin/cat usr/bin/mycat; setcap cap_net_raw+ep usr/bin/mycat; touch -d 2021-02-03 usr/bin/mycat
     printf x > usr/lib/small
     sync -f .";

const FILES: [&str; 4] = ["usr/lib/new.so", "usr/lib/copy", "usr/lib/old.so", "usr/bin/mycat"];

#[test]
fn more_files_of_one_size_than_there_are_leases_are_all_shared() {
    let stage = Stage::new("share-many");
    let names = ["one", "two", "three"];
    for name in names {
        let root = stage.mount(name);
        for number in 0..200 {
            fs::write(root.path().join(format!("usr/lib/new{number}")), bytes(number, 5000))
                .unwrap();
        }
        root.unmount();
    }
    let mica = stage.store.mica(["store", "reshare", "--all", "--json"]);
    let mut limited = Command::new("prlimit");
    // A quarter of these are leases, and a quarter of those may wait for their like: 32.
    limited.arg("--nofile=512").arg(mica.get_program()).args(mica.get_args());
    limited.envs(mica.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let done: serde_json::Value = serde_json::from_str(&limited.succeed()).unwrap();
    assert_eq!((&done["files"], &done["new_objects"]), (&600.into(), &200.into()), "{done:#}");
}

#[test]
fn mounted_roots_share_what_they_changed_alike_and_show_the_same_as_before() {
    for passthrough in [true, false] {
        let stage = Stage::new("share-mounted");
        let (one, two) = (
            stage.mount_with("one", |options| options.passthrough(passthrough)),
            stage.mount_with("two", |options| options.passthrough(passthrough)),
        );
        for root in [&one, &two] {
            library::run(root.path(), ALIKE);
        }
        let before: Vec<_> = FILES
            .iter()
            .map(|file| (told(&one.path().join(file)), fs::read(one.path().join(file)).unwrap()))
            .collect();
        let planned = stage.reshare(&["--all", "--dry-run"]);
        assert!(!stage.is_reference("one", FILES[0]), "a dry run changes nothing");
        let done = stage.reshare(&["--all"]);
        assert_eq!(done["files"], 8, "{done:#}");
        assert_eq!(planned["files"], 8, "{planned:#}");
        assert_eq!(planned["new_objects"], done["new_objects"]);
        // `new.so` and the changed `old.so`; the others are the template's.
        assert_eq!(done["new_objects"], 2, "{done:#}");
        for (file, (told_before, content)) in FILES.iter().zip(&before) {
            assert!(stage.is_reference("one", file) && stage.is_reference("two", file), "{file}");
            assert_eq!(&told(&one.path().join(file)), told_before);
            assert!(&fs::read(one.path().join(file)).unwrap() == content, "{file}");
        }
        assert!(!stage.is_reference("one", "usr/lib/small"));
        assert_eq!(stage.reshare(&["--all"])["files"], 0, "nothing is left to share");
        stage.store.mica(["store", "gc"]).succeed();
        stage.check();
        // The next write copies it up again, there alone.
        let file = File::options().write(true).open(one.path().join("usr/lib/new.so")).unwrap();
        file.write_all_at(b"CHANGED", 1000).unwrap();
        drop(file);
        let mut wanted = before[0].1.clone();
        wanted[1000..1007].copy_from_slice(b"CHANGED");
        assert!(fs::read(one.path().join("usr/lib/new.so")).unwrap() == wanted);
        assert!(fs::read(two.path().join("usr/lib/new.so")).unwrap() == before[0].1);
        let number = |root: &crate::support::Mounted| {
            fs::metadata(root.path().join("usr/lib/new.so")).unwrap().ino()
        };
        let numbers = (number(&one), number(&two));
        one.unmount();
        two.unmount();
        // All of it is there after a remount, under the same numbers.
        let (one, two) = (stage.mount("one"), stage.mount("two"));
        assert_eq!((number(&one), number(&two)), numbers);
        assert!(fs::read(one.path().join("usr/lib/new.so")).unwrap() == wanted);
        for (file, (told_before, content)) in FILES.iter().zip(&before) {
            assert!(&fs::read(two.path().join(file)).unwrap() == content, "{file}");
            if *file != FILES[0] {
                assert_eq!(&told(&one.path().join(file)), told_before);
            }
        }
        one.unmount();
        two.unmount();
    }
}

#[test]
fn roots_at_rest_share_too_and_a_mount_beside_it_waits_a_moment() {
    let stage = Stage::new("share-rest");
    let mut before = Vec::new();
    for name in ["one", "two", "three"] {
        let root = stage.mount(name);
        library::run(root.path(), ALIKE);
        before.push(FILES.map(|file| told(&root.path().join(file))));
        root.unmount();
    }
    let done = stage.reshare(&["one", "two"]);
    assert_eq!(done["files"], 8, "{done:#}");
    assert!(!stage.is_reference("three", FILES[0]), "only those that were named");
    // One that is mounted, one that is not: what containers share already is enough.
    let three = stage.mount("three");
    let done = stage.reshare(&["three"]);
    assert_eq!((&done["files"], &done["new_objects"]), (&4.into(), &0.into()), "{done:#}");
    for (name, before) in ["one", "two", "three"].iter().zip(before) {
        let root = if *name == "three" { None } else { Some(stage.mount(name)) };
        let path = root.as_ref().map_or(three.path(), |root| root.path());
        assert_eq!(FILES.map(|file| told(&path.join(file))), before, "{name}");
        library::run(path, "cmp usr/lib/data usr/lib/copy; cmp usr/bin/cat usr/bin/mycat");
    }
    drop(three);
    stage.check();
}

#[test]
fn who_has_a_file_open_keeps_reading_it_and_then_everybody_gets_the_object() {
    let stage = Stage::new("share-open");
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    let content = bytes(1, 3_000_000);
    for root in [&one, &two] {
        fs::write(root.path().join("usr/lib/new.so"), &content).unwrap();
        fs::write(root.path().join("etc/new"), &content[..100_000]).unwrap();
    }
    let path = one.path().join("usr/lib/new.so");
    let mut open = File::open(&path).unwrap();
    // Etc is not opened shared, so whoever reads there sees what others write.
    let table = File::open(one.path().join("etc/new")).unwrap();
    let done = stage.reshare(&["--all"]);
    assert!(stage.is_reference("one", "usr/lib/new.so"), "{done:#}");
    assert!(!stage.is_reference("one", "etc/new"), "only containers have it, and not as programs");
    let mut read = Vec::new();
    open.read_to_end(&mut read).unwrap();
    assert!(read == content);
    // Another reader beside it, and a writer, who gets a file of his own.
    assert!(fs::read(&path).unwrap() == content);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"mine", 0).unwrap();
    assert_eq!(&fs::read(&path).unwrap()[..4], b"mine");
    let mut old = [0; 4];
    open.read_exact_at(&mut old, 0).unwrap();
    assert_eq!(old, content[..4], "who had it open keeps what it had");
    assert!(fs::read(two.path().join("usr/lib/new.so")).unwrap() == content);
    drop((open, file, table));
    assert_eq!(&fs::read(&path).unwrap()[..4], b"mine");
    stage.check();
}

/// What equals the content of a template is shared wherever it lies, but not under the eyes of
/// somebody who has to see what others write.
#[test]
fn a_file_outside_the_shared_paths_is_shared_once_nobody_has_it_open_or_mapped() {
    let stage = Stage::new("share-coherent");
    let one = stage.mount("one");
    let path = one.path().join("etc/table");
    let content = fs::read(&path).unwrap();
    fs::write(&path, &content).unwrap();
    let open = File::open(&path).unwrap();
    let done = stage.reshare(&["--all"]);
    assert_eq!((&done["files"], &done["skipped"]["in_use"]), (&0.into(), &1.into()), "{done:#}");
    // A mapping outlives its descriptor, and nobody is told of it.
    // SAFETY: nobody changes the file while it is mapped.
    let mapping = map(&open);
    drop(open);
    let done = stage.reshare(&["--all"]);
    assert_eq!((&done["files"], &done["skipped"]["in_use"]), (&0.into(), &1.into()), "{done:#}");
    drop(mapping);
    assert_eq!(stage.reshare(&["--all"])["files"], 1);
    assert!(stage.is_reference("one", "etc/table"));
    // A reader from now on sees what is written.
    let open = File::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"NEW", 0).unwrap();
    let mut seen = [0; 3];
    open.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"NEW");
}

fn map(file: &File) -> rustix_map::Mapping {
    rustix_map::Mapping::of(file)
}

mod rustix_map {
    //! A read-only shared mapping.
    #![allow(unsafe_code)]

    use std::fs::File;

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    pub(super) struct Mapping(*mut core::ffi::c_void);

    impl Mapping {
        pub(super) fn of(file: &File) -> Self {
            // SAFETY: a fresh mapping at a place of the kernel's choice, never read.
            let start = unsafe {
                mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, file, 0)
            };
            Self(start.unwrap())
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: made by `of`, and nobody else knows it.
            unsafe { munmap(self.0, 4096) }.unwrap();
        }
    }
}

/// The host gives the inode numbers of replaced files to new ones, and two files of one number
/// are one file to cp, tar and find.
#[test]
fn no_two_files_show_one_inode_number_after_numbers_were_given_back() {
    let stage = Stage::new("share-numbers");
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    for root in [&one, &two] {
        for number in 0..40 {
            fs::write(root.path().join(format!("usr/lib/{number}")), bytes(number, 8000)).unwrap();
        }
    }
    assert_eq!(stage.reshare(&["--all"])["files"], 80);
    let fresh = |root: &crate::support::Mounted, name: &str| {
        for number in 0..200 {
            fs::write(root.path().join(format!("srv/{name}{number}")), b"x").unwrap();
            fs::create_dir(root.path().join(format!("srv/{name}dir{number}"))).unwrap();
        }
    };
    let numbers = |root: &crate::support::Mounted| {
        let listed = Command::new("find").arg(root.path()).args(["-printf", "%i %p\n"]).succeed();
        let mut numbers: Vec<(u64, String)> = listed
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .filter(|(_, path)| !path.ends_with("/two"))
            .map(|(number, path)| (number.parse().unwrap(), path.to_owned()))
            .collect();
        numbers.sort();
        for pair in numbers.windows(2) {
            assert_ne!(pair[0].0, pair[1].0, "{pair:?}");
        }
        numbers
    };
    fresh(&one, "a");
    let before = numbers(&one);
    one.unmount();
    let one = stage.mount("one");
    assert_eq!(numbers(&one), before, "the same after a remount");
    fresh(&one, "b");
    numbers(&one);
}

/// A directory that another overlay has marked, as Docker does inside a container, is left alone.
#[test]
fn what_lies_in_an_overlay_inside_a_container_is_left_alone() {
    let stage = Stage::new("share-nested");
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    for root in [&one, &two] {
        library::run(
            root.path(),
            "mkdir -p usr/lib/docker/deep usr/lib/plain
             head -c 20000 /dev/zero | tr '\\0' d > usr/lib/docker/deep/file
             head -c 20000 /dev/zero | tr '\\0' e > usr/lib/plain/file
             setfattr -n trusted.overlay.opaque -v y usr/lib/docker",
        );
    }
    let done = stage.reshare(&["--all"]);
    assert_eq!((&done["files"], &done["skipped"]["nested"]), (&2.into(), &2.into()), "{done:#}");
    assert!(!stage.is_reference("one", "usr/lib/docker/deep/file"));
    let fine = fs::metadata(one.path().join("usr/lib/docker")).unwrap();
    assert_eq!(fine.permissions().mode() & 0o777, 0o755);
}

/// The kernel's own overlayfs says that it cannot read a reference, where it would find another
/// file's bytes or zeros.
#[test]
fn the_kernels_overlayfs_answers_eio_for_a_reference() {
    let stage = Stage::new("share-kernel");
    for name in ["one", "two"] {
        let root = stage.mount(name);
        library::run(root.path(), ALIKE);
        root.unmount();
    }
    assert_eq!(stage.reshare(&["--all"])["files"], 8);
    let lower = stage.scratch.path().join("lower");
    stage.store.mica(["template", "export", "base"]).arg(&lower).succeed();
    let (upper, work) = (stage.private("one").join("upper"), stage.private("one").join("work"));
    fs::remove_file(work.join("whiteout")).ok();
    let merged = stage.scratch.mountpoint("merged");
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=on,metacopy=on",
        lower.display(),
        upper.display(),
        work.display()
    );
    Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).succeed();
    for file in FILES {
        let read = fs::read(merged.join(file)).map(|bytes| bytes.len());
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO), "{file}");
    }
    assert_eq!(fs::read(merged.join("usr/lib/small")).unwrap(), b"x");
}
