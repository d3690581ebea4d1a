//! `mica revert`: what a container changed goes, and who has files open keeps them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use crate::stage::{Stage, script};
use crate::support::{MountOptions, Snapshot, Succeed, assert_same, snapshot};

/// All kinds of changes.
pub(crate) const CHANGES: &str = r#"
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
echo w >>srv/one; ln srv/two srv/four; rm etc/three
"#;

fn is_template(stage: &Stage, shown: Snapshot) {
    let changes = stage.json(["diff", "ct"]);
    assert_eq!(changes["changes"], Value::Array(Vec::new()), "{changes:#}");
    assert_same(&shown, &stage.shown("base"));
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
fn half_a_move_is_refused_by_name() {
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

/// Content, link count and whether two names are one file.
fn read(root: &Path, name: &str) -> (String, u64, u64) {
    let at = root.join(name);
    let about = fs::metadata(&at).unwrap();
    (fs::read_to_string(at).unwrap(), about.nlink(), about.ino())
}

/// The names of the file with several.
const NAMES: [&str; 3] = ["srv/one", "srv/two", "etc/three"];

#[test]
fn one_of_several_names_comes_back_alone_and_all_of_them_as_one_file() {
    for (name, live) in [("revertlinks", true), ("revertlinksrest", false)] {
        let stage = Stage::new(name);
        let root = stage.mount("ct");
        script(root.path(), "echo more >>srv/one");
        let at = root.path().to_owned();
        let mut root = Some(root);
        let mut revert = |paths: &[&str], then: &dyn Fn()| {
            if !live {
                root.take().unwrap().unmount();
            }
            stage.store.mica(["revert", "ct"]).args(paths).succeed();
            if !live {
                root = Some(stage.mount("ct"));
            }
            then();
            // It is the same to who comes later.
            root.take().unwrap().unmount();
            root = Some(stage.mount("ct"));
            then();
        };
        revert(&["/srv/one"], &|| {
            let [one, two, three] = NAMES.map(|name| read(&at, name));
            assert_eq!((one.0.as_str(), one.1), ("linked\n", 1), "{name}");
            assert_eq!((two.0.as_str(), two.1), ("linked\nmore\n", 2), "{name}");
            assert_eq!(two, three, "{name}");
            assert_ne!(one.2, two.2, "{name}");
        });
        revert(&["/srv/two"], &|| {
            let [one, two, three] = NAMES.map(|name| read(&at, name));
            assert_eq!((one.0.as_str(), one.1), ("linked\n", 2), "{name}");
            assert_eq!(one, two, "{name}");
            assert_eq!((three.0.as_str(), three.1), ("linked\nmore\n", 1), "{name}");
        });
        revert(&["/etc"], &|| {
            let [one, two, three] = NAMES.map(|name| read(&at, name));
            assert_eq!((one.0.as_str(), one.1), ("linked\n", 3), "{name}");
            assert!(one == two && two == three, "{name}");
            let changes = stage.json(["diff", "ct"]);
            let paths = changes["changes"].as_array().unwrap().len();
            // The time of /srv alone is not the template's.
            assert!(paths <= 1, "{changes:#}");
        });
        // Written again, it is one file under all its names.
        script(&at, "echo anew >etc/three; cmp srv/one srv/two; cmp srv/one etc/three");
        script(&at, "rm srv/one etc/three; cat srv/two");
        revert(&["/srv/one", "/etc/three", "/srv/two"], &|| {
            let [one, two, three] = NAMES.map(|name| read(&at, name));
            assert_eq!((one.0.as_str(), one.1), ("linked\n", 3), "{name}");
            assert!(one == two && two == three, "{name}");
        });
        // A whole directory with two of the names, while the third is changed or gone.
        for third in ["echo other >etc/three", "rm etc/three"] {
            script(&at, &format!("{third}; rm -r srv"));
            revert(&["/srv"], &|| {
                let [one, two] = ["srv/one", "srv/two"].map(|name| read(&at, name));
                assert_eq!((one.0.as_str(), one.1), ("linked\n", 2), "{name}: {third}");
                assert_eq!(one, two, "{name}");
                let third = fs::read_to_string(at.join("etc/three")).ok();
                assert!(third.is_none_or(|text| text == "other\n"), "{name}");
            });
            revert(&["/etc/three"], &|| {
                let [one, two, three] = NAMES.map(|name| read(&at, name));
                assert_eq!((one.0.as_str(), one.1), ("linked\n", 3), "{name}");
                assert!(one == two && two == three, "{name}");
            });
        }
    }
}

#[test]
fn another_link_keeps_the_changed_file_when_the_name_of_the_template_comes_back() {
    for (name, live) in [("revertkept", true), ("revertkeptrest", false)] {
        let stage = Stage::new(name);
        let root = stage.mount("ct");
        script(
            root.path(),
            "echo more >>etc/conf; ln etc/conf etc/kept; ln etc/empty new; ln etc/empty new2
             rm etc/empty; echo e >>new; echo d >>srv/data/deep/file
             ln srv/data/deep/file deep; ln deep deep2; rm -r srv/data",
        );
        let at = root.path().to_owned();
        let mut root = Some(root);
        if !live {
            root.take().unwrap().unmount();
        }
        // Named with one of the two names that took its place: the other keeps it.
        let mut revert = stage.store.mica(["revert", "ct", "/etc/conf"]);
        revert.succeed();
        let moved: Vec<String> = stage.json(["diff", "ct"])["changes"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|change| change["kind"] == "moved")
            .map(|change| change["path"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(moved.len(), 2, "{moved:?}");
        let mut revert = stage.store.mica(["revert", "ct", "/etc/empty", "/srv/data"]);
        revert.args(&moved).succeed();
        for _ in 0..2 {
            if root.is_none() {
                root = Some(stage.mount("ct"));
            }
            let text = |name: &str| fs::read_to_string(at.join(name)).ok();
            assert!(text("etc/kept").is_some_and(|text| text.ends_with("more\n")), "{name}");
            assert!(text("etc/conf").is_some_and(|text| text.ends_with("line 9\n")), "{name}");
            assert_eq!(text("etc/empty").as_deref(), Some(""), "{name}");
            assert_eq!(text("srv/data/deep/file").as_deref(), Some("deep\n"), "{name}");
            let left = |one: &str, two: &str| text(one).or(text(two));
            assert_eq!(left("new", "new2").as_deref(), Some("e\n"), "{name}");
            assert_eq!(left("deep", "deep2").as_deref(), Some("deep\nd\n"), "{name}");
            let numbers: Vec<u64> = ["etc/kept", "etc/conf", "etc/empty", "srv/data/deep/file"]
                .iter()
                .map(|name| fs::metadata(at.join(name)).unwrap().ino())
                .collect();
            let apart: std::collections::HashSet<&u64> = numbers.iter().collect();
            assert_eq!(apart.len(), numbers.len(), "{name}: {numbers:?}");
            script(&at, "echo again >>etc/conf; echo again >>srv/data/deep/file");
            script(&at, "! grep -q again etc/kept; ! grep -qs again deep deep2");
            stage.store.mica(["revert", "ct", "/etc/conf", "/srv/data/deep/file"]).succeed();
            root.take().unwrap().unmount();
        }
    }
}

#[test]
fn a_removed_directory_comes_back_while_removed_files_in_it_are_open() {
    let stage = Stage::new("revertdir");
    let root = stage.mount("ct");
    let at = |name: &str| root.path().join(name);
    let open = |name: &str| OpenOptions::new().read(true).append(true).open(at(name)).unwrap();
    // Written before and after it was removed; read by passthrough, then written by another; a
    // file with several names; and untouched.
    let mut before = open("srv/data/deep/file");
    before.write_all(b"mine\n").unwrap();
    let mut after = open("srv/data/deep/er/file");
    let mut passed = File::open(at("usr/share/doc/a/x")).unwrap();
    let mut passing = open("usr/share/doc/a/x");
    passing.write_all(b"mine\n").unwrap();
    let mut linked = open("srv/one");
    linked.write_all(b"mine\n").unwrap();
    let mut untouched = File::open(at("usr/share/doc/b/z")).unwrap();
    let inside = File::open(at("srv/data/deep/er")).unwrap();
    let empty = File::open(at("srv/empty")).unwrap();
    script(root.path(), "rm -r srv usr/share/doc; rm etc/three");
    after.write_all(b"mine\n").unwrap();
    stage.store.mica(["revert", "ct", "/srv", "/usr/share/doc", "/etc/three"]).succeed();
    for _ in 0..2 {
        for (name, text) in [
            ("srv/data/deep/file", "deep\n"),
            ("srv/data/deep/er/file", "deeper\n"),
            ("usr/share/doc/a/x", "x\n"),
            ("usr/share/doc/b/z", "z\n"),
            ("srv/one", "linked\n"),
            ("etc/three", "linked\n"),
        ] {
            let shown = fs::read_to_string(at(name));
            assert_eq!(shown.as_deref().ok(), Some(text), "{name}: {shown:?}");
        }
    }
    assert_eq!(fs::metadata(at("srv/one")).unwrap().nlink(), 3);
    assert!(at("srv/empty").read_dir().unwrap().next().is_none());
    // Who stands in what was removed stands in nothing, as ever.
    for gone in [&inside, &empty] {
        let here = format!("/proc/self/fd/{}", gone.as_raw_fd());
        assert!(Path::new(&here).read_dir().unwrap().next().is_none());
        assert!(fs::write(format!("{here}/new"), b"").is_err());
    }
    before.write_all(b"still\n").unwrap();
    for (file, kept) in [
        (&mut before, "deep\nmine\nstill\n"),
        (&mut after, "deeper\nmine\n"),
        (&mut passed, "x\n"),
        (&mut passing, "x\nmine\n"),
        (&mut linked, "linked\nmine\n"),
        (&mut untouched, "z\n"),
    ] {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, kept);
    }
    // What is written to the names that came back is not written to what is open.
    fs::write(at("srv/data/deep/file"), "new\n").unwrap();
    let mut text = String::new();
    before.rewind().unwrap();
    before.read_to_string(&mut text).unwrap();
    assert_eq!(text, "deep\nmine\nstill\n");
    // Everything goes on working in what came back, and may go and come back again.
    script(
        root.path(),
        "echo in >srv/data/deep/er/new; echo c >>srv/data/deep/er/file; echo e >srv/empty/e
         mv srv/data/deep srv/away; chmod 700 srv/empty; ln srv/two srv/empty/five
         test \"$(cat srv/away/er/file)\" = \"$(printf 'deeper\nc')\"; rm -r srv",
    );
    stage.store.mica(["revert", "ct", "/srv"]).succeed();
    assert_eq!(fs::read_to_string(at("srv/data/deep/er/file")).unwrap(), "deeper\n");
    assert!(!at("srv/away").exists());
    stage.store.mica(["revert", "ct", "/"]).succeed();
    is_template(&stage, snapshot(root.path()));
    drop((inside, empty));
    drop((before, after, passed, passing, linked, untouched));
    is_template(&stage, snapshot(root.path()));
    root.unmount();
    is_template(&stage, snapshot(stage.mount("ct").path()));
}
