//! The supervisor daemon: which containers there are, what each shall be doing, and doing it.
//!
//! A container is a directory, `containers/<id>` of the store; everything that must survive a
//! crash is a file there. What may happen to a container next is decided by pure code
//! (`queue`); one driver does it. Knows nothing of HTTP. After a crash of the daemon containers
//! run on, and the next one finds them again.

mod error;
pub mod phase;
pub mod queue;
pub mod registry;
pub mod restart;
pub mod state;
pub mod target;

pub use error::NodeError;
