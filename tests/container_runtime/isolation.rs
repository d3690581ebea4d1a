//! What a container is and is not given.

use std::collections::BTreeSet;
use std::fs;

use mica::container::config::Kind;
use serde_json::Value;

use crate::stage::{Cell, EMBEDDED, PODMAN, Wish, host, with_both};
use crate::support::debian;

with_both!(
    an_application_has_the_default_capabilities_filter_and_paths,
    a_machine_of_its_own_has_its_own_users_and_no_more_rights_than_those,
    devices_are_those_allowed_and_no_others,
    privileged_means_the_hosts_users_and_all_they_may_do,
    limits_on_descriptors_that_cannot_be_raised_do_not_stop_a_container,
);

fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

/// The capabilities of docker and podman, as a number.
const DEFAULT: &str = "00000000a80425fb";

fn an_application_has_the_default_capabilities_filter_and_paths(runtime: &str) {
    let cell = Cell::start(runtime, Wish::application(&["sleep", "infinity"]));
    let init = cell.init().pid;
    for (field, want) in [
        ("CapBnd", DEFAULT),
        ("CapEff", DEFAULT),
        ("CapPrm", DEFAULT),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(status(init, field), want, "{field}");
    }
    let range = cell.range.unwrap();
    let map = fs::read_to_string(format!("/proc/{init}/uid_map")).unwrap();
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", &range.first().to_string(), "65536"]);
    // Every file of the template is root's inside, and the mount is the same for both.
    assert_eq!(cell.run("stat -c %u /etc/shadow /usr/bin/passwd | sort -u"), "0");
    for (script, want) in [
        ("cat /proc/kcore | wc -c", "0"),
        ("cat /proc/keys | wc -c", "0"),
        ("ls /sys/firmware | wc -l", "0"),
    ] {
        assert_eq!(cell.run(script), want, "{script}");
    }
    for path in ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/power/state"] {
        let (code, _, errors) = cell.shell(&format!("echo x > {path}"));
        let denied = ["Read-only file system", "Permission denied", "nonexistent"];
        assert_ne!(code, 0, "{path}");
        assert!(denied.iter().any(|word| errors.contains(word)), "{path}: {errors}");
    }
    // The filter answers for calls that no default capability needs.
    let denied = [
        libc::SYS_kexec_load,
        libc::SYS_mount,
        libc::SYS_move_mount,
        libc::SYS_pivot_root,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_open_by_handle_at,
    ];
    // As if the kernel had none of them: libraries fall back, runtimes do without.
    let absent = [libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key, libc::SYS_clone3];
    assert_eq!(answers(&cell, &denied), [libc::EPERM; 11]);
    assert_eq!(answers(&cell, &absent), [libc::ENOSYS; 4]);
    // clone(2) makes processes and threads, no namespaces.
    let clone = |flags: i32| {
        cell.run(&format!(
            "perl -e '$p = syscall({}, {}, 0, 0, 0, 0); exit if $p == 0; print $p > 0 ? 0 : $!+0'",
            libc::SYS_clone,
            flags | libc::SIGCHLD,
        ))
    };
    assert_eq!(clone(0), "0");
    for kind in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWNET] {
        assert_eq!(clone(kind), libc::EPERM.to_string(), "{kind:#x}");
    }
}

/// What calls with these numbers answer inside, without arguments.
fn answers(cell: &Cell, numbers: &[libc::c_long]) -> Vec<i32> {
    let list: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    let list = list.join(",");
    let script =
        format!("for ({list}) {{ print syscall($_, 0, 0, 0, 0, 0) < 0 ? $!+0 : 0, qq( ) }}");
    let probed = cell.run(&format!("perl -e '{script}'"));
    probed.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// What is allowed by default, beside the list that podman has from its own Debian package.
#[test]
fn the_filter_allows_what_podmans_does_but_for_what_is_named_here() {
    let tar = debian("podman", PODMAN);
    let member = "./usr/share/containers/seccomp.json";
    let theirs = host("tar", &["-xOf", tar.to_str().unwrap(), member]);
    let cell = Cell::prepare(EMBEDDED, Wish::application(&["true"]));
    let ours = std::fs::read(cell.bundle.directory().join("config.json")).unwrap();
    let ours: Value = serde_json::from_slice(&ours).unwrap();
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    let allowed = |profile: &Value| -> BTreeSet<String> {
        let rules = profile["syscalls"].as_array().unwrap().clone();
        // Those of a capability that an application has not, and those with conditions, apart.
        let plain = |rule: &Value| {
            rule["action"] == "SCMP_ACT_ALLOW"
                && rule["args"].as_array().is_none_or(Vec::is_empty)
                && rule["includes"]["caps"].as_array().is_none_or(Vec::is_empty)
        };
        let names = rules
            .into_iter()
            .filter(plain)
            .flat_map(|rule| rule["names"].as_array().unwrap().clone());
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let (ours, theirs) = (allowed(&ours["linux"]["seccomp"]), allowed(&theirs));
    let set = |words: &str| words.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    // Newer than Debian 12's list, but for the last four: docker's has those.
    let more = "cachestat fchmodat2 futex_requeue futex_wait futex_waitv futex_wake getxattrat listmount \
                listxattrat map_shadow_stack mseal removexattrat setxattrat statmount uretprobe \
                io_pgetevents io_pgetevents_time64 vmsplice chroot";
    // Namespaces, mounts and keyrings are nothing that an application needs; the rest is of other
    // processors, or of capabilities that it has not.
    let less = "clone clone3 fsconfig fsmount fsopen fspick get_mempolicy keyctl mbind mount mount_setattr \
                move_mount open_tree pivot_root readdir reboot s390_pci_mmio_read s390_pci_mmio_write \
                s390_runtime_instr set_mempolicy setns sigaction signal sigpending sigsuspend syscall syslog \
                timerfd umount umount2 unshare";
    assert_eq!(&ours - &theirs, set(more));
    assert_eq!(&theirs - &ours, set(less));
}

fn a_machine_of_its_own_has_its_own_users_and_no_more_rights_than_those(runtime: &str) {
    let mut wish = Wish::application(&["/bin/sleep", "infinity"]);
    wish.kind = Kind::System;
    let cell = Cell::start(runtime, wish);
    let init = cell.init().pid;
    assert_eq!(status(init, "NoNewPrivs"), "0");
    // What its capabilities open is the kernel's to judge, in its own user namespace; the rest is shut.
    let denied = [libc::SYS_userfaultfd, libc::SYS_io_uring_setup, libc::SYS_kexec_load];
    assert_eq!(answers(&cell, &denied), [libc::EPERM; 3]);
    let absent = [libc::SYS_keyctl, libc::SYS_clone3];
    assert_eq!(answers(&cell, &absent), [libc::ENOSYS; 2]);
    assert_eq!(cell.run("unshare -Urm sh -c 'mount -t tmpfs none /mnt && id -u'"), "0");
    assert_eq!(status(init, "Seccomp"), "2");
    // No module, raw I/O, clock, MAC or wake alarm, whatever the kernel would say.
    let bounding = u64::from_str_radix(&status(init, "CapBnd"), 16).unwrap();
    for number in [16, 17, 25, 32, 33, 35, 36] {
        assert_eq!(bounding >> number & 1, 0, "capability {number}");
    }
    assert_eq!(bounding >> 21 & 1, 1, "a machine mounts its own file systems");
    assert_eq!(cell.run("mount -t tmpfs none /mnt && stat -f -c %T /mnt"), "tmpfs");
    // Set-user-id programs work, for its users.
    let asked =
        "setpriv --reuid 1000 --regid 1000 --clear-groups cat /etc/shadow 2>&1 | grep -c denied";
    assert_eq!(cell.run(asked), "1");
    // Its part of the groups, and only that.
    assert_eq!(cell.run("cat /proc/self/cgroup | cut -d: -f3 | sort -u"), "/");
    assert_eq!(cell.run("mkdir /sys/fs/cgroup/systemd/mine && echo made"), "made");
    assert_ne!(cell.shell("echo 1 > /sys/fs/cgroup/pids/pids.max").0, 0);
    assert_ne!(cell.shell("mkdir /sys/kernel/x").0, 0);
}

fn devices_are_those_allowed_and_no_others(runtime: &str) {
    let cell = Cell::start(
        runtime,
        Wish::application(&["sleep", "infinity"]).with(&[("device", "/dev/fuse")]),
    );
    // A bound device looks like a plain file to whoever only lists the directory.
    let found = cell.run(
        "for f in $(find /dev ! -type d ! -type l); do test -c $f && basename $f; done | sort; true",
    );
    let found: Vec<&str> = found.split_whitespace().filter(|name| *name != "console").collect();
    assert_eq!(found, ["full", "fuse", "null", "ptmx", "random", "tty", "urandom", "zero"]);
    assert_eq!(
        cell.run("head -c 4 /dev/zero | wc -c; echo x > /dev/null; exec 3<>/dev/fuse; echo open"),
        "4\nopen"
    );
    // Not even where mknod is allowed, without a user namespace.
    let cell =
        Cell::start(runtime, Wish::application(&["sleep", "infinity"]).with(&[("userns", "host")]));
    for (device, kind) in [("1 1", "c"), ("7 0", "b"), ("10 237", "c"), ("1 11", "c")] {
        // In the root no node is a device; in /dev its group refuses it.
        for (place, why) in [("/tmp", "Permission denied"), ("/dev", "Operation not permitted")] {
            let script = format!(
                "cd {place} && mknod d {kind} {device}; cat d > /tmp/out; s=$?; rm -f d; exit $s"
            );
            let (code, _, errors) = cell.shell(&script);
            assert_ne!(code, 0, "{place} {device}");
            assert!(errors.contains(why), "{place} {device}: {errors}");
        }
    }
}

fn privileged_means_the_hosts_users_and_all_they_may_do(runtime: &str) {
    let mut wish = Wish::application(&["/bin/sleep", "infinity"]).with(&[("privileged", "yes")]);
    wish.kind = Kind::System;
    let cell = Cell::start(runtime, wish);
    let init = cell.init().pid;
    let own = status(std::process::id(), "CapPrm");
    assert_eq!(status(init, "CapEff"), own, "all that we have, and no more than that");
    assert_eq!(status(init, "Seccomp"), "0");
    assert_eq!(
        fs::read_link(format!("/proc/{init}/ns/user")).unwrap(),
        fs::read_link("/proc/self/ns/user").unwrap()
    );
    assert_eq!(cell.run("mknod /tmp/zero c 1 5 && head -c 4 /tmp/zero | wc -c"), "4");
    assert_eq!(cell.run("mount -t tmpfs none /mnt && echo mounted"), "mounted");
}

fn limits_on_descriptors_that_cannot_be_raised_do_not_stop_a_container(runtime: &str) {
    // This host's root has no CAP_SYS_RESOURCE: what is above our own limits is not asked for.
    let cell = Cell::start(runtime, Wish::application(&["sleep", "infinity"]));
    let own = fs::read_to_string("/proc/self/limits").unwrap();
    let of = |text: &str| {
        text.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned()
    };
    let inside = fs::read_to_string(format!("/proc/{}/limits", cell.init().pid)).unwrap();
    assert_eq!(of(&inside), of(&own));
}
