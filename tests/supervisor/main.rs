//! The supervisor as its users have it: the daemon and the command line, with real Debian roots.
//!
//! Needs root, /dev/fuse, cgroups and network namespaces. Each test has a daemon and a store of its
//! own; the network is only used in a network namespace of its own.

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod api;
mod apt;
mod boot;
mod crash;
mod disk;
mod faults;
mod init;
mod life;
mod network;
mod set;
mod sharing;
mod stage;
mod system;
mod terminal;
