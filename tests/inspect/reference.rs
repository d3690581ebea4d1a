//! docs/CLI.md, completions and man pages: made of the grammar, and true.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::shell::Desk;
use crate::support::{Succeed, mica};

fn reference() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CLI.md")).unwrap()
}

/// The part of the reference that describes a command.
fn section<'a>(reference: &'a str, command: &str) -> &'a str {
    let (_, rest) = reference.split_once(&format!("\n## mica {command}\n")).unwrap();
    rest.split("\n## ").next().unwrap()
}

/// The names of all members, however deep; those of a run configuration's labels are data.
fn members(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(all) => {
            for (name, value) in all {
                found.insert(name.clone());
                if name != "template" && name != "config" {
                    members(value, found);
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| members(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_member_of_every_answer_is_in_the_reference() {
    let desk = Desk::new();
    let base = desk.tree("base", &[("etc/passwd", "one\n"), ("gone/file", "x"), ("bin/tool", "t")]);
    Command::new("setcap").arg("cap_net_raw+ep").arg(base.join("bin/tool")).succeed();
    Command::new("mknod").arg(base.join("null")).args(["c", "1", "3"]).succeed();
    std::os::unix::fs::symlink("etc/passwd", base.join("link")).unwrap();
    desk.store.import("base", &base);
    let more = desk.tree("more", &[("etc/passwd", "two\n"), (".wh.gone", ""), ("new", "n")]);
    desk.mica(["template", "import", "more", "--on", "base"]).arg(&more).succeed();
    let top = desk.mica(["template", "history", "more", "-q"]).succeed();
    let top = top.lines().last().unwrap().to_owned();
    let reference = reference();
    let (_, file) = reference.split_once("\n## A file in JSON\n").unwrap();
    let file = file.split("\n## ").next().unwrap();
    for (command, arguments) in [
        ("template list", &[][..]),
        ("template show", &["more"]),
        ("template history", &["more"]),
        ("template tree", &["more"]),
        ("template files", &["more"]),
        ("template cat", &["more", "/new"]),
        ("template diff", &["base", "more", "--content"]),
        ("template check", &["more"]),
        ("layer list", &[]),
        ("layer show", &[&top]),
        ("layer tree", &[&top]),
        ("store df", &[]),
        ("store check", &[]),
        ("store gc", &["--dry-run"]),
        ("store scrub", &["--dry-run"]),
        ("mount", &[]),
    ] {
        let said = command.split(' ').chain(arguments.iter().copied());
        let answer = desk.json(said);
        let mut names = BTreeSet::new();
        members(&answer, &mut names);
        assert!(command == "mount" || !names.is_empty(), "{command} answered {answer}");
        // "as `template tree`": what one part refers to counts as said.
        let mut text = section(&reference, command).to_owned();
        for other in ["template show", "template history", "template tree", "layer show"] {
            if command != other && text.contains(&format!("`{other}`")) {
                text.push_str(section(&reference, other));
            }
        }
        if text.contains("A file in JSON") || command == "template diff" {
            text.push_str(file);
        }
        for name in names {
            assert!(text.contains(&format!("`{name}`")), "{command}: nothing says what {name} is");
        }
    }
}

#[test]
fn there_is_a_page_and_a_completion_for_every_command() {
    let desk = Desk::new();
    let pages = desk.scratch.path().join("man");
    mica().arg("man").arg(&pages).succeed();
    let bash = mica().args(["completions", "bash"]).succeed();
    let script = desk.scratch.path().join("mica.bash");
    fs::write(&script, &bash).unwrap();
    Command::new("bash").arg("-n").arg(&script).succeed();
    let reference = reference();
    let commands: Vec<&str> =
        reference.lines().filter_map(|line| line.strip_prefix("## mica ")).collect();
    assert!(commands.len() > 20, "{commands:?}");
    for command in commands {
        let page = pages.join(format!("mica-{}.1", command.replace(' ', "-")));
        let text = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{page:?}: {error}"));
        assert!(text.contains("SYNOPSIS"), "{page:?}");
    }
    assert!(!pages.join("mica-mount-process.1").exists(), "what is hidden has a page");
    // What bash offers after "mica template hi" is "history".
    let offered = Command::new("bash")
        .arg("-c")
        .arg(format!(
            "source {}; COMP_WORDS=(mica template hi); COMP_CWORD=2
             _mica mica hi template; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        ))
        .succeed();
    assert_eq!(offered.trim(), "history");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(mica().args(["completions", shell]).succeed().contains("history"), "{shell}");
    }
    let refused = mica().args(["completions", "tcsh"]).capture();
    assert_eq!(refused.status.code(), Some(2));
}
