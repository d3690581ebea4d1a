//! Two Debian roots with different packages, beside the same unpacked by tar.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::shell::{Desk, diff_r, du, find, shell, tops, untar};
use crate::support::{Succeed, debian};

/// Two Debian roots as templates `one` and `two`, and unpacked as `one/` and `two/`.
fn pair() -> Desk {
    let desk = Desk::new();
    let archives = [debian("minbase", "python3-minimal"), debian("less", "less,ca-certificates")];
    for (name, archive) in ["one", "two"].into_iter().zip(archives) {
        desk.store.import(name, &archive);
        untar(&archive, &desk.scratch.directory(name));
    }
    desk
}

fn paths(desk: &Desk, arguments: &[&str]) -> BTreeSet<String> {
    let text = desk.mica(arguments.iter().copied()).arg("-0").succeed();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// Lengths of the distinct contents below a directory, by their digests.
fn contents(dir: &Path) -> BTreeMap<String, u64> {
    let sums = shell(dir, "find . -type f -exec sha256sum {} +");
    sums.lines()
        .map(|line| {
            let (sum, path) = line.split_once("  ").unwrap();
            (sum.to_owned(), fs::metadata(dir.join(path)).unwrap().len())
        })
        .collect()
}

#[test]
fn two_debian_roots_are_what_find_du_and_diff_say_of_them() {
    let desk = pair();
    let at = |name: &str| desk.scratch.path().join(name);
    let listed = desk.json(["template", "list"]);
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 2);
    let held = [contents(&at("one")), contents(&at("two"))];
    for (number, (name, summary)) in ["one", "two"].into_iter().zip(listed).enumerate() {
        assert_eq!(summary["template"]["name"], format!("{name}:latest"));
        assert_eq!(summary["template"]["kind"], "os");
        assert_eq!(summary["layers"], 1);
        let inodes = shell(&at(name), "find . -type f -printf '%i\\n' | sort -u | wc -l");
        assert_eq!(summary["files"], inodes.trim().parse::<u64>().unwrap(), "{name}");
        assert_eq!(summary["names"], find(&at(name), "").len(), "{name}");
        assert_eq!(summary["size_bytes"], du(&at(name)), "{name}");
        let (mine, others) = (&held[number], &held[1 - number]);
        let sum = |shared: bool| -> u64 {
            let fits = mine.iter().filter(|(sum, _)| others.contains_key(*sum) == shared);
            fits.map(|(_, len)| len).sum()
        };
        assert_eq!(summary["shared_bytes"], sum(true), "{name}");
        assert_eq!(summary["exclusive_bytes"], sum(false), "{name}");
        assert!(sum(true) > 0 && sum(false) > 0, "{name} shares nothing or all");
    }
    // What differs, beside diff -r.
    let answer = desk.json(["template", "diff", "one", "two"]);
    let said = diff_r(desk.scratch.path(), "one", "two");
    assert!(said.len() > 20, "{said:?}");
    let told = tops(&answer);
    let apart: Vec<_> = told.symmetric_difference(&said).collect();
    assert!(apart.is_empty(), "only one of mica and diff -r says {apart:?}");
    assert_eq!(
        desk.mica(["template", "diff", "one", "two", "-q"]).capture().status.code(),
        Some(1)
    );
    assert_eq!(desk.mica(["template", "diff", "two", "two"]).succeed(), "");
    same_lines(&desk, &answer);
    let back = desk.json(["template", "diff", "two", "one", "--stat"]);
    for (one, other) in
        [("added", "deleted"), ("added_bytes", "deleted_bytes"), ("changed", "changed")]
    {
        assert_eq!(answer["totals"][one], back["totals"][other]);
    }
}

/// A unified diff of a text file is what `diff -u` gives.
fn same_lines(desk: &Desk, answer: &Value) {
    let path = "/etc/passwd";
    let changed = |one: &&Value| one["letter"] == "C" && one["path"] == path;
    // Both have the same users; what certainly differs is the list of packages.
    let path = match answer["differences"].as_array().unwrap().iter().find(changed) {
        Some(_) => path,
        None => "/var/lib/dpkg/status",
    };
    let output = desk.mica(["template", "diff", "one", "two", path, "--content"]).capture();
    assert_eq!(output.status.code(), Some(1));
    let mine = String::from_utf8(output.stdout).unwrap();
    // Which lines of equal ones are kept is a matter of taste: what counts is that patch(1)
    // makes one file of the other.
    let scratch = desk.scratch.path();
    let old = scratch.join("patched");
    fs::copy(scratch.join("one").join(&path[1..]), &old).unwrap();
    fs::write(scratch.join("the.patch"), &mine).unwrap();
    Command::new("patch").arg("-s").arg(&old).arg(scratch.join("the.patch")).succeed();
    let new = fs::read(scratch.join("two").join(&path[1..])).unwrap();
    assert!(fs::read(&old).unwrap() == new, "patched {path} is not that of two");
    assert!(mine.starts_with(&format!("--- a{path}\n+++ b{path}\n@@ ")), "{mine}");
}

#[test]
fn files_are_found_as_find_finds_them() {
    let desk = Desk::new();
    let archive = debian("minbase", "python3-minimal");
    desk.store.import("one", &archive);
    let root = desk.scratch.directory("one");
    untar(&archive, &root);
    for (mine, theirs) in [
        (&[][..], ""),
        (&["--type", "l"], "-type l"),
        (&["--type", "d", "--type", "c"], r"\( -type d -o -type c \)"),
        (&["--name", "lib*.so.?"], "-name 'lib*.so.?'"),
        (&["--name", "/usr/*/[a-c]*"], "-path './usr/*/[a-c]*'"),
        (&["--larger", "1M"], "-type f -size +1048576c"),
        (&["--setuid"], "-type f -perm /6000"),
        (&["--setuid", "--name", "m*"], "-type f -perm /6000 -name 'm*'"),
    ] {
        let all = [&["template", "files", "one"], mine].concat();
        assert_eq!(paths(&desk, &all), find(&root, theirs), "{mine:?}");
    }
    let below = paths(&desk, &["template", "files", "one", "/usr/share/doc", "--type", "f"]);
    assert_eq!(below, find(&root, "-path './usr/share/doc/*' -type f"));
    // Through a link, as from inside.
    let through = paths(&desk, &["template", "files", "one", "/bin", "--name", "ls"]);
    assert_eq!(through, BTreeSet::from(["/usr/bin/ls".to_owned()]));
    assert!(
        desk.mica(["template", "cat", "one", "/etc/os-release"]).succeed().as_bytes()
            == fs::read(root.join("usr/lib/os-release")).unwrap()
    );
    let tree = desk.json(["template", "tree", "one", "--depth", "1"]);
    assert_eq!(tree["size_bytes"], du(&root));
    for branch in tree["children"].as_array().unwrap() {
        let name = branch["name"].as_str().unwrap();
        assert!(branch["children"].is_null(), "{name} is shown deeper than asked for");
        if branch["type"] == "directory" {
            assert_eq!(branch["size_bytes"], du(&root.join(name)), "{name}");
        }
    }
    // With weights, the heaviest first.
    let drawn = desk.mica(["template", "tree", "one", "--depth", "1", "--size"]).succeed();
    let first = drawn.lines().nth(1).unwrap();
    assert!(first.ends_with("├── usr/"), "{drawn}");
    let names = desk.mica(["template", "tree", "one", "/etc", "-q"]).succeed();
    let found = find(&root, "-path './etc*'");
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    assert_eq!(names.lines().collect::<BTreeSet<&str>>(), found);
}
