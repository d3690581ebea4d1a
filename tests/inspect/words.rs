//! What words mean, and what is said of those that mean nothing, or too much.

use mica::layer::{LayerBuilder, LayerPath, Layers, Metadata, NewContent, NewNode, Timestamp};
use mica::object::Objects;

use crate::shell::Desk;
use crate::support::Succeed;

/// One sentence of refusal, and status 2.
fn refused(desk: &Desk, arguments: &[&str], words: &[&str]) {
    let output = desk.mica(arguments.iter().copied()).capture();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed a part of an answer");
    assert!(said.starts_with("mica: ") && said.trim_end().lines().count() == 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?}: no {word:?} in {said}");
    }
}

/// Publishes small layers until the digests of two begin with the same two digits; answers with
/// these.
fn collide(desk: &Desk) -> (String, String) {
    let objects = Objects::open(desk.store.path()).unwrap();
    let layers = Layers::open(desk.store.path()).unwrap();
    let staging = objects.begin().unwrap();
    let mut seen: Vec<String> =
        layers.layers().unwrap().iter().map(|one| one.id.to_string()).collect();
    for number in 0.. {
        let mtime = Timestamp { secs: number, nanos: 0 };
        let metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime };
        let node = NewNode { metadata, xattrs: Vec::new(), content: NewContent::Directory };
        let mut builder = LayerBuilder::new();
        builder.put(&LayerPath::parse(b"dir").unwrap(), node).unwrap();
        let id = layers.publish(staging.dir(), builder.finish().unwrap()).unwrap().to_string();
        if let Some(other) = seen.iter().find(|other| other[..2] == id[..2]) {
            let pair = (other.clone(), id);
            staging.finish().unwrap();
            return pair;
        }
        seen.push(id);
    }
    unreachable!("there are 256 beginnings");
}

#[test]
fn an_ambiguous_digest_lists_what_it_fits() {
    let desk = Desk::new();
    desk.store.import("a", &desk.tree("a", &[("file", "text")]));
    let (one, other) = collide(&desk);
    refused(&desk, &["layer", "show", &one[..2]], &["more digits", &one, &other]);
    let whole = desk.json(["layer", "show", &other]);
    assert_eq!(whole["layer"], other);
    // In capitals it is the same number.
    let shown = desk.mica(["layer", "show", &one.to_uppercase(), "-q"]).succeed();
    assert_eq!(shown.trim_end(), one);
}

#[test]
fn what_means_nothing_is_answered_with_the_nearest_name() {
    let desk = Desk::new();
    desk.store
        .import("debian:12", &desk.tree("a", &[("etc/passwd", "text"), ("usr/bin/tool", "")]));
    let refused = |arguments: &[&str], words: &[&str]| refused(&desk, arguments, words);
    refused(&["template", "history", "debain:12"], &["did you mean \"debian:12\"?"]);
    refused(
        &["template", "tree", "debain:12"],
        &["template or layer", "did you mean \"debian:12\"?"],
    );
    refused(&["template", "diff", "debian:12", "debian:13"], &["did you mean \"debian:12\"?"]);
    refused(&["template", "check", "debian"], &["did you mean \"debian:12\"?"]);
    refused(
        &["template", "tree", "debian"],
        &["\"debian:latest\", which there is not", "did you mean \"debian:12\"?"],
    );
    refused(&["template", "check", "x*"], &["x*"]);
    refused(&["layer", "tree", "debian:12"], &["no layer is called", "mica template history"]);
    refused(&["layer", "show", "f"], &["no layer is called", "2 digits"]);
    refused(&["layer", "show", "nothing"], &["no layer is called", "mica layer list"]);
    refused(&["template", "cat", "debian:12", "/etc/paswd"], &["did you mean /etc/passwd?"]);
    refused(&["template", "cat", "debian:12", "/etc/passwd/x"], &["has no /etc/passwd/x"]);
    refused(&["template", "cat", "debian:12", "/usr"], &["/usr", "directory"]);
    refused(&["template", "cat", "debian:12", "../x"], &[".."]);
    refused(&["template", "files", "debian:12", "--name", "[a"], &["\"[\" without"]);
    refused(&["template", "files", "debian:12", "--name", ""], &["pattern"]);
    refused(&["template", "tree", "debian:12", "--layer", "2"], &["1 layer", "numbered from 1"]);
    refused(&["template", "tree", "debian:12", "--layer", "0"], &["has no layer \"0\""]);
    let nobody = desk.mica(["store", "who-has", "/etc/paswd"]).capture();
    assert_eq!(nobody.status.code(), Some(1));
    let told = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(told.contains("a file /etc/paswd; did you mean /etc/passwd?"), "{told}");
    let object = mica::object::ObjectId::of(b"text").to_string();
    refused(&["template", "tree", &object], &["no template or layer or stack"]);
    let stack =
        desk.json(["template", "show", "debian:12"])["stack_id"].as_str().unwrap().to_owned();
    let names = desk.mica(["template", "tree", &stack[..16], "-q", "/etc"]).succeed();
    assert_eq!(names, "/etc\n/etc/passwd\n");
}

#[test]
fn mistakes_in_the_grammar_end_with_two_and_a_hint() {
    let desk = Desk::new();
    for (arguments, hint) in [
        (&["template", "histroy", "a"][..], "history"),
        (&["layer", "lst"], "list"),
        (&["template", "files", "a", "--larger", "ten"], "--larger"),
        (&["template", "files", "a", "--type", "x"], "possible values"),
        (&["template", "check", "--dry-run"], "--fix"),
        (&["template", "diff", "a"], "NEW"),
        (&["template", "cat", "a"], "PATH"),
    ] {
        let output = desk.mica(arguments.iter().copied()).capture();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(hint), "{arguments:?}: no {hint:?} in {said}");
    }
}

#[test]
fn links_are_followed_as_from_inside_and_loops_are_refused() {
    let desk = Desk::new();
    let tree = desk.tree("a", &[("usr/lib/real", "found"), ("etc/plain", "")]);
    for (target, name) in [
        ("/usr/lib", "lib"),
        ("../../../lib/real", "etc/up"),
        ("loop2", "loop1"),
        ("loop1", "loop2"),
        ("/gone", "dangling"),
    ] {
        std::os::unix::fs::symlink(target, tree.join(name)).unwrap();
    }
    desk.store.import("a", &tree);
    assert_eq!(desk.mica(["template", "cat", "a", "/lib/real"]).succeed(), "found");
    // Beyond the root there is only the root.
    assert_eq!(desk.mica(["template", "cat", "a", "etc/up"]).succeed(), "found");
    refused(&desk, &["template", "cat", "a", "/loop1"], &["too many symbolic links", "/loop1"]);
    refused(&desk, &["template", "cat", "a", "/dangling"], &["has no /gone"]);
}

#[test]
fn a_tree_of_any_depth_is_shown() {
    let desk = Desk::new();
    let tree = desk.scratch.directory("deep");
    // Deeper than any stack would hold, by a path that no single call would take.
    crate::shell::shell(
        &tree,
        "for _ in $(seq 20); do mkdir -p $(printf 'd/%.0s' $(seq 100)); cd -P $(printf 'd/%.0s' $(seq 100)); done
         echo bottom >file",
    );
    desk.store.import("deep", &tree);
    desk.store.import("flat", &desk.tree("flat", &[("file", "x")]));
    for arguments in [
        &["template", "tree", "deep"][..],
        &["template", "tree", "deep", "-q"],
        &["template", "tree", "deep", "--json"],
        &["template", "files", "deep", "--json"],
        &["template", "history", "deep"],
        &["template", "check", "deep"],
    ] {
        desk.mica(arguments.iter().copied()).succeed();
    }
    // What is left out is told, and jq of Debian 12, which reads 256 nested values, can read it.
    for (more, levels) in [(&[][..], "1024 directories"), (&["--json"], "120 directories")] {
        let output = desk.mica(["template", "tree", "deep"]).args(more).capture();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(levels), "{told}");
    }
    let json = desk.mica(["template", "tree", "deep", "--json"]).succeed();
    let (mut nested, mut most) = (0, 0);
    for letter in json.bytes() {
        match letter {
            b'{' | b'[' => nested += 1,
            b'}' | b']' => nested -= 1,
            _ => {}
        }
        most = most.max(nested);
    }
    assert!((200..256).contains(&most), "{most}");
    let asked = desk.mica(["template", "tree", "deep", "--depth", "3"]).capture();
    assert_eq!(String::from_utf8_lossy(&asked.stderr), "");
    assert_eq!(desk.json(["template", "tree", "deep", "--depth", "1"])["size_bytes"], 7);
    let differing = desk.json(["template", "diff", "flat", "deep", "--stat"]);
    assert_eq!(differing["totals"]["added"], 2001);
    let found = desk.mica(["template", "files", "deep", "--name", "file", "-q"]).succeed();
    assert_eq!(found.len(), "/d".len() * 2000 + "/file\n".len());
}
