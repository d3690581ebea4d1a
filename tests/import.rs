//! Import of directories and tar streams, compared with the original by everything stat, read,
//! readlink and getxattr say.
//!
//! Needs root, for devices, owners and trusted attributes; GNU tar and bsdtar write the archives.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use mica::layer::Manifest;
use mica::layer::import::{
    Excludes, ImportError, ImportOptions, Limits, Note, Progress, Source, TarError, TarFault,
};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mkdirat, mknodat,
    openat, utimensat,
};
use support::{
    Forge, Heard, Scratch, Snapshot, Succeed, Workshop, assert_same, require_root, snapshot,
};

const MIB: u64 = 1 << 20;

fn set_mtime(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("the time can be set");
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).expect("the attribute can be set");
}

/// `user::rw-,user:1000:rwx,group::r--,mask::rwx,other::r--` as the kernel keeps it.
fn acl() -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 7, 1000),
        (4, 4, u32::MAX),
        (16, 7, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// `cap_net_raw+ep`, version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn node(path: &Path, kind: FileType, mode: u32, rdev: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(mode), rdev).expect("a node can be made");
}

/// A tree with one of everything.
fn make_tree(root: &Path) {
    fs::create_dir(root).expect("mkdir");
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("usr/bin")).expect("mkdir");
    fs::create_dir_all(at("var/empty")).expect("mkdir");
    fs::write(at("usr/bin/program"), b"#!/bin/sh\n").expect("write");
    fs::set_permissions(at("usr/bin/program"), PermissionsExt::from_mode(0o4755)).expect("chmod");
    fs::write(at("empty"), b"").expect("write");
    fs::write(at("small"), b"content").expect("write");
    chown(at("small"), Some(4_000_000_000), Some(65_534)).expect("chown");
    fs::write(at("large"), noise(9 * MIB + 17, 3)).expect("write");
    fs::write(at("five"), noise(5 * MIB, 4)).expect("write");

    let sparse = File::create(at("sparse")).expect("create");
    sparse.write_all_at(b"start", 0).expect("write");
    sparse.write_all_at(&[7; 9000], 3 * MIB + 100).expect("write");
    sparse.set_len(80 * MIB).expect("truncate");
    let hole = File::create(at("hole")).expect("create");
    hole.set_len(2 * MIB + 1).expect("truncate");

    fs::hard_link(at("small"), at("usr/small-too")).expect("link");
    fs::hard_link(at("small"), at("a-first-name")).expect("link");
    symlink("usr/bin", at("bin")).expect("symlink");
    symlink("/nowhere/../at all", at("dangling")).expect("symlink");
    fs::hard_link(at("dangling"), at("dangling-too")).expect("link");
    lchown(at("bin"), Some(12), Some(13)).expect("chown");
    symlink(OsStr::from_bytes(&[b'x'; 4000]), at("long-target")).expect("symlink");

    node(&at("char"), FileType::CharacterDevice, 0o640, rustix::fs::makedev(5, 1));
    node(&at("block"), FileType::BlockDevice, 0o600, rustix::fs::makedev(259, 1_000_000));
    node(&at("zero"), FileType::CharacterDevice, 0o644, 0);
    node(&at("fifo"), FileType::Fifo, 0o622, 0);

    for name in [
        &b"not \xff utf-8 \x80"[..],
        b"new\nline",
        b"back\\slash",
        b"-dash",
        b" ",
        b"...",
        b"tab\tand\x01",
        &[b'n'; 255],
        &[0xe4; 255],
    ] {
        fs::write(root.join(OsStr::from_bytes(name)), name).expect("write");
    }
    let long = at(&"d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&long).expect("mkdir");
    fs::write(long.join("deep"), b"deep").expect("write");
    symlink("f".repeat(300), long.join("link")).expect("symlink");

    set_xattr(&at("small"), "user.comment", b"two\nlines = \0 and a NUL");
    set_xattr(&at("small"), "user.empty", b"");
    set_xattr(&at("small"), "trusted.secret", &[0xff; 300]);
    set_xattr(&at("usr/bin/program"), "security.capability", &CAPABILITY);
    set_xattr(&at("five"), "system.posix_acl_access", &acl());
    set_xattr(&at("var"), "system.posix_acl_default", &acl());
    set_xattr(&at("var"), "user.dir", b"yes");
    set_xattr(&at("dangling"), "trusted.link", b"on a symlink");
    set_xattr(&at("char"), "trusted.device", b"on a device");
    fs::set_permissions(at("var/empty"), PermissionsExt::from_mode(0o1777)).expect("chmod");
    fs::set_permissions(at("usr"), PermissionsExt::from_mode(0o2755)).expect("chmod");

    set_mtime(&at("small"), 1_700_000_000, 123_456_789);
    set_mtime(&at("empty"), -5, 250_000_000);
    set_mtime(&at("dangling"), 1, 1);
    set_mtime(&at("fifo"), 4_000_000_000, 999_999_999);
    set_mtime(&at("var"), 77, 5);
    set_mtime(root, 1_000_000_000, 42);
}

fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).expect("fits")];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn setup(name: &str) -> (Scratch, Workshop) {
    require_root();
    let scratch = Scratch::new(name);
    let workshop = Workshop::new(&scratch.directory("store"));
    (scratch, workshop)
}

#[test]
fn a_directory_comes_back_as_it_was() {
    let (scratch, workshop) = setup("directory");
    let root = scratch.path().join("root");
    make_tree(&root);
    // What GNU tar leaves out, and what it gives only one name.
    node(&root.join("socket"), FileType::Socket, 0o755, 0);
    fs::hard_link(root.join("fifo"), root.join("fifo-too")).expect("link");
    let before = snapshot(&root);
    let imported = workshop.import_path(&root);
    assert_eq!(snapshot(&root), before, "importing changes nothing");
    assert_same(&before, &workshop.checkout(&imported.layers, &scratch.path().join("out")));
    workshop.assert_clean();

    // Holes are holes again.
    use std::os::unix::fs::MetadataExt;
    let sparse = fs::metadata(scratch.path().join("out/sparse")).expect("stat");
    assert!(sparse.blocks() * 512 < 100_000, "{} blocks", sparse.blocks());
}

#[test]
fn the_same_input_gives_the_same_layer_whatever_the_threads() {
    let (scratch, workshop) = setup("same");
    let root = scratch.path().join("root");
    make_tree(&root);
    let tar = tar_of(&scratch, &root, "tar", &["--format=posix", "--xattrs", "--xattrs-include=*"]);
    let mut seen: Vec<Vec<Vec<u8>>> = Vec::new();
    for threads in [1, 2, 7] {
        let threads = std::num::NonZeroUsize::new(threads).expect("not 0");
        let options = ImportOptions { threads, ..Default::default() };
        let heard = Heard::default();
        let source = Source::open(&root).expect("open");
        let imported = workshop.import_heard(source, &options, &heard).expect("import");
        let from_tar =
            workshop.import_with(Source::open(&tar).expect("open"), &options).expect("import");
        let (files, known) = *heard.stored.lock().expect("lock");
        assert_eq!(files == known, !seen.is_empty(), "{known} of {files} were known");
        seen.push(imported.layers.into_iter().chain(from_tar.layers).collect());
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
}

/// Writes `root` with a tar program and its arguments; the archive's path.
fn tar_of(scratch: &Scratch, root: &Path, program: &str, arguments: &[&str]) -> std::path::PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = scratch.path().join(format!("archive-{number}"));
    let mut command = Command::new(program);
    command.args(arguments).arg("-cf").arg(&path).arg("-C").arg(root).arg(".");
    command.succeed();
    path
}

/// What archives cannot hold, taken out of a snapshot: sockets always, more for old formats.
fn without(mut tree: Snapshot, mut forget: impl FnMut(&str, &mut support::Described)) -> Snapshot {
    for (path, described) in &mut tree {
        forget(path, described);
    }
    tree
}

#[test]
fn pax_archives_of_gnu_tar_come_back_whole() {
    let (scratch, workshop) = setup("pax");
    let root = scratch.path().join("root");
    make_tree(&root);
    // GNU tar writes ACLs by name, as far as this host knows the names: these of the tree.
    fs::create_dir(root.join("etc")).expect("mkdir");
    fs::copy("/etc/passwd", root.join("etc/passwd")).expect("copy");
    fs::copy("/etc/group", root.join("etc/group")).expect("copy");
    let before = snapshot(&root);
    let all = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--format=posix"];
    for sparse in [
        &[][..],
        &["--sparse"],
        &["--sparse", "--sparse-version=0.0"],
        &["--sparse", "--sparse-version=0.1"],
    ] {
        let tar = tar_of(&scratch, &root, "tar", &[&all[..], sparse].concat());
        let imported = workshop.import_path(&tar);
        let out = scratch.path().join("out");
        assert_same(&before, &workshop.checkout(&imported.layers, &out));
        fs::remove_dir_all(&out).expect("rm");
    }
}

#[test]
fn gnu_archives_come_back_but_for_nanoseconds_and_attributes() {
    let (scratch, workshop) = setup("gnu");
    let root = scratch.path().join("root");
    make_tree(&root);
    let before = without(snapshot(&root), |_, described| {
        described.mtime.1 = 0;
        described.xattrs.clear();
    });
    // The ACL is gone, and with it the mask that stood in for the group's permissions.
    let before = without(before, |path, described| {
        if path == "/five" {
            described.mode = 0o674;
        }
    });
    for options in [&["--format=gnu"][..], &["--format=gnu", "--sparse"]] {
        let tar = tar_of(&scratch, &root, "tar", options);
        let imported = workshop.import_path(&tar);
        let out = scratch.path().join("out");
        assert_same(&before, &workshop.checkout(&imported.layers, &out));
        fs::remove_dir_all(&out).expect("rm");
    }
}

#[test]
fn archives_of_libarchive_come_back_whole() {
    let (scratch, workshop) = setup("bsdtar");
    let root = scratch.path().join("root");
    make_tree(&root);
    let tar = tar_of(
        &scratch,
        &root,
        "bsdtar",
        &["--format=pax", "--xattrs", "--acls", "--numeric-owner", "--read-sparse"],
    );
    let imported = workshop.import_path(&tar);
    // libarchive writes 4.75 s before 1970, which is -5 s and 0.25 s more, as "-5.25".
    let before = without(snapshot(&root), |path, described| {
        if path == "/empty" {
            described.mtime = (-6, 750_000_000);
        }
    });
    assert_same(&before, &workshop.checkout(&imported.layers, &scratch.path().join("out")));
}

#[test]
fn compressed_archives_and_pipes_give_the_same_layer() {
    let (scratch, workshop) = setup("compressed");
    let root = scratch.path().join("root");
    make_tree(&root);
    let plain = tar_of(&scratch, &root, "tar", &["--format=posix", "--sort=name"]);
    let expected = workshop.import_path(&plain);
    for compressor in ["gzip", "zstd", "xz"] {
        let path = scratch.path().join(compressor);
        let mut command = Command::new(compressor);
        command.args(["-1", "-c"]).stdin(File::open(&plain).expect("open"));
        command.stdout(File::create(&path).expect("create"));
        assert!(command.start().wait().unwrap().success());
        assert_eq!(workshop.import_path(&path).layers, expected.layers, "{compressor}");
        // A pipe cannot be sought in, and its writer must be able to finish.
        let mut cat = Command::new("cat").arg(&path).stdout(Stdio::piped()).start();
        let pipe = cat.stdout.take().expect("piped");
        let imported = workshop.import(Source::stream("-".to_owned(), pipe));
        assert!(cat.wait().expect("wait").success(), "cat lost its reader");
        assert_eq!(imported.layers, expected.layers, "{compressor} in a pipe");
        assert_eq!(
            imported.source_digest,
            Some(format!("blake3:{}", blake3::hash(&fs::read(&path).expect("read")).to_hex()))
        );
    }
}

#[test]
fn paths_beyond_path_max_survive() {
    let (scratch, workshop) = setup("deep");
    let root = scratch.directory("root");
    let mut dir: std::os::fd::OwnedFd = File::open(&root).expect("open").into();
    let name = "n".repeat(255);
    for _ in 0..150 {
        mkdirat(&dir, &*name, Mode::from_raw_mode(0o755)).expect("mkdir");
        dir = openat(&dir, &*name, rustix::fs::OFlags::RDONLY, Mode::empty()).expect("open");
    }
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE;
    let file = openat(&dir, "bottom", flags, Mode::from_raw_mode(0o644)).expect("create");
    File::from(file).write_all(b"38 KB down").expect("write");
    rustix::fs::linkat(&dir, "bottom", &dir, "bottom-too", AtFlags::empty()).expect("link");
    let before = snapshot(&root);
    assert_eq!(before.len(), 153);

    let imported = workshop.import_path(&root);
    assert_same(&before, &workshop.checkout(&imported.layers, &scratch.path().join("out")));
    let tar = tar_of(&scratch, &root, "tar", &["--format=posix"]);
    let imported = workshop.import_path(&tar);
    assert_same(&before, &workshop.checkout(&imported.layers, &scratch.path().join("out-tar")));
}

#[test]
fn only_one_file_system_and_not_what_is_excluded() {
    let (scratch, workshop) = setup("onefs");
    let root = scratch.mountpoint("root");
    for dir in ["keep", "mnt", "var/cache", "home/a/.cache", "proc"] {
        fs::create_dir_all(root.join(dir)).expect("mkdir");
    }
    for file in ["keep/a.pyc", "keep/b", "var/cache/x", "home/a/.cache/y", "proc/z", "over"] {
        fs::write(root.join(file), b"x").expect("write");
    }
    Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(root.join("mnt")).succeed();
    fs::write(root.join("mnt/inside"), b"x").expect("write");
    // A file mounted over a file, as container tools do with resolv.conf.
    Command::new("mount").arg("--bind").arg(root.join("keep/b")).arg(root.join("over")).succeed();

    let excludes = Excludes::new(["/proc", "*.pyc", ".cache", "/var/cache/*"]).expect("patterns");
    let options = ImportOptions { excludes, measure: true, ..Default::default() };
    let heard = Heard::default();
    let source = Source::open(&root).expect("open");
    let imported = workshop.import_heard(source, &options, &heard).expect("import");
    let out = workshop.checkout(&imported.layers, &scratch.path().join("out"));
    let names: Vec<&str> = out.keys().map(String::as_str).collect();
    assert_eq!(names, [".", "/home", "/home/a", "/keep", "/keep/b", "/mnt", "/var", "/var/cache"]);
    let notes = heard.notes.lock().expect("lock");
    assert_eq!(
        *notes,
        [Note::OtherFileSystem("mnt".to_owned()), Note::MountedFile("over".to_owned())]
    );
}

/// Writes to a file whenever the import has read some more.
struct Meddler {
    file: File,
    writes: AtomicU64,
    most: u64,
}

impl Progress for Meddler {
    fn entry(&self) {
        self.meddle();
    }
}

impl Meddler {
    fn meddle(&self) {
        if self.writes.fetch_add(1, Ordering::Relaxed) < self.most {
            self.file.write_all_at(b"!", 0).expect("write");
        }
    }
}

#[test]
fn a_file_that_never_rests_is_named_and_one_that_comes_to_rest_is_kept() {
    let (scratch, workshop) = setup("changing");
    let root = scratch.directory("root");
    fs::write(root.join("log"), noise(64 * MIB, 1)).expect("write");
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, file) =
            (stop.clone(), File::options().write(true).open(root.join("log")).expect("open"));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                file.write_all_at(b"x", 100).expect("write");
            }
        })
    };
    let error = workshop
        .import_with(Source::open(&root).expect("open"), &ImportOptions::default())
        .expect_err("a file changes all the time");
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("join");
    assert!(matches!(&error, ImportError::Changed { path, .. } if path == "log"), "{error}");
    workshop.assert_clean();

    let meddler = Meddler {
        file: File::options().write(true).open(root.join("log")).expect("open"),
        writes: AtomicU64::new(0),
        most: 2,
    };
    let source = Source::open(&root).expect("open");
    let imported = workshop
        .import_heard(source, &ImportOptions::default(), &meddler)
        .expect("the file came to rest");
    let out = workshop.checkout(&imported.layers, &scratch.path().join("out"));
    assert_eq!(out["/log"], snapshot(&root)["/log"]);
}

/// Cancels after some names.
struct Impatient<'a> {
    cancel: &'a AtomicBool,
    names: AtomicU64,
}

impl Progress for Impatient<'_> {
    fn entry(&self) {
        if self.names.fetch_add(1, Ordering::Relaxed) == 10 {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_cancelled_import_leaves_nothing_behind() {
    let (scratch, workshop) = setup("cancel");
    let root = scratch.path().join("root");
    make_tree(&root);
    let tar = tar_of(&scratch, &root, "tar", &["--format=posix"]);
    for path in [&root, &tar] {
        let cancel = AtomicBool::new(false);
        let impatient = Impatient { cancel: &cancel, names: AtomicU64::new(0) };
        let options = ImportOptions { cancel: &cancel, ..Default::default() };
        let error = workshop
            .import_heard(Source::open(path).expect("open"), &options, &impatient)
            .expect_err("cancelled");
        assert!(matches!(error, ImportError::Cancelled), "{error}");
        workshop.assert_clean();
    }
}

// --- archives that no tar program writes -----------------------------------------------------------

fn stream(bytes: Vec<u8>) -> Source {
    Source::stream("-".to_owned(), io::Cursor::new(bytes))
}

/// An error as the command line prints it.
fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", told(source)),
        None => error.to_string(),
    }
}

fn refused(workshop: &Workshop, bytes: Vec<u8>) -> ImportError {
    let error = workshop
        .import_with(stream(bytes), &ImportOptions::default())
        .expect_err("a broken archive is refused");
    workshop.assert_clean();
    error
}

#[test]
fn holes_of_all_files_together_have_a_bound() {
    let (scratch, workshop) = setup("holes");
    let root = scratch.directory("root");
    for name in ["one", "two"] {
        let file = File::create(root.join(name)).expect("create");
        file.set_len(6 * MIB).expect("stretch");
        file.write_all_at(b"data", 12345).expect("write");
    }
    let tar = tar_of(&scratch, &root, "tar", &["--format=posix", "--sparse"]);
    for source in [&root, &tar] {
        for (most, fits) in [(13 * MIB, true), (10 * MIB, false)] {
            let limits = Limits { hole_bytes: most, ..Limits::default() };
            let options = ImportOptions { limits, ..ImportOptions::default() };
            let done = workshop.import_with(Source::open(source).expect("open"), &options);
            match done {
                Ok(_) => assert!(fits),
                Err(ImportError::TooManyHoles { bytes, .. }) => {
                    assert!(!fits && bytes > 5 * MIB, "{bytes}");
                }
                Err(error) => panic!("{error}"),
            }
            workshop.assert_clean();
        }
    }
}

#[test]
fn broken_archives_are_refused_in_one_sentence() {
    let (_scratch, workshop) = setup("broken");
    let good = || Forge::default().dir("./").file("etc/passwd", "root");
    let pax = |key: &str, value: &[u8]| good().pax(&[(key, value)]).file("x", "").end();
    let long = "x".repeat(256);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (good().file("a/../../b", "").end(), "path \"a/../../b\" holds \"..\""),
        (good().link("x", "../outside").end(), "path \"../outside\" holds \"..\""),
        (
            good().link("x", "nowhere").end(),
            "\"x\" in the archive is a hard link to \"nowhere\", which is not there",
        ),
        (
            good().link("x", "etc").end(),
            "\"x\" in the archive is a hard link to \"etc\", which is a directory",
        ),
        (
            good().file("etc/passwd/x", "").end(),
            "\"etc/passwd/x\" in the archive: \"etc/passwd\" is not a directory",
        ),
        (
            good().symlink("l", "m").symlink("m", "l").file("l/x", "").end(),
            "\"l/x\" in the archive: too many symbolic links on the way",
        ),
        (
            pax("path", b"a\0b"),
            "\"a\\u{0}b\" in the archive: its name or link target holds a NUL byte",
        ),
        (pax("path", long.as_bytes()), "256 bytes"),
        (
            pax("uid", b"4294967295"),
            "\"x\" in the archive: the user id 4294967295 is out of range (0 to 4294967294)",
        ),
        (
            pax("gid", b"-1"),
            "the extended header gid cannot be used: it is not a number of 0 to 2^64-1",
        ),
        (pax("mtime", b"99999999999999999999"), "the extended header mtime cannot be used"),
        (
            pax("SCHILY.xattr.user.big", &[1; 65_537]),
            "the extended attribute user.big has 65537 bytes; the limit is 65536",
        ),
        (
            pax("SCHILY.xattr.nonsense", b"1"),
            "\"nonsense\" cannot be the name of an extended attribute",
        ),
        (
            pax("SCHILY.acl.access", b"user::rw-,user:bob:rw-,group::r--,mask::rw-,other::r--"),
            "its ACL names \"bob\", who is not in the archive",
        ),
        (pax("size", b"9999999999999999"), "above the limit for one file"),
        (
            good().raw(b"d", b'5', b"", b"content").end(),
            "\"d\" in the archive: it is not a regular file, but has content",
        ),
        (good().raw(b"v", b'M', b"", b"").end(), "multi-volume"),
        (good().raw(b"?", b'?', b"", b"").end(), "its type '?' is unknown"),
        (
            good().raw(b"x", b'x', b"", b"nonsense").file("y", "").end(),
            "an extended header record is malformed",
        ),
        (good().pax(&[("path", b"y")]).end(), "no member after it"),
        (good().raw(b"", b'0', b"", b"").end(), "empty name"),
        (good().raw(b"l", b'2', b"", b"").end(), "without a target"),
        (Forge::default().raw(b"./", b'2', b"x", b"").end(), "root directory as another kind"),
        (good().0, "the archive is truncated: its end mark is missing"),
        (
            [good().0, vec![0; 512], Forge::default().file("x", "").end()].concat(),
            "a zero block stands between members",
        ),
        (
            good().file("x", &"y".repeat(2000)).0[..2500].to_vec(),
            "\"x\" in the archive: the archive is truncated here",
        ),
        (Forge::default().end(), "- is an empty archive"),
        (vec![0; 1_000_000], "- is an empty archive"),
        (Vec::new(), "- is an empty archive"),
        (b"this is not an archive at all".repeat(100), "no valid tar header"),
        (b"PK\x03\x04".repeat(300), "compressed with zip, which is not supported"),
    ];
    for (bytes, sentence) in cases {
        let text = told(&refused(&workshop, bytes));
        assert!(text.contains(sentence), "{text}\n    instead of\n{sentence}");
        assert!(!text.contains('\n') && text.len() < 420, "{text}");
    }
}

#[test]
fn a_flipped_bit_in_a_header_is_noticed() {
    let (_scratch, workshop) = setup("bit");
    let mut bytes = Forge::default().dir("./").file("a", "1").end();
    bytes[512 + 100] ^= 1;
    let error = refused(&workshop, bytes);
    assert!(
        matches!(&error, ImportError::Tar(TarError { fault: TarFault::BadChecksum, .. })),
        "{error}"
    );
}

#[test]
fn truncated_compressed_archives_are_refused() {
    let (_scratch, workshop) = setup("truncated");
    let plain = Forge::default().dir("./").file("x", &"y".repeat(100_000)).end();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).expect("compress");
    let gzip = encoder.finish().expect("compress");
    for bytes in [gzip, zstd::stream::encode_all(&plain[..], 1).expect("compress")] {
        // Also when only the trailer is missing, which comes after the archive's own end.
        for cut in [1, bytes.len() / 2] {
            let error = refused(&workshop, bytes[..bytes.len() - cut].to_vec());
            assert!(told(&error).contains("truncated"), "{error}");
        }
    }
}

#[test]
fn members_mean_what_tar_makes_of_them() {
    let (scratch, workshop) = setup("meaning");
    let archive = Forge::default()
        .dir("./")
        // The last of equal names counts; a directory keeps what is in it.
        .file("twice", "first")
        .file("twice", "second")
        .dir("kept/")
        .file("kept/inside", "x")
        .dir("kept")
        // A link keeps what stood there when it was made.
        .file("old", "before")
        .link("link-to-old", "old")
        .file("old", "after")
        .link("old", "./old")
        // Leading slashes and dots are dropped; the oldest format has directories with a slash.
        .file("/absolute", "x")
        .file(".//dots/./x", "x")
        .raw(b"ancient/", 0, b"", b"")
        // A file in the place of a directory, and the other way round.
        .dir("was-dir")
        .file("was-dir/gone", "x")
        .file("was-dir", "now a file")
        .file("was-file", "x")
        .dir("was-file")
        // Through links: inside the tree, wherever they point.
        .symlink("up", "../../../dots")
        .file("up/through-up", "x")
        .symlink("rooted", "/kept")
        .file("rooted/through-rooted", "x")
        .symlink("not-yet", "made/later")
        .file("not-yet/x", "x")
        .symlink("etc", "/etc")
        .link("hard-through", "rooted/inside")
        .file(".wh.kept", "not a whiteout here")
        .end();
    let heard = Heard::default();
    let imported =
        workshop.import_heard(stream(archive), &ImportOptions::default(), &heard).expect("import");
    let out = scratch.path().join("out");
    let tree = workshop.checkout(&imported.layers, &out);
    let names: Vec<&str> = tree.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            ".",
            "/.wh.kept",
            "/absolute",
            "/ancient",
            "/dots",
            "/dots/through-up",
            "/dots/x",
            "/etc",
            "/hard-through",
            "/kept",
            "/kept/inside",
            "/kept/through-rooted",
            "/link-to-old",
            "/made",
            "/made/later",
            "/made/later/x",
            "/not-yet",
            "/old",
            "/rooted",
            "/twice",
            "/up",
            "/was-dir",
            "/was-file"
        ]
    );
    let read = |name: &str| fs::read_to_string(out.join(name)).expect("read");
    assert_eq!(read("twice"), "second");
    assert_eq!(read("link-to-old"), "before");
    assert_eq!(read("old"), "after");
    assert_eq!(read("was-dir"), "now a file");
    assert_eq!(tree["/kept/inside"].same_as, tree["/hard-through"].same_as);
    assert_eq!(tree["/was-file"].kind, FileType::Directory);
    assert_eq!(tree["/ancient"].kind, FileType::Directory);
    assert_eq!(*heard.notes.lock().expect("lock"), [Note::AbsoluteNames(1)]);
}

#[test]
fn a_billion_zeros_take_no_space() {
    let (scratch, workshop) = setup("zeros");
    let header = Forge::default().dir("./").raw(b"zeros", b'0', b"", b"").0;
    let mut patched = tar::Header::new_gnu();
    patched.as_mut_bytes().copy_from_slice(&header[512..1024]);
    patched.set_size(1_000_000_000);
    patched.set_cksum();
    let start = [&header[..512], patched.as_bytes()].concat();
    let zeros = io::repeat(0).take(1_000_000_000_u64.next_multiple_of(512) + 1024);
    let source = Source::stream("-".to_owned(), io::Cursor::new(start).chain(zeros));
    let imported = workshop.import(source);
    let tree = Workshop::tree(&imported.layers);
    let objects: Vec<_> = tree.objects().collect();
    assert_eq!(objects.len(), 1);
    assert_eq!((objects[0].size, objects[0].data_blocks), (1_000_000_000, 0));
    let used = Command::new("du").args(["-sk"]).arg(scratch.path()).succeed();
    let used: u64 = used.split_whitespace().next().expect("du").parse().expect("a number");
    assert!(used < 1000, "{used} KiB");
}

#[test]
fn gnu_sparse_files_with_thousands_of_pieces() {
    let (scratch, workshop) = setup("pieces");
    let root = scratch.directory("root");
    let file = File::create(root.join("pieces")).expect("create");
    for piece in 0..3000 {
        file.write_all_at(&[1, 2, 3], piece * 16384).expect("write");
    }
    for format in ["--format=gnu", "--format=posix"] {
        let tar = tar_of(&scratch, &root, "tar", &[format, "--sparse"]);
        assert!(fs::metadata(&tar).expect("stat").len() < 20 * MIB, "tar found the holes");
        let imported = workshop.import_path(&tar);
        let out = scratch.path().join(format);
        let tree = workshop.checkout(&imported.layers, &out);
        assert_eq!(tree["/pieces"].content, snapshot(&root)["/pieces"].content);
    }
}

// --- layers on layers --------------------------------------------------------------------------------

#[test]
fn a_layer_on_another_hides_links_and_follows() {
    let (scratch, workshop) = setup("on");
    let base = Forge::default()
        .dir("./")
        .dir("usr/")
        .dir("usr/lib")
        .file("usr/lib/libc", "libc")
        .symlink("lib", "usr/lib")
        .file("etc/passwd", "root")
        .file("etc/gone", "x")
        .dir("opt/old")
        .file("opt/old/a", "x")
        .file("data", "shared")
        .link("data-too", "data")
        .file("was/x", "x")
        .file("was/y", "y")
        .end();
    let base = workshop.import(stream(base));
    let lower = Workshop::tree(&base.layers);
    let layer = Forge::default()
        .file("etc/.wh.gone", "")
        .file("opt/old/.wh..wh..opq", "")
        .file("opt/old/new", "x")
        // Merged /usr: the layer was made where /lib is a directory.
        .file("lib/libnew", "new")
        .link("linked", "data")
        .link("lib/libc-too", "lib/libc")
        .file(".wh..wh.plnk", "aufs")
        // What hides nothing makes nothing: a directory that is nowhere, a directory that a file
        // replaces, before and after it does.
        .file("nowhere/.wh.x", "")
        .file("nowhere/too/.wh..wh..opq", "")
        .file("was/.wh.x", "")
        .file("was", "a file")
        .file("was/.wh.y", "")
        .end();
    let options = ImportOptions { on: Some(&lower), ..Default::default() };
    let heard = Heard::default();
    let upper = workshop.import_heard(stream(layer), &options, &heard).expect("import");
    let layers = [base.layers, upper.layers].concat();
    let out = scratch.path().join("out");
    let tree = workshop.checkout(&layers, &out);
    let names: Vec<&str> = tree.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            ".",
            "/data",
            "/data-too",
            "/etc",
            "/etc/passwd",
            "/lib",
            "/linked",
            "/opt",
            "/opt/old",
            "/opt/old/new",
            "/usr",
            "/usr/lib",
            "/usr/lib/libc",
            "/usr/lib/libc-too",
            "/usr/lib/libnew",
            "/was"
        ]
    );
    assert_eq!(tree["/lib"].kind, FileType::Symlink);
    assert_eq!(tree["/linked"].nlink, 3);
    assert_eq!(tree["/linked"].same_as, tree["/data-too"].same_as);
    assert_eq!(tree["/usr/lib/libc-too"].same_as, Some("/usr/lib/libc".to_owned()));
    // Directories that the layer did not describe keep what they were.
    assert_eq!(tree["/usr"].mode, 0o755);
    assert_eq!(*heard.notes.lock().expect("lock"), [Note::AufsFile(".wh..wh.plnk".to_owned())]);

    // A link to what the layer itself has hidden leads nowhere.
    let bad = Forge::default().file("etc/.wh.passwd", "").link("x", "etc/passwd").end();
    let error = workshop.import_with(stream(bad), &options).expect_err("no target");
    assert!(matches!(error, ImportError::NoLinkTarget { .. }), "{error}");
    let bad = Forge::default().file("etc/.wh.", "").end();
    let error = workshop.import_with(stream(bad), &options).expect_err("no name");
    assert!(matches!(error, ImportError::BadWhiteout(_)), "{error}");
    let bad = Forge::default().file("etc/passwd/x", "").end();
    let error = workshop.import_with(stream(bad), &options).expect_err("a file as a directory");
    assert!(matches!(error, ImportError::NotADirectory { .. }), "{error}");
}

#[test]
fn a_directory_can_be_a_layer_too() {
    let (scratch, workshop) = setup("on-directory");
    let base = Forge::default().dir("./").file("a", "1").file("b", "2").file("d/e", "3").end();
    let base = workshop.import(stream(base));
    let lower = Workshop::tree(&base.layers);
    let root = scratch.directory("root");
    fs::create_dir(root.join("d")).expect("mkdir");
    for file in [".wh.a", "c", "d/.wh..wh..opq", "d/f"] {
        fs::write(root.join(file), b"x").expect("write");
    }
    let options = ImportOptions { on: Some(&lower), ..Default::default() };
    let upper = workshop.import_with(Source::open(&root).expect("open"), &options).expect("import");
    let layers = [base.layers, upper.layers].concat();
    let tree = workshop.checkout(&layers, &scratch.path().join("out"));
    let names: Vec<&str> = tree.keys().map(String::as_str).collect();
    assert_eq!(names, [".", "/b", "/c", "/d", "/d/f"]);
    // Without a layer below the names are names.
    let alone = workshop.import_path(&root);
    let tree = workshop.checkout(&alone.layers, &scratch.path().join("alone"));
    assert!(tree.contains_key("/.wh.a") && tree.contains_key("/d/.wh..wh..opq"));
}

#[test]
fn a_full_disk_is_reported_as_such() {
    require_root();
    let scratch = Scratch::new("full");
    let mountpoint = scratch.mountpoint("disk");
    let disk = support::Disk::create(
        &scratch.path().join("image"),
        &mountpoint,
        support::DiskFormat::Ext4,
        32 * MIB,
    );
    let workshop = Workshop::new(disk.path());
    let root = scratch.directory("root");
    for number in 0..80 {
        fs::write(root.join(number.to_string()), noise(MIB, number)).expect("write");
    }
    let tar = tar_of(&scratch, &root, "tar", &[]);
    for path in [&root, &tar] {
        let error = workshop
            .import_with(Source::open(path).expect("open"), &ImportOptions::default())
            .expect_err("the disk is full");
        assert!(error.is_no_space(), "{error:?}");
        workshop.assert_clean();
    }
    // There is room again for what fits.
    let small = Forge::default().dir("./").file("x", "y").end();
    let layer = Manifest::from_bytes(workshop.import(stream(small)).layers.remove(0));
    assert_eq!(layer.expect("a manifest").len(), 2);
}
