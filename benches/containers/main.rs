//! What does a container of the supervisor take to make, start, keep, stop and find again, beside runc,
//! podman and lxc?
//!
//! The real daemon and command line, timed as a user sees them: each figure is a whole command, from
//! outside. Peers run in turn with it on a plain directory of the same Debian: `runc` of this host, and
//! podman and lxc of Debian in a root of their own. In a network namespace of its own; needs root,
//! mmdebstrap and nft, and says which peer is not there.
//!
//! `-- --quick` takes ten containers and few rounds, `-- starts|hundred|system|neighbour` that part only.
//! `MICA_BENCH_PROGRAM` names another `mica` than the one built with it, `MICA_BENCH_SCRATCH` the disk.

#[path = "../../tests/support/mod.rs"]
mod support;

mod hundred;
mod neighbour;
mod node;
mod peers;
mod starts;
mod system;

use std::process::Command;
use std::time::{Duration, Instant};

use support::{Scratch, debian};

/// What the containers' Debian has on top of the least.
const SYSTEM: &str = "systemd-sysv,dbus,iproute2,python3-minimal,procps,iputils-ping";

/// What is to be measured.
pub(crate) struct Size {
    pub(crate) rounds: usize,
    pub(crate) containers: usize,
}

fn main() {
    const INSIDE: &str = "MICA_BENCH_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        // What is fetched is fetched now: from here on the network is ours alone, as are the mounts
        // that peers make.
        debian("system", SYSTEM);
        debian(peers::ARCHIVE.0, peers::ARCHIVE.1);
        let own = std::env::current_exe().expect("the bench has a file");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount"]).arg(own).args(std::env::args_os().skip(1));
        if let Some(scratch) = std::env::var_os("MICA_BENCH_SCRATCH") {
            command.env("MICA_TEST_SCRATCH", scratch);
        }
        let status = command.env(INSIDE, "1").status().expect("unshare can be started");
        std::process::exit(status.code().unwrap_or(1));
    }
    support::require_root();
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let quick = words.iter().any(|word| word == "--quick");
    let wanted = |part: &str| {
        let parts: Vec<_> = words.iter().filter(|word| !word.starts_with("--")).collect();
        parts.is_empty() || parts.iter().any(|word| *word == part)
    };
    let size = if quick {
        Size { rounds: 5, containers: 10 }
    } else {
        Size { rounds: 25, containers: 100 }
    };
    machine();
    let scratch = Scratch::new("bench-containers");
    let tar = debian("system", SYSTEM);
    let node = node::Node::start(&scratch, &tar);
    let peers = peers::Peers::find(&scratch, &tar);
    if wanted("starts") {
        starts::measure(&node, &peers, &size);
    }
    if wanted("system") {
        system::measure(&node, &peers, &size);
    }
    if wanted("hundred") {
        hundred::measure(&node, &size);
    }
    if wanted("neighbour") {
        neighbour::measure(&node, &size);
    }
}

fn machine() {
    let kernel = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "Linux {}, {cores} × {}, load {}; {}",
        kernel.release().to_string_lossy(),
        cpu.map_or("?", |(_, name)| name),
        load.split(' ').next().unwrap_or_default(),
        node::program().display(),
    );
}

/// How long `act` takes.
pub(crate) fn timed<T>(act: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let done = act();
    (begun.elapsed(), done)
}

/// Prints one line of results: the median, the least and the most.
pub(crate) fn tell(what: &str, mark: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let Some(median) = times.get(times.len() / 2).copied() else { return Duration::ZERO };
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    println!(
        "| {what} | {:.1} ms | {:.1} – {:.1} | {mark} |",
        ms(&median),
        times.first().map_or(0.0, ms),
        times.last().map_or(0.0, ms),
    );
    median
}
