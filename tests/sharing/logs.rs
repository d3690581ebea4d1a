//! The logs of references get shorter again, and never too short.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::cuts::STEPS;
use crate::stage::{Stage, by_counts, bytes};
use crate::support::{MountOptions, Succeed, seed, unmount_beneath};

const LINE: u64 = 82;
const FILES: u64 = 100;
const LEFT: u64 = 5;

/// The log of a root's private directory and the one in the registry.
fn logs(stage: &Stage, name: &str) -> [PathBuf; 2] {
    let records = fs::read_dir(stage.store.path().join("roots")).unwrap();
    let record = records
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|json| json == "json"))
        .find(|path| fs::read_to_string(path).unwrap().contains(&format!("\"name\": \"{name}\"")))
        .unwrap();
    [stage.private(name).join("refs"), record.with_extension("refs")]
}

fn lines(stage: &Stage, name: &str) -> [u64; 2] {
    logs(stage, name).map(|log| fs::metadata(log).unwrap().size() / LINE)
}

fn path(file: u64) -> String {
    format!("usr/lib/file{file}")
}

/// Two roots that share files, of which `gone` remain only in the logs.
fn shared(stage: &Stage) {
    for name in ["one", "two"] {
        let root = stage.mount(name);
        for file in 0..FILES {
            fs::write(root.path().join(path(file)), bytes(file, 5000)).unwrap();
        }
        root.unmount();
    }
    assert_eq!(stage.reshare(&["--all"])["files"], 2 * FILES);
    assert_eq!(lines(stage, "one"), [FILES; 2]);
}

fn objects(stage: &Stage) -> u64 {
    let said = stage.store.mica(["store", "gc", "--json"]).succeed();
    serde_json::from_str::<serde_json::Value>(&said).unwrap()["objects"].as_u64().unwrap()
}

#[test]
fn what_no_file_refers_to_any_more_leaves_the_logs_and_then_the_store() {
    let stage = Stage::new("logs");
    shared(&stage);
    let root = stage.mount("one");
    for file in LEFT..FILES {
        fs::remove_file(root.path().join(path(file))).unwrap();
    }
    // Copied up again it has the number that it always had, which nothing else may show.
    fs::write(root.path().join(path(0)), b"mine").unwrap();
    let number = fs::metadata(root.path().join(path(0))).unwrap().ino();
    root.unmount();
    assert_eq!(lines(&stage, "one"), [LEFT, LEFT - 1], "at the end of the mount");
    assert_eq!(objects(&stage), 0, "the other root has them");
    assert_eq!(lines(&stage, "two"), [FILES; 2], "all of them count");
    stage.check();
    for name in ["one", "two"] {
        let root = stage.mount(name);
        for file in 1..LEFT {
            assert!(fs::read(root.path().join(path(file))).unwrap() == bytes(file, 5000));
        }
        if name == "one" {
            assert_eq!(fs::metadata(root.path().join(path(0))).unwrap().ino(), number);
        }
        root.unmount();
    }
}

/// `store gc` shortens the logs of a root at rest; it is killed at each of its steps.
#[test]
fn killed_at_every_step_of_shortening_a_log_names_all_that_files_refer_to() {
    let stage = Stage::new("logs-cut");
    shared(&stage);
    // Its mount process had no time to shorten them.
    let mountpoint = stage.scratch.mountpoint("one");
    let options = MountOptions::private(&stage.private("one"));
    let mut server = stage.store.mount_command("base", &mountpoint, &options);
    let mount = stage.store.serve_with(server.arg("--foreground"), &mountpoint);
    for file in LEFT..FILES {
        fs::remove_file(mountpoint.join(path(file))).unwrap();
    }
    mount.kill();
    unmount_beneath(&mountpoint);
    let saved = logs(&stage, "one").map(|log| (fs::read(&log).unwrap(), log));
    let stride = by_counts(7, 3, 1);
    let mut random = fastrand::Rng::with_seed(seed());
    let mut ended = false;
    for number in 0.. {
        for (bytes, log) in &saved {
            fs::remove_file(log).unwrap();
            fs::write(log, bytes).unwrap();
        }
        let step = 1 + number * stride + random.usize(..stride);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e"]);
        strace.arg(format!("{STEPS}:signal=KILL:when={step}"));
        strace.arg(env!("CARGO_BIN_EXE_mica")).args(["store", "gc"]);
        strace.env("MICA_STORE", stage.store.path()).stdout(Stdio::null()).stderr(Stdio::null());
        ended = strace.start().wait().unwrap().success();
        let [private, registry] = lines(&stage, "one");
        assert!(private == FILES || private == LEFT, "killed at step {step}: {private} lines");
        assert!(registry == FILES || registry == LEFT, "killed at step {step}: {registry} lines");
        let whole = stage.store.mica(["store", "check"]).succeed();
        assert!(whole.starts_with("whole"), "killed at step {step}: {whole}");
        if ended {
            break;
        }
    }
    assert!(ended);
    assert_eq!(lines(&stage, "one"), [LEFT; 2]);
    let root = stage.mount("one");
    for file in 0..LEFT {
        assert!(fs::read(root.path().join(path(file))).unwrap() == bytes(file, 5000));
    }
    root.unmount();
    stage.check();
}
