//! Every command in the README runs, in its order, as it stands there.
//!
//! In mount and network namespaces of their own, where /mnt, /srv and the store are scratch directories.
//! What would fetch from the network, build or test for minutes has a stand-in of the same
//! name here: `mmdebstrap` and `apt-get` (the real ones: tests/suites/clients), `cargo` (the
//! real demo: tests/suites/demo) and `tests/run` (this very run). Needs root and /dev/fuse.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use support::{Scratch, Succeed, require_root};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The commands of a Markdown text in order: the lines of its `sh` blocks without their
/// comments, and the code spans in its text that begin with a program of ours.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut block: Option<&str> = None;
    let mut prose = String::new();
    let spans = |prose: &mut String, commands: &mut Vec<String>| {
        let text = std::mem::take(prose);
        for span in text.split('`').skip(1).step_by(2) {
            let span = span.split_whitespace().collect::<Vec<_>>().join(" ");
            if span.starts_with("mica ") || span.starts_with("cargo ") {
                commands.push(span);
            }
        }
    };
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            spans(&mut prose, &mut commands);
            block = if block.is_some() { None } else { Some(language) };
        } else if block == Some("sh") {
            let command = line.split(" # ").next().unwrap_or_default().trim();
            if !command.is_empty() {
                commands.push(command.to_owned());
            }
        } else if block.is_none() {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    spans(&mut prose, &mut commands);
    commands
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
    fs::write(path, format!("#!/bin/sh\nset -e\n{text}")).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
}

/// A tree that `sh` runs in, with an `apt-get` that "installs" hello.
fn debian(tree: &Path) {
    let collect = r#"
        mkdir -p "$1/usr/bin" "$1/tmp" "$1/mnt"
        for file in /bin/sh /bin/sleep /bin/hostname $(ldd /bin/sh /bin/hostname | grep -o '/[^ ]*\.so[^ :]*'); do
            mkdir -p "$1$(dirname "$file")"
            cp -L "$file" "$1$file"
        done"#;
    Command::new("sh").args(["-euc", collect, "sh"]).arg(tree).succeed();
    let install = "test \"$*\" = 'install -y hello'\necho 'echo hello' > /usr/bin/hello\n";
    script(&tree.join("usr/bin/apt-get"), install);
}

#[test]
fn every_command_of_the_readme_runs() {
    require_root();
    let scratch = Scratch::new("readme");
    let at = |name: &str| scratch.path().join(name);
    let mica = env!("CARGO_BIN_EXE_mica");
    let bin = scratch.directory("bin");
    symlink(mica, bin.join("mica")).expect("linked");
    let sbin = scratch.directory("sbin");
    symlink(mica, sbin.join("mount.fuse.mica")).expect("linked");
    debian(&scratch.directory("debian"));
    script(&bin.join("mmdebstrap"), &format!("tar -C {} -c .\n", at("debian").display()));
    script(
        &bin.join("cargo"),
        "case $* in\n'run --release -- demo') exec mica demo --dir \"$SCRATCH\";;\n\
         'install --path .') ;;\n*) exit 1;;\nesac\n",
    );
    let checkout = scratch.directory("checkout");
    script(&checkout.join("tests/run"), "echo called > called\n");

    let readme = fs::read_to_string(top().join("README.md")).expect("there is one");
    let commands = commands(&readme);
    for expected in [
        "cargo run --release -- demo",
        "tests/run",
        "mica mount debian:12 /mnt/web1 --private /srv/web1",
        "mount -t fuse.mica debian:12 /mnt/web2 -o private=/srv/web2,nosuid",
        "mica start db1 && mica exec db1 -- hostname",
        "mica store destroy --yes",
    ] {
        assert!(commands.iter().any(|command| command == expected), "{expected}: {commands:#?}");
    }
    let (mnt, srv) = (scratch.directory("mnt"), scratch.directory("srv"));
    let prepare = format!(
        "trap 'status=$?; set +e; mica delete -f --all; mica node stop; exit $status' EXIT
         ip link set lo up
         mount -t overlay -o lowerdir=/usr/sbin:{} helpers /usr/sbin
         mount --bind {} /mnt; mount --bind {} /srv; mkdir /mnt/web2; cd {}",
        sbin.display(),
        mnt.display(),
        srv.display(),
        checkout.display()
    );
    // A difference that was looked for and found ends with 1 and is no failure.
    let looks = |command: &String| match command.starts_with("mica diff") {
        true => format!("{command} || [ $? -eq 1 ]"),
        false => command.clone(),
    };
    let commands: Vec<String> = commands.iter().map(looks).collect();
    // `set -x` tells which command it was that failed.
    let script = format!("set -e\n{prepare}\nset -x\n{}\n", commands.join("\n"));
    let path = std::env::var("PATH").expect("there is a PATH");
    Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", &script])
        .env("PATH", format!("{}:/usr/sbin:/sbin:{path}", bin.display()))
        .env("SCRATCH", scratch.path())
        .env("MICA_STORE", at("store"))
        .succeed();

    assert!(checkout.join("called").exists(), "tests/run was called");
    assert!(srv.join("web1/upper/usr/bin/hello").exists(), "what was installed is in web1's own");
    assert!(!srv.join("web2/upper/usr").exists(), "and not in web2's");
    assert!(!at("store").exists(), "destroyed at the end");
}

#[test]
fn what_the_readme_points_to_is_there() {
    let readme = fs::read_to_string(top().join("README.md")).expect("there is one");
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let mut dead: Vec<&str> = links.filter(|link| !link.contains("://")).collect();
    dead.retain(|link| !top().join(link).exists());
    assert!(dead.is_empty(), "{dead:?}");
    let run = fs::metadata(top().join("tests/run")).expect("there is one");
    assert!(run.permissions().mode() & 0o111 != 0, "tests/run can be run");
    assert!(readme.lines().count() <= 90, "one screen and a little");
}

#[test]
fn commands_are_found_in_blocks_and_in_prose() {
    let text = "Run `mica doctor` or `ls`.\n```sh\nmica demo   # shows it\n\n# nothing\na | b\n```\n\
                ```\nmica not-this\n```\nThen `mica store\ngc`.\n";
    let found = commands(text);
    assert_eq!(found, ["mica doctor", "mica demo", "# nothing", "a | b", "mica store gc"]);
}
