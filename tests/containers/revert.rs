//! `mica revert`: what a container changed goes, and who has files open keeps them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};

use serde_json::Value;

use crate::stage::{Stage, script};
use crate::support::{MountOptions, Snapshot, Succeed, assert_same, snapshot};

/// All kinds of changes, but to files with several names.
const CHANGES: &str = r#"
echo changed >etc/conf; echo more >>etc/conf.d/b; : >srv/data/deep/file
echo replaced >etc/new.tmp; mv etc/new.tmp etc/empty
chmod 700 etc/owned; chown 5:6 usr/share/doc/b; setfattr -n user.other -v 1 etc/conf.d/c
setfacl -m g:3:rwx usr/share/doc/b; chmod 711 etc/conf.d
mkdir -p new/dir; echo n >new/dir/file; ln -s ../x new/link; mkfifo new/fifo
mknod new/null c 0 0; ln new/dir/file new/hard
rm "etc/odd $(printf '\001\377') name"; rm -r usr/share/doc/a
mv bin/tool bin/renamed; mv srv/data srv/moved; echo inside >srv/moved/deep/inside
rm etc/link; mkdir etc/link; echo in >etc/link/in
rm var/fifo; echo file >var/fifo; rm var/device; mknod var/device c 1 5
rm -r var/log; mkdir var/log; echo fresh >var/log/fresh
"#;

/// Numbers of links apart, and the time of the root, which nothing names.
fn comparable(mut tree: Snapshot) -> Snapshot {
    for described in tree.values_mut() {
        described.nlink = 0;
    }
    tree
}

fn is_template(stage: &Stage, shown: Snapshot) {
    let changes = stage.json(["diff", "ct"]);
    assert_eq!(changes["changes"], Value::Array(Vec::new()), "{changes:#}");
    assert_same(&comparable(shown), &comparable(stage.shown("base")));
}

#[test]
fn a_mounted_root_is_the_template_again_at_once() {
    let stage = Stage::new("revert");
    let root = stage.mount("ct");
    script(root.path(), CHANGES);
    let before = snapshot(root.path());
    let planned = stage.json(["revert", "ct", "/", "--dry-run"]);
    assert_same(&snapshot(root.path()), &before);
    let done = stage.json(["revert", "ct", "/"]);
    assert_eq!(done["reverted"], planned["reverted"]);
    is_template(&stage, snapshot(root.path()));
    // It goes on working, and what comes after is kept.
    script(
        root.path(),
        "echo again >>etc/conf; echo again >usr/share/doc/a/x; echo d >>srv/data/deep/file
         echo l >>var/log/sparse; rm -r usr/share/doc/b; mv srv/data srv/other; chmod 1777 var/log",
    );
    let after = snapshot(root.path());
    root.unmount();
    let at = stage.scratch.mountpoint("ct");
    let options = MountOptions::private(&stage.private("ct"));
    let again = stage.store.mount("base", &at, &options);
    assert_same(&snapshot(again.path()), &after);
    stage.store.mica(["revert", "ct", "/"]).succeed();
    is_template(&stage, snapshot(again.path()));
}

#[test]
fn a_root_at_rest_is_the_template_again() {
    let stage = Stage::new("revertrest");
    let root = stage.mount("ct");
    script(root.path(), CHANGES);
    root.unmount();
    stage.store.mica(["revert", "ct", "/etc"]).succeed();
    // Twice is as good as once.
    let told = stage.store.mica(["revert", "ct", "/etc"]).capture();
    assert!(told.status.success());
    assert!(String::from_utf8_lossy(&told.stderr).contains("/etc is the template's already"));
    stage.store.mica(["revert", "ct", "/"]).succeed();
    let root = stage.mount("ct");
    is_template(&stage, snapshot(root.path()));
}

#[test]
fn who_has_a_file_open_keeps_it_and_everybody_else_sees_the_templates() {
    let stage = Stage::new("revertopen");
    let root = stage.mount("ct");
    // One opened through the root's own pages, one passed through.
    for path in ["etc/conf", "usr/share/doc/a/x"] {
        let at = root.path().join(path);
        let original = fs::read(&at).unwrap();
        fs::write(&at, b"private\n").unwrap();
        let mut reader = File::open(&at).unwrap();
        let mut writer = OpenOptions::new().append(true).open(&at).unwrap();
        stage.store.mica(["revert", "ct", path]).succeed();
        assert_eq!(fs::read(&at).unwrap(), original, "{path}");
        writer.write_all(b"still mine\n").unwrap();
        let mut kept = String::new();
        reader.rewind().unwrap();
        reader.read_to_string(&mut kept).unwrap();
        assert_eq!(kept, "private\nstill mine\n", "{path}");
        assert_eq!(fs::read(&at).unwrap(), original, "{path}");
        fs::write(&at, b"anew\n").unwrap();
        assert_eq!(fs::read(&at).unwrap(), b"anew\n");
        let mut kept = String::new();
        reader.rewind().unwrap();
        reader.read_to_string(&mut kept).unwrap();
        assert_eq!(kept, "private\nstill mine\n", "{path}");
    }
    // A removed file that is still open, and its name again.
    let at = root.path().join("etc/owned");
    let mut open = OpenOptions::new().read(true).append(true).open(&at).unwrap();
    open.write_all(b"mine\n").unwrap();
    fs::remove_file(&at).unwrap();
    stage.store.mica(["revert", "ct", "etc/owned"]).succeed();
    assert_eq!(fs::read(&at).unwrap(), b"owned\n");
    let mut kept = String::new();
    open.rewind().unwrap();
    open.read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "owned\nmine\n");
}

#[test]
fn half_a_move_and_single_hard_links_are_refused_by_name() {
    let stage = Stage::new("revertrefused");
    let root = stage.mount("ct");
    script(
        root.path(),
        "mv srv/data srv/moved; echo w >>srv/one; rm -r usr/share/doc; echo k >etc/k",
    );
    let before = snapshot(root.path());
    for (paths, told) in [
        (vec!["/srv/moved"], "/srv/moved was moved from /srv/data; name both, or neither"),
        (vec!["/srv/data"], "/srv/moved was moved from /srv/data"),
        (vec!["/srv/one"], "/srv/one is one of 3 names"),
        (vec!["/usr/share/doc/a/x"], "revert /usr/share/doc"),
        (vec!["/nothing"], "has no /nothing"),
    ] {
        let mut revert = stage.store.mica(["revert", "ct"]);
        let refused = revert.args(&paths).refuse();
        assert!(refused.contains(told), "{refused}");
    }
    assert_same(&snapshot(root.path()), &before);
    stage.store.mica(["revert", "ct", "/srv/data", "/srv/moved", "/etc/k"]).succeed();
    assert!(!root.path().join("srv/moved").exists() && !root.path().join("etc/k").exists());
    let shown = script(root.path(), "find srv");
    assert!(shown.contains("srv/data/deep/er/file"), "{shown}");
    assert_eq!(fs::read(root.path().join("srv/data/deep/file")).unwrap(), b"deep\n");
}
