//! Who is in a group, standing still, the end, and who owns what.

use std::fs;
use std::path::Path;
use std::process::Command;

use mica::container::cgroup::{
    Cgroup, CgroupError, Controller, CpuQuota, Delegation, Disk, Holds, IoLimit, Layout, Limits,
    Version,
};

use crate::group::{Group, Parent};
use crate::support::{Scratch, Succeed, again_until};

#[test]
fn a_process_enters_in_every_hierarchy_and_nothing_stays_behind() {
    let parent = Parent::here();
    let group = parent.group("one");
    let again = Cgroup::create(&parent.layout, group.path().clone()).unwrap();
    assert!(again.exists(), "making what exists is adopting it");
    let child = group.run("sleep 1000 & sleep 1000");
    let own = fs::read_to_string(format!("/proc/{}/cgroup", child.0.id())).unwrap();
    let elsewhere: Vec<_> =
        own.lines().filter(|line| !line.ends_with(&group.inside_path())).collect();
    assert_eq!(elsewhere, Vec::<&str>::new());
    again_until("both sleep", || group.processes().unwrap().len() == 3);
    assert_eq!(group.usage().unwrap().pids, Some(3));
    let refused = group.remove().unwrap_err();
    assert!(
        matches!(&refused, CgroupError::System { source, .. } if source.raw_os_error() == Some(libc::EBUSY)),
        "{refused}"
    );
    let (layout, path) = (parent.layout.clone(), parent.path.clone());
    // A container makes groups of its own.
    let unified =
        layout.unified().unwrap().mountpoint.join(group.inside_path().trim_start_matches('/'));
    fs::create_dir_all(unified.join("system.slice/nginx.service")).unwrap();
    group.kill_all().unwrap();
    group.remove().unwrap();
    assert!(!group.exists());
    group.remove().unwrap();
    group.remove_empty_parents().unwrap();
    for hierarchy in layout.hierarchies() {
        assert!(!hierarchy.mountpoint.join(path.as_str()).exists());
    }
    let gone = group.enter(std::process::id()).unwrap_err().to_string();
    assert!(gone.contains("cgroup.procs"), "{gone}");
}

/// Two daemons do this when each of them has few containers.
#[test]
fn nobody_removes_the_common_parent_under_one_who_is_making_a_group() {
    let parent = Parent::here();
    std::thread::scope(|scope| {
        for name in ["one", "two", "three"] {
            let parent = &parent;
            scope.spawn(move || {
                for _ in 0..200 {
                    drop(parent.group(name));
                }
            });
        }
    });
}

#[test]
fn frozen_processes_use_no_processor_go_on_when_thawed_and_die_when_killed() {
    let group = Parent::here().group("ice");
    let mut child = group.run("while :; do :; done");
    group.freeze().unwrap();
    assert!(group.is_frozen().unwrap());
    let used = || group.usage().unwrap().cpu_ns.unwrap();
    let before = used();
    std::thread::sleep(std::time::Duration::from_millis(200));
    // What it did since the clock last ticked is counted when it leaves the processor.
    assert!(used() - before <= 10_000_000, "{} ns of 200 ms", used() - before);
    assert!(child.is_running());
    group.thaw().unwrap();
    assert!(!group.is_frozen().unwrap());
    let before = used();
    again_until("it runs again", || used() > before + 20_000_000);
    group.freeze().unwrap();
    group.kill_all().unwrap();
    again_until("it is dead", || !child.is_running());
}

#[test]
fn the_root_of_a_container_makes_groups_and_cannot_touch_its_limits() {
    let parent = Parent::here();
    let group = parent.group("owned");
    let (uid, gid) = (1_234_567, 1_234_567);
    group.delegate(uid, gid, Delegation::Held).unwrap();
    let as_tenant = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1234567", "--regid=1234567", "--clear-groups", "sh", "-c", script]);
        command.capture().status.success()
    };
    for hierarchy in parent.layout.hierarchies() {
        let outer = hierarchy.mountpoint.join(group.path().as_str());
        let inside = outer.join("inside");
        let made = as_tenant(&format!("mkdir {}/init.scope", inside.display()));
        let given = hierarchy.may_be_given(Delegation::Held);
        assert_eq!(made, given, "{}", inside.display());
        assert!(!as_tenant(&format!("mkdir {}/x", outer.display())));
        for directory in [&outer, &inside] {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let own = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"];
                let named = own.contains(&&*name) || name == "init.scope";
                let theirs = given && (path == inside || directory == &inside && named);
                let writable = as_tenant(&format!("test -w {}", path.display()));
                assert_eq!(writable, theirs, "{}", path.display());
            }
        }
    }
}

#[test]
fn a_group_that_a_tenant_makes_frees_nobody_from_a_limit_and_keeps_nobody_alive() {
    let parent = Parent::here();
    let group = parent.group("nested");
    let (uid, gid) = (1_234_568, 1_234_568);
    group.delegate(uid, gid, Delegation::Nesting).unwrap();
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        swap_bytes: Some(0),
        pids: Some(12),
        cpu_quota: Some(CpuQuota::from_thousandths(100).unwrap()),
        ..Limits::default()
    };
    group.hold(&limits);
    let inside = |controller| {
        let hierarchy = parent.layout.with(controller).expect("this host has it");
        assert_eq!(hierarchy.version, Version::V1, "files are of v1");
        hierarchy.mountpoint.join(group.inside_path().trim_start_matches('/')).join("own")
    };
    let [pids, memory, cpu, freezer, devices] = [
        Controller::Pids,
        Controller::Memory,
        Controller::Cpu,
        Controller::Freezer,
        Controller::Devices,
    ]
    .map(inside);
    let script = format!(
        "mkdir {pids} {memory} {cpu} {freezer} {devices}
        for g in {pids} {memory} {cpu} {freezer} {devices}; do echo 0 > $g/cgroup.procs || exit 9; done
        echo max > {pids}/pids.max; echo -1 > {memory}/memory.limit_in_bytes
        echo 1000000 > {cpu}/cpu.cfs_quota_us 2>/dev/null && echo lifted; echo 1 > {memory}/memory.oom_control
        echo a > {devices}/devices.allow 2>/dev/null && echo lifted
        perl -e '$x = q(x) x (128 << 20); print qq(lifted\n)'; echo hog $?
        echo FROZEN > {freezer}/freezer.state",
        pids = pids.display(),
        memory = memory.display(),
        cpu = cpu.display(),
        freezer = freezer.display(),
        devices = devices.display(),
    );
    let begin = "setpriv --reuid=1234568 --regid=1234568 --clear-groups sh -c";
    let mut child = group.run(&format!("exec {begin} '{}'", script.replace('\'', "'\\''")));
    let state = || fs::read_to_string(freezer.join("freezer.state")).unwrap_or_default();
    again_until("it has frozen itself", || state().trim() == "FROZEN");
    assert!(group.usage().unwrap().oom_kills.is_some_and(|kills| kills > 0), "nobody was killed");
    group.kill_all().unwrap();
    again_until("it is dead", || !child.is_running());
    let said = std::io::read_to_string(child.0.stdout.take().unwrap()).unwrap();
    assert_eq!(said, "hog 137\n");
    // Nor does its own larger number of processes count.
    let bomb = "for i in $(seq 40); do sleep 100 & done; wait";
    let script = format!("echo 0 > {0}/cgroup.procs; {bomb}", pids.display());
    let _bomb = group.run(&script);
    again_until("it has all it can get", || group.usage().unwrap().pids.unwrap() >= 11);
    group.freeze().unwrap();
    let listed = group.processes().unwrap();
    group.thaw().unwrap();
    assert!(listed.len() <= 12, "{listed:?}");
}

#[test]
fn a_quota_that_a_tenant_set_never_keeps_the_hosts_from_going_below_it() {
    let parent = Parent::here();
    let group = parent.group("quota");
    let hierarchy = parent.layout.with(Controller::Cpu).expect("this host has it");
    assert_eq!(hierarchy.version, Version::V1, "files are of v1");
    let outer = hierarchy.mountpoint.join(group.path().as_str());
    let own = outer.join("inside/own");
    let quota = |directory: &Path| {
        let text = fs::read_to_string(directory.join("cpu.cfs_quota_us")).unwrap();
        text.trim().parse::<i64>().unwrap()
    };
    let limits = |thousandths| Limits {
        cpu_quota: Some(CpuQuota::from_thousandths(thousandths).unwrap()),
        ..Limits::default()
    };
    group.hold(&limits(1000));
    for (directory, us) in [(&own, 50_000), (&own.join("half"), 20_000)] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("cpu.cfs_quota_us"), us.to_string()).unwrap();
    }
    let nowhere = IoLimit {
        disk: Disk { major: 4095, minor: 9 },
        bytes_per_s: Some(1 << 20),
        requests_per_s: None,
    };
    group.apply(&Limits { io: Some(nowhere), ..limits(200) }).unwrap_err();
    assert_eq!((quota(&outer), quota(&own)), (100_000, 50_000), "all is taken back");
    group.hold(&limits(200));
    // What is no more than the container has stays.
    assert_eq!((quota(&outer), quota(&own), quota(&own.join("half"))), (20_000, -1, 20_000));
    // Nor does one who sets it all the time.
    let file = own.join("cpu.cfs_quota_us");
    let script = format!("while :; do echo 50000 > {}; done", file.display());
    let mut child = group.run(&script);
    for _ in 0..20 {
        group.hold(&limits(1000));
        again_until("it has set its own", || quota(&own) == 50_000);
        group.hold(&limits(100));
        assert_eq!(quota(&outer), 10_000);
    }
    assert!(child.is_running() && !group.is_frozen().unwrap());
}

/// As the user of its first argument: makes groups beneath each of the others until no path leads to the last one, goes there, and
/// stands still in the last of all.
const NEST: &str = r#"
import os, sys, time
name = "x" * 250
tenant = int(sys.argv[1])
os.setgroups([])
os.setresgid(tenant, tenant, tenant)
os.setresuid(tenant, tenant, tenant)
for top in sys.argv[2:]:
    os.chdir(top)
    for _ in range(20):
        os.mkdir(name)
        os.chdir(name)
        for file in "cpuset.cpus", "cpuset.mems":
            if os.path.exists(file):
                with open(file, "w") as own, open("../" + file) as above:
                    own.write(above.read())
    with open("cgroup.procs", "w") as group:
        group.write("0")
print("there", flush=True)
with open("freezer.state", "w") as state:
    state.write("FROZEN")
time.sleep(1000)
"#;

#[test]
fn groups_deeper_than_any_path_are_counted_limited_killed_and_removed() {
    let parent = Parent::here();
    let group = parent.group("deep");
    let (uid, gid) = (1_234_569, 1_234_569);
    group.delegate(uid, gid, Delegation::Nesting).unwrap();
    let given = parent.layout.hierarchies().iter();
    let mut given: Vec<_> =
        given.filter(|hierarchy| hierarchy.may_be_given(Delegation::Nesting)).collect();
    given.sort_by_key(|hierarchy| hierarchy.controllers.contains(&Controller::Freezer));
    let tops = given.iter().map(|hierarchy| hierarchy.mountpoint.display());
    let tops: Vec<_> = tops.map(|top| format!("{top}{}", group.inside_path())).collect();
    let script = format!("exec python3 -c '{NEST}' {uid} {}", tops.join(" "));
    let mut child = group.run(&script);
    // Goes before the child does: one that stands still is not killed by itself.
    let group = group;
    let here = format!("/proc/{}", child.0.id());
    // No path leads there, but its own working directory does.
    again_until("it stands still at the bottom of all trees", || {
        let state = fs::read_to_string(format!("{here}/cwd/freezer.state"));
        state.is_ok_and(|state| state.trim() == "FROZEN")
    });
    assert_eq!(group.processes().unwrap().into_iter().collect::<Vec<_>>(), [child.0.id()]);
    assert!(group.usage().unwrap().oom_kills.is_some());
    let processors = || {
        let status = fs::read_to_string(format!("{here}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    let all = processors();
    let one = Limits { cpu_set: Some("0".parse().unwrap()), ..Limits::default() };
    let nowhere = IoLimit {
        disk: Disk { major: 4095, minor: 9 },
        bytes_per_s: Some(1 << 20),
        requests_per_s: None,
    };
    group.apply(&Limits { io: Some(nowhere), ..one.clone() }).unwrap_err();
    assert_eq!(processors(), all, "what was refused in part is taken back");
    group.hold(&one);
    assert_eq!(processors(), "0");
    group.kill_all().unwrap();
    again_until("it is dead", || !child.is_running());
    group.remove_made().unwrap();
    for top in &tops {
        let path = Path::new(top);
        let directories = fs::read_dir(path).unwrap();
        let left =
            directories.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
        assert_eq!(left.count(), 0, "{top}");
    }
    group.remove().unwrap();
    assert!(!group.exists());
}

/// Without the v1 hierarchy `devices`, a program on cgroup2 keeps the host's devices from a container.
#[test]
fn devices_are_held_where_only_cgroup2_is() {
    let scratch = Scratch::new("cells-devices");
    let parent = Parent::new(unified_alone(&scratch));
    let said = |group: &Group| {
        // The node of /dev/fuse is one that the host's root may open, and no container without asking.
        let script =
            "for node in null urandom fuse; do (: <>/dev/$node) && echo $node; done; echo end";
        let mut running = group.run(script);
        let mut said = String::new();
        let mut output = running.0.stdout.take().unwrap();
        std::io::Read::read_to_string(&mut output, &mut said).unwrap();
        said
    };
    let open = parent.group("open");
    assert_eq!(said(&open), "null\nurandom\nfuse\nend\n");
    let held = parent.group("held");
    held.hold_to_devices(&[]).unwrap();
    assert_eq!(said(&held), "null\nurandom\nend\n");
    let given = parent.group("given");
    given.hold_to_devices(&["/dev/fuse".into()]).unwrap();
    assert_eq!(said(&given), "null\nurandom\nfuse\nend\n");
}

#[test]
fn a_host_that_can_hold_no_devices_is_refused() {
    let scratch = Scratch::new("cells-no-devices");
    let here = Layout::detect().unwrap();
    let pids = here.with(Controller::Pids).expect("a tree counts processes");
    let parent = Parent::new(alone(&scratch, &pids.mountpoint, "cgroup cgroup rw,pids"));
    let refused = parent.group("open").hold_to_devices(&[]).unwrap_err().to_string();
    assert!(refused.contains("cannot keep a container from its devices"), "{refused}");
    assert!(refused.contains("privileged=yes"), "{refused}");
}

/// The cgroup2 tree of this host as if it were all there is.
fn unified_alone(scratch: &Scratch) -> Layout {
    let here = Layout::detect().unwrap();
    let unified = here.unified().expect("a cgroup2 tree is mounted");
    alone(scratch, &unified.mountpoint, "cgroup2 cgroup2 rw")
}

/// The tree at `mountpoint`, of that type, source and options, as if it were all there is.
fn alone(scratch: &Scratch, mountpoint: &Path, kind: &str) -> Layout {
    let root = scratch.directory("root");
    fs::create_dir_all(root.join("proc/self")).unwrap();
    let line = format!("30 24 0:27 / /cgroup rw - {kind}\n");
    fs::write(root.join("proc/self/mountinfo"), line).unwrap();
    std::os::unix::fs::symlink(mountpoint, root.join("cgroup")).unwrap();
    Layout::detect_in(Path::new(&root)).unwrap()
}

#[test]
fn a_cgroup2_tree_does_what_its_controllers_can_and_says_what_they_cannot() {
    crate::support::require_root();
    let scratch = Scratch::new("cells");
    let parent = Parent::new(unified_alone(&scratch));
    let group = parent.group("two");
    // How many groups there can be, and how deep, is not the tenant's to say.
    let unified = parent.layout.unified().unwrap().mountpoint.clone();
    let inside = unified.join(group.inside_path().trim_start_matches('/'));
    let deep = (0..70).try_fold(inside.clone(), |above, _| {
        let group = above.join("x");
        fs::create_dir(&group).map(|()| group)
    });
    assert_eq!(deep.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    let made =
        (0..5000).take_while(|number| fs::create_dir(inside.join(number.to_string())).is_ok());
    let made = made.count();
    assert!((3000..4096).contains(&made), "{made} groups");
    let mut child = group.run("while :; do :; done");
    assert!(group.processes().unwrap().contains(&child.0.id()));
    again_until("its time is counted", || group.usage().unwrap().cpu_ns.unwrap() > 0);
    let limits = Limits {
        memory_bytes: Some(1 << 30),
        cpu_quota: Some(CpuQuota::from_processors(0.5).unwrap()),
        pids: Some(10),
        ..Limits::default()
    };
    let shortfalls = group.apply(&limits).unwrap();
    for (key, name) in
        [("limits.memory", "memory"), ("limits.cpu", "cpu"), ("limits.processes", "pids")]
    {
        let controllers = &parent.layout.unified().unwrap().controllers;
        let has = controllers.iter().any(|controller| controller.to_string() == name);
        let told = shortfalls.iter().find(|short| short.key == key);
        assert_eq!(told.is_none(), has, "{key}: {shortfalls:?}");
        if let Some(told) = told {
            assert_eq!(told.holds, Holds::NotAtAll);
            assert!(told.why.contains(&format!("no {name} controller")), "{told:?}");
        }
    }
    group.freeze().unwrap();
    assert!(group.is_frozen().unwrap());
    group.kill_all().unwrap();
    again_until("it is dead", || !child.is_running());
    group.remove().unwrap();
    assert!(!group.exists());
}
