//! How answers look: names that would harm a terminal, pipes that close, colours.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::shell::Desk;
use crate::support::Succeed;

const NAMES: [&[u8]; 6] = [
    b"new\nline",
    b"\x1b[2Jclear",
    b"\xff\xfe",
    b"back\\slash",
    "r\u{202e}tl".as_bytes(),
    b"plain",
];

/// The bytes of a name in JSON, as docs/CLI.md says to read it.
fn exact(value: &Value, member: &str) -> Vec<u8> {
    match value.get(format!("{member}_hex")) {
        Some(hex) => {
            let digits = hex.as_str().unwrap().as_bytes().chunks(2);
            let digits = digits.map(|two| std::str::from_utf8(two).unwrap());
            digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
        }
        None => value[member].as_str().unwrap().as_bytes().to_vec(),
    }
}

fn hostile() -> Desk {
    let desk = Desk::new();
    let tree = desk.scratch.directory("tree");
    for name in NAMES {
        fs::write(tree.join(OsStr::from_bytes(name)), name).unwrap();
    }
    symlink(OsStr::from_bytes(b"to\xff\x07"), tree.join("link")).unwrap();
    desk.store.import("odd", &tree);
    desk.store.import("none", &desk.scratch.directory("empty"));
    desk
}

#[test]
fn names_are_escaped_for_people_and_exact_for_programs() {
    let desk = hostile();
    for arguments in [
        &["template", "files", "odd"][..],
        &["template", "files", "odd", "-q"],
        &["template", "tree", "odd"],
        &["template", "tree", "odd", "-q"],
        &["template", "diff", "none", "odd"],
        &["template", "diff", "none", "odd", "-q"],
    ] {
        let output = desk.mica(arguments.iter().copied()).capture();
        let text = String::from_utf8(output.stdout).expect("escaped, it is UTF-8");
        for shown in [r"new\nline", r"\x1b[2Jclear", r"\xff\xfe", r"back\\slash", r"r\u{202e}tl"] {
            assert!(text.contains(shown), "{arguments:?}: no {shown} in {text}");
        }
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{arguments:?}: {text:?}");
    }
    let expected: BTreeSet<Vec<u8>> = NAMES.iter().map(|name| [b"/", *name].concat()).collect();
    let answer = desk.json(["template", "files", "odd", "--type", "f"]);
    let of = |list: &Value, member: &str| -> BTreeSet<Vec<u8>> {
        list.as_array().unwrap().iter().map(|one| exact(one, member)).collect()
    };
    assert_eq!(of(&answer, "path"), expected);
    let answer = desk.json(["template", "diff", "none", "odd"]);
    assert!(of(&answer["differences"], "path").is_superset(&expected));
    let answer = desk.json(["template", "tree", "odd"]);
    let names: BTreeSet<Vec<u8>> = NAMES.iter().map(|name| name.to_vec()).collect();
    assert!(of(&answer["children"], "name").is_superset(&names));
    let link = desk.json(["template", "files", "odd", "--type", "l"]);
    assert_eq!(exact(&link[0], "target"), b"to\xff\x07");
    let raw = desk.mica(["template", "files", "odd", "--type", "f", "-0"]).capture().stdout;
    let raw: BTreeSet<Vec<u8>> =
        raw.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    assert_eq!(raw, expected);
    // The exact name is taken on the command line, too.
    let mut cat = desk.mica(["template", "cat", "odd"]);
    assert_eq!(cat.arg(OsStr::from_bytes(NAMES[2])).capture().stdout, NAMES[2]);
    let mut cat = desk.mica(["template", "cat", "odd", "--json"]);
    let answer = cat.arg(OsStr::from_bytes(NAMES[2])).succeed();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(exact(&answer[0], "content"), NAMES[2]);
    let mut cat = desk.mica(["template", "cat", "odd"]);
    let said = cat.arg(OsStr::from_bytes(b"\xff\x1b[31m")).refuse();
    assert!(said.contains(r"\xff\x1b[31m"), "{said:?}");
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let desk = Desk::new();
    let tree = desk.scratch.directory("many");
    for number in 0..2000 {
        fs::write(tree.join(format!("a-rather-long-name-of-a-file-{number}")), "").unwrap();
    }
    desk.store.import("many", &tree);
    for arguments in [
        &["template", "files", "many"][..],
        &["template", "files", "many", "--json"],
        &["template", "tree", "many"],
        &["template", "files", "many", "-q"],
    ] {
        let mut child = desk
            .mica(arguments.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .start();
        let mut line = String::new();
        let mut reader = BufReader::with_capacity(16, child.stdout.take().unwrap());
        reader.read_line(&mut line).unwrap();
        drop(reader);
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(141), "{arguments:?}: as a shell tells SIGPIPE");
    }
}

#[test]
fn colour_goes_to_terminals_alone() {
    let desk = hostile();
    let store = desk.store.path().to_str().unwrap().to_owned();
    let line = format!("{} --store {store} template tree odd", env!("CARGO_BIN_EXE_mica"));
    // script(1) gives it a terminal.
    let on_terminal = |variable: (&str, &str)| {
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
        script.env(variable.0, variable.1).succeed()
    };
    assert!(on_terminal(("TERM", "xterm")).contains("\x1b[34m"));
    assert!(!on_terminal(("NO_COLOR", "1")).contains('\x1b'));
    assert!(!on_terminal(("TERM", "dumb")).contains('\x1b'));
    assert!(!desk.mica(["template", "tree", "odd"]).succeed().contains('\x1b'));
}

#[test]
fn every_read_answers_in_json_and_with_names_alone() {
    let desk = Desk::new();
    desk.store.import("a:1", &desk.tree("a", &[("file", "text")]));
    let layer = desk.mica(["layer", "list", "-q"]).succeed().trim_end().to_owned();
    assert_eq!(layer.len(), 64);
    for (arguments, names) in [
        (&["template", "list"][..], "a:1"),
        (&["template", "show", "a:1"], "a:1"),
        (&["template", "history", "a:1"], &layer),
        (&["template", "tree", "a:1"], "/\n/file"),
        (&["template", "files", "a:1"], "/file"),
        (&["layer", "list"], &layer),
        (&["layer", "show", &layer[..8]], &layer),
        (&["layer", "tree", &layer[..8]], "/\n/file"),
    ] {
        let quiet = desk.mica(arguments.iter().copied()).arg("-q").succeed();
        assert_eq!(quiet.trim_end(), names, "{arguments:?}");
        let value = desk.json(arguments.iter().copied());
        assert!(value.is_object() || value.is_array(), "{arguments:?}");
    }
    assert_eq!(desk.json(["template", "check"])["whole"], true);
    assert_eq!(desk.mica(["template", "check", "-q"]).succeed(), "");
}
