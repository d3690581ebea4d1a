//! Two templates of this host's own files that overlap, and roots of them with changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{MountOptions, Mounted, Scratch, Store, Succeed, library, require_root};

pub(crate) struct Stage {
    pub(crate) scratch: Scratch,
    pub(crate) store: Store,
}

impl Stage {
    /// Templates `debian:1` and `debian:2`, in a store in `directory` of the scratch directory.
    pub(crate) fn new(name: &str) -> Self {
        Self::in_directory(Scratch::new(name), "")
    }

    pub(crate) fn in_directory(scratch: Scratch, directory: &str) -> Self {
        require_root();
        let source = scratch.directory("source");
        library::run(
            &source,
            "mkdir -p usr/bin usr/lib srv/data var/lib
             cp -a /etc etc
             cp -a /usr/bin/bash /usr/bin/ls /usr/bin/cat /usr/bin/sort usr/bin/
             ln usr/bin/ls usr/bin/dir
             ln -s bash usr/bin/sh
             cp -a /var/lib/dpkg var/lib/dpkg
             head -c 3000000 /dev/urandom > usr/lib/libone.so.1
             head -c 2000000 /dev/urandom > srv/data/table
             head -c 100000 /dev/urandom > srv/data/log
             cp srv/data/log srv/data/log.1
             truncate -s 5M srv/data/hole
             echo tail >> srv/data/hole",
        );
        let store = Store::at(&scratch.path().join(directory).join("store"));
        store.import("debian:1", &source);
        library::run(
            &source,
            "head -c 1000000 /dev/urandom > usr/lib/libtwo.so.2
             head -c 3000000 /dev/urandom > usr/lib/libone.so.1
             rm -r srv/data/log",
        );
        store.import("debian:2", &source);
        Self { scratch, store }
    }

    pub(crate) fn private(&self, name: &str) -> PathBuf {
        self.scratch.path().join("private").join(name)
    }

    pub(crate) fn mount(&self, template: &str, name: &str) -> Mounted {
        self.mount_with(template, name, |options| options)
    }

    pub(crate) fn mount_with(
        &self,
        template: &str,
        name: &str,
        options: impl FnOnce(MountOptions) -> MountOptions,
    ) -> Mounted {
        fs::create_dir_all(self.private("")).unwrap();
        let options = options(MountOptions::private(&self.private(name)));
        self.store.mount(template, &self.scratch.mountpoint(name), &options)
    }

    /// `mica store df --json`, of what lies on the disk: a file that is written back later may then
    /// take another block, of its map.
    pub(crate) fn df(&self) -> Value {
        for place in [self.store.path(), self.scratch.path()] {
            rustix::fs::syncfs(fs::File::open(place).unwrap()).unwrap();
        }
        serde_json::from_str(&self.store.mica(["store", "df", "--json"]).succeed()).unwrap()
    }
}

/// What a container changes: every kind of change that df has to see through.
pub(crate) fn change(root: &Path) {
    library::run(
        root,
        "echo changed >> etc/passwd
         chmod 600 srv/data/table
         rm usr/bin/sort
         rm -r var/lib/dpkg/info
         mv srv srv.moved
         mkdir srv && echo new > srv/new && ln srv/new srv/again
         rm usr/bin/dir
         head -c 700000 /dev/urandom > srv/blob
         truncate -s 1M srv/hole
         rm -r etc/init.d && mkdir etc/init.d && echo x > etc/init.d/x
         mv srv.moved/data/hole etc/hole",
    );
}

/// The member of the list `of` whose `key` is `name`.
pub(crate) fn one<'a>(usage: &'a Value, of: &str, key: &str, name: &str) -> &'a Value {
    let list = usage[of].as_array().unwrap();
    list.iter().find(|one| one[key] == name).unwrap_or_else(|| panic!("no {name}: {usage:#}"))
}

pub(crate) fn template<'a>(usage: &'a Value, name: &str) -> &'a Value {
    one(usage, "templates", "template", name)
}

pub(crate) fn root<'a>(usage: &'a Value, name: &str) -> &'a Value {
    one(usage, "roots", "root", name)
}

pub(crate) fn bytes(value: &Value, member: &str) -> u64 {
    value[member].as_u64().unwrap_or_else(|| panic!("no {member}: {value:#}"))
}

/// What du(1) counts.
pub(crate) fn du(path: &Path) -> u64 {
    let told = Command::new("du").args(["-s", "-x", "-B1"]).arg(path).succeed();
    told.split_whitespace().next().unwrap().parse().unwrap()
}

/// What find(1) says that the regular files add up to, each inode once.
pub(crate) fn apparent(path: &Path) -> u64 {
    let told = Command::new("find")
        .arg(path)
        .args(["-xdev", "-type", "f", "-printf", "%i %s\\n"])
        .succeed();
    let mut files: Vec<&str> = told.lines().collect();
    files.sort_unstable();
    files.dedup();
    files.iter().map(|line| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap()).sum()
}
