//! Any bytes as a sequence of operations on a root that is not mounted: never a panic, every
//! listed name can be looked up, link counts are those of the names, and the root looks the same
//! after it was closed and opened again.

use std::collections::BTreeMap;
use std::sync::Arc;

use mica::fs::{Caller, FileSystem, Handle, OpenRequest};
use mica::layer::FileKind;
use mica::object::Digest;
use mica::union::{Change, NewEntry, NodeId};
use rustix::fs::{FallocateFlags, RenameFlags, XattrFlags};

use crate::unmounted::{Bytes, fixture, fresh_directory, open};

/// Names that operations choose from: some of the template, some not.
const NAMES: [&[u8]; 5] = [b"usr", b"tool", b"one", b"deep", b"new"];
/// Operations of one run, and numbers remembered for later ones.
const STEPS: usize = 400;
const KNOWN: usize = 16;
const ROOT_CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };

struct Run<'a> {
    fs: Arc<FileSystem>,
    input: Bytes<'a>,
    known: Vec<NodeId>,
    handles: Vec<(NodeId, Handle)>,
}

/// Runs `bytes` as operations.
pub(crate) fn run(bytes: &[u8]) {
    let fixture = fixture();
    let private = fresh_directory("private");
    let before = {
        let mut run = Run {
            fs: open(fixture, &private).expect("a root"),
            input: Bytes(bytes),
            known: vec![NodeId::ROOT],
            handles: Vec::new(),
        };
        for _ in 0..STEPS {
            if run.input.0.is_empty() {
                break;
            }
            run.step();
        }
        for (_, handle) in run.handles.drain(..) {
            run.fs.close(handle).expect("an open file can be closed");
        }
        describe(&run.fs)
    };
    let after = describe(&open(fixture, &private).expect("a root"));
    for (path, row) in &before {
        assert_eq!(Some(row), after.get(path), "{path} changed by being closed");
    }
    assert_eq!(before.len(), after.len(), "a name appeared by closing");
    std::fs::remove_dir_all(&private).expect("the private directory can be removed");
}

impl Run<'_> {
    fn node(&mut self) -> NodeId {
        let at = self.input.below(self.known.len());
        self.known[at]
    }

    fn name(&mut self) -> &'static [u8] {
        NAMES[self.input.below(NAMES.len())]
    }

    fn learn(&mut self, id: NodeId) {
        if self.known.len() < KNOWN {
            self.known.push(id);
        } else {
            let at = 1 + self.input.below(KNOWN - 1);
            self.known[at] = id;
        }
    }

    /// One operation. Refusals are as good as results: only panics and lies are failures.
    fn step(&mut self) {
        let (dir, name) = (self.node(), self.name());
        let fs = Arc::clone(&self.fs);
        match self.input.byte() % 24 {
            0..=3 => {
                if let Ok(Some(found)) = fs.lookup(dir, name) {
                    self.learn(found.id);
                }
            }
            4 => drop(fs.create(dir, name, NewEntry::File, 0o644, ROOT_CALLER)),
            5 | 19 => drop(fs.create(dir, name, NewEntry::Directory, 0o2755, ROOT_CALLER)),
            6 => drop(fs.create(dir, name, NewEntry::CharDevice(0), 0o600, ROOT_CALLER)),
            7 => drop(fs.create(dir, name, NewEntry::Symlink(b"tool"), 0o777, ROOT_CALLER)),
            8 | 20 => drop(fs.unlink(dir, name)),
            9 | 21 => drop(fs.rmdir(dir, name)),
            10 | 11 | 22 => {
                let (to, new_name) = (self.node(), self.name());
                let flags = [
                    RenameFlags::empty(),
                    RenameFlags::NOREPLACE,
                    RenameFlags::EXCHANGE,
                    RenameFlags::WHITEOUT,
                ][self.input.below(4)];
                // The kernel never asks to move a directory below itself; it checks first.
                if self.may_move(dir, name, to) && self.may_move(to, new_name, dir) {
                    drop(fs.rename((dir, name), (to, new_name), flags, ROOT_CALLER));
                }
            }
            12 => {
                let id = self.node();
                drop(fs.link(id, dir, name));
            }
            13 => {
                let change = Change { mode: Some(0o6711), uid: Some(7), ..Change::default() };
                drop(fs.change(dir, &change));
            }
            14 => {
                let flags = XattrFlags::empty();
                let name: &[u8] =
                    [b"user.x".as_slice(), b"trusted.mica.origin", b"trusted.overlay.opaque"]
                        [self.input.below(3)];
                drop(fs.set_xattr(dir, name, b"y", flags, ROOT_CALLER));
                drop(fs.remove_xattr(dir, b"user.x"));
            }
            15 | 16 => {
                let write = self.input.byte().is_multiple_of(2);
                let truncate = self.input.byte().is_multiple_of(4);
                let request = OpenRequest { write, truncate, execute: false, durable: false };
                if let Ok(opened) = fs.open(dir, request, ROOT_CALLER) {
                    self.handles.push((dir, opened.handle));
                }
            }
            17 => {
                let at = u64::from(self.input.byte());
                if let Some((id, _)) = self.handles.last() {
                    drop(fs.write(*id, at, b"written", Some(ROOT_CALLER)));
                    drop(fs.allocate(*id, FallocateFlags::empty(), at, 100));
                    drop(fs.read(*id, at, 64));
                }
            }
            18 => drop(fs.set_size(dir, u64::from(self.input.byte()), ROOT_CALLER)),
            _ => {
                if !self.handles.is_empty() {
                    let at = self.input.below(self.handles.len());
                    let (_, handle) = self.handles.swap_remove(at);
                    fs.close(handle).expect("an open file can be closed");
                }
            }
        }
    }

    /// False if `name` in `dir` is a directory that `to` is, or lies in.
    fn may_move(&self, dir: NodeId, name: &[u8], to: NodeId) -> bool {
        let Ok(Some(moved)) = self.fs.lookup(dir, name) else { return true };
        if moved.kind != FileKind::Directory {
            return true;
        }
        let mut at = to;
        for _ in 0..STEPS {
            if at == moved.id {
                return false;
            }
            match self.fs.lookup(at, b"..") {
                Ok(Some(parent)) if parent.id != at => at = parent.id,
                Ok(_) | Err(_) => return true,
            }
        }
        false
    }
}

/// What a visitor sees by path: kind, mode, links, owner, size, and the digest of the bytes.
type Seen = BTreeMap<String, (FileKind, u32, u32, u32, u64, Digest)>;

fn describe(fs: &FileSystem) -> Seen {
    let mut seen = Seen::new();
    let mut names_of: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
    let mut todo = vec![(NodeId::ROOT, Vec::new())];
    while let Some((dir, path)) = todo.pop() {
        let mut names = Vec::new();
        fs.list(dir, 0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                names.push((entry.name.to_vec(), entry.attributes.ino));
            }
            false
        })
        .expect("a directory can be listed");
        for (name, ino) in names {
            let found = fs.lookup(dir, &name).expect("lookup").expect("a listed name is there");
            assert_eq!(found.ino, ino, "listing and lookup name the same inode");
            let path = [path.as_slice(), b"/", &name].concat();
            let mut bytes = Vec::new();
            match found.kind {
                FileKind::Directory => todo.push((found.id, path.clone())),
                FileKind::Regular => bytes = fs.read(found.id, 0, 4096).expect("read"),
                FileKind::Symlink => bytes = fs.symlink_target(found.id).expect("target"),
                FileKind::Fifo | FileKind::Socket => {}
                FileKind::CharDevice | FileKind::BlockDevice => {}
            }
            if found.kind != FileKind::Directory {
                let names = names_of.entry(found.ino).or_insert((0, found.nlink));
                names.0 += 1;
            }
            let digest = Digest::of(&bytes);
            let row = (found.kind, found.mode, found.nlink, found.uid, found.size, digest);
            let path = String::from_utf8_lossy(&path).into_owned();
            assert!(seen.insert(path, row).is_none(), "a name is listed once");
        }
        assert!(seen.len() < 100_000, "the tree has no end");
    }
    for (ino, (names, nlink)) in names_of {
        assert_eq!(names, nlink, "inode {ino} has as many links as names");
    }
    seen
}
