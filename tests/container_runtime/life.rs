//! From creation to deletion: status, signals, environment, commands run beside the init.

use std::fs;
use std::path::Path;

use mica::container::bundle::Observed;
use mica::container::config::Volume;
use mica::container::runtime::{ExecRequest, RuntimeError};
use mica::sys::namespace::Process;

use crate::stage::{Cell, Wish, host, wait_for, with_both};

with_both!(
    a_command_runs_on_the_mounted_root_and_its_status_is_kept,
    it_waits_to_be_started_and_is_ended_by_its_signal,
    commands_run_beside_the_init_as_anybody_and_tell_their_status,
    a_container_that_cannot_be_made_says_why_and_leaves_nothing,
    nothing_of_a_container_is_in_the_hosts_mount_table,
    volumes_and_files_are_seen_where_they_are_wanted,
    the_output_goes_to_the_log_and_a_killed_monitor_is_told_of,
);

fn a_command_runs_on_the_mounted_root_and_its_status_is_kept(runtime: &str) {
    let script = "echo out; echo err >&2; echo private > /srv/mine; id -u; \
                  echo $LANG; cd /proc/self && readlink cwd; hostname 2>/dev/null || cat /proc/sys/kernel/hostname; exit 7";
    let cell = Cell::start(
        runtime,
        Wish::application(&["/bin/sh", "-c", script])
            .with(&[("environment.LANG", "C.UTF-8"), ("hostname", "www.example")]),
    );
    let exit = cell.exit();
    assert_eq!((exit.status, exit.signal), (7, None));
    let output = cell.output();
    for line in ["out", "err", "0", "C.UTF-8", "www.example"] {
        assert!(output.lines().any(|other| other == line), "{line} in {output}");
    }
    // What root inside wrote belongs to root in the private layer: ranges are never on disk.
    let file = cell.directory.join("private/upper/srv/mine");
    assert_eq!(host("stat", &["-c", "%u:%g", file.to_str().unwrap()]).trim(), "0:0");
    cell.delete().unwrap();
    assert_eq!(cell.bundle.observe().unwrap(), Observed::Exited(exit));
}

fn it_waits_to_be_started_and_is_ended_by_its_signal(runtime: &str) {
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let cell = Cell::prepare(runtime, Wish::application(&["/bin/sh", "-c", script]));
    assert_eq!(cell.bundle.observe().unwrap(), Observed::Absent);
    let created = cell.create();
    assert_eq!(cell.output(), "", "it did not wait");
    // Its network namespace is there to be furnished.
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(fs::read_link(format!("/proc/{}/ns/net", created.pid)).unwrap(), own);
    cell.runtime.start(&cell.bundle).unwrap();
    cell.runtime.start(&cell.bundle).expect_err("started twice");
    crate::support::again_until("it is ready", || cell.output().contains("ready"));
    let running = cell.runtime.delete(&cell.bundle, false).expect_err("it runs");
    assert!(matches!(running, RuntimeError::Running), "{running}");
    cell.runtime.kill(&cell.bundle, 15).unwrap();
    assert_eq!(cell.exit().status, 3);
    assert!(cell.output().ends_with("bye\n"), "{}", cell.output());
    let gone = cell.runtime.kill(&cell.bundle, 15).expect_err("it has ended");
    assert!(matches!(gone, RuntimeError::NotRunning), "{gone}");
    let gone = cell.runtime.exec(&cell.bundle, &ExecRequest::default()).expect_err("it has ended");
    assert!(matches!(gone, RuntimeError::NotRunning), "{gone}");
    // And again, in the same bundle.
    cell.delete().unwrap();
    let again = cell.create();
    assert_ne!(again.pid, created.pid);
    cell.runtime.start(&cell.bundle).unwrap();
    cell.runtime.kill(&cell.bundle, 9).unwrap();
    let exit = cell.exit();
    assert_eq!((exit.status, exit.signal), (137, Some(9)));
}

fn commands_run_beside_the_init_as_anybody_and_tell_their_status(runtime: &str) {
    let cell = Cell::start(runtime, Wish::application(&["sleep", "infinity"]));
    let request = |args: &[&str]| ExecRequest {
        args: args.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecRequest::default()
    };
    assert_eq!(cell.exec_with(&request(&["cat"]), "through"), (0, "through".into(), String::new()));
    assert_eq!(cell.shell("exit 42").0, 42);
    assert_eq!(cell.shell("kill -9 $$").0, 137);
    assert_eq!(cell.exec_with(&request(&["no-such-program"]), "").0, 127);
    assert_eq!(cell.exec_with(&request(&["/etc/passwd"]), "").0, 126);
    let asked = ExecRequest {
        user: Some("www-data".to_owned()),
        workdir: Some("/var".into()),
        env: vec!["A=b c".to_owned()],
        ..request(&[
            "sh",
            "-c",
            "id -un; id -gn; pwd; echo $A; echo $HOME; grep CapEff /proc/self/status",
        ])
    };
    let (status, output, errors) = cell.exec_with(&asked, "");
    assert_eq!(status, 0, "{errors}");
    let want = "www-data\nwww-data\n/var\nb c\n/var/www\nCapEff:\t0000000000000000\n";
    assert_eq!(output, want);
    let nobody = ExecRequest { user: Some("nosuch".to_owned()), ..request(&["true"]) };
    let (status, _, errors) = cell.exec_with(&nobody, "");
    assert_eq!((status, errors.contains("no user \"nosuch\"")), (125, true), "{errors}");
    // They are among the container's processes, and in its cgroups.
    let init = cell.init();
    let of_init = fs::read_to_string(format!("/proc/{}/cgroup", init.pid)).unwrap();
    let mut sleeper = cell.runtime.exec(&cell.bundle, &request(&["sleep", "1000"])).unwrap();
    let find = || {
        let found = cell.cgroup.processes().unwrap();
        let named = |pid: &u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words == b"sleep\x001000\0"
        };
        found.into_iter().find(named)
    };
    crate::support::again_until("it runs", || find().is_some());
    let pid = find().unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap(), of_init);
    for namespace in ["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        let link = |pid| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_eq!(link(pid), link(init.pid), "{namespace}");
    }
    let seccomp = |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let wanted = ["Seccomp:", "NoNewPrivs:", "CapBnd:", "CapEff:", "CapPrm:", "CapInh:"];
        let line = |line: &&str| wanted.iter().any(|name| line.starts_with(name));
        status.lines().filter(line).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(seccomp(pid), seccomp(init.pid));
    // Ending what stands for it here ends it there.
    if cell.is_embedded() {
        let ticks = mica::sys::namespace::start_ticks(i32::try_from(pid).unwrap()).unwrap();
        let process = Process::open(pid, ticks).unwrap();
        sleeper.child.kill().unwrap();
        wait_for(&process);
    }
    let _status = sleeper.child.kill();
    sleeper.child.wait().unwrap();
    let left = fs::read_dir(cell.bundle.directory())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("exec-"));
    assert!(left.count() <= usize::from(!cell.is_embedded()) * 3, "requests are left");
}

fn a_container_that_cannot_be_made_says_why_and_leaves_nothing(runtime: &str) {
    // Only the runtime can know whether a volume brings the program.
    let wish = Wish::application(&["/no/such/program"]);
    let cell = Cell::prepare(runtime, wish.with(&[("volume", "/etc/hostname:/mnt/name")]));
    let told = match cell.runtime.create(&cell.bundle) {
        Err(error) => error.to_string(),
        // runc finds out when it is started.
        Ok(_) => cell.runtime.start(&cell.bundle).expect_err("no such program").to_string(),
    };
    assert!(told.contains("/no/such/program"), "{told}");
    cell.delete().unwrap();
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("/run/mica"));
    cell.cgroup.kill_all().unwrap();
    let left: Vec<_> = fs::read_dir(cell.bundle.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["config.json", "bundle.json", "exit.json"].contains(&name.as_str()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn nothing_of_a_container_is_in_the_hosts_mount_table(runtime: &str) {
    let cell = Cell::prepare(runtime, Wish::application(&["sleep", "infinity"]));
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    cell.create();
    cell.runtime.start(&cell.bundle).unwrap();
    let own = |text: &str| -> Vec<String> {
        // Other tests mount meanwhile, also where the name only begins like this one's.
        let mine = [cell.root.path(), Path::new("/run/mica")];
        let at = |line: &str| line.split(' ').nth(4).map(Path::new).map(Path::to_owned);
        text.lines()
            .filter(|line| at(line).is_some_and(|at| mine.iter().any(|m| at.starts_with(m))))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(own(&fs::read_to_string("/proc/self/mountinfo").unwrap()), own(&before));
    // Every process has the container's mount namespace or the host's.
    assert_eq!(
        cell.run(
            "stat -c %u:%g / /etc/passwd /var/cache/apt/archives/partial 2>/dev/null | head -2"
        ),
        "0:0\n0:0"
    );
    assert_eq!(cell.run("test ! -e /run/mica && echo gone"), "gone");
}

fn volumes_and_files_are_seen_where_they_are_wanted(runtime: &str) {
    let ground = crate::stage::ground();
    let outside = ground.scratch.directory(&format!("outside-{runtime}"));
    fs::write(outside.join("data"), "data\n").unwrap();
    fs::write(outside.join("hosts"), "127.0.0.1 me\n").unwrap();
    let volume = |source: &Path, target: &str, read_only| Volume {
        source: source.to_owned(),
        target: target.into(),
        read_only,
    };
    let mut wish = Wish::application(&["sleep", "infinity"]);
    wish.files = vec![
        volume(&outside.join("hosts"), "/etc/hosts", true),
        volume(&outside, "/mnt/data", true),
    ];
    let cell = Cell::start(runtime, wish);
    assert_eq!(cell.run("cat /etc/hosts /mnt/data/data"), "127.0.0.1 me\ndata");
    let (status, _, errors) = cell.shell("echo x > /mnt/data/data");
    assert_ne!(status, 0);
    assert!(errors.contains("Read-only file system"), "{errors}");
}

fn the_output_goes_to_the_log_and_a_killed_monitor_is_told_of(runtime: &str) {
    let cell = Cell::start(
        runtime,
        Wish::application(&["/bin/sh", "-c", "seq 1 20000; sleep infinity"])
            .with(&[("log.size", "64KiB"), ("log.files", "2")]),
    );
    crate::support::again_until("all is written", || cell.output().ends_with("20000\n"));
    let kept: u64 = mica::container::log::files(&cell.log, cell.config.logs)
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    assert!((64 << 10..=128 << 10).contains(&kept), "{kept}");
    let created = cell.init();
    let monitor = Process::open(created.monitor_pid, created.monitor_start_ticks).unwrap();
    monitor.signal(9).unwrap();
    wait_for(&monitor);
    assert_eq!(cell.bundle.observe().unwrap(), Observed::Running { created, watched: false });
    assert_eq!(cell.run("echo works"), "works");
    cell.runtime.kill(&cell.bundle, 9).unwrap();
    let init = Process::open(created.pid, created.start_ticks);
    if let Ok(init) = init {
        wait_for(&init);
    }
    assert_eq!(cell.bundle.observe().unwrap(), Observed::Lost);
}
