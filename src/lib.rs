//! Mica: copy-on-write container roots over shared, content-addressed templates.
//!
//! The modules form layers; a module may use those named before it and never those
//! after it. docs/ARCHITECTURE.md draws the map and `tests/layers.rs` holds it.

pub mod api;
pub mod bench;
pub mod catalog;
pub mod cli;
pub mod container;
pub mod control;
pub mod doctor;
pub mod fs;
pub mod fuse;
pub mod host;
pub mod inspect;
pub mod layer;
pub mod node;
pub mod object;
pub mod private;
pub mod sys;
pub mod telemetry;
pub mod union;
