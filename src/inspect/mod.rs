//! Looking inside: what a word means, and what templates, layers and roots hold.
//!
//! Owns the answers of every command that only looks, as plain values: how they are printed
//! is for `cli`. Must never change what it looks at, nor wait for the lock of a private
//! directory. Nothing here survives the process.

pub mod changes;
mod container;
pub mod describe;
pub mod diff;
mod error;
pub mod files;
mod follow;
pub mod history;
pub mod holders;
mod library;
pub mod resolve;
pub mod revert;
pub mod strata;
pub mod summary;
pub mod text;
pub mod tree;
pub mod usage;
pub mod view;
pub mod why;

pub use crate::union::upper;
pub use changes::{Change, ChangeKind, Changes};
pub use container::{Container, Content};
pub use describe::{Described, FileText};
pub use diff::{Counter, Difference, DifferenceText, Letter, Tally, diff};
pub use error::InspectError;
pub use files::Filter;
pub use library::Library;
pub use resolve::{Meaning, Sort};
pub use strata::Strata;
pub use tree::Branch;
pub use view::{Kind, Node, Step, View, Xattr};
