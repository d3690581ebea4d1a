//! A container's disk in a file of its own.

use std::process::Command;

use crate::stage::{Stage, TEMPLATE};
use crate::support::{Succeed, again_until};

#[test]
fn a_disk_image_holds_exactly_grows_and_goes_with_its_container() {
    let stage = Stage::new("supervisor-image");
    let words = ["create", "c1", TEMPLATE, "network=none", "--disk-image", "--", "sleep", "1000"];
    let sizeless = stage.refused(words);
    assert!(sizeless.contains("limits.disk"), "{sizeless}");
    stage.create("c1", &["--disk-image", "limits.disk=32MiB"], &["sleep", "1000"]);
    stage.mica(["start", "c1"]);
    let fill = |name: &str| {
        stage.ask(["exec", name, "--", "dd", "if=/dev/zero", "of=/root/big", "bs=1M", "conv=fsync"])
    };
    let length = |name: &str| {
        let said = stage.mica(["exec", name, "--", "stat", "-c", "%s", "/root/big"]);
        said.trim().parse::<u64>().expect("a number") >> 20
    };
    let full = fill("c1");
    assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"), "{full:?}");
    assert!((16..32).contains(&length("c1")), "{} MiB", length("c1"));
    // In use it grows where the host lets root resize; where not, that is said, and all is as it was.
    let grown = stage.ask(["set", "c1", "limits.disk=48MiB"]);
    if !grown.status.success() {
        let told = String::from_utf8_lossy(&grown.stderr);
        assert!(told.contains("Permission denied to resize") && told.contains("stop c1"), "{told}");
        assert_eq!(stage.info("c1")["settings"]["limits.disk"], "32MiB");
    }
    // A daemon that is killed finds it as it is.
    stage.kill_daemon();
    stage.start_daemon(&[]);
    stage.mica(["stop", "--kill", "c1"]);
    stage.mica(["set", "c1", "limits.disk=64MiB"]);
    let shrunk = stage.refused(["set", "c1", "limits.disk=20MiB"]);
    assert!(shrunk.contains("cannot shrink"), "{shrunk}");
    let fixed = stage.refused(["set", "c1", "disk-image=no"]);
    assert!(fixed.contains("when it was created"), "{fixed}");
    // What is in it can be looked at while it is down.
    let differences = stage.store.mica(["diff", "c1"]).answer();
    assert!(differences.contains("/root/big"), "{differences}");
    stage.mica(["start", "c1"]);
    fill("c1");
    assert!((40..64).contains(&length("c1")), "{} MiB", length("c1"));
    // A copy of the running one has a disk of its own.
    stage.mica(["copy", "c1", "c2"]);
    stage.mica(["exec", "c1", "--", "rm", "/root/big"]);
    stage.mica(["start", "c2"]);
    assert!((40..64).contains(&length("c2")), "{} MiB", length("c2"));
    stage.remember();
    stage.mica(["delete", "--force", "--all"]);
    stage.assert_nothing_left("after disk images");
    let store = stage.store.path().to_string_lossy();
    // The kernel takes a disk apart after the last one who had it mounted has gone.
    again_until("loop devices are left", || {
        let loops = Command::new("losetup").args(["--list", "--noheadings"]).succeed();
        !loops.contains(&*store)
    });
}
