//! Root inside an unprivileged container tries to get out, or at what is not its own. Each attempt is
//! named, and has to be denied in its own words.

use std::fs;

use mica::container::config::Kind;

use crate::stage::{Cell, EMBEDDED, Wish, ground, with_both};
use crate::support::Succeed;

with_both!(
    root_of_a_machine_gets_at_nothing_of_the_host,
    root_of_an_application_gets_at_nothing_of_the_host,
    a_fork_bomb_and_a_memory_hog_end_in_their_own_container,
);

/// What is tried: a name, a script, and what its refusal says, one of.
type Attempt<'a> = (&'a str, String, &'a [&'a str]);

const PERM: &[&str] =
    &["Operation not permitted", "Permission denied", "permission denied", "Read-only file system"];
const ABSENT: &[&str] = &[
    "No such file",
    "No such process",
    "No such device",
    "cannot open",
    "not found",
    "nonexistent",
];

fn denied(cell: &Cell, attempts: &[Attempt<'_>]) {
    let mut wrong = Vec::new();
    for (name, script, words) in attempts {
        let (status, output, errors) = cell.shell(script);
        let told = format!("{output}{errors}");
        if status == 0 || !words.iter().any(|word| told.contains(word)) {
            wrong.push(format!("{name}: status {status}: {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What both kinds of container must not do.
fn attempts(secret_pid: u32, store: &str, neighbour_root: &str) -> Vec<Attempt<'static>> {
    let absent_or_denied: &[&str] = &[
        "No such file",
        "Permission denied",
        "Operation not permitted",
        "not found",
        "nonexistent",
        "cannot",
    ];
    vec![
        ("a process of the host, by its number", format!("kill -0 {secret_pid}"), ABSENT),
        ("the root of a process of the host", format!("ls /proc/{secret_pid}/root/"), ABSENT),
        ("a process of the host, entered", format!("nsenter -t {secret_pid} -m true"), ABSENT),
        ("a process of the host, traced", format!("perl -e 'syscall(101, 16, {secret_pid}, 0, 0) == 0 or die \"$!\"'"), ABSENT),
        ("the memory of a process of the host", format!("head -c 1 /proc/{secret_pid}/mem"), ABSENT),
        ("the store", format!("ls {store}"), ABSENT),
        ("the daemon's socket", format!("ls {store}/node.sock"), ABSENT),
        ("a neighbour's root", format!("ls {neighbour_root}"), ABSENT),
        ("the stage of the launch", "ls /run/mica/root".to_owned(), ABSENT),
        ("an object through a descriptor of the init",
            "for f in /proc/1/fd/* /proc/self/fd/*; do readlink $f | grep objects && exit 0; done; echo not found; exit 1".to_owned(), &["not found"]),
        ("a way up through the root's parent", "ls /../../../../work /proc/1/root/../../work".to_owned(), ABSENT),
        ("a mount of the host's disk", "b=$(ls /sys/class/block | grep -m1 vda); mknod /tmp/disk b $(cat /sys/class/block/$b/dev | tr : ' ') && cat /tmp/disk | head -c 1".to_owned(), PERM),
        ("a device made by hand: memory", "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem".to_owned(), PERM),
        ("a device made by hand: FUSE", "mknod /tmp/fuse c 10 229 && cat /tmp/fuse".to_owned(), PERM),
        ("sysrq", "echo h > /proc/sysrq-trigger".to_owned(), absent_or_denied),
        ("the name of core dumps, run by the host", "echo '|/tmp/x' > /proc/sys/kernel/core_pattern".to_owned(), PERM),
        ("the program for modules", "echo /tmp/x > /proc/sys/kernel/modprobe".to_owned(), absent_or_denied),
        ("the helper of hotplug", "echo /tmp/x > /sys/kernel/uevent_helper".to_owned(), absent_or_denied),
        ("binary formats of the host", "echo ':x:M::x::/tmp/x:' > /proc/sys/fs/binfmt_misc/register".to_owned(), absent_or_denied),
        ("the memory of the kernel", "test $(cat /proc/kcore 2>/dev/null | head -c 1 | wc -c) = 1 || { echo not found; exit 1; }".to_owned(), &["not found"]),
        ("the log of the kernel, cleared", "perl -e 'syscall(103, 5, 0, 0) == 0 or die \"$!\"'".to_owned(), PERM),
        ("a module", "perl -e 'syscall(175, 0, 0, 0) == 0 or die \"$!\"'".to_owned(), PERM),
        ("a new kernel", "perl -e 'syscall(246, 0, 0, 0, 0) == 0 or die \"$!\"'".to_owned(), PERM),
        ("the clock of the host", "date -s 2001-01-01".to_owned(), PERM),
        ("ports of the processor", "perl -e 'syscall(172, 3) == 0 or die \"$!\"'".to_owned(), PERM),
        ("keys of the host", "perl -e 'syscall(250, 0, -3, 1) >= 0 or die \"$!\"'".to_owned(), &["Function not implemented"]),
        ("files by their handle", "perl -e 'syscall(304, -100, 0, 0) >= 0 or die \"$!\"'".to_owned(), &["Operation not permitted", "Bad address", "Permission denied"]),
        ("another user namespace from its file", "nsenter --user=/proc/1/ns/user true".to_owned(), &["Invalid argument", "Operation not permitted", "Permission denied", "reassociate"]),
        ("limits of its own memory", "echo -1 > /sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(), PERM),
        ("a group free of limits of disk traffic", "mkdir /sys/fs/cgroup/blkio/free".to_owned(), PERM),
        ("a group of processors", "mkdir /sys/fs/cgroup/cpuset/own".to_owned(), PERM),
        ("devices allowed by itself", "echo a > /sys/fs/cgroup/devices/devices.allow".to_owned(), PERM),
        ("a program run by the host when a group empties", "echo /tmp/x > /sys/fs/cgroup/systemd/release_agent".to_owned(), absent_or_denied),
    ]
}

/// A process of the host that holds a secret, for as long as this lives.
struct Secret(std::process::Child);

impl Drop for Secret {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

fn secret() -> Secret {
    // A number that no process inside has.
    Secret(std::process::Command::new("sleep").arg("1000").start())
}

fn attack(cell: &Cell, neighbour: &Cell) -> Vec<Attempt<'static>> {
    let secret = secret();
    let store = ground().store.path().to_str().unwrap().to_owned();
    let attempts = attempts(secret.0.id(), &store, neighbour.root.path().to_str().unwrap());
    denied(cell, &attempts);
    attempts
}

fn machine(runtime: &str) -> Cell {
    let mut wish = Wish::application(&["/bin/sleep", "infinity"]);
    wish.kind = Kind::System;
    Cell::start(runtime, wish)
}

fn root_of_a_machine_gets_at_nothing_of_the_host(runtime: &str) {
    let (cell, neighbour) = (machine(runtime), machine(EMBEDDED));
    attack(&cell, &neighbour);
    // It may mount, in its own namespace: still nothing of the host comes of it.
    denied(&cell, &[
        ("a mount of cgroups from the top", "mkdir /tmp/c && mount -t cgroup -o devices none /tmp/c && mkdir /tmp/c/../c/x && echo a > /tmp/c/x/devices.allow".to_owned(), &["I/O error", "Operation not permitted"]),
        ("a mount of debugfs", "mount -t debugfs none /mnt".to_owned(), PERM),
        ("a mount of a disk", "mount -t ext4 /dev/vda /mnt".to_owned(), &["does not exist", "not permitted", "permission denied", "special device"]),
        ("the read-only system files, writable", "mount -o remount,rw /sys; echo mem > /sys/power/state; echo 1 > /sys/class/block/vda/queue/nomerges".to_owned(), &["Permission denied", "Read-only", "nonexistent", "Operation not permitted"]),
        ("what is beneath a mask", "umount /proc/sysrq-trigger 2>/dev/null; echo h > /proc/sysrq-trigger".to_owned(), &["nonexistent", "Permission denied", "not permitted"]),
        ("the limits of the host's root", "prlimit --pid 1 --nofile=100000000".to_owned(), PERM),
    ]);
    // The groups that it sees are its own, whatever it mounts.
    let seen = cell.run(
        "mount -t cgroup -o pids none /mnt 2>/dev/null && ls /mnt | grep -c mica-test || echo 0",
    );
    assert_eq!(seen.lines().last(), Some("0"));
    // The number of processes is its own pid namespace's to limit, since Linux 6.14.
    let limit = || fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let before = limit();
    cell.shell("echo 5000 > /proc/sys/kernel/pid_max");
    assert_eq!(limit(), before);
    let mine = fs::read_to_string(format!("/proc/{}/uid_map", cell.init().pid)).unwrap();
    let theirs = fs::read_to_string(format!("/proc/{}/uid_map", neighbour.init().pid)).unwrap();
    assert_ne!(mine, theirs, "two containers have the same users");
}

fn root_of_an_application_gets_at_nothing_of_the_host(runtime: &str) {
    let cell = Cell::start(runtime, Wish::application(&["sleep", "infinity"]));
    let neighbour = machine(EMBEDDED);
    attack(&cell, &neighbour);
    denied(
        &cell,
        &[
            ("a mount", "mount -t tmpfs none /mnt".to_owned(), PERM),
            ("a user namespace", "unshare -U true".to_owned(), PERM),
            ("a mount namespace", "unshare -m true".to_owned(), PERM),
            (
                "what is beneath a mask",
                "umount /proc/kcore".to_owned(),
                &["not permitted", "must be superuser", "Permission denied"],
            ),
            (
                "another's host name",
                "hostname other".to_owned(),
                &["must be root", "not permitted", "denied"],
            ),
            (
                "the name of this machine, through /proc",
                "echo x > /proc/sys/kernel/hostname".to_owned(),
                PERM,
            ),
            ("a link of its network", "ip link add x type dummy".to_owned(), PERM),
            (
                "more rights through a set-user-id program",
                "setpriv --reuid 33 --regid 33 --clear-groups su -c true".to_owned(),
                &["Authentication failure", "cannot", "Permission", "Password", "failure"],
            ),
        ],
    );
}

fn a_fork_bomb_and_a_memory_hog_end_in_their_own_container(runtime: &str) {
    use mica::container::cgroup::Limits;
    let cell =
        Cell::start(runtime, Wish::application(&["/bin/sh", "-c", "while :; do sleep 1; done"]));
    // An init that reaps, as every machine's does.
    let neighbour = machine(EMBEDDED);
    let limits = Limits { memory_bytes: Some(64 << 20), pids: Some(64), ..Limits::default() };
    cell.cgroup.apply(&limits).unwrap();
    let (status, _, errors) =
        cell.shell("f() { f | f & wait; }; for i in $(seq 200); do sleep 5 & done; wait");
    let word = ["Cannot fork", "Resource temporarily unavailable", "can't fork"];
    assert!(status != 0 && word.iter().any(|word| errors.contains(word)), "{status}: {errors}");
    // The bomb's own processes go by themselves.
    crate::support::again_until("there is room again", || cell.shell("true").0 == 0);
    let (status, _, _) = cell.shell("perl -e '$x = q(x) x (256 << 20); print length $x'");
    assert_eq!(status, 137, "the hog was not killed");
    assert!(cell.cgroup.usage().unwrap().oom_kills.is_some_and(|kills| kills > 0));
    assert_eq!(cell.run("echo alive"), "alive");
    assert_eq!(neighbour.run("echo alive"), "alive");
}
