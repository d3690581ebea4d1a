//! docs/SEMANTICS.md, sentence by sentence: what no other test holds.
//!
//! Every root here is served by the real program, so that a mapping or a blocked request of the
//! test never waits for the test itself. Needs root and /dev/fuse.

// Helpers outside #[test] functions fail their test just as well.
#![allow(clippy::unwrap_used)]

mod attributes;
mod calls;
mod contents;
mod descriptors;
mod memory;
mod nesting;
mod raw;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use support::{MountOptions, Mounted, Scratch, Store, Succeed, require_root};

/// Bytes of the template's big file.
const BIG_BYTES: u64 = 4 << 20;
/// The template's sparse files: a hole, 64 KiB of data from here on, a hole.
const SPARSE_DATA: u64 = 1 << 20;
const SPARSE_BYTES: u64 = 3 << 20;

/// A store with the template `base:1`, and what it was imported from.
struct Desk {
    scratch: Scratch,
    store: Store,
}

impl Desk {
    fn new() -> Self {
        require_root();
        let scratch = Scratch::new("semantics");
        let store = Store::at(&scratch.path().join("store"));
        let tree = scratch.directory("tree");
        for directory in ["usr/lib", "etc", "srv", "tmp"] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        for directory in ["usr/lib", "etc"] {
            let directory = tree.join(directory);
            fs::write(directory.join("text"), "old content\n").unwrap();
            let big: Vec<u8> = (0..BIG_BYTES / 8).flat_map(u64::to_le_bytes).collect();
            fs::write(directory.join("big"), big).unwrap();
            sparse(&directory.join("sparse"));
            for name in ["untouched", "touched"] {
                fs::create_dir(directory.join(name)).unwrap();
                let (fifo, mode) = (directory.join(format!("{name}.fifo")), Mode::RUSR);
                mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
            }
        }
        store.import("base:1", &tree);
        Self { scratch, store }
    }

    /// A root with a private layer, both called `name`.
    fn root(&self, name: &str, passthrough: bool) -> Mounted {
        let private = self.scratch.path().join(format!("{name}.private"));
        self.root_over(name, &private, passthrough)
    }

    fn root_over(&self, name: &str, private: &Path, passthrough: bool) -> Mounted {
        let options = MountOptions::private(private).passthrough(passthrough);
        self.store.mount("base:1", &self.scratch.mountpoint(name), &options)
    }

    /// Where a file of the private layer of the root `name` lies on the host.
    fn upper(&self, name: &str, path: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.private/upper")).join(path)
    }
}

/// A directory of the template and a way to mount it, and how its files are opened then.
#[derive(Clone, Copy, Debug)]
struct Way {
    directory: &'static str,
    passthrough: bool,
    shared: bool,
}

/// Both open modes, each with and without passthrough.
const WAYS: [Way; 4] = [
    Way { directory: "usr/lib", passthrough: true, shared: true },
    Way { directory: "etc", passthrough: true, shared: false },
    Way { directory: "usr/lib", passthrough: false, shared: false },
    Way { directory: "etc", passthrough: false, shared: false },
];

/// Runs `claim` once for every way; `name` in the template's directory is what it is about.
fn every_way(name: &str, claim: impl Fn(&Path, Way)) {
    let desk = Desk::new();
    for (number, way) in WAYS.into_iter().enumerate() {
        let root = desk.root(&format!("way{number}"), way.passthrough);
        claim(&root.path().join(way.directory).join(name), way);
    }
}

/// Makes the sparse file that every template has.
fn sparse(path: &Path) {
    let file = File::create_new(path).unwrap();
    file.write_all_at(&[7; 65536], SPARSE_DATA).unwrap();
    file.set_len(SPARSE_BYTES).unwrap();
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Runs a shell script in `directory` and returns all it said; every command must succeed.
fn shell(directory: &Path, script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(directory).stdin(Stdio::null());
    let output = command.capture();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n--- stdout\n{told}--- stderr\n{errors}");
    told
}

/// Asserts that `script` says the same in a root, in every way to open, as in a directory of the
/// host (ext4 where the tests run).
fn same_as_host(script: &str) {
    let desk = Desk::new();
    let host = desk.scratch.path().join("tree");
    for directory in ["usr/lib", "etc"] {
        let expected = shell(&host.join(directory), script);
        for way in WAYS.into_iter().filter(|way| way.directory == directory) {
            let name = format!("{}-{}", directory.replace('/', "-"), way.passthrough);
            let root = desk.root(&name, way.passthrough);
            assert_eq!(shell(&root.path().join(directory), script), expected, "{way:?}");
        }
    }
}
