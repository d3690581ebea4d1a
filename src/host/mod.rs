//! The host's view: a store, its templates and its roots, and the processes that serve them.
//!
//! Owns names: it resolves templates, registers roots, starts and ends mount processes,
//! decides what is garbage. Must never know HTTP or containers. After a crash a store
//! opens again as it was: every file here is written whole, and a root's record tells a
//! dead mount from a living one by its socket, never by a pid.

pub mod background;
pub mod check;
pub mod collect;
pub mod commit;
pub mod destroy;
pub mod disk_image;
pub mod disk_limit;
mod error;
pub mod export;
pub mod footprint;
pub mod import;
pub mod launch;
pub mod log;
pub mod mend;
pub mod mount_table;
pub mod mountpoint;
mod nearest;
pub mod options;
mod pace;
pub(crate) mod parallel;
mod place;
mod recall;
mod refer;
mod references;
pub mod referred;
mod remove;
pub mod reserve;
pub mod reshare;
pub mod revert;
pub mod roots;
pub mod scrub;
pub mod serve;
pub mod store;
mod supervisor;
pub mod templates;
#[cfg(test)]
mod tests;
pub mod unmount;
pub mod warm;

pub use crate::sys::signal::interrupt_flag;
pub use error::{HostError, sentence};
pub use nearest::nearest;
pub use place::Precious;
pub use remove::remove_tree;
pub use roots::{RootError, RootRecord, Roots};
pub use store::{Access, Store, StoreError};
pub use supervisor::tell_ready;
pub use templates::fits;
