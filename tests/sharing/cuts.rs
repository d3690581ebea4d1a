//! Killed, cut off and out of room at every step: nothing is lost, and a second run does the rest.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use rustix::fs::statfs;
use rustix::process::{Pid, Signal};

use crate::stage::{Stage, by_counts, bytes};
use crate::support::{
    Disk, DiskFormat, LogFlush, MountOptions, Scratch, Succeed, seed, shut_down, unmount_beneath,
};

const FILES: [&str; 4] = ["usr/lib/a", "usr/lib/b", "usr/lib/c", "usr/lib/deep/d"];

/// Everything by which one of the processes changes a disk.
pub(crate) const STEPS: &str = "inject=mkdirat,openat,write,pwrite64,ftruncate,fsync,fdatasync,syncfs,\
                     rename,renameat,renameat2,mknodat,fchmod,fchown,linkat,fsetxattr,setxattr,lsetxattr,utimensat,\
                     unlinkat,unlink,ioctl,sendmsg,sendto";

fn content(file: usize) -> Vec<u8> {
    bytes(file as u64, 30_000 + 1000 * file)
}

/// Two roots with the same new files.
fn fill(stage: &Stage) {
    for name in ["one", "two"] {
        let root = stage.mount(name);
        fs::create_dir(root.path().join("usr/lib/deep")).unwrap();
        for (at, file) in FILES.iter().enumerate() {
            fs::write(root.path().join(file), content(at)).unwrap();
        }
        // The template has it under two names.
        fs::write(root.path().join("usr/lib/one"), content(9)).unwrap();
        Command::new("sync").arg("-f").arg(stage.private(name)).succeed();
        root.unmount();
    }
}

/// What has to be so after whatever happened.
fn judge(stage: &Stage, when: &str) {
    stage.store.mica(["store", "gc"]).succeed();
    stage.check();
    for name in ["one", "two"] {
        let root = stage.mount(name);
        for (at, file) in FILES.iter().enumerate() {
            let found = fs::read(root.path().join(file));
            assert!(found.is_ok_and(|found| found == content(at)), "{when}: {file} of {name}");
        }
        let names = ["one", "two"].map(|file| root.path().join("usr/lib").join(file));
        for path in &names {
            assert!(fs::read(path).unwrap() == content(9), "{when}: {path:?}");
            assert_eq!(fs::metadata(path).unwrap().nlink(), 2, "{when}: {path:?}");
        }
        let numbers = names.each_ref().map(|path| fs::metadata(path).unwrap().ino());
        assert_eq!(numbers[0], numbers[1], "{when}: one file under two names");
        root.unmount();
    }
}

fn finish(stage: &Stage, when: &str) {
    stage.reshare(&["--all"]);
    for (name, file) in ["one", "two"].iter().flat_map(|name| FILES.map(|file| (name, file))) {
        assert!(stage.is_reference(name, file), "{when}: {file} of {name} is not shared");
    }
    for (name, file) in ["one", "two"].iter().flat_map(|name| ["one", "two"].map(|f| (name, f))) {
        let path = format!("usr/lib/{file}");
        assert!(stage.is_reference(name, &path), "{when}: {path} of {name} is not shared");
        let room = fs::metadata(stage.upper(name, &path)).unwrap().blocks();
        assert!(room <= 8, "{when}: {path} of {name} takes {room} blocks");
    }
    judge(stage, when);
    let left = fs::read_dir(stage.store.path().join("staging")).unwrap().count();
    assert_eq!(left, 0, "{when}: something is left in staging/");
}

/// `mica store reshare --all` that is killed as it begins its step number `step`; whether it got
/// that far.
fn killed_at(stage: &Stage, step: usize) -> bool {
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        &format!("{STEPS}:signal=KILL:when={step}"),
    ]);
    strace.arg(env!("CARGO_BIN_EXE_mica")).args(["store", "reshare", "--all"]);
    strace.env("MICA_STORE", stage.store.path()).stdout(Stdio::null()).stderr(Stdio::null());
    !strace.start().wait().unwrap().success()
}

/// Steps to try: all of them when there is time, else some of each part of the way.
fn steps() -> impl Iterator<Item = usize> {
    let stride = by_counts(23, 13, 1);
    let mut random = fastrand::Rng::with_seed(seed());
    (0..).map(move |number| 1 + number * stride + random.usize(..stride))
}

#[test]
fn killed_at_every_step_it_loses_nothing_and_a_second_run_does_the_rest() {
    for step in steps() {
        let stage = Stage::new("cuts-kill");
        fill(&stage);
        let killed = killed_at(&stage, step);
        judge(&stage, &format!("killed at step {step}"));
        finish(&stage, &format!("again after step {step}"));
        if !killed {
            eprintln!("{step} steps or fewer");
            break;
        }
    }
}

#[test]
fn the_power_cut_at_every_step_it_loses_nothing_and_a_second_run_does_the_rest() {
    for step in steps() {
        for log in [LogFlush::Lost, LogFlush::Flushed] {
            let scratch = Scratch::new("cuts-power");
            let (image, at) = (scratch.path().join("disk.img"), scratch.mountpoint("disk"));
            let disk = Disk::create(&image, &at, DiskFormat::Ext4, 96 << 20);
            fs::remove_dir(scratch.path().join("disk")).ok();
            std::os::unix::fs::symlink(&at, scratch.path().join("disk")).unwrap();
            let stage = Stage::on(scratch, "disk");
            fill(&stage);
            Command::new("sync").arg("-f").arg(&at).succeed();
            let killed = killed_at(&stage, step);
            shut_down(&at, log).unwrap();
            // What is on the disk now, whoever still holds the dead mount.
            let left = stage.scratch.path().join("left.img");
            Command::new("cp").arg("--sparse=always").arg(&image).arg(&left).succeed();
            drop(disk);
            let disk = Disk::attach(&left, &at);
            judge(&stage, &format!("cut at step {step}, {log:?}"));
            finish(&stage, &format!("again after step {step}, {log:?}"));
            drop(disk);
            if !killed {
                return;
            }
        }
    }
}

/// The mount process does the replacing, and is what is killed here.
#[test]
fn a_mount_process_killed_at_every_step_leaves_every_file_as_it_was_or_shared() {
    for step in steps() {
        let stage = Stage::new("cuts-mount");
        fill(&stage);
        let mountpoint = stage.scratch.mountpoint("one");
        let options = MountOptions::private(&stage.private("one"));
        let mut server = stage.store.mount_command("base", &mountpoint, &options);
        let mount = stage.store.serve_with(server.arg("--foreground"), &mountpoint);
        let record = fs::read_to_string(
            fs::read_dir(stage.store.path().join("roots"))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .find(|path| {
                    path.extension().is_some_and(|json| json == "json")
                        && fs::read_to_string(path).unwrap().contains("\"name\": \"one\"")
                })
                .unwrap(),
        )
        .unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        let pid = record["mount"]["pid"].to_string();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-p", &pid]);
        strace.args(["-e", &format!("{STEPS}:signal=KILL:when={step}")]);
        let mut strace = strace.stdout(Stdio::null()).stderr(Stdio::piped()).start();
        await_traced(&pid);
        stage.store.mica(["store", "reshare", "--all", "--quiet"]).capture();
        // It ends by itself once the process it traces was killed.
        let tracer = Pid::from_child(&strace);
        rustix::process::kill_process(tracer, Signal::TERM).ok();
        strace.wait().unwrap();
        // Nobody kills it any more, and one that was killed answers no more.
        let alive = statfs(&mountpoint).is_ok();
        if alive {
            mount.unmount();
        } else {
            mount.kill();
            unmount_beneath(&mountpoint);
        }
        judge(&stage, &format!("mount process killed at step {step}"));
        finish(&stage, &format!("again after step {step}"));
        if alive {
            break;
        }
    }
}

fn is_alive(pid: &str) -> bool {
    let told = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    told.lines()
        .any(|line| line.starts_with("State:") && !line.contains('Z') && !line.contains('X'))
}

/// Waits until every thread of a process is traced (proc(5), TracerPid).
fn await_traced(pid: &str) {
    crate::support::again_until("the mount process is not traced", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let traced = tasks.flatten().all(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            !status.lines().any(|line| line == "TracerPid:\t0")
        });
        // What it does of its own accord may be the step at which it is killed.
        traced || !is_alive(pid)
    });
}

#[test]
fn a_full_disk_is_told_and_nothing_is_lost() {
    let scratch = Scratch::new("cuts-full");
    let at = scratch.mountpoint("disk");
    let disk = Disk::create(&scratch.path().join("disk.img"), &at, DiskFormat::Ext4, 64 << 20);
    fs::remove_dir(scratch.path().join("disk")).ok();
    std::os::unix::fs::symlink(&at, scratch.path().join("disk")).unwrap();
    let stage = Stage::on(scratch, "disk");
    fill(&stage);
    let ballast = at.join("ballast");
    Command::new("sh")
        .arg("-c")
        .arg(format!("head -c 64M /dev/zero > {0} 2>/dev/null; sync -f {0}", ballast.display()))
        .capture();
    let output = stage.store.mica(["store", "reshare", "--all"]).capture();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{output:?}");
    assert!(said.contains("No space left on device"), "{said}");
    fs::remove_file(&ballast).unwrap();
    judge(&stage, "on a full disk");
    finish(&stage, "with room again");
    // Before the directory with its image goes.
    drop((stage.store, disk));
}

/// A container that renames a new file over one that is being shared keeps its new one.
#[test]
fn a_file_replaced_while_it_is_shared_stays_what_it_was_replaced_by() {
    let stage = Stage::new("cuts-replaced");
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    for round in 0..by_counts(10, 15, 300) {
        for root in [&one, &two] {
            fs::write(root.path().join("usr/lib/new"), bytes(round, 400_000)).unwrap();
        }
        let mut running = stage
            .store
            .mica(["store", "reshare", "--all", "--quiet"])
            .stdout(Stdio::null())
            .start();
        let path = one.path().join("usr/lib/new");
        let mut count = 0_u64;
        while running.try_wait().unwrap().is_none() {
            let mine = [count.to_le_bytes().to_vec(), bytes(round, 5000)].concat();
            fs::write(path.with_extension("fresh"), &mine).unwrap();
            fs::rename(path.with_extension("fresh"), &path).unwrap();
            assert!(fs::read(&path).unwrap() == mine, "round {round}");
            count += 1;
        }
        assert!(fs::read(two.path().join("usr/lib/new")).unwrap() == bytes(round, 400_000));
    }
    stage.check();
}
