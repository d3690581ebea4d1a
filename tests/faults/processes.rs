//! Mount processes that are killed, asked to end, or find their root gone.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::stage::{Stage, errno, picture, refused};
use crate::support::{MountOptions, PATIENCE, Succeed, is_mountpoint};

/// The mount process of a root, watched by a descriptor, so that no other can be meant.
struct Server {
    pid: Pid,
    watch: OwnedFd,
}

impl Server {
    fn of(stage: &Stage, root: &str) -> Self {
        let pid = stage.record(root)["pid"].as_i64().unwrap();
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let watch = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).unwrap();
        assert_eq!(name.trim(), "mica");
        Self { pid, watch }
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Waits until the process has ended.
    fn await_end(&self) {
        let limit = Timespec::try_from(PATIENCE).unwrap();
        let mut fds = [PollFd::new(&self.watch, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "the mount process goes on");
    }
}

/// The part of the store that registers roots, without what a root that was once mounted keeps.
fn sockets(stage: &Stage) -> Vec<String> {
    let names = fs::read_dir(stage.store.path().join("roots")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".sock")).collect()
}

#[test]
fn a_dead_mountpoint_is_detached_and_mounted_again() {
    let stage = Stage::new("processes");
    for options in [&[][..], &["--no-passthrough"]] {
        let mut mount = stage.mount_command("a");
        mount.args(options).succeed();
        let mountpoint = stage.scratch.mountpoint("a");
        fs::write(mountpoint.join("etc/conf"), b"changed\n").unwrap();
        fs::remove_file(mountpoint.join("etc/fine")).unwrap_or_default();
        let before = picture(&mountpoint);
        let server = Server::of(&stage, "a");
        server.signal(Signal::KILL);
        server.await_end();
        assert_eq!(errno(fs::read(mountpoint.join("etc/conf"))), libc::ENOTCONN);
        let record = stage.record("a");
        assert_eq!(record["mounted"], false, "{record}");
        mount.succeed();
        assert_eq!(picture(&mountpoint), before);
        stage.mica(["umount", "a"]).succeed();
        assert!(!is_mountpoint(&mountpoint), "the dead mount lies below");
    }
}

#[test]
fn a_dead_mount_is_unmounted_like_a_living_one() {
    let stage = Stage::new("processes");
    for by_place in [false, true] {
        let root = stage.mount("a");
        let server = Server::of(&stage, "a");
        server.signal(Signal::KILL);
        server.await_end();
        let mut umount = stage.mica(["umount"]);
        if by_place {
            umount.arg(root.path())
        } else {
            umount.arg("a")
        };
        umount.succeed();
        assert!(!is_mountpoint(root.path()));
        assert_eq!(stage.record("a")["mounted"], false);
    }
}

#[test]
fn plain_umount_ends_the_process_and_cleans_the_records() {
    let stage = Stage::new("processes");
    let options = MountOptions::read_only();
    let read_only = stage.store.mount("base", &stage.scratch.mountpoint("ro"), &options);
    let root = stage.mount("a");
    let servers = [Server::of(&stage, "a"), Server::of(&stage, "ro")];
    for mounted in [&root, &read_only] {
        std::process::Command::new("umount").arg(mounted.path()).succeed();
    }
    for server in &servers {
        server.await_end();
    }
    assert_eq!(stage.roots(), ["a"], "a read-only root leaves nothing behind");
    assert_eq!(stage.record("a")["mounted"], false);
    assert_eq!(sockets(&stage), Vec::<String>::new());
    stage.mount("a").unmount();
}

#[test]
fn a_terminated_mount_process_unmounts_first() {
    let stage = Stage::new("processes");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let root = stage.mount("a");
        fs::write(root.path().join("etc/signal"), format!("{signal:?}")).unwrap();
        let server = Server::of(&stage, "a");
        server.signal(signal);
        server.await_end();
        assert!(!is_mountpoint(root.path()), "{signal:?} left the mount");
        assert_eq!(stage.record("a")["mounted"], false);
        let again = stage.mount("a");
        let text = fs::read_to_string(again.path().join("etc/signal")).unwrap();
        assert_eq!(text, format!("{signal:?}"));
        again.unmount();
    }
}

#[test]
fn a_terminated_mount_process_in_use_ends_with_its_last_user() {
    let stage = Stage::new("processes");
    let root = stage.mount("a");
    let file = fs::File::open(root.path().join("etc/conf")).unwrap();
    let server = Server::of(&stage, "a");
    server.signal(Signal::TERM);
    // The mount leaves the tree; the open file goes on.
    let table = fs::File::open("/proc/self/mountinfo").unwrap();
    while is_mountpoint(root.path()) {
        let limit = Timespec::try_from(PATIENCE).unwrap();
        let mut fds = [PollFd::new(&table, PollFlags::PRI)];
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "the mount stays");
    }
    assert_eq!(std::io::read_to_string(&file).unwrap(), "key=value\n");
    drop(file);
    server.await_end();
}

#[test]
fn an_unmount_elsewhere_is_noticed_by_the_next_mount() {
    let stage = Stage::new("processes");
    let root = stage.mount("a");
    let server = Server::of(&stage, "a");
    unmount(root.path(), UnmountFlags::DETACH).unwrap();
    server.await_end();
    refused(&mut stage.mica(["umount", "a"]), &["not mounted"]);
    stage.mount("a").unmount();
}
