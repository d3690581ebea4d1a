//! A tenant that uses up whatever it can get: it meets its own limits, the daemon and a neighbour's
//! web service go on.

// What goes wrong in the harness itself fails the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::network::{SERVE, on_host};
use crate::stage::{Stage, TEMPLATE};
use crate::support::{Succeed, again_until};

/// Writes as much as it can for as long as it lives.
const FLOOD: &str = "trap 'exit 0' TERM; yes 'a line of no importance to anybody at all' & wait";

/// What is tried inside, and a part of what has to be said.
const ATTEMPTS: [(&str, &str, &str); 7] = [
    ("files without end", "seq 6000 | (cd /srv && xargs touch)", "quota exceeded"),
    ("nothing is left of it", "cd /srv && find . -type f -delete && echo done", "done"),
    (
        "dirtied page cache and a full disk",
        "dd if=/dev/zero of=/srv/large bs=1M count=300 2>&1; rm /srv/large",
        "quota exceeded",
    ),
    (
        "a million open files",
        "python3 -c 'import os\nfor n in range(2000000): os.open(\"/etc/passwd\", 0)' 2>&1 | tail -1",
        "Too many open files",
    ),
    ("more memory than it may have", "perl -e '$x = q(x) x (256 << 20)'; echo $?", "137"),
    ("a fork bomb", "i=0; while [ $i -lt 300 ]; do sleep 6 & i=$((i+1)); done", "Cannot fork"),
    (
        "a neighbour's address",
        "ip address add 10.88.0.11/32 dev eth0 && ping -I 10.88.0.11 -c 2 -W 1 10.88.0.1",
        "100% packet loss",
    ),
];

fn serves(stage: &Stage) {
    let script = "import socket; s = socket.create_connection(('10.88.0.11', 80), timeout=300); \
                  s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(s.recv(9999).decode())";
    let said = on_host(stage, &["python3", "-c", script]).succeed();
    assert!(said.contains("this is web1"), "{said}");
}

fn kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_tenant_that_wants_everything_harms_neither_a_neighbour_nor_the_daemon() {
    let stage = Stage::with_network("supervisor-abuse");
    let serve = ["python3", "-c", SERVE];
    let mut words = vec!["create", "web1", TEMPLATE, "--ip", "10.88.0.11", "--"];
    words.extend(serve);
    stage.mica(words);
    stage.mica(["start", "web1"]);
    again_until("the service is there", || {
        let script = "import socket; socket.create_connection(('10.88.0.11', 80), timeout=60)";
        on_host(&stage, &["python3", "-c", script]).capture().status.success()
    });
    abuse(&stage, "embedded");
    // The limits are the same groups' and the same mount's.
    if std::env::var("MICA_TEST_COUNTS").as_deref() == Ok("long") {
        abuse(&stage, "runc");
    }
}

fn abuse(stage: &Stage, runtime: &str) {
    let runtime = format!("runtime={runtime}");
    let settings = [
        "limits.memory=64MiB",
        "limits.pids=64",
        "limits.disk=16MiB",
        "log.size=256KiB",
        "log.files=2",
        "cap.add=NET_ADMIN",
        &runtime,
    ];
    let mut words = vec!["create", "evil", TEMPLATE];
    words.extend(settings);
    words.extend(["--", "sh", "-c", FLOOD]);
    stage.mica(words);
    stage.mica(["start", "evil"]);
    let id = stage.info("evil")["id"].as_str().unwrap().to_owned();
    let place = stage.store.path().join("containers").join(&id);
    let monitor = crate::stage::processes()
        .into_iter()
        .find(|(_, words)| words.contains("container-monitor") && words.contains(&id))
        .map(|(pid, _)| pid)
        .expect("it is watched");
    // More than are let in, that want everything or nothing and read none of it.
    let clients: Vec<UnixStream> = (0..80)
        .filter_map(|number| {
            let mut client = UnixStream::connect(place.join("run/attach.sock")).ok()?;
            // Half a frame, a way of being served, or not a word.
            match number % 3 {
                0 => client.write_all(b"F\x00").ok()?,
                1 => client.write_all(b"C").ok()?,
                _ => {}
            }
            Some(client)
        })
        .collect();
    let long = std::env::var("MICA_TEST_COUNTS").as_deref() == Ok("long");
    // A million of them take a debug build half a minute.
    let quick = |attempt: &&(&str, &str, &str)| long || attempt.0 != "a million open files";
    for (what, script, word) in ATTEMPTS.iter().filter(quick) {
        let said = stage.ask(["exec", "evil", "--", "sh", "-c", script]);
        let told = format!(
            "{}{}",
            String::from_utf8_lossy(&said.stdout),
            String::from_utf8_lossy(&said.stderr)
        );
        assert!(told.contains(word), "{runtime}: {what}: {told}");
        serves(stage);
    }
    // It is still being written: one of the two files may just be getting the other's name.
    let kept: u64 = fs::read_dir(place.join("logs"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().metadata().ok())
        .map(|metadata| metadata.len())
        .sum();
    assert!((200 << 10..600 << 10).contains(&kept), "{kept} bytes of logs");
    for (who, pid, most) in [("its monitor", monitor, 48), ("the daemon", stage.daemon(), 64)] {
        // Its own: how much of the program is mapped depends on what the page cache has.
        let taken = kib(pid, "RssAnon") / 1024;
        assert!(taken < most, "{who} takes {taken} MiB");
    }
    drop(clients);
    let mut ps = Command::new(env!("CARGO_BIN_EXE_mica"));
    let told = ps.env("MICA_STORE", stage.store.path()).args(["ps", "-q"]).succeed();
    assert!(told.contains("evil") && told.contains("web1"), "{told}");
    stage.mica(["delete", "--force", "evil"]);
    serves(stage);
}

#[test]
fn a_tenant_s_users_keep_nobody_out_and_make_nobody_root_s_command_theirs() {
    let stage = Stage::new("supervisor-users");
    for runtime in ["runtime=embedded", "runtime=runc"] {
        stage.create("c1", &[runtime], &["sleep", "1000"]);
        stage.mica(["start", "c1"]);
        let who = |words: &[&str]| {
            let tail = ["--", "sh", "-c", "echo $(id -u) $(id -g) $HOME"];
            stage.mica([&["exec"], words, &["c1"], &tail].concat()).trim().to_owned()
        };
        // runc 1.1 reads /etc/passwd itself, inside, and waits for a fifo there.
        if runtime == "runtime=embedded" {
            stage.mica(["exec", "c1", "--", "sh", "-c", "rm /etc/passwd; mkfifo /etc/passwd"]);
            assert_eq!(who(&[]), "0 0 /root", "{runtime}");
            assert_eq!(who(&["-u", "0"]), "0 0 /root", "{runtime}");
            assert_eq!(who(&["-u", "33:7"]), "33 7 /", "{runtime}");
            let odd = stage.refused(["exec", "-u", "www-data", "c1", "--", "true"]);
            assert!(odd.contains("etc/passwd") && odd.contains("give a number"), "{odd}");
        }
        let lines = "0:x:1000:1000::/:/bin/sh\nroot:x:4294967295:0::/:/bin/sh";
        let script = format!("rm /etc/passwd; printf '{lines}\n' > /etc/passwd");
        stage.mica(["exec", "c1", "--", "sh", "-c", &script]);
        assert_eq!(who(&[]), "0 0 /root", "{runtime}");
        assert_eq!(who(&["-u", "0"]), "0 0 /root", "{runtime}");
        for user in ["root", "4294967295", "0:4294967295"] {
            let refused = stage.refused(["exec", "-u", user, "c1", "--", "true"]);
            assert!(refused.contains("number of no user"), "{runtime} {user}: {refused}");
            assert_eq!(refused.lines().count(), 1, "{refused}");
        }
        stage.mica(["delete", "--force", "c1"]);
    }
}

/// Puts links that lead to nothing in the place of what is mounted: a directory may be moved with it.
const DANGLE: &str = "mv /etc /old && cp -a /old /etc && cd /etc && rm hosts hostname resolv.conf && \
    ln -s ../run/systemd/resolve/stub-resolv.conf resolv.conf && ln -s /var/run/none/hosts hosts && \
    ln -s ../../../../../../tmp/mica-none hostname";

#[test]
fn links_in_the_place_of_mounts_lead_nowhere_outside_and_keep_no_container_from_starting() {
    let stage = Stage::new("supervisor-links");
    for runtime in ["runtime=embedded", "runtime=runc"] {
        stage.create("c1", &[runtime], &["sleep", "1000"]);
        stage.mica(["start", "c1"]);
        stage.mica(["exec", "c1", "--", "sh", "-c", DANGLE]);
        stage.mica(["restart", "--kill", "c1"]);
        let there = "[ -L /etc/hosts ] && [ -L /etc/hostname ] && grep -q c1 /etc/hosts && \
                grep -q c1 /etc/hostname && cat /etc/resolv.conf";
        stage.mica(["exec", "c1", "--", "sh", "-c", there]);
        assert!(!fs::exists("/tmp/mica-none").unwrap(), "{runtime}");
        stage.mica(["delete", "--force", "c1"]);
        stage.create("c1", &[runtime], &["sleep", "1000"]);
        stage.mica(["start", "c1"]);
        stage.mica(["stop", "--kill", "c1"]);
        let private = stage.info("c1")["private"].as_str().unwrap().to_owned();
        let outside = stage.store.path().join("outside");
        fs::create_dir(&outside).unwrap();
        for place in ["dev", "proc", "sys"] {
            let upper = format!("{private}/upper/{place}");
            if fs::exists(&upper).unwrap() {
                fs::remove_dir_all(&upper).unwrap();
            }
            std::os::unix::fs::symlink(&outside, &upper).unwrap();
            let refused = stage.refused(["start", "c1"]);
            assert!(refused.contains(&format!("/{place} in the")), "{runtime}: {refused}");
            assert!(refused.contains("is a symbolic link"), "{runtime}: {refused}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{runtime} {place}");
            stage.mica(["revert", "c1", &format!("/{place}")]);
        }
        stage.mica(["start", "c1"]);
        stage.mica(["delete", "--force", "c1"]);
        fs::remove_dir(&outside).unwrap();
    }
}
