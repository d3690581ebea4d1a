//! How fast a web service answers while its neighbour misbehaves.
//!
//! It is asked two hundred times a second, one request after the other: a client that asked without a
//! pause would with the service fill a processor, and measure how the kernel divides two processors
//! among three who want one each. Each misdeed has its own quiet time just before it, and is tried with
//! its processor held to a time and to a set.
//!
//! The client runs before everything else (`SCHED_FIFO`), as far as the kernel lets it: it stands for one
//! on another machine, and is not to be measured itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Size;
use crate::node::{Node, TEMPLATE};
use crate::support::again_until;

/// From one request to the next.
const PACE: Duration = Duration::from_millis(5);

/// A web service, as small as can be.
const SERVICE: &str = "
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('', 80)); s.listen(128)
body = open('/etc/debian_version','rb').read()
while True:
    c, _ = s.accept(); c.recv(4096)
    c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n' + body); c.close()
";

/// What the neighbour does, without end.
const MISDEEDS: [(&str, &str); 6] = [
    ("a loop on every processor", "for i in 1 2 3 4; do while :; do :; done & done; wait"),
    ("a fork bomb", "bomb() { bomb | bomb & }; bomb; while :; do sleep 1 & done"),
    ("a memory hog", "while :; do head -c 1G /dev/zero | tail -c 1G >/dev/null; done"),
    (
        "dirtied page cache",
        "while :; do dd if=/dev/zero of=/srv/f bs=1M count=400 2>/dev/null; done",
    ),
    (
        "files without end",
        "i=0; while :; do i=$((i+1)); mkdir -p /srv/$i && (cd /srv/$i && seq 1 2000 | xargs touch); done",
    ),
    (
        "descriptors without end",
        "python3 -c 'import os\nwhile True:\n  try: [os.open(\"/etc/passwd\", 0) for _ in range(2000000)]\n  except OSError: os.closerange(3, 2000000)'",
    ),
];

/// What the neighbour may have of two processors: as long as it likes, one's worth of time, or one of them.
const PROCESSORS: [(&str, Option<&str>); 3] =
    [("all", None), ("the time of one", Some("limits.cpu=1")), ("one", Some("limits.cpu=0-0"))];

pub(crate) fn measure(node: &Node, size: &Size) {
    let service =
        ["create", "service", TEMPLATE, "--ip", "10.88.0.80", "--", "python3", "-c", SERVICE];
    node.run(&service);
    node.run(&["start", "service"]);
    let address: SocketAddr = ([10, 88, 0, 80], 80).into();
    again_until("the service answers", || ask(address).is_some());
    go_first();
    println!(
        "\n| a web service, while its neighbour is … | and may have of the processors | p50, quiet | p99, quiet | p50 | p99 | p99 to quiet (mark ≤ 3) |\n|---|---|---|---|---|---|---|"
    );
    let requests = size.rounds * 100;
    for (what, script) in MISDEEDS {
        for (may, limit) in PROCESSORS {
            let quiet = percentiles(address, requests);
            let limits = ["limits.memory=128MiB", "limits.pids=200", "limits.disk=1GiB"];
            let mut words = vec!["create", "hostile", TEMPLATE, "network=none"];
            words.extend(limits.into_iter().chain(limit));
            words.extend(["--", "/bin/sh", "-c", script]);
            node.run(&words);
            node.run(&["start", "hostile"]);
            let beside = percentiles(address, requests);
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            println!(
                "| {what} | {may} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms | {:.1} |",
                ms(quiet.0),
                ms(quiet.1),
                ms(beside.0),
                ms(beside.1),
                ms(beside.1) / ms(quiet.1)
            );
            node.run(&["delete", "--force", "hostile"]);
        }
    }
    node.run(&["delete", "--force", "service"]);
}

/// Puts this thread before all others.
fn go_first() {
    let thread = rustix::thread::gettid().to_string();
    let went = Command::new("chrt")
        .args(["--fifo", "--reset-on-fork", "--pid", "50"])
        .arg(thread)
        .output();
    if !went.is_ok_and(|output| output.status.success()) {
        println!(
            "\nThe client waits for processors as others do: it may not run before them here."
        );
    }
}

fn ask(address: SocketAddr) -> Option<Duration> {
    let begun = Instant::now();
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.0 200").then(|| begun.elapsed())
}

fn percentiles(address: SocketAddr, requests: usize) -> (Duration, Duration) {
    let paced = |_| {
        std::thread::sleep(PACE);
        ask(address).unwrap_or(Duration::from_secs(5))
    };
    let mut times: Vec<Duration> = (0..requests).map(paced).collect();
    times.sort_unstable();
    (times[requests / 2], times[requests * 99 / 100])
}
