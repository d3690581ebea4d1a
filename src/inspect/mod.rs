//! Looking inside: what a word means, and what templates, layers and roots hold.
//!
//! Owns the answers of every command that only looks, as plain values: how they are printed
//! is for `cli`. Must never change what it looks at, nor wait for the lock of a private
//! directory. Nothing here survives the process.

pub mod changes;
mod container;
mod error;
mod library;
pub mod resolve;
pub mod text;
pub mod upper;
pub mod usage;
pub mod view;

pub use changes::{Change, ChangeKind, Changes};
pub use container::{Container, Content};
pub use error::InspectError;
pub use library::Library;
pub use resolve::{Meaning, Sort};
pub use view::{Kind, Node, Step, View, Xattr};
