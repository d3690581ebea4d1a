//! Names that move, are in use, or mean something else.

use std::fs;

use crate::stage::{Stage, refused};
use crate::support::{MountOptions, Succeed};

#[test]
fn a_moved_tag_changes_no_root_and_is_said_once() {
    let stage = Stage::new("names");
    stage.mount("a").unmount();
    let source = stage.scratch.path().join("source");
    fs::write(source.join("etc/conf"), b"key=other\n").unwrap();
    stage.mica(["template", "import", "base", "--replace"]).arg(&source).succeed();
    let said = |name: &str| {
        // Not the stage's own command, which is a quiet one.
        let mut mount = stage.mica(["mount", "base"]);
        mount.arg(stage.scratch.mountpoint(name)).arg("--private").arg(stage.private(name));
        let output = mount.capture();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let first = said("a");
    assert!(first.contains("base:latest") && first.contains("root a"), "{first:?}");
    assert_eq!(first.trim_end().lines().count(), 1, "{first:?}");
    let conf = stage.scratch.mountpoint("a").join("etc/conf");
    assert_eq!(fs::read(&conf).unwrap(), b"key=value\n");
    stage.mica(["umount", "a"]).succeed();
    assert_eq!(said("a"), "");
    assert_eq!(fs::read(&conf).unwrap(), b"key=value\n");
    // A new root is made from what the tag means now.
    let fresh = stage.mount("b");
    assert_eq!(fs::read(fresh.path().join("etc/conf")).unwrap(), b"key=other\n");
    stage.mica(["umount", "a"]).succeed();
    // Moved once more, it is said once more.
    fs::write(source.join("etc/conf"), b"key=third\n").unwrap();
    stage.mica(["template", "import", "base", "--replace"]).arg(&source).succeed();
    assert!(said("a").contains("base:latest"));
    stage.mica(["umount", "a"]).succeed();
}

#[test]
fn another_template_on_a_private_layer_is_refused() {
    let stage = Stage::new("names");
    stage.mount("a").unmount();
    let other = stage.scratch.directory("other");
    fs::write(other.join("file"), b"other\n").unwrap();
    stage.store.import("other:1", &other);
    let options = MountOptions::private(&stage.private("a"));
    let mountpoint = stage.scratch.mountpoint("a");
    let mut mount = stage.store.mount_command("other:1", &mountpoint, &options);
    refused(&mut mount, &["private/a", "root \"a\"", "base:latest", "other:1"]);
    // Also after the registry forgot the root: the directory itself says what it lies on.
    stage.mica(["store", "forget", "--force", "a"]).succeed();
    refused(&mut mount, &["private/a", "another template"]);
    stage.mount("a").unmount();
}

#[test]
fn a_template_in_use_is_not_deleted_and_its_roots_are_named() {
    let stage = Stage::new("names");
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    let words = ["base:latest", "2 roots", "one, two", "mica umount", "mica store forget"];
    refused(&mut stage.mica(["template", "delete", "base"]), &words);
    one.unmount();
    two.unmount();
    // Unmounted roots still need it.
    refused(&mut stage.mica(["template", "delete", "base"]), &words);
    stage.mica(["store", "forget", "--force", "one"]).succeed();
    refused(&mut stage.mica(["template", "delete", "base"]), &["1 root ", "(two)"]);
    stage.mica(["store", "forget", "--force", "two"]).succeed();
    stage.mica(["template", "delete", "base"]).succeed();
    refused(&mut stage.mount_command("one"), &["no template \"base\"", "mica template list"]);
}

#[test]
fn an_existing_name_is_replaced_only_when_asked() {
    let stage = Stage::new("names");
    let source = stage.scratch.path().join("source");
    let mut again = stage.mica(["template", "import", "base"]);
    refused(again.arg(&source), &["base:latest", "exists", "--replace"]);
}

#[test]
fn a_misspelt_template_is_answered_with_the_nearest() {
    let stage = Stage::new("names");
    let options = MountOptions::read_only();
    let mountpoint = stage.scratch.mountpoint("a");
    let mut mount = stage.store.mount_command("bsae", &mountpoint, &options);
    refused(&mut mount, &["\"bsae\"", "did you mean", "base"]);
}

#[test]
fn a_store_is_destroyed_only_with_yes_and_not_while_mounted() {
    let stage = Stage::new("names");
    let root = stage.mount("a");
    let mut unsure = stage.mica(["store", "destroy"]);
    let said = unsure.refuse();
    assert!(said.contains("--yes"), "{said}");
    refused(
        &mut stage.mica(["store", "destroy", "--yes"]),
        &["serves mounted roots (a)", "unmount"],
    );
    assert_eq!(fs::read(root.path().join("etc/conf")).unwrap(), b"key=value\n");
    root.unmount();
    stage.mica(["store", "destroy", "--dry-run"]).succeed();
    stage.check();
    stage.mica(["store", "destroy", "--yes"]).succeed();
    assert!(!stage.store.path().exists());
    assert!(
        stage.private("a").join("mica.json").exists(),
        "private directories are not the store's"
    );
}
