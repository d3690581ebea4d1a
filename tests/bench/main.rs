//! `mica bench`: that it measures everything it names, counts right, refuses what would not do
//! and leaves nothing behind. How large the figures are is looked at nowhere.
//!
//! Needs root and /dev/fuse.

#![allow(clippy::unwrap_used)]

mod counts;
mod ends;
mod everything;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use support::{Scratch, Store, Succeed, again_until};

/// What the shells of a run do.
pub(crate) const SHELL: &str = "ls -l /usr/bin /etc >/dev/null; echo ready; \
                                while read -r line; do :; done";

/// Lets tests run one after the other: the mount namespace of a run holds copies of all mounts,
/// also of the disk that another test wants to unmount.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed has removed what it made.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A template that is small and can run a shell.
fn template(scratch: &Scratch) -> Store {
    let tree = scratch.directory("tree");
    support::library::run(
        &tree,
        "mkdir -p usr/bin usr/share/doc etc tmp var/log dev
         for program in sh ls; do
             cp -L \"$(command -v $program)\" usr/bin/$program
             for file in $(ldd usr/bin/$program | grep -o '/[^ ]*'); do
                 mkdir -p .$(dirname $file); cp -L $file .$file
             done
         done
         ln -s usr/bin bin
         mknod -m 666 dev/null c 1 3
         seq 200 | split -a 3 -d -l 1 - usr/share/doc/text-
         cp usr/share/doc/text-001 usr/share/doc/twin",
    );
    let store = Store::at(&scratch.path().join("store"));
    store.import("small:1", &tree);
    store
}

/// `mica bench` with everything in `dir`.
fn bench(store: &Store, dir: &Path, arguments: &[&str]) -> Command {
    let mut command = store.mica(["bench"]);
    command.args(arguments).arg("--dir").arg(dir);
    command
}

/// Nothing of a run is there any more.
fn assert_nothing_left(dir: &Path) {
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = dir.to_string_lossy();
    assert!(!mounts.contains(&*dir), "{mounts}");
    // Runs in other namespaces, whose processes are not seen here, have some as long as they live.
    again_until("cgroups of a dead run are left", || {
        let mut find = Command::new("find");
        let cgroups = find.args(["/sys/fs/cgroup", "-name", "mica-bench-*"]).capture();
        // Others make and remove cgroups meanwhile, which find complains of.
        let cgroups = String::from_utf8(cgroups.stdout).unwrap();
        let runs = cgroups.lines().filter_map(|path| path.rsplit_once("mica-bench-"));
        runs.map(|(_, pid)| Path::new("/proc").join(pid)).all(|process| process.exists())
    });
    let loops = Command::new("losetup").args(["--list", "--noheadings"]).succeed();
    assert!(!loops.contains(&*dir), "{loops}");
}
