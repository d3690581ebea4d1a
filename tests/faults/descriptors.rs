//! More open files than the mount process may have descriptors.

use std::fs;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::stage::{Stage, picture};
use crate::support::{MountOptions, Store, Succeed, is_mountpoint};

/// What the mount process is allowed.
const LIMIT: usize = 256;
/// What is opened at once.
const MANY: usize = 600;

/// A store with a template of many files, shared and coherent.
fn stage() -> Stage {
    let stage = Stage::new("descriptors");
    let source = stage.scratch.directory("many");
    for directory in ["usr/bin", "etc"] {
        fs::create_dir_all(source.join(directory)).unwrap();
        for name in 0..MANY / 2 {
            fs::write(source.join(directory).join(format!("t{name}")), format!("{name}")).unwrap();
        }
    }
    stage.store.import("many", &source);
    // This process opens them all.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    stage
}

fn mount(stage: &Stage, store: &Store, passthrough: bool) {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={LIMIT}:{LIMIT}")).arg(env!("CARGO_BIN_EXE_mica"));
    command.args(["mount", "many"]).arg(stage.scratch.mountpoint("a"));
    command.arg("--private").arg(stage.private("a")).env("MICA_STORE", store.path());
    if !passthrough {
        command.arg("--no-passthrough");
    }
    command.succeed();
}

fn descriptors(stage: &Stage) -> usize {
    let pid = stage.record("a")["pid"].as_i64().unwrap();
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn open_beyond_the_limit(passthrough: bool) {
    let stage = stage();
    mount(&stage, &stage.store, passthrough);
    let root = stage.scratch.mountpoint("a");
    let name = |number: usize| {
        let directory = if number.is_multiple_of(2) { "usr/bin" } else { "etc" };
        root.join(directory).join(format!("t{}", number / 2))
    };
    // Shared ones to read, all open at once.
    let mut readers: Vec<fs::File> =
        (0..MANY).map(|number| fs::File::open(name(number)).unwrap()).collect();
    for (number, reader) in readers.iter_mut().enumerate() {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{}", number / 2));
    }
    // Copied up, and born here, to write; again all open at once.
    let mut writers: Vec<fs::File> = (0..MANY)
        .map(|number| fs::File::options().read(true).append(true).open(name(number)).unwrap())
        .collect();
    let fresh = |number: usize| root.join("etc").join(format!("n{number}"));
    writers.extend((0..MANY).map(|number| fs::File::create_new(fresh(number)).unwrap()));
    for (number, writer) in writers.iter_mut().enumerate() {
        writer.write_all(format!("+{number}").as_bytes()).unwrap();
    }
    for (number, writer) in writers.iter_mut().enumerate().take(MANY) {
        let mut text = String::new();
        writer.rewind().unwrap();
        writer.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{}+{number}", number / 2));
    }
    assert!(descriptors(&stage) < LIMIT, "{}", descriptors(&stage));
    drop((readers, writers));
    let before = picture(&root);
    stage.mica(["umount", "a"]).succeed();
    mount(&stage, &stage.store, passthrough);
    assert_eq!(picture(&root), before);
    assert_eq!(fs::read_to_string(fresh(3)).unwrap(), format!("+{}", MANY + 3));
    stage.mica(["umount", "a"]).succeed();
}

#[test]
fn more_files_are_open_than_the_process_has_descriptors_with_passthrough() {
    open_beyond_the_limit(true);
}

#[test]
fn more_files_are_open_than_the_process_has_descriptors_without_passthrough() {
    open_beyond_the_limit(false);
}

/// An inode without a name can only be kept by a descriptor: there the limit is one.
#[test]
fn removed_open_files_are_limited_and_the_limit_is_no_dead_end() {
    for passthrough in [true, false] {
        let stage = stage();
        mount(&stage, &stage.store, passthrough);
        let root = stage.scratch.mountpoint("a");
        let path = |number: usize| root.join("etc").join(format!("n{number}"));
        let make = |number: usize| {
            let mut file = fs::File::options();
            let mut file = file.read(true).write(true).create_new(true).open(path(number)).unwrap();
            file.write_all(format!("{number}").as_bytes()).unwrap();
            file
        };
        let mut files: Vec<fs::File> = (0..LIMIT).map(make).collect();
        let removed: Vec<bool> = (0..LIMIT)
            .map(|number| match fs::remove_file(path(number)) {
                Ok(()) => true,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
                    false
                }
            })
            .collect();
        let refused = removed.iter().filter(|removed| !**removed).count();
        assert!(refused > 0 && refused < LIMIT, "{refused} of {LIMIT} were refused");
        for (number, (file, removed)) in files.iter_mut().zip(&removed).enumerate() {
            assert_eq!(path(number).exists(), !removed);
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("{number}"));
        }
        // Everything else goes on, the mount process itself included.
        everything_works(&root);
        stage.mica(["info", "a"]).succeed();
        drop(files);
        let left: Vec<usize> = (0..LIMIT).filter(|number| !removed[*number]).collect();
        for number in left {
            // The kernel tells of a last close after close(2) has returned.
            while let Err(error) = fs::remove_file(path(number)) {
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
            }
        }
        stage.mica(["umount", "a"]).succeed();
        assert!(!is_mountpoint(&root));
    }
}

fn everything_works(root: &Path) {
    fs::write(root.join("etc/t1"), b"written").unwrap();
    fs::create_dir(root.join("etc/dir")).unwrap();
    fs::rename(root.join("etc/t2"), root.join("etc/dir/t2")).unwrap();
    assert_eq!(fs::read(root.join("etc/dir/t2")).unwrap(), b"2");
    assert!(fs::read_dir(root.join("usr/bin")).unwrap().count() >= MANY / 2);
}

/// Not a limit of ours, but one that every process meets.
#[test]
fn a_mount_process_that_may_open_almost_nothing_says_so() {
    let stage = Stage::new("descriptors");
    let mut mount = Command::new("prlimit");
    mount.arg("--nofile=12:12").arg(env!("CARGO_BIN_EXE_mica")).args(["mount", "base"]);
    mount.arg(stage.scratch.mountpoint("a")).arg("--private").arg(stage.private("a"));
    mount.env("MICA_STORE", stage.store.path());
    crate::stage::refused(&mut mount, &["Too many open files"]);
    assert!(!is_mountpoint(&stage.scratch.mountpoint("a")));
    assert!(stage.roots().is_empty(), "a refused root was registered");
    stage.store.mount("base", &stage.scratch.mountpoint("a"), &MountOptions::read_only()).unmount();
}
