//! Containers: what one is, and how it is started, isolated and watched.
//!
//! A synchronous library that is given paths: it knows nothing of FUSE, of the store, of HTTP or of
//! the daemon that calls it. What has to outlive its caller is a process of its own: one monitor
//! for each container (`mica container-monitor`), which owns the console, the log and the exit
//! status. Nothing here forks in a process that may have threads: every step that does is this very
//! program started again (`mica container-launch`).

pub mod capabilities;
pub mod cgroup;
pub mod config;
pub mod idmap;
pub mod network;
