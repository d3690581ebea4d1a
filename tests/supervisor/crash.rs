//! The daemon dies at every step, and nothing is left.

use mica::node::STEPS;

use crate::stage::{Stage, TEMPLATE};
use crate::support::again_until;

/// What is asked of the daemon when it dies at a step of that name.
fn words(step: &str) -> &'static [&'static str] {
    match step.split('-').next() {
        Some("create") => &["create", "c1", TEMPLATE, "network=none", "--", "sleep", "1000"],
        Some("start") => &["start", "c1"],
        Some("stop" | "down") => &["stop", "c1"],
        Some("delete") => &["delete", "c1"],
        other => panic!("a step of no verb: {other:?}"),
    }
}

#[test]
fn a_daemon_that_dies_at_any_step_leaves_nothing_and_nothing_half_done() {
    let stage = Stage::new("supervisor-crash");
    for step in STEPS {
        let verb = words(step);
        let sh = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];
        if verb[0] != "create" {
            stage.create("c1", &[], &sh);
        }
        if verb[0] == "stop" {
            stage.mica(["start", "c1"]);
        }
        stage.remember();
        stage.mica(["node", "stop"]);
        stage.start_daemon(&[("MICA_CRASH_AT", step)]);
        let pid = stage.daemon();
        let lost = stage.ask(verb.iter().copied());
        assert!(!lost.status.success(), "{step}: {lost:?}");
        stage.await_end_of(pid);
        stage.remember();
        stage.start_daemon(&[]);
        // Whatever the step was, the container is whole and at rest, or is none.
        let known = stage.mica(["ps", "-a", "-q"]);
        if known.trim() == "c1" {
            again_until("it is at rest", || {
                matches!(stage.phase("c1").as_str(), "created" | "stopped" | "failed")
            });
            stage.mica(["start", "c1"]);
            assert_eq!(stage.mica(["exec", "c1", "--", "hostname"]).trim(), "c1", "{step}");
            stage.mica(["delete", "--force", "c1"]);
        } else {
            assert_eq!(known, "", "{step}");
        }
        stage.assert_nothing_left(step);
    }
}
