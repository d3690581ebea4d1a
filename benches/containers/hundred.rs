//! Many containers of one template at a time: memory, stopping, finding again.

use std::time::{Duration, Instant};

use crate::node::{Node, TEMPLATE, memory};
use crate::{Size, timed};

/// Ends when asked, as an init without a handler would not.
const IDLE: &str = "trap 'exit 0' TERM; sleep infinity & wait";

pub(crate) fn measure(node: &Node, size: &Size) {
    let count = size.containers;
    let share = |bytes: u64| bytes as f64 / count as f64 / f64::from(1 << 20);
    let seconds = |time: Duration| time.as_secs_f64();
    println!("\n| {count} containers of one template | figure | mark |\n|---|---|---|");
    let empty_kernel = node.kernel_bytes();
    let (made, ()) = timed(|| {
        for number in 0..count {
            let name = format!("many-{number}");
            node.run(&["create", &name, TEMPLATE, "--", "/bin/sh", "-c", IDLE]);
        }
    });
    let (started, _) = timed(|| node.run(&["start", "many-*"]));
    println!("| made, one after the other | {:.1} s | |", seconds(made));
    println!("| `start 'many-*'` | {:.1} s | |", seconds(started));
    let private = || -> (u64, u64) {
        let sum = |verb| -> u64 {
            let pids = node.processes(verb);
            assert_eq!(pids.len(), count, "a {verb} for each");
            pids.into_iter().map(|pid| memory(pid, "smaps_rollup", "Private_Dirty")).sum()
        };
        (sum("mount-process"), sum("container-monitor"))
    };
    let (mounts, monitors) = private();
    println!(
        "| own private memory of each, idle | {:.2} MiB (mount process {:.2}, monitor {:.2}) | ≤ 3 MiB |",
        share(mounts + monitors),
        share(mounts),
        share(monitors)
    );
    if let (Some(before), Some(after)) = (empty_kernel, node.kernel_bytes()) {
        let kernel = share(after.saturating_sub(before));
        println!("| kernel memory of their mounts and processes, each | {kernel:.2} MiB | |");
    }
    let daemon = node.daemon();
    println!(
        "| the daemon | {:.1} MiB resident, {:.1} private | ≤ 30 MiB |",
        memory(daemon, "status", "VmRSS") as f64 / f64::from(1 << 20),
        memory(daemon, "smaps_rollup", "Private_Dirty") as f64 / f64::from(1 << 20),
    );
    let (found, _) = timed(|| node.run(&["exec", "many-*", "--", "find", "/", "-xdev"]));
    let (mounts, monitors) = private();
    println!(
        "| after a full `find` in each ({:.1} s) | {:.2} MiB | ≤ 8 MiB |",
        seconds(found),
        share(mounts + monitors)
    );
    let begun = Instant::now();
    let back = loop {
        let (mounts, monitors) = private();
        if share(mounts + monitors) <= 3.0 || begun.elapsed() > Duration::from_secs(90) {
            break share(mounts + monitors);
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    println!(
        "| and {:.1} s later | {back:.2} MiB | ≤ 3 MiB in a minute |",
        seconds(begun.elapsed())
    );
    node.kill_daemon();
    let (adopted, told) = timed(|| {
        node.start_daemon();
        node.run(&["ps", "-q"])
    });
    assert_eq!(told.lines().filter(|line| line.starts_with("many-")).count(), count, "found again");
    println!("| found again by a new daemon after `kill -9` | {:.2} s | ≤ 1 s |", seconds(adopted));
    let (stopped, _) = timed(|| node.run(&["stop", "many-*"]));
    println!("| `stop 'many-*'` | {:.1} s | ≤ 10 s |", seconds(stopped));
    let (deleted, _) = timed(|| node.run(&["delete", "many-*"]));
    println!("| `delete 'many-*'` | {:.1} s | |", seconds(deleted));
}
