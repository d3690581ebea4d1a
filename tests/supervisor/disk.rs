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
    // What does not fit into a smaller disk makes no container.
    let small = ["copy", "c1", "small", "limits.disk=24MiB"];
    assert!(shrunk.contains("mica copy c1 NAME limits.disk=20MiB"), "{shrunk}");
    stage.refused(small);
    stage.mica(["exec", "c1", "--", "rm", "/root/big"]);
    stage.mica(small);
    stage.mica(["start", "small"]);
    fill("small");
    assert!((10..24).contains(&length("small")), "{} MiB", length("small"));
    fill("c1");
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

#[test]
fn a_growth_that_was_cut_short_is_finished_by_the_next_set_or_start() {
    const MIB: u64 = 1 << 20;
    let stage = Stage::new("supervisor-image-cut");
    stage.create("c1", &["--disk-image", "limits.disk=32MiB"], &["sleep", "1000"]);
    let id = stage.info("c1")["id"].as_str().expect("an identity").to_owned();
    let directory = stage.store.path().join("containers").join(id);
    let (image, disk) = (directory.join("disk.img"), directory.join("disk"));
    let room = || {
        let disk = rustix::fs::statfs(&disk).expect("it is mounted");
        disk.f_blocks * u64::try_from(disk.f_bsize).expect("a size") / MIB
    };
    let length = || std::fs::metadata(&image).expect("it is there").len() / MIB;
    let lengthen = |bytes| {
        let file = std::fs::File::options().write(true).open(&image).expect("it is there");
        file.set_len(bytes).expect("sparse");
    };
    // Longer, and no file system knows of it.
    lengthen(64 * MIB);
    let shrunk = stage.refused(["set", "c1", "limits.disk=20MiB"]);
    assert!(shrunk.contains("cannot shrink"), "{shrunk}");
    stage.mica(["set", "c1", "limits.disk=64MiB"]);
    assert!((48..=64).contains(&room()), "{} MiB", room());
    // Taken back, and set smaller than what it was to be.
    lengthen(128 * MIB);
    stage.mica(["set", "c1", "limits.disk=96MiB"]);
    assert_eq!(length(), 96);
    assert!((72..=96).contains(&room()), "{} MiB", room());
    stage.mica(["start", "c1"]);
    stage.mica(["exec", "c1", "--", "sh", "-c", "echo kept > /root/file; sync"]);
    stage.mica(["stop", "--kill", "c1"]);
    // As resize2fs leaves it half way: shorter than its disk, and said not to be sound.
    stage.mica(["node", "stop"]);
    Command::new("umount").arg(&disk).succeed();
    Command::new("e2fsck").args(["-f", "-p"]).arg(&image).capture();
    Command::new("resize2fs").arg(&image).arg("64M").succeed();
    Command::new("debugfs").args(["-w", "-R", "set_super_value state 2"]).arg(&image).succeed();
    stage.start_daemon(&[]);
    assert!(room() < 64, "{} MiB", room());
    stage.mica(["start", "c1"]);
    assert!((72..=96).contains(&room()), "{} MiB", room());
    assert_eq!(stage.mica(["exec", "c1", "--", "cat", "/root/file"]), "kept\n");
    let state = Command::new("dumpe2fs").arg("-h").arg(&image).succeed();
    assert!(!state.contains("with errors"), "{state}");
    stage.remember();
    stage.mica(["delete", "--force", "c1"]);
    stage.assert_nothing_left("after a growth that was cut short");
}
