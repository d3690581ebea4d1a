//! What the tools of every system say of a directory, and `mica` of a template.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Scratch, Store, Succeed, require_root};

/// A scratch directory and a store that is not made yet.
pub(crate) struct Desk {
    pub(crate) scratch: Scratch,
    pub(crate) store: Store,
}

impl Desk {
    pub(crate) fn new() -> Self {
        require_root();
        let scratch = Scratch::new("inspect");
        let store = Store::at(&scratch.path().join("store"));
        Self { scratch, store }
    }

    /// A directory with these files and their texts.
    pub(crate) fn tree(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let tree = self.scratch.directory(name);
        for (file, text) in files {
            let path = tree.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    /// `mica` on this store.
    pub(crate) fn mica<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        self.store.mica(arguments)
    }

    /// The answer in JSON; the status may say that something was found.
    pub(crate) fn json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Value {
        let mut command = self.mica(arguments);
        let output = command.arg("--json").capture();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code < 2), "{command:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Runs a line of shell in `dir` with the C locale and returns what it printed.
pub(crate) fn shell(dir: &Path, line: &str) -> String {
    Command::new("bash")
        .args(["-euo", "pipefail", "-c", line])
        .current_dir(dir)
        .env("LC_ALL", "C")
        .succeed()
}

/// The paths that `find .` with these tests prints in `dir`, as absolute ones of the template.
pub(crate) fn find(dir: &Path, tests: &str) -> BTreeSet<String> {
    let found = shell(dir, &format!("find . -mindepth 1 {tests} -printf '/%P\\0'"));
    found.split_terminator('\0').map(str::to_owned).collect()
}

/// Bytes of the regular files below `dir` as du counts them: each inode once.
pub(crate) fn du(dir: &Path) -> u64 {
    let line = "find . -type f -print0 | du -cb --files0-from=- | tail -n 1 | cut -f 1";
    shell(dir, line).trim().parse().unwrap()
}

/// Unpacks an archive as GNU tar does for root.
pub(crate) fn untar(archive: &Path, into: &Path) {
    Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf"])
        .arg(archive)
        .arg("-C")
        .arg(into)
        .succeed();
}

/// The top of what differs between two directories by `diff -r`: (A, C or D, path). A directory
/// that only one has counts as one name.
pub(crate) fn diff_r(dir: &Path, old: &str, new: &str) -> BTreeSet<(char, String)> {
    let said = shell(dir, &format!("diff -rq --no-dereference {old} {new} || [ $? = 1 ]"));
    // It says of two devices only that they are devices.
    let same_type = |line: &&str| line.matches(" is a character special file").count() == 2;
    said.lines().filter(|line| !same_type(line)).map(|line| diff_line(line, old, new)).collect()
}

fn diff_line(line: &str, old: &str, new: &str) -> (char, String) {
    if let Some(rest) = line.strip_prefix("Only in ") {
        let (dir, name) = rest.split_once(": ").unwrap();
        let (sign, top) =
            if dir == new || dir.starts_with(&format!("{new}/")) { ('A', new) } else { ('D', old) };
        return (sign, format!("{}/{name}", dir.strip_prefix(top).unwrap()));
    }
    // "Files a and b differ", "Symbolic links …", "File a is a directory while file b is …"
    let start = line.find(&format!("{old}/")).unwrap_or_else(|| panic!("diff said {line:?}"));
    let rest = &line[start + old.len()..];
    let end = rest.find(" and ").or_else(|| rest.find(" is a")).unwrap();
    ('C', rest[..end].to_owned())
}

/// The same of an answer of `mica template diff --json`: content, targets and types only, which
/// is what `diff -r` looks at.
pub(crate) fn tops(answer: &Value) -> BTreeSet<(char, String)> {
    let all: BTreeSet<(char, String)> = answer["differences"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| {
            let differs = one["differs"].as_array();
            let seen = |what: &Value| ["content", "target", "type"].iter().any(|of| what == of);
            one["letter"] != "C" || differs.is_some_and(|all| all.iter().any(seen))
        })
        .map(|one| {
            let letter = one["letter"].as_str().unwrap().chars().next().unwrap();
            (letter, one["path"].as_str().unwrap().to_owned())
        })
        .collect();
    let inside = |(letter, path): &(char, String)| {
        let above = Path::new(path).parent().unwrap().to_str().unwrap().to_owned();
        // Below a name that is new, gone, or became another type of thing.
        *letter != 'C' && (all.contains(&(*letter, above.clone())) || all.contains(&('C', above)))
    };
    all.iter().filter(|one| !inside(one)).cloned().collect()
}
