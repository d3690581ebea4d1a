//! Private layers that somebody damaged, copied carelessly, or left things in.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use mica::private::marks::{self, Filling, Origin};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, mknodat, removexattr, setxattr};

use crate::stage::{LARGE_BYTES, Stage, errno, large, picture, refused};
use crate::support::{MountOptions, Succeed};

fn set(path: &Path, name: &[u8], value: &[u8]) {
    setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn get(path: &Path, name: &[u8]) -> Vec<u8> {
    let mut value = vec![0; 4096];
    let len = getxattr(path, name, value.as_mut_slice()).unwrap();
    value.truncate(len);
    value
}

fn chmod(path: PathBuf, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A private layer with one entry of every kind, not mounted.
fn changed(stage: &Stage) -> PathBuf {
    let root = stage.mount("a");
    let at = |path: &str| root.path().join(path);
    chmod(at("etc/conf"), 0o600);
    chmod(at("usr/bin/tool"), 0o700);
    chmod(at("srv/deep"), 0o700);
    chmod(at("srv/one"), 0o600);
    fs::write(at("etc/fine"), b"changed\n").unwrap();
    fs::write(at("etc/born"), b"born\n").unwrap();
    fs::rename(at("srv/empty"), at("srv/moved")).unwrap();
    root.unmount();
    stage.private("a").join("upper")
}

/// Names in a directory, as a listing with and one without attributes show them.
fn names(directory: &Path) -> Vec<String> {
    let listed: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()).collect();
    let mut names: Vec<String> =
        listed.iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Damages `mark` of the upper entry `path` in every way there is, and looks at the root.
fn one_entry_fails(stage: &Stage, upper: &Path, path: &str, mark: &[u8], damages: &[Vec<u8>]) {
    let entry = upper.join(path);
    let good = {
        let mut value = vec![0; 4096];
        getxattr(&entry, mark, value.as_mut_slice()).ok().map(|len| value[..len].to_vec())
    };
    let before = {
        let root = stage.mount("a");
        let before = picture(root.path());
        root.unmount();
        before
    };
    for damage in damages {
        let what = format!("{} of {path} is {damage:?}", String::from_utf8_lossy(mark));
        set(&entry, mark, damage);
        let root = stage.mount("a");
        let place = root.path().join(path);
        assert_eq!(errno(fs::symlink_metadata(&place)), libc::EIO, "{what}");
        assert_eq!(errno(fs::read(&place)), libc::EIO, "{what}");
        assert_eq!(errno(fs::File::create(&place)), libc::EIO, "{what}");
        // Its neighbours do not suffer, and it is still listed among them.
        let parent = place.parent().unwrap();
        let name = place.file_name().unwrap().to_str().unwrap();
        assert!(names(parent).iter().any(|listed| listed == name), "{what}: {:?}", names(parent));
        assert_eq!(errno(fs::symlink_metadata(&place)), libc::EIO, "{what}, after a listing");
        for other in ["etc/born", "etc/link", "usr/bin/other", "srv/deep/file", "srv/one"] {
            if !other.starts_with(path) {
                fs::symlink_metadata(root.path().join(other))
                    .unwrap_or_else(|error| panic!("{what}: {other}: {error}"));
            }
        }
        fs::write(parent.join("beside"), b"works\n").unwrap();
        fs::remove_file(parent.join("beside")).unwrap();
        let log = stage.log("a");
        let told = log.lines().filter(|line| line.contains(&format!("/{path} ")));
        let mark_named = told.filter(|line| line.contains("damaged")).count();
        assert!(mark_named > 0, "{what}: {log}");
        root.unmount();
    }
    match &good {
        Some(good) => set(&entry, mark, good),
        None => removexattr(&entry, mark).unwrap(),
    }
    let root = stage.mount("a");
    let now = picture(root.path());
    // Making and removing a file beside it moved the time of that one directory.
    let differs = before.lines().zip(now.lines()).filter(|(one, two)| one != two).count();
    assert!(differs <= 1 && before.lines().count() == now.lines().count(), "{now}");
    root.unmount();
}

#[test]
fn a_damaged_origin_fails_its_entry_alone() {
    let stage = Stage::new("marks");
    let upper = changed(&stage);
    for path in ["etc/conf", "usr/bin/tool", "etc/fine", "srv/deep", "srv/moved"] {
        let good = get(&upper.join(path), marks::ORIGIN);
        let origin = Origin::decode(&good).unwrap();
        let mut damages = vec![Vec::new(), b"garbage".to_vec(), vec![0; good.len()]];
        damages.push(vec![0xff; good.len()]);
        damages.push([&good[..], b"more"].concat());
        // One bit anywhere is noticed: another number would mean another file.
        for byte in if path == "etc/conf" { vec![0, 5, 33, 34, 37, 40] } else { vec![37] } {
            let mut flipped = good.clone();
            flipped[byte] ^= 1;
            damages.push(flipped);
        }
        // Another inode's mark is a mark, but not of this entry if its type differs.
        let other = if path.starts_with("srv") { "etc/conf" } else { "srv/deep" };
        damages.push(get(&upper.join(other), marks::ORIGIN));
        damages.push(Origin { index: origin.index + 1, ..origin }.encode());
        one_entry_fails(&stage, &upper, path, marks::ORIGIN, &damages);
    }
}

#[test]
fn other_damaged_marks_fail_their_entry_alone() {
    let stage = Stage::new("marks");
    let upper = changed(&stage);
    let garbage = || vec![Vec::new(), b"garbage".to_vec(), vec![0xff; 300]];
    one_entry_fails(&stage, &upper, "etc/conf", marks::OBJECT, &garbage());
    one_entry_fails(
        &stage,
        &upper,
        "etc/born",
        marks::INO,
        &[garbage(), vec![vec![0; 8]]].concat(),
    );
    one_entry_fails(&stage, &upper, "etc/conf", marks::FILLING, &garbage()[..2]);
    // A metadata-only copy of nothing: the bytes are nowhere, and must not be shown as zeros.
    one_entry_fails(&stage, &upper, "etc/born", marks::METACOPY, &[Vec::new()]);
    set(&upper.join("etc/born"), marks::METACOPY, b"");
    for target in [&b"/nowhere"[..], b"nowhere", b"/", b"", b"/etc", b"/etc/link", b"/etc/conf/x"] {
        one_entry_fails(&stage, &upper, "etc/born", marks::REDIRECT, &[target.to_vec()]);
    }
}

#[test]
fn a_damaged_index_costs_the_names_of_one_file() {
    let stage = Stage::new("marks");
    changed(&stage);
    let index: Vec<PathBuf> = fs::read_dir(stage.private("a").join("index"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(index.len(), 1, "{index:?}");
    let good = get(&index[0], marks::ORIGIN);
    for damage in [Vec::new(), vec![7; 41]] {
        set(&index[0], marks::ORIGIN, &damage);
        let root = stage.mount("a");
        for path in ["srv/one", "etc/two"] {
            assert_eq!(errno(fs::read(root.path().join(path))), libc::EIO, "{path}");
        }
        assert_eq!(fs::read(root.path().join("etc/fine")).unwrap(), b"changed\n");
        assert_eq!(fs::read(root.path().join("etc/conf")).unwrap(), b"key=value\n");
        assert!(names(&root.path().join("srv")).contains(&"one".to_owned()));
        let log = stage.log("a");
        assert!(log.contains("hard-linked file") && log.contains("etc/two"), "{log}");
        root.unmount();
    }
    set(&index[0], marks::ORIGIN, &good);
    // Things that are no index entries are left alone.
    for stranger in ["README", "0000000g", "ffffffff", "00000000", "0"] {
        fs::create_dir(stage.private("a").join("index").join(stranger)).unwrap();
    }
    let root = stage.mount("a");
    assert_eq!(fs::read(root.path().join("etc/two")).unwrap(), b"linked\n");
    assert_eq!(fs::metadata(root.path().join("etc/two")).unwrap().nlink(), 2);
    root.unmount();
    assert!(stage.private("a").join("index/README").is_dir());
}

#[test]
fn damage_to_the_upper_directory_itself_does_not_keep_the_root_from_mounting() {
    let stage = Stage::new("marks");
    let upper = changed(&stage);
    let before = {
        let root = stage.mount("a");
        picture(root.path())
    };
    for (mark, value) in [
        (marks::ORIGIN, &b"garbage"[..]),
        (marks::OPAQUE, b"y"),
        (marks::REDIRECT, b"/etc"),
        (marks::INO, b"garbage"),
    ] {
        let good = get_if_there(&upper, mark);
        set(&upper, mark, value);
        let root = stage.mount("a");
        assert_eq!(picture(root.path()), before, "{}", String::from_utf8_lossy(mark));
        root.unmount();
        match good {
            Some(good) => set(&upper, mark, &good),
            None => removexattr(&upper, mark).unwrap(),
        }
    }
}

fn get_if_there(path: &Path, name: &[u8]) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let len = getxattr(path, name, value.as_mut_slice()).ok()?;
    Some(value[..len].to_vec())
}

/// A copy without trusted attributes holds holes where the template has content.
#[test]
fn a_private_layer_copied_without_its_attributes_is_refused() {
    let stage = Stage::new("marks");
    changed(&stage);
    let (from, to) = (stage.private("a"), stage.private("copy"));
    let copy = |arguments: &[&str]| {
        fs::remove_dir_all(&to).ok();
        Command::new("cp").args(arguments).arg(&from).arg(&to).succeed();
    };
    let mount = || {
        let options = MountOptions::private(&to);
        stage.store.mount_command("base", &stage.scratch.mountpoint("copy"), &options)
    };
    copy(&["-r", "--preserve=mode,ownership,timestamps,links"]);
    refused(&mut mount(), &["private/copy", "extended attributes", "cp -a", "rsync -aHX"]);
    // As the sentence says, it works.
    copy(&["-a"]);
    mount().succeed();
    let copied = picture(&stage.scratch.mountpoint("copy"));
    let root = stage.mount("a");
    assert_eq!(picture(root.path()), copied);
    let (one, two) =
        (root.path().join("srv/one"), stage.scratch.mountpoint("copy").join("srv/one"));
    assert_eq!(fs::metadata(one).unwrap().ino(), fs::metadata(two).unwrap().ino());
    stage.mica(["umount", "copy"]).succeed();
}

/// What an interrupted copy-up leaves behind: a part of the content, a new time, no capability.
#[test]
fn an_interrupted_copy_up_is_undone() {
    let stage = Stage::new("marks");
    let root = stage.mount("a");
    let path = root.path().join("srv/large");
    Command::new("setcap").arg("cap_net_raw+ep").arg(&path).succeed();
    let mtime = fs::metadata(&path).unwrap();
    let before = picture(root.path());
    root.unmount();
    let entry = stage.private("a").join("upper/srv/large");
    let filling = Filling {
        size: LARGE_BYTES as u64,
        mtime: (mtime.mtime(), u32::try_from(mtime.mtime_nsec()).unwrap()),
        capability: get(&entry, b"security.capability"),
    };
    set(&entry, marks::FILLING, &filling.encode());
    fs::write(&entry, &large()[..LARGE_BYTES / 2]).unwrap();
    assert!(get_if_there(&entry, b"security.capability").is_none(), "writing takes it away");
    let root = stage.mount("a");
    assert_eq!(picture(root.path()), before);
    let shown = Command::new("getcap").arg(root.path().join("srv/large")).succeed();
    assert!(shown.contains("cap_net_raw"), "{shown}");
    root.unmount();
    assert_eq!(fs::metadata(&entry).unwrap().len(), LARGE_BYTES as u64);
    assert!(fs::metadata(&entry).unwrap().blocks() < 64, "its room was given back");
    assert!(get_if_there(&entry, marks::FILLING).is_none());
}

#[test]
fn what_others_leave_in_a_private_directory_harms_nothing() {
    let stage = Stage::new("marks");
    let upper = changed(&stage);
    let private = stage.private("a");
    // A backup tool's notes, on entries of every kind and on the directories themselves.
    for path in ["", "etc", "etc/conf", "etc/born", "srv/deep"] {
        set(&upper.join(path), b"user.backup.time", b"yesterday");
        set(&upper.join(path), b"trusted.backup", b"yes");
        set(&upper.join(path), b"trusted.mica.future", b"what a later version knows");
        set(&upper.join(path), b"trusted.overlay.future", b"what a later kernel knows");
        set(&upper.join(path), b"trusted.overlay.impure", b"y");
    }
    fs::write(private.join("notes.txt"), b"notes\n").unwrap();
    fs::write(private.join("work/notes.txt"), b"notes\n").unwrap();
    fs::create_dir_all(private.join("work/deep/er")).unwrap();
    fs::create_dir(private.join("lost+found")).unwrap();
    // Every type of file, and whiteouts of what is not there.
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("etc/socket")).unwrap();
    let node = |name: &str, kind, device| {
        mknodat(CWD, upper.join(name), kind, Mode::RUSR, device).unwrap();
    };
    node("etc/fifo", FileType::Fifo, 0);
    node("etc/null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("etc/disk", FileType::BlockDevice, rustix::fs::makedev(7, 99));
    node("etc/nothing", FileType::CharacterDevice, 0);
    node("srv/deep/file", FileType::CharacterDevice, 0);
    symlink("nowhere", upper.join("etc/dangling")).unwrap();
    let odd = upper.join("etc").join("odd\n\u{fffd} name");
    fs::write(&odd, b"odd\n").unwrap();
    let root = stage.mount("a");
    let at = |path: &str| root.path().join(path);
    assert_eq!(
        names(&at("etc")),
        [
            "born",
            "conf",
            "dangling",
            "disk",
            "fifo",
            "fine",
            "link",
            "null",
            "odd\n\u{fffd} name",
            "socket",
            "two"
        ]
    );
    assert!(fs::metadata(at("etc/socket")).unwrap().file_type().is_socket());
    assert!(fs::metadata(at("etc/fifo")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(at("etc/null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(fs::read_link(at("etc/dangling")).unwrap(), Path::new("nowhere"));
    assert_eq!(errno(fs::symlink_metadata(at("etc/nothing"))), libc::ENOENT);
    assert_eq!(errno(fs::symlink_metadata(at("srv/deep/file"))), libc::ENOENT);
    assert_eq!(fs::read(at("srv/deep/er/file")).unwrap(), b"deeper\n");
    assert_eq!(fs::read(at("etc/conf")).unwrap(), b"key=value\n");
    // The container sees its own attributes and none of ours.
    assert_eq!(get(&at("etc/conf"), b"user.backup.time"), b"yesterday");
    assert_eq!(get(&at("etc/conf"), b"trusted.backup"), b"yes");
    let mut getfattr = Command::new("getfattr");
    let listed = getfattr.args(["-m", "-", "--absolute-names"]).arg(at("etc/conf")).succeed();
    for hidden in ["trusted.mica", "trusted.overlay"] {
        assert!(!listed.contains(hidden), "{listed}");
    }
    fs::remove_dir_all(at("srv/deep")).unwrap();
    fs::remove_dir_all(at("etc")).unwrap();
    assert_eq!(errno(fs::symlink_metadata(at("etc"))), libc::ENOENT);
    root.unmount();
    assert_eq!(fs::read(private.join("notes.txt")).unwrap(), b"notes\n");
    assert_eq!(names(&private.join("work")), ["whiteout"]);
}
