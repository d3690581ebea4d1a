//! Places at which a test has the daemon die.
//!
//! In debug builds alone: `MICA_CRASH_AT=NAME` kills the process, as SIGKILL does, when it comes
//! to the step of that name. Every step that leaves something behind has one after it.

/// Every step, in the order of a life. Tests go through this list.
pub const STEPS: &[&str] = &[
    "create-reserved",
    "create-written",
    "start-written",
    "start-mounted",
    "start-grouped",
    "start-created",
    "start-connected",
    "start-started",
    "stop-asked",
    "stop-ended",
    "down-killed",
    "down-disconnected",
    "down-ungrouped",
    "down-unmounted",
    "delete-begun",
    "delete-doomed",
    "delete-released",
];

/// The process ends here if it was told to.
pub(super) fn here(step: &'static str) {
    debug_assert!(STEPS.contains(&step), "{step} is listed");
    #[cfg(debug_assertions)]
    if std::env::var_os("MICA_CRASH_AT").is_some_and(|wanted| wanted == step) {
        let killed =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        debug_assert!(killed.is_ok(), "a process may kill itself");
    }
}
