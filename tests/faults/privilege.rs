//! Hosts that lack what a mount needs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::stage::{Stage, refused};
use crate::support::{Succeed, is_mountpoint, mica, while_nobody_starts};

/// `mica` as nobody, who may walk to a copy of it.
fn unprivileged(stage: &Stage) -> Command {
    let program = stage.scratch.mountpoint("program").join("mica");
    if !program.exists() {
        while_nobody_starts(|| fs::copy(env!("CARGO_BIN_EXE_mica"), &program).unwrap());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    command.arg(program).env("MICA_STORE", stage.store.path()).current_dir("/");
    command
}

#[test]
fn without_root_every_verb_says_so_and_changes_nothing() {
    let stage = Stage::new("privilege");
    let home = stage.scratch.mountpoint("home");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
    let (place, private) = (home.join("root"), home.join("private"));
    let mut mount = unprivileged(&stage);
    mount.args(["mount", "base"]).arg(&place).arg("--private").arg(&private);
    refused(&mut mount, &["needs root", "sudo"]);
    assert!(!place.exists() && !private.exists());
    let source = stage.scratch.path().join("source");
    let mut import = unprivileged(&stage);
    import.args(["template", "import", "mine"]).arg(&source);
    let store = stage.store.path().to_string_lossy().into_owned();
    refused(&mut import, &[&store, "Permission denied", "run as root", "--store"]);
    for verb in [&["template", "list"][..], &["store", "check"], &["mount"]] {
        refused(unprivileged(&stage).args(verb), &[&store, "Permission denied", "run as root"]);
    }
    stage.check();
}

#[test]
fn without_root_a_mounted_root_is_not_unmounted() {
    let stage = Stage::new("privilege");
    let root = stage.mount("a");
    let store = stage.store.path().to_string_lossy().into_owned();
    refused(unprivileged(&stage).arg("umount").arg(root.path()), &[&store, "Permission denied"]);
    let mut without_store = unprivileged(&stage);
    without_store.env("MICA_STORE", "/nowhere").arg("umount").arg(root.path());
    refused(&mut without_store, &[&root.path().to_string_lossy(), "Operation not permitted"]);
    assert!(is_mountpoint(root.path()));
}

/// Runs `mica` where `prepare` was done to a private mount namespace.
fn in_namespace(stage: &Stage, prepare: &str, arguments: &[&std::ffi::OsStr]) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("{prepare}; exec \"$@\"");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &script, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_mica")).args(arguments);
    command.env("MICA_STORE", stage.store.path());
    command
}

#[test]
fn without_dev_fuse_a_mount_says_what_to_load_and_leaves_nothing() {
    let stage = Stage::new("privilege");
    let (place, private) = (stage.scratch.mountpoint("a"), stage.private("a"));
    let arguments = [
        "mount".as_ref(),
        "base".as_ref(),
        place.as_os_str(),
        "--private".as_ref(),
        private.as_os_str(),
    ];
    // No /dev/fuse at all; one that is no device; one that the container is denied.
    let hidden = "mount -t tmpfs none /dev";
    refused(&mut in_namespace(&stage, hidden, &arguments), &["/dev/fuse", "modprobe fuse"]);
    let masked = "mount --bind /dev/null /dev/fuse";
    let said = refused(&mut in_namespace(&stage, masked, &arguments), &["/dev/fuse"]);
    assert!(said.contains("10:229") || said.contains("modprobe"), "{said}");
    let nodev = "mount -t tmpfs -o nodev none /dev && mknod /dev/fuse c 10 229";
    refused(&mut in_namespace(&stage, nodev, &arguments), &["/dev/fuse", "denied", "10:229"]);
    assert!(!private.exists(), "a refused mount left a private directory");
    assert!(stage.roots().is_empty(), "a refused root was registered");
    // Everything that mounts nothing works all the same.
    let list = ["template".as_ref(), "list".as_ref()];
    in_namespace(&stage, hidden, &list).succeed();
}

#[test]
fn without_a_store_reading_verbs_say_how_one_is_made() {
    crate::support::require_root();
    let scratch = crate::support::Scratch::new("privilege");
    let absent = scratch.path().join("absent");
    for verb in [&["template", "list"][..], &["store", "gc"], &["mount"]] {
        let words = ["absent", "no store", "template import", "--store"];
        refused(mica().env("MICA_STORE", &absent).args(verb), &words);
        assert!(!absent.exists(), "{verb:?} made a store");
    }
    let foreign = scratch.directory("foreign");
    fs::write(foreign.join("letter"), b"dear\n").unwrap();
    let mut import = mica();
    import.env("MICA_STORE", &foreign).args(["template", "import", "base"]).arg(&foreign);
    refused(&mut import, &["foreign", "not empty", "--store"]);
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
}

/// The mount(8) helper fails as any other program that mount(8) calls.
#[test]
fn the_mount_helper_fails_with_a_sentence_too() {
    let stage = Stage::new("privilege");
    let helper = stage.scratch.directory("helper").join("mount.fuse.mica");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_mica"), &helper).unwrap();
    let mountpoint = stage.scratch.mountpoint("a");
    fs::write(mountpoint.join("letter"), b"dear\n").unwrap();
    let mut command = Command::new(&helper);
    command.env("MICA_STORE", stage.store.path()).arg("base").arg(&mountpoint).args(["-o", "ro"]);
    let output = command.capture();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("not empty"), "{said}");
    // mount(8), "Exit status": 32 is a mount failure.
    assert_eq!(output.status.code(), Some(32), "{said}");
}
