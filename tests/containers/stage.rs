//! A store with one template, and roots made from it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{
    MountOptions, Mounted, Scratch, Snapshot, Store, Succeed, require_root, snapshot,
};

/// What every template of these tests holds: each type, links, attributes, holes, odd names.
const TEMPLATE: &str = r#"
mkdir -p bin etc/conf.d srv/data/deep/er srv/empty usr/share/doc/a usr/share/doc/b var/log
printf '#!/bin/sh\necho tool\n' >bin/tool; chmod 4755 bin/tool
for n in 1 2 3 4 5 6 7 8 9; do echo "line $n"; done >etc/conf
echo a >etc/conf.d/a; echo b >etc/conf.d/b; echo c >etc/conf.d/c
: >etc/empty
ln -s conf etc/link
echo linked >srv/one; ln srv/one srv/two; ln srv/one etc/three
echo deep >srv/data/deep/file; echo deeper >srv/data/deep/er/file
echo x >usr/share/doc/a/x; echo y >usr/share/doc/a/y; echo z >usr/share/doc/b/z
truncate -s 1M var/log/sparse; printf end >>var/log/sparse
mkfifo var/fifo; mknod var/device c 1 3
echo owned >etc/owned; chown 7:8 etc/owned; setfattr -n user.key -v value etc/owned
setfacl -m u:9:r etc/conf.d/a
printf 'odd\n' >"etc/odd $(printf '\001\377') name"
find . -exec touch -h -d @1000000000.000000007 {} +
"#;

/// A store, its template `base`, and where roots are put.
pub(crate) struct Stage {
    pub(crate) scratch: Scratch,
    pub(crate) store: Store,
    /// Where the store and the private directories are.
    home: PathBuf,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Self {
        require_root();
        let scratch = Scratch::new(name);
        let home = scratch.path().to_owned();
        Self::at(scratch, home)
    }

    /// With the store and the private directories in `home`.
    pub(crate) fn at(scratch: Scratch, home: PathBuf) -> Self {
        require_root();
        let source = scratch.directory("source");
        script(&source, TEMPLATE);
        let store = Store::at(&home.join("store"));
        store.import("base", &source);
        Self { scratch, store, home }
    }

    pub(crate) fn private(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Mounts the root `name` of `base`.
    pub(crate) fn mount(&self, name: &str) -> Mounted {
        let options = MountOptions::private(&self.private(name));
        self.store.mount("base", &self.scratch.mountpoint(name), &options)
    }

    /// What the read-only root of `template` shows.
    pub(crate) fn shown(&self, template: &str) -> Snapshot {
        let at = self.scratch.mountpoint("shown");
        let mounted = self.store.mount(template, &at, &MountOptions::read_only());
        let shown = snapshot(&at);
        mounted.unmount();
        shown
    }

    /// `mica` with `arguments`, and its answer in JSON.
    pub(crate) fn json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Value {
        serde_json::from_str(&self.store.mica(arguments).arg("--json").answer()).unwrap()
    }
}

/// Runs a shell script in `dir`; every command must succeed.
pub(crate) fn script(dir: &Path, script: &str) -> String {
    let mut shell = Command::new("bash")
        .args(["-eu", "-o", "pipefail"])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .start();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    assert!(output.status.success(), "script failed in {dir:?}: {script}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
