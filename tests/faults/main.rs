//! Bad input and faults: each gets one clear sentence and loses nothing.
//!
//! Everything here runs the real program on real mounts. Needs root and /dev/fuse.

// What goes wrong in the harness itself fails the test.
#![allow(clippy::unwrap_used)]

mod archives;
mod catalog;
mod check;
mod damage;
mod descriptors;
mod foreign;
mod holes;
mod hostile;
mod marks;
mod names;
mod places;
mod privilege;
mod processes;
mod space;
mod stage;
#[path = "../support/mod.rs"]
mod support;
