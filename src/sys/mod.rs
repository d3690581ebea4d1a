//! System calls that rustix does not wrap, and short sequences of them.
//!
//! Every `unsafe` block of the crate is here; each wrapper is safe and takes borrowed
//! descriptors. Knows nothing of objects, layers or FUSE, and keeps no state, so nothing
//! here has to survive a crash. What rustix wraps is called directly.

pub mod acl;
pub mod bpf;
pub mod cache;
pub mod copy;
pub mod credentials;
pub mod descent;
pub mod durable;
pub mod flags;
pub mod handle;
pub mod inode;
pub mod lease;
pub mod map;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod priority;
pub mod process;
pub mod readiness;
pub mod signal;
pub mod sparse;
pub mod terminal;
pub mod verity;
