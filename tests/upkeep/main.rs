//! What keeps a store healthy: scrub and collection, on real disks and beside running containers.
//!
//! Needs root and /dev/fuse.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod scrub;
mod together;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mica::object::ObjectId;
use support::{MountOptions, Mounted, Scratch, Store, Succeed, require_root};

/// A store with one template `base:1`: /usr/lib/a, /usr/lib/b and /etc/c, a few hundred KiB each.
struct Desk {
    scratch: Scratch,
    store: Store,
    tree: PathBuf,
}

impl Desk {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let store = scratch.path().join("store");
        Self::with_store(scratch, &store)
    }

    fn with_store(scratch: Scratch, store: &Path) -> Self {
        require_root();
        let store = Store::at(store);
        let tree = scratch.directory("tree");
        for (path, seed) in [("usr/lib/a", 1), ("usr/lib/b", 2), ("etc/c", 3)] {
            fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
            fs::write(tree.join(path), content(seed)).unwrap();
        }
        store.import("base:1", &tree);
        Self { scratch, store, tree }
    }

    fn root(&self, name: &str) -> Mounted {
        let private = self.scratch.path().join(format!("{name}.private"));
        let options = MountOptions::private(&private);
        self.store.mount("base:1", &self.scratch.mountpoint(name), &options)
    }

    fn object(&self, seed: u64) -> PathBuf {
        let hex = ObjectId::of(&content(seed)).to_string();
        self.store.path().join("objects").join(&hex[..2]).join(&hex[2..])
    }

    /// Changes a byte of an object behind everybody's back.
    fn flip(&self, seed: u64) {
        let path = self.object(seed);
        Command::new("chattr").arg("-i").arg(&path).succeed();
        let mut bytes = fs::read(&path).unwrap();
        bytes[777] ^= 1;
        fs::write(&path, bytes).unwrap();
    }

    /// The status and the answer of `mica store scrub --json`.
    fn scrub(&self, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
        let mut command = self.store.mica(["store", "scrub", "--json"]);
        let output = command.args(arguments).capture();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
        });
        (output.status.code(), answer)
    }
}

fn content(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 300_000 + usize::try_from(seed).unwrap()];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}
