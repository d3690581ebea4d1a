//! `init=yes`: a process 1 that reaps and passes signals on.

use crate::stage::{Stage, TEMPLATE};
use crate::support::{Succeed, again_until};

/// Tells of a signal, and ends as it is told.
const SCRIPT: &str = "
trap 'echo hangup' HUP
trap 'echo asked; exit 9' TERM
echo ready
while :; do sleep 0.05; done
";

#[test]
fn an_init_reaps_what_falls_to_it_and_passes_signals_on() {
    let stage = Stage::new("supervisor-init");
    for runtime in ["runtime=embedded", "runtime=runc"] {
        stage.create("c1", &["--init", runtime], &["bash", "-c", SCRIPT]);
        stage.mica(["start", "c1"]);
        again_until("it is ready", || stage.mica(["logs", "c1"]).contains("ready"));
        let listed = stage.mica(["exec", "c1", "--", "ps", "-e", "-o", "pid=,ppid=,stat=,args="]);
        let first = listed.lines().next().expect("a process");
        assert!(first.contains("/dev/init -- bash"), "{listed}");
        // An orphan falls to process 1, and does not stay when it has ended.
        stage.mica(["exec", "c1", "--", "sh", "-c", "(true &) ; (sleep 0.01 &)"]);
        again_until("nobody is left unreaped", || {
            let listed = stage.mica(["exec", "c1", "--", "ps", "-e", "-o", "stat=,args="]);
            !listed.lines().any(|line| line.starts_with('Z'))
        });
        let init = stage.info("c1")["pid"].as_u64().expect("it runs").to_string();
        std::process::Command::new("kill").args(["-HUP", &init]).start().wait().unwrap();
        again_until("the signal arrives", || stage.mica(["logs", "c1"]).contains("hangup"));
        stage.mica(["stop", "c1"]);
        assert!(stage.mica(["logs", "c1"]).contains("asked"));
        assert_eq!(stage.info("c1")["exit"]["status"], 9, "{runtime}");
        let killed = ["run", "--rm", "--init", TEMPLATE, "network=none", runtime, "--", "sh", "-c"];
        let status = |script: &str| {
            let words = killed.iter().copied().chain([script]);
            let done = stage.ask(words);
            (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
        };
        assert_eq!(status("kill -KILL $$"), (Some(137), String::new()), "{runtime}");
        assert_eq!(status("exit 4"), (Some(4), String::new()), "{runtime}");
        // Its place is a tmpfs: the root keeps no trace of it.
        let changes = stage.ask(["diff", "c1"]);
        assert!(!String::from_utf8_lossy(&changes.stdout).contains("init"), "{changes:?}");
        stage.remember();
        stage.mica(["delete", "c1"]);
        stage.assert_nothing_left(runtime);
    }
    let twice = stage.refused(["create", "s1", TEMPLATE, "network=none", "init=yes"]);
    assert!(twice.contains("an init of its own"), "{twice}");
}
