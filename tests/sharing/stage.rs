//! A store with one template, and roots of it that change in the same way.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{MountOptions, Mounted, Scratch, Store, Succeed, library, require_root};

pub(crate) struct Stage {
    pub(crate) store: Store,
    pub(crate) scratch: Scratch,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Self {
        Self::on(Scratch::new(name), "")
    }

    /// With the store in `directory` of the scratch directory.
    pub(crate) fn on(scratch: Scratch, directory: &str) -> Self {
        require_root();
        let source = scratch.directory("source");
        library::run(
            &source,
            "mkdir -p usr/bin usr/lib etc srv var/lib
             head -c 300000 /dev/urandom > usr/lib/old.so
             head -c 300000 /dev/urandom > usr/lib/data
             head -c 50000 /dev/urandom > etc/table
             head -c 9000 /dev/urandom > usr/lib/one; ln usr/lib/one usr/lib/two
             cp /usr/bin/cat usr/bin/cat",
        );
        let store = Store::at(&scratch.path().join(directory).join("store"));
        store.import("base", &source);
        Self { store, scratch }
    }

    pub(crate) fn private(&self, name: &str) -> PathBuf {
        self.store.path().parent().unwrap().join("private").join(name)
    }

    pub(crate) fn mount(&self, name: &str) -> Mounted {
        self.mount_with(name, |options| options)
    }

    pub(crate) fn mount_with(
        &self,
        name: &str,
        with: impl FnOnce(MountOptions) -> MountOptions,
    ) -> Mounted {
        let options = with(MountOptions::private(&self.private(name)));
        self.store.mount("base", &self.scratch.mountpoint(name), &options)
    }

    /// `mica store reshare` with these arguments, which must succeed; its answer.
    pub(crate) fn reshare(&self, arguments: &[&str]) -> Value {
        let mut command = self.store.mica(["store", "reshare", "--json"]);
        serde_json::from_str(&command.args(arguments).succeed()).unwrap()
    }

    /// What the private layer of a root has at `path` of the root.
    pub(crate) fn upper(&self, name: &str, path: &str) -> PathBuf {
        self.private(name).join("upper").join(path)
    }

    /// Whether `path` of a root is a reference to an object.
    pub(crate) fn is_reference(&self, name: &str, path: &str) -> bool {
        let mut getfattr = Command::new("getfattr");
        getfattr.args(["--absolute-names", "-h", "-n", "trusted.mica.object"]);
        getfattr.arg(self.upper(name, path)).capture().status.success()
    }

    /// Fails unless the store is whole and a collection takes nothing that is needed.
    pub(crate) fn check(&self) {
        self.store.mica(["store", "check", "--rehash"]).succeed();
    }
}

/// All that stat(2) and the extended attributes tell of a file, but for its time of change, its
/// blocks and its device.
pub(crate) fn told(path: &Path) -> String {
    let found = fs::symlink_metadata(path).unwrap();
    let attributes = Command::new("getfattr")
        .args(["--absolute-names", "-h", "-d", "-m", "-", "-e", "hex"])
        .arg(path)
        .succeed();
    format!(
        "{} {:o} {}:{} {} links {} at {}.{}\n{attributes}",
        found.ino(),
        found.mode(),
        found.uid(),
        found.gid(),
        found.size(),
        found.nlink(),
        found.mtime(),
        found.mtime_nsec()
    )
}

/// The same pseudo-random bytes at every call.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// How much a test does: `MICA_TEST_COUNTS` is quick, ci or long.
pub(crate) fn by_counts<T>(quick: T, ci: T, long: T) -> T {
    match std::env::var("MICA_TEST_COUNTS").as_deref() {
        Ok("ci") => ci,
        Ok("long") => long,
        Ok(_) | Err(_) => quick,
    }
}
