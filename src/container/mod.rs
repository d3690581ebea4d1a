//! Containers: what one is, and how it is started, isolated and watched.
//!
//! A synchronous library that is given paths: it knows nothing of FUSE, of the store, of HTTP or of
//! the daemon that calls it. What has to outlive its caller is a process of its own: one monitor
//! for each container (`mica container-monitor`), which owns the console, the log and the exit
//! status. Nothing here forks in a process that may have threads: every step that does is this very
//! program started again (`mica container-launch`).

pub mod bundle;
pub mod capabilities;
pub mod cgroup;
pub mod command;
pub mod config;
pub mod console;
mod destinations;
mod exec;
pub mod idmap;
mod init;
pub mod launch;
pub mod log;
pub mod monitor;
pub mod network;
pub mod passwd;
pub mod places;
mod program;
pub mod runtime;
mod seccomp;
pub mod spec;

/// An error with everything that led to it, in one line; what a cause repeats is left out.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let word = error.to_string();
        if !text.contains(&word) {
            text.push_str(": ");
            text.push_str(&word);
        }
        cause = error.source();
    }
    text
}
