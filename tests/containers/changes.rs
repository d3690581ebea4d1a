//! `mica diff`: every path that differs is named, and nothing else.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::stage::{Stage, script};
use crate::support::{Snapshot, Succeed, snapshot};

/// Everything that can be done to a root, over and over other things.
pub(crate) const EVERYTHING: &str = r#"
# content, by writing, truncating, appending, replacing
echo changed >etc/conf; echo more >>etc/conf.d/b; : >srv/data/deep/file
cp etc/empty etc/new.tmp; echo replaced >etc/new.tmp; mv etc/new.tmp etc/empty
# metadata alone
chmod 700 etc/owned; chown 5:6 usr/share/doc/b; setfattr -n user.other -v 1 etc/conf.d/c
setfattr -n trusted.overlay.opaque -v n etc/conf.d/c; setfacl -m g:3:rwx usr/share/doc/b
# additions
mkdir -p new/dir; echo n >new/dir/file; ln -s ../x new/link; mkfifo new/fifo
mknod new/null c 0 0; mknod new/block b 7 9; ln new/dir/file new/hard
truncate -s 3M new/sparse; printf tail >>new/sparse
# removals
rm "etc/odd $(printf '\001\377') name"; rm -r usr/share/doc/a
# a hard link of the template loses a name, gains one, and is written to
rm srv/two; ln etc/three etc/four; echo written >>srv/one
# moves: a file, a directory and back under another, a directory that is changed afterwards
mv bin/tool bin/renamed; mv srv/data srv/moved; echo inside >srv/moved/deep/inside
rm srv/moved/deep/er/file; mv srv/moved/deep/er srv/up
# replaced by another type, and by another directory
rm etc/link; mkdir etc/link; echo in >etc/link/in
rm -r etc/conf.d; mkdir etc/conf.d; echo fresh >etc/conf.d/b
rm var/fifo; echo file >var/fifo; rm var/device; mknod var/device c 1 5
"#;

/// Every prefix of a path, itself included.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).skip(1).chain([path])
}

/// The exact bytes of a member of an answer, escaped as snapshots are.
fn escaped(value: &Value) -> String {
    let bytes: Vec<u8> = match value["path_hex"].as_str() {
        Some(hex) => (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
            .collect(),
        None => value["path"].as_str().unwrap().as_bytes().to_vec(),
    };
    if bytes == b"/" { ".".to_owned() } else { bytes.escape_ascii().to_string() }
}

/// Holds an answer of `mica diff` against two descriptions of what it compares.
fn assert_truthful(answer: &Value, before: &Snapshot, after: &Snapshot) {
    let changes = answer["changes"].as_array().unwrap();
    let of = |letters: &str| -> BTreeSet<String> {
        let fits = |change: &&Value| letters.contains(change["letter"].as_str().unwrap());
        changes.iter().filter(fits).map(escaped).collect()
    };
    let moved = changes.iter().filter(|change| change["letter"] == "R");
    let from: BTreeSet<String> = moved.map(|change| escaped(&change["from"])).collect();
    let (added, changed, removed, to) = (of("A"), of("C"), of("D"), of("R"));
    let below = |path: &str, set: &BTreeSet<String>| above(path).any(|path| set.contains(path));
    let mut wrong = Vec::new();
    for path in before.keys().chain(after.keys()) {
        let (was, is) = (before.get(path), after.get(path));
        let told = match (was, is) {
            (Some(was), Some(is)) if was == is => {
                // A name of an inode that is another one now, or a copy of the same content.
                !added.contains(path) && !removed.contains(path)
            }
            (Some(_), Some(_)) => changed.contains(path) || below(path, &to),
            (Some(_), None) => below(path, &removed) || below(path, &from),
            (None, Some(_)) => added.contains(path) || below(path, &to),
            (None, None) => true,
        };
        if !told {
            wrong.push(format!("untold: {path}: {was:?} {is:?}"));
        }
    }
    for path in &added {
        if before.contains_key(path) || !after.contains_key(path) {
            wrong.push(format!("A {path}"));
        }
    }
    for path in &removed {
        if after.contains_key(path) {
            wrong.push(format!("D {path}"));
        }
    }
    for path in &changed {
        // Below a moved directory it is compared with what the directory had.
        let same = before.get(path) == after.get(path) || !after.contains_key(path);
        if same && !below(path, &to) {
            wrong.push(format!("C {path}: {:?}", after.get(path)));
        }
    }
    assert!(wrong.is_empty(), "{}\n{answer:#}", wrong.join("\n"));
}

/// Numbers of links and devices of a mount differ from its template's on purpose.
fn forget_links(mut tree: Snapshot) -> Snapshot {
    for described in tree.values_mut() {
        (described.nlink, described.same_as) = (0, None);
    }
    tree
}

#[test]
fn every_difference_is_told_and_nothing_else_mounted_or_not() {
    let stage = Stage::new("changes");
    let before = forget_links(stage.shown("base"));
    let root = stage.mount("ct");
    assert_eq!(stage.json(["diff", "ct"])["changes"], Value::Array(Vec::new()));
    script(root.path(), EVERYTHING);
    let after = forget_links(snapshot(root.path()));
    let live = stage.json(["diff", "ct"]);
    assert_truthful(&live, &before, &after);
    let by_mountpoint = stage.json(["diff", root.path().to_str().unwrap()]);
    assert_eq!(by_mountpoint, live);
    root.unmount();
    let private = stage.private("ct");
    assert_eq!(stage.json(["diff", private.to_str().unwrap()]), live);
    // A private directory that the store does not know.
    stage.store.mica(["store", "forget", "ct", "--force"]).succeed();
    let unknown = stage.json(["diff", private.to_str().unwrap()]);
    assert_eq!(unknown["changes"], live["changes"]);
    assert_eq!(unknown["root"], Value::Null);
}

#[test]
fn the_letters_are_those_that_hands_know() {
    let stage = Stage::new("letters");
    let root = stage.mount("ct");
    script(
        root.path(),
        "echo longer than before >etc/conf; chmod 600 etc/owned; rm -r usr/share/doc/a
         mv srv/data srv/moved; ln srv/one srv/more; mkdir new; echo 12345 >new/file",
    );
    let told = stage.store.mica(["diff", "ct", "/etc", "/usr/share/doc/a", "srv", "new"]).answer();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "C /etc/conf  63 B → 19 B",
            "C /etc/owned  mode 0644 → 0600",
            "A /new",
            "A /new/file  6 B",
            "C /srv  time",
            "A /srv/more  another name of /etc/three",
            "R /srv/moved  from /srv/data",
            "D /usr/share/doc/a  2 names, 4 B",
        ]
    );
    let quiet = stage.store.mica(["diff", "-q", "ct", "/new"]).answer();
    assert_eq!(quiet, "/new\n/new/file\n");
    let stat = stage.json(["diff", "ct", "--stat"]);
    assert_eq!(stat["totals"]["added"]["new_bytes"], 13);
    assert_eq!(stat["totals"]["moved"]["paths"], 1);
}

#[test]
fn a_content_diff_is_a_patch_that_makes_the_new_tree_of_the_old() {
    let stage = Stage::new("patch");
    let root = stage.mount("ct");
    script(
        root.path(),
        "sed -i '2s/.*/second/; $d' etc/conf; printf 'no newline' >etc/conf.d/b
         mkdir new; seq 100 >new/numbers; rm srv/data/deep/file; printf 'a\\0b' >etc/empty",
    );
    let patch = stage.store.mica(["diff", "ct", "--content"]).answer();
    assert!(patch.contains("Binary files a/etc/empty and b/etc/empty differ"), "{patch}");
    let old = stage.scratch.directory("old");
    script(&old, "cp -a ../source/. .");
    let mut child = Command::new("patch")
        .args(["-p1", "-E", "--quiet"])
        .current_dir(&old)
        .stdin(Stdio::piped())
        .start();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), patch.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{patch}");
    for path in ["etc/conf", "etc/conf.d/b", "new/numbers"] {
        let made = std::fs::read(old.join(path)).unwrap();
        assert_eq!(made, std::fs::read(root.path().join(path)).unwrap(), "{path}");
    }
    assert!(!old.join("srv/data/deep/file").exists());
}

#[test]
fn what_is_no_container_is_told_with_the_nearest_name() {
    let stage = Stage::new("unknown");
    let _root = stage.mount("webserver");
    let told = stage.store.mica(["diff", "webserve"]).refuse();
    assert!(told.contains("did you mean \"webserver\"?"), "{told}");
    let told = stage.store.mica(["diff", "/etc"]).refuse();
    assert!(told.contains("/etc"), "{told}");
}

#[test]
fn a_live_root_is_walked_while_it_changes() {
    let stage = Stage::new("live");
    let root = stage.mount("ct");
    let work = "for i in $(seq 60); do mkdir -p churn/$i/a/b; echo $i >churn/$i/a/b/f; \
                mv churn/$i churn/moved$i; rm -r churn/moved$i; done";
    let mut busy = Command::new("bash").args(["-ec", work]).current_dir(root.path()).start();
    while busy.try_wait().unwrap().is_none() {
        stage.json(["diff", "ct"]);
    }
    assert!(busy.wait().unwrap().success());
    let told = stage.store.mica(["diff", "-q", "ct"]).answer();
    assert_eq!(told, "/\n/churn\n");
}

#[test]
fn the_status_says_whether_anything_differs() {
    let stage = Stage::new("diffstatus");
    let root = stage.mount("ct");
    let status = |arguments: &[&str]| {
        let mut diff = stage.store.mica(["diff", "ct"]);
        diff.args(arguments).capture().status.code()
    };
    assert_eq!(status(&[]), Some(0));
    script(root.path(), "echo more >>etc/conf");
    for arguments in [&[][..], &["-q"], &["--stat"], &["--json"], &["--content"], &["/etc"]] {
        assert_eq!(status(arguments), Some(1), "{arguments:?}");
    }
    assert_eq!(status(&["/srv"]), Some(0));
    assert_eq!(stage.store.mica(["diff", "nobody"]).capture().status.code(), Some(2));
}

#[test]
fn a_private_directory_may_be_called_anything() {
    let stage = Stage::new("diffname");
    let root = stage.mount("ct");
    script(root.path(), "echo more >>etc/conf");
    root.unmount();
    let odd = stage.scratch.path().join(OsStr::from_bytes(b"odd\xff\x1b[31m"));
    std::fs::rename(stage.private("ct"), &odd).unwrap();
    let mica = |verb: &str, more: &[&str]| {
        let mut command = stage.store.mica([verb]);
        command.arg(&odd).args(more).capture()
    };
    let told = mica("diff", &["--json"]);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let hex: String = odd.as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(told["private_hex"], hex.as_str());
    assert_eq!(told["changes"].as_array().unwrap().len(), 1, "{told:#}");
    for (verb, more) in [
        ("why", &["/etc/conf"][..]),
        ("revert", &["/etc", "--dry-run"]),
        ("commit", &["odd"]),
        ("revert", &["/"]),
        ("revert", &["/nothing"]),
    ] {
        for json in [&[][..], &["--json"]] {
            let ended = mica(verb, &[more, json].concat());
            let told = [ended.stdout, ended.stderr].concat();
            let text = String::from_utf8_lossy(&told);
            assert!(!text.contains("panicked") && !text.contains('\x1b'), "{verb}: {text}");
        }
    }
    // A record of a root is JSON: it cannot say where this is, and nothing is mounted.
    let mut mount = stage.store.mica(["mount", "base"]);
    let told = mount.arg(stage.scratch.mountpoint("odd")).arg("--private").arg(&odd).refuse();
    assert!(told.contains("is not UTF-8") && !told.contains('\x1b'), "{told}");
}

#[test]
fn what_a_quiet_mount_would_have_said_is_said_by_the_next() {
    let stage = Stage::new("quietmount");
    stage.mount("ct").unmount();
    let source = stage.scratch.directory("source");
    script(&source, "echo new >etc/conf");
    stage.store.mica(["template", "import", "base", "--replace"]).arg(&source).succeed();
    let at = stage.scratch.mountpoint("ct");
    let mount = |quiet: &[&str]| {
        let mut mount = stage.store.mica(["mount", "base"]);
        mount.arg(&at).arg("--private").arg(stage.private("ct")).args(quiet);
        let told = String::from_utf8_lossy(&mount.capture().stderr).into_owned();
        stage.store.mica(["umount", "ct"]).succeed();
        told
    };
    assert_eq!(mount(&["-q"]), "");
    assert!(mount(&[]).contains("names another stack"));
    // Once is enough.
    assert_eq!(mount(&[]), "");
}

#[test]
fn a_content_diff_in_json_has_the_patch_of_each_file_and_every_byte_of_it() {
    let stage = Stage::new("diffpatch");
    let root = stage.mount("ct");
    script(
        root.path(),
        r"printf 'line 1\nl\344rm \033[31m\n' >etc/conf; echo new >etc/new; chmod 600 etc/owned
          printf 'a\0b' >etc/binary; rm etc/conf.d/a; ln -s there etc/link2",
    );
    let told = stage.json(["diff", "ct", "--content", "/etc"]);
    let patch = |path: &str, member: &str| {
        let changes = told["changes"].as_array().unwrap();
        let change = changes.iter().find(|change| change["path"] == path).unwrap();
        change[member].as_str().map(str::to_owned)
    };
    let plain = stage.store.mica(["diff", "ct", "--content", "/etc/conf"]).capture().stdout;
    let hex: String = plain.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(patch("/etc/conf", "patch_hex"), Some(hex));
    let new = "--- /dev/null\n+++ b/etc/new\n@@ -0,0 +1 @@\n+new\n";
    assert_eq!(patch("/etc/new", "patch").as_deref(), Some(new));
    assert_eq!(patch("/etc/new", "patch_hex"), None);
    assert!(patch("/etc/conf.d/a", "patch").unwrap().contains("-a\n"));
    assert!(patch("/etc/binary", "patch").unwrap().starts_with("Binary files"));
    assert_eq!(patch("/etc/owned", "patch"), None);
    // As `template diff` has it.
    stage.store.mica(["commit", "ct", "made"]).succeed();
    let other = stage.json(["template", "diff", "base", "made", "--content", "/etc/conf"]);
    assert_eq!(
        other["differences"][0]["patch_hex"].as_str().map(str::to_owned),
        patch("/etc/conf", "patch_hex")
    );
    let counted = stage.json(["diff", "ct", "--stat"]);
    assert!(counted.get("changes").is_none() && counted["totals"]["added"]["paths"] == 3);
}

#[test]
fn a_path_is_answered_with_all_that_changed_it_and_one_that_never_was_with_the_nearest() {
    let stage = Stage::new("diffpath");
    let root = stage.mount("ct");
    script(
        root.path(),
        "rm -r usr/share/doc/a; mv srv/data srv/moved; rm -r etc/conf.d; mkdir etc/conf.d; mkdir new",
    );
    let names = |path: &str| stage.store.mica(["diff", "ct", "-q", path]).answer();
    assert_eq!(names("/usr/share/doc/a/x"), "/usr/share/doc/a\n");
    for moved in ["/srv/data", "/srv/data/deep/file", "/srv/moved/deep/file"] {
        assert_eq!(names(moved), "/srv/moved\n", "{moved}");
    }
    assert!(names("/etc/conf.d/b").contains("/etc/conf.d\n"));
    assert_eq!(names("/bin/tool"), "");
    for verb in ["diff", "why", "revert"] {
        for (wanted, near) in [
            ("/etc/cnof", "/etc/conf"),
            ("ect/conf", "/etc"),
            ("/srv/movde", "/srv/moved"),
            ("/nwe", "/new"),
            ("/bin/tool/x", ""),
            ("/usr/share/doc/nothing", ""),
        ] {
            let refused = stage.store.mica([verb, "ct", wanted]).refuse();
            let hint =
                if near.is_empty() { String::new() } else { format!("; did you mean {near}?") };
            let told = format!("root ct has no /{}{hint}\n", wanted.trim_start_matches('/'));
            assert!(refused.ends_with(&told), "{verb}: {refused}");
        }
    }
    let refused = stage.store.mica(["template", "diff", "base", "base", "/etc/cnof"]).refuse();
    assert!(refused.contains("did you mean /etc/conf?"), "{refused}");
}
