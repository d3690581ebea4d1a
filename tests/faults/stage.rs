//! What most faults happen to: a store with one template, and roots of it.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use mica::object::ObjectId;

use crate::support::{MountOptions, Mounted, Scratch, Store, Succeed, require_root};

/// Length of `srv/large`, in bytes: more than is ever held in memory at once.
pub(crate) const LARGE_BYTES: usize = 5 << 20;

/// A scratch directory with a store in it that holds the template `base`.
pub(crate) struct Stage {
    pub(crate) store: Store,
    pub(crate) scratch: Scratch,
}

impl Stage {
    /// A scratch directory without a store.
    pub(crate) fn empty(name: &str) -> Scratch {
        require_root();
        Scratch::new(name)
    }

    pub(crate) fn new(name: &str) -> Self {
        let scratch = Self::empty(name);
        let store = Store::at(&scratch.path().join("store"));
        let source = scratch.directory("source");
        fill(&source);
        store.import("base", &source);
        Self { store, scratch }
    }

    /// `mica` on this store.
    pub(crate) fn mica<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        self.store.mica(arguments)
    }

    /// The private directory of the root `name`.
    pub(crate) fn private(&self, name: &str) -> PathBuf {
        self.scratch.path().join("private").join(name)
    }

    /// Mounts a root of `base` with a private layer of its own.
    pub(crate) fn mount(&self, name: &str) -> Mounted {
        let options = MountOptions::private(&self.private(name));
        self.store.mount("base", &self.scratch.mountpoint(name), &options)
    }

    /// The command that [`Stage::mount`] runs, to be added to.
    pub(crate) fn mount_command(&self, name: &str) -> Command {
        let options = MountOptions::private(&self.private(name));
        self.store.mount_command("base", &self.scratch.mountpoint(name), &options)
    }

    /// What the registry knows of the root `name`.
    pub(crate) fn record(&self, name: &str) -> serde_json::Value {
        let listed = self.mica(["mount", "--json"]).succeed();
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
        let found = listed.iter().find(|record| record["name"] == name);
        found.unwrap_or_else(|| panic!("no root {name} in {listed:?}")).clone()
    }

    /// Names of all roots in the registry.
    pub(crate) fn roots(&self) -> Vec<String> {
        let listed = self.mica(["mount", "--json"]).succeed();
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
        listed.iter().map(|record| record["name"].as_str().unwrap().to_owned()).collect()
    }

    /// What the mount process of the root `name` logged.
    pub(crate) fn log(&self, name: &str) -> String {
        let id = self.record(name)["id"].as_str().unwrap().to_owned();
        fs::read_to_string(self.store.path().join("roots").join(format!("{id}.log"))).unwrap()
    }

    /// The file of the object that holds `content`.
    pub(crate) fn object(&self, content: &[u8]) -> PathBuf {
        let id = ObjectId::of(content).to_string();
        self.store.path().join("objects").join(&id[..2]).join(&id[2..])
    }

    /// Fails unless every object in the store hashes to its name and nothing named is missing.
    pub(crate) fn check(&self) {
        self.mica(["store", "check", "--rehash"]).succeed();
    }
}

/// Content of `srv/large`, the same at every call and nowhere zero for a whole block.
pub(crate) fn large() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = vec![0; LARGE_BYTES];
    random.fill(&mut bytes);
    bytes
}

/// The small working tree that `base` is made from.
pub(crate) fn fill(source: &Path) {
    for directory in ["usr/bin", "etc", "srv/deep/er", "srv/empty"] {
        fs::create_dir_all(source.join(directory)).unwrap();
    }
    let write = |path: &str, bytes: &[u8]| fs::write(source.join(path), bytes).unwrap();
    write("usr/bin/tool", b"#!/bin/sh\necho tool\n");
    write("usr/bin/other", b"#!/bin/sh\necho other\n");
    for program in ["usr/bin/tool", "usr/bin/other"] {
        fs::set_permissions(source.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    write("etc/conf", b"key=value\n");
    write("etc/fine", b"fine\n");
    write("srv/one", b"linked\n");
    fs::hard_link(source.join("srv/one"), source.join("etc/two")).unwrap();
    write("srv/deep/file", b"deep\n");
    write("srv/deep/er/file", b"deeper\n");
    write("srv/large", &large());
    symlink("conf", source.join("etc/link")).unwrap();
}

/// Runs a command that has to be refused with one sentence that has all of `words` in it.
pub(crate) fn refused(command: &mut Command, words: &[&str]) -> String {
    let said = command.refuse();
    let line = said.trim_end();
    assert!(line.starts_with("mica: "), "{command:?} said {said:?}");
    assert!(!line.contains('\n'), "more than one line of {command:?}: {said}");
    assert!(!line.contains("os error"), "{said}");
    for word in words {
        assert!(line.contains(word), "no {word:?} in what {command:?} said: {said}");
    }
    line.to_owned()
}

/// A small tree's names, types, modes, owners, times, sizes and content, one line each.
///
/// Directories are shown without their size: every file system counts that in its own way.
pub(crate) fn picture(top: &Path) -> String {
    let script = "find . -type d -printf '%p %y %#m %U:%G - %n %T@ \\n' -o \
                  -type f -printf '%p %y %#m %U:%G %s %n %T@ ' -exec sha256sum {} \\; -o \
                  -printf '%p %y %#m %U:%G %s %n %T@ %l \\n' | LC_ALL=C sort";
    Command::new("sh").arg("-ec").arg(script).current_dir(top).succeed()
}

/// The errno of a failed system call.
pub(crate) fn errno<T: std::fmt::Debug>(done: std::io::Result<T>) -> i32 {
    done.unwrap_err().raw_os_error().unwrap()
}

/// Changes one byte of `path` at `offset`, whatever flags and mode it has.
pub(crate) fn flip(path: &Path, offset: u64) {
    loosen(path);
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x5a], offset).unwrap();
}

/// Takes the immutable flag away, where the file system has one.
pub(crate) fn loosen(path: &Path) {
    Command::new("chattr").arg("-i").arg(path).capture();
}
