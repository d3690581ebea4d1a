//! `mica store reshare`: what containers hold alike becomes one object, and nobody notices.
//!
//! Everything here runs the real program on real mounts. Needs root and /dev/fuse.

// What goes wrong in the harness itself fails the test.
#![allow(clippy::unwrap_used)]

mod alike;
mod cuts;
mod logs;
mod names;
mod race;
mod stage;
#[path = "../support/mod.rs"]
mod support;
mod tenants;
mod together;
mod upgrade;
