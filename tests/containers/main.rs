//! Looking into containers and making templates of them, by real programs on real mounts.
//!
//! What `mica` says is held against what `find`, `diff`, `tar` and the kernel say. Needs root
//! and /dev/fuse.

// What goes wrong in the harness itself fails the test.
#![allow(clippy::unwrap_used)]

mod changes;
mod commit;
mod cuts;
mod export;
mod power;
mod revert;
mod stage;
#[path = "../support/mod.rs"]
mod support;
mod why;
