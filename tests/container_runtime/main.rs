//! Containers on mounted roots, made and entered by the embedded runtime and by runc: the same tests.
//!
//! Needs root, /dev/fuse, runc and mmdebstrap.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod console;
mod hostile;
mod isolation;
mod life;
mod nested;
mod stage;
mod system;
