//! Truthful accounting: what `mica store df` and `mica store who-has` say, held against du(1),
//! find(1), statfs(2), /proc/meminfo and what deleting really gives back.
//!
//! Needs root and /dev/fuse.

#![allow(clippy::unwrap_used)]

mod disk;
mod holders;
mod memory;
mod stage;
#[path = "../support/mod.rs"]
mod support;
