//! Any bytes as a private directory: entries of every kind with marks of any content. It opens or
//! says why not; what opens answers errors or values, never panics, lists nothing that cannot be
//! looked up, and reads the same when it is opened again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica::fs::{Caller, FileSystem, OpenRequest};
use mica::layer::{FileKind, TreeIno};
use mica::object::{Digest, ObjectId};
use mica::private::marks::{self, Filling, Origin};
use mica::union::{Change, ListedKind, NewEntry, NodeId};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, linkat, mknodat, setxattr};

use crate::unmounted::{Bytes, fixture, fresh_directory, open};

/// Names of entries: most are the template's too.
const NAMES: [&[u8]; 8] = [b"usr", b"tool", b"one", b"deep", b"new", b"\xff\n", b"born", b"#1"];
/// Entries made and looked at in one run.
const ENTRIES: usize = 60;
const SEEN: usize = 400;
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };

/// Makes a private directory as `bytes` say, and a root of it.
pub(crate) fn run(bytes: &[u8]) {
    let private = fresh_directory("upper");
    build(&private, &mut Bytes(bytes));
    if let Ok(first) = open(fixture(), &private) {
        let seen = look(&first);
        drop(first);
        // Nobody changed anything: closed and opened it is the same.
        let second = open(fixture(), &private).expect("what opened opens again");
        assert_eq!(look(&second), seen);
        change(&second, &seen);
        drop(second);
        if let Ok(third) = open(fixture(), &private) {
            look(&third);
        }
    }
    std::fs::remove_dir_all(&private).expect("the private directory can be removed");
}

/// Entries by path, in the order of their making; whatever the host refuses is left out.
fn build(private: &Path, input: &mut Bytes<'_>) {
    let mut known: Vec<PathBuf> = Vec::new();
    for part in ["upper", "work", "index"] {
        // Now and then one is missing, or something else.
        match input.byte() {
            0 => {}
            1 => drop(std::fs::write(private.join(part), b"a file")),
            _ => drop(std::fs::create_dir(private.join(part))),
        }
        known.push(private.join(part));
    }
    record(private, input);
    for _ in 0..ENTRIES {
        if input.0.is_empty() {
            break;
        }
        let at = input.below(known.len());
        let dir = known[at].clone();
        let path = match input.byte() {
            byte @ 0..=31 => dir.join(format!("{:08x}", byte)),
            byte => dir.join(OsStr::from_bytes(NAMES[usize::from(byte) % NAMES.len()])),
        };
        let node = |kind, rdev| mknodat(CWD, &path, kind, Mode::from_raw_mode(0o644), rdev);
        match input.byte() % 12 {
            0..=2 => drop(std::fs::create_dir(&path)),
            3 | 4 => {
                // Never one that is there: a fifo would wait for its other end.
                if let Ok(file) = File::create_new(&path) {
                    let _grown = file.set_len(input.below(200) as u64 * 100);
                }
            }
            5 => drop(std::os::unix::fs::symlink("one", &path)),
            6 => drop(node(FileType::CharacterDevice, 0)),
            7 => drop(node(FileType::Fifo, 0)),
            8 => drop(node(FileType::BlockDevice, 0x700)),
            9 => {
                let old = &known[input.below(known.len())];
                let _made = linkat(CWD, old, CWD, &path, rustix::fs::AtFlags::empty());
            }
            _ => {}
        }
        for _ in 0..input.byte() % 4 {
            mark(&path, input);
        }
        known.push(path);
    }
}

/// The record: that of the template, or one that is altered.
fn record(private: &Path, input: &mut Bytes<'_>) {
    let layers: Vec<String> = fixture().stack.layers().iter().map(ToString::to_string).collect();
    let mut text = format!("{{\"format\": 1, \"stack\": {layers:?}, \"adopted\": true}}");
    match input.byte() {
        0 => return,
        1 => text.truncate(input.below(text.len())),
        2 => text = text.replace('1', "2"),
        3 => text = text.replace("true", "false"),
        _ => {}
    }
    drop(std::fs::write(private.join("mica.json"), text));
}

/// Sets one mark, of any content.
fn mark(path: &Path, input: &mut Bytes<'_>) {
    let origin =
        || Origin { layer: *fixture().stack.layers()[0].digest(), index: 1, tree: TreeIno::ROOT };
    let number = input.byte();
    let (name, mut value) = match input.byte() % 12 {
        0..=3 => {
            // One layer: numbers in it and in the tree are the same.
            let tree = TreeIno::new(u32::from(number % 24)).unwrap_or(TreeIno::ROOT);
            (marks::ORIGIN, Origin { index: tree.get(), tree, ..origin() }.encode())
        }
        4 | 5 => (marks::METACOPY, Vec::new()),
        6 => {
            let paths: [&[u8]; 8] =
                [b"/usr", b"one", b"/", b"/usr/tool/one", b"..", b"/deep/../one", b"", b"/one/x"];
            (marks::REDIRECT, paths[usize::from(number) % paths.len()].to_vec())
        }
        7 => (marks::OPAQUE, if number < 128 { b"y".to_vec() } else { b"x".to_vec() }),
        8 => (marks::OBJECT, ObjectId::of(&[number]).digest().as_bytes().to_vec()),
        9 => (marks::INO, u64::from(number).to_le_bytes().to_vec()),
        10 => {
            let size = u64::from(number) << input.below(60);
            let filling = Filling { size, mtime: (i64::from(number), 7), capability: vec![number] };
            (marks::FILLING, filling.encode())
        }
        _ => (if number < 128 { marks::RDEV } else { marks::NAMES_COMPLETE }, b"y".to_vec()),
    };
    match input.byte() {
        0..=15 => value.truncate(input.below(value.len() + 1)),
        16..=31 => value.push(number),
        32..=63 if !value.is_empty() => {
            let at = input.below(value.len());
            value[at] ^= number | 1;
        }
        _ => {}
    }
    let _set = setxattr(path, name, &value, XattrFlags::empty());
}

/// What can be seen by path: an error's number, or kind, mode, owner, size and bytes.
type Seen = BTreeMap<Vec<u8>, Result<(NodeId, FileKind, u32, u32, u64, Digest), i32>>;

fn look(fs: &Arc<FileSystem>) -> Seen {
    let mut seen = Seen::new();
    let mut left = vec![(NodeId::ROOT, Vec::new())];
    while let Some((dir, path)) = left.pop() {
        let mut names = Vec::new();
        let listed = fs.list(dir, 0, &mut |entry| {
            if !matches!(entry.kind, ListedKind::Itself) {
                names.push(entry.name.to_vec());
            }
            names.len() > SEEN
        });
        if let Err(error) = listed {
            seen.insert([&path, b"/".as_slice()].concat(), Err(error.errno().raw_os_error()));
        }
        for name in names {
            let path = [path.as_slice(), b"/", &name].concat();
            let row = match fs.lookup(dir, &name) {
                Ok(found) => {
                    let found = found.expect("a listed name is there");
                    // Directories may lead in circles; paths end where the count does.
                    if found.kind == FileKind::Directory && seen.len() < SEEN {
                        left.push((found.id, path.clone()));
                    }
                    let digest = Digest::of(&content(fs, found.id, found.kind));
                    Ok((found.id, found.kind, found.mode, found.uid, found.size, digest))
                }
                Err(error) => Err(error.errno().raw_os_error()),
            };
            assert!(seen.insert(path, row).is_none(), "a name is listed once");
        }
        if seen.len() > SEEN {
            break;
        }
    }
    // Numbers above the template's are given by the host, or as they come.
    for row in seen.values_mut().flatten() {
        if row.0.as_tree().is_none() {
            row.0 = NodeId::from_raw(0);
        }
    }
    seen
}

fn content(fs: &FileSystem, id: NodeId, kind: FileKind) -> Vec<u8> {
    drop(fs.xattr_list(id, CALLER));
    drop(fs.xattr(id, b"user.x"));
    drop(fs.attributes(id));
    let content = match kind {
        FileKind::Regular => fs.read(id, 0, 4096),
        FileKind::Symlink => fs.symlink_target(id),
        FileKind::Directory
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::CharDevice
        | FileKind::BlockDevice => Ok(Vec::new()),
    };
    content.unwrap_or_else(|error| error.errno().raw_os_error().to_le_bytes().to_vec())
}

/// Changes something in every way at each name; refusals are as good as results.
fn change(fs: &Arc<FileSystem>, seen: &Seen) {
    let find = |path: &[u8]| {
        let mut at = (NodeId::ROOT, NodeId::ROOT);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = (at.1, fs.lookup(at.1, name).ok()??.id);
        }
        Some(at)
    };
    for (turn, path) in seen.keys().take(ENTRIES).enumerate() {
        let Some((dir, id)) = find(path) else { continue };
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let fresh = format!("fresh{turn}");
        match turn % 9 {
            0 => drop(fs.change(id, &Change { mode: Some(0o600), ..Change::default() })),
            1 => {
                drop(fs.rename((dir, name), (dir, fresh.as_bytes()), RenameFlags::empty(), CALLER))
            }
            2 => drop(fs.link(id, dir, fresh.as_bytes())),
            3 => drop(fs.unlink(dir, name)),
            4 => drop(fs.rmdir(dir, name)),
            5 => drop(fs.create(id, b"made", NewEntry::File, 0o600, CALLER)),
            6 => drop(fs.set_size(id, 3, CALLER)),
            7 => drop(fs.create(dir, name, NewEntry::Directory, 0o700, CALLER)),
            _ => {
                let request =
                    OpenRequest { write: true, truncate: false, execute: false, durable: false };
                if let Ok(opened) = fs.open(id, request, CALLER) {
                    drop(fs.write(id, 1, b"written", Some(CALLER)));
                    fs.close(opened.handle).expect("an open file can be closed");
                }
            }
        }
    }
}
