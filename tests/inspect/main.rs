//! Looking into templates and layers: every answer beside what du, find, diff, umoci and skopeo
//! say of the same files.
//!
//! Needs root and, for the Debian roots, the package mirror that apt on this machine uses.

// What goes wrong in the harness itself fails the test.
#![allow(clippy::unwrap_used)]

mod damage;
mod debian;
mod image;
mod output;
mod reference;
mod shell;
#[path = "../support/mod.rs"]
mod support;
mod words;
