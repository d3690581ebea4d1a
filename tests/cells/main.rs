//! What holds a container in its bounds: the kernel's groups, and its network.
//!
//! Limits bite on real processes in groups of these tests' own; traffic is real and runs in
//! network namespaces of their own. Needs root.

// What goes wrong in the harness itself fails the test.
#![allow(clippy::unwrap_used)]

mod group;
mod lab;
mod limits;
mod network;
mod processes;
mod spoof;
#[path = "../support/mod.rs"]
mod support;
mod warm;
