//! Whole systems: systemd and every unit of the template, such as sshd and nginx.
//!
//! Mica's are containers of its own supervisor, whose daemon and monitors count as what serves
//! them. The peers' are run by runc, which leaves no process behind to count.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::workload::PATIENCE;
use super::{Group, Roots, Running};
use crate::bench::contender::{Stock, TEMPLATE};
use crate::bench::error::{BenchError, Result};
use crate::bench::fixture;
use crate::bench::row::OURS;
use crate::bench::run::{run, tool};
use crate::container::cgroup::{Cgroup, GroupPath, Layout};

/// What every container may do; both kinds of them give about as much.
const CAPABILITIES: [&str; 15] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "SETFCAP",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SYS_CHROOT",
    "MKNOD",
    "AUDIT_WRITE",
    "IPC_OWNER",
];

/// Containers of Mica's supervisor, and its daemon; dropping it ends all of them.
pub(super) struct Supervisor {
    stock: Stock,
    count: u32,
}

impl Supervisor {
    /// What the containers are called.
    fn names(&self) -> impl Iterator<Item = String> {
        (0..self.count).map(|number| format!("system-{number}"))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        for words in [&["delete", "--force", "--all", "--quiet"][..], &["node", "stop"]] {
            if let Err(error) = run(&mut self.stock.mica(words.iter().copied())) {
                tracing::warn!(error = crate::host::sentence(&error), "the supervisor stays");
            }
        }
    }
}

/// Starts the daemon in a store of the run's own and lets it start `count` containers.
pub(super) fn supervised(stock: &Stock, count: u32) -> Result<Roots> {
    run(&mut stock.mica(["node", "start", "--quiet"]))?;
    let supervisor = Supervisor { stock: stock.clone(), count };
    for name in supervisor.names() {
        run(&mut stock.mica(["create", "--quiet", &name, TEMPLATE, "network=none"]))?;
    }
    run(&mut stock.mica(["start", "--quiet", "--all"]))?;
    Ok(Roots {
        who: OURS,
        roots: vec![],
        mounted: vec![],
        supervisor: Some(supervisor),
        shared: vec![],
        privates: None,
        store: Some(stock.path().to_owned()),
    })
}

/// The supervisor's containers, once all of them are up.
pub(super) fn started(roots: &Roots, group: &Group) -> Result<Running> {
    let mut running = Running::default();
    let Some(supervisor) = &roots.supervisor else { return Ok(running) };
    for name in supervisor.names() {
        await_up(|| supervisor.stock.mica(["exec", &name, "--"]))?;
        let told = run(&mut supervisor.stock.mica(["info", "--json", &name]))?;
        let told: Value = serde_json::from_str(&told).map_err(std::io::Error::from)?;
        let id = told["id"].as_str().unwrap_or_default();
        running.cells.push(group.top.elsewhere(&supervisors_group(id)));
    }
    Ok(running)
}

/// The cgroup of a container of Mica's (docs/CONTAINERS.md, "Resources").
fn supervisors_group(id: &str) -> String {
    format!("mica/{id}")
}

/// The cgroup below the top of every hierarchy in which runc's containers of a run are.
fn peers_group(run: &str) -> String {
    format!("{run}-systems")
}

/// Runs each root by runc, and returns once all of them are up.
pub(super) fn by_runc(bundles: &Path, roots: &Roots, group: &Group) -> Result<Running> {
    let mut running = Running::default();
    let state = bundles.join("state");
    let peers = peers_group(&group.top.name());
    let runc = || {
        let mut runc = tool("runc");
        runc.arg("--root").arg(&state);
        runc
    };
    let id = |number: usize| format!("{}-{number}", roots.who.replace(' ', "-"));
    for (number, root) in roots.roots.iter().enumerate() {
        let id = id(number);
        let bundle = bundles.join(&id);
        fixture::directories(&bundle)?;
        let cell = format!("{peers}/{id}");
        let config = serde_json::to_vec(&config(root, &cell)).map_err(std::io::Error::from)?;
        let file = bundle.join("config.json");
        std::fs::write(&file, config).map_err(BenchError::at("write", &file))?;
        let log = bundle.join("log");
        let mut start = runc();
        start.arg("--log").arg(&log).args(["run", "--detach", "--bundle"]).arg(&bundle).arg(&id);
        // The init inherits them, and lives on.
        start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut end = runc();
        end.args(["delete", "--force", &id]);
        running.ends.push(end);
        running.cells.push(group.top.elsewhere(&cell));
        let status = start.status().map_err(BenchError::at("start", "runc"))?;
        if !status.success() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let (program, status) = ("runc run".to_owned(), status.to_string());
            return Err(BenchError::Program { program, status, said: said.trim().to_owned() });
        }
    }
    for number in 0..roots.roots.len() {
        let id = id(number);
        await_up(|| {
            let mut exec = runc();
            exec.args(["exec", &id]);
            exec
        })?;
    }
    Ok(running)
}

/// Asks systemd until it says that it started all it had to; `inside` begins a command that is
/// run in the container.
fn await_up(mut inside: impl FnMut() -> Command) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut command = inside();
        command.args(["systemctl", "is-system-running", "--wait"]).stdin(Stdio::null());
        let output = command.output().map_err(BenchError::at("start", command.get_program()))?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // "degraded": a unit failed, as some do in any container; the rest is there.
        if said == "running" || said == "degraded" {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(BenchError::Program {
                program: "systemd".to_owned(),
                status: if said.is_empty() { "it does not answer".to_owned() } else { said },
                said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        // It cannot be waited for before it listens.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What runc reads: a container for a whole system, as `mica create` makes one.
fn config(root: &Path, cgroup: &str) -> Value {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let tmpfs = |target: &str, mode: &str| mount(target, "tmpfs", &["nosuid", "nodev", mode]);
    let all: Vec<String> = CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
    json!({
        "ociVersion": "1.0.2",
        "hostname": "system",
        "root": {"path": root},
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["/sbin/init"],
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=oci"],
            "capabilities": {"bounding": all, "effective": all, "permitted": all},
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            tmpfs("/dev/shm", "mode=1777"),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "rw"]),
            tmpfs("/run", "mode=755"),
            tmpfs("/run/lock", "mode=1777"),
        ],
        "linux": {
            "cgroupsPath": format!("/{cgroup}"),
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"},
                {"type": "cgroup"}, {"type": "network"},
            ],
            "resources": {"devices": [{"allow": true, "access": "rwm"}]},
        },
    })
}

/// Removes the cgroups of containers that the run with this directory left behind, which was ended
/// outright: their processes went with the run's own namespace.
pub(super) fn sweep(scratch: &Path) {
    let Ok(layout) = Layout::detect() else { return };
    let name = scratch.file_name().unwrap_or_default().to_string_lossy();
    let mut groups = vec![peers_group(&name)];
    // The supervisor's are called as their directories in its store.
    for place in entries(scratch) {
        for store in entries(&place) {
            for container in entries(&store.join("containers")) {
                let id = container.file_name().unwrap_or_default().to_string_lossy().into_owned();
                groups.push(supervisors_group(&id));
            }
        }
    }
    for group in groups {
        let Ok(path) = group.parse::<GroupPath>() else { continue };
        let group = Cgroup::open(&layout, path);
        if let Err(error) = group.remove().and_then(|()| group.remove_empty_parents()) {
            tracing::warn!(error = crate::host::sentence(&error), "a cgroup stays");
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
