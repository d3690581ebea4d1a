//! The supervisor daemon: which containers there are, what each shall be doing, and doing it.
//!
//! A container is a directory, `containers/<id>` of the store; everything that must survive a
//! crash is a file there. What may happen to a container next is decided by pure code
//! (`queue`); one driver does it. Knows nothing of HTTP. After a crash of the daemon containers
//! run on, and the next one finds them again.

mod alert;
mod claims;
mod crash;
pub mod create;
pub mod daemon;
pub mod driver;
mod error;
pub mod event;
pub mod health;
pub mod life;
pub mod machine;
pub mod phase;
pub mod queue;
mod reasons;
pub mod registry;
pub mod restart;
mod salvage;
pub mod sharing;
pub mod state;
pub mod target;

pub use crash::STEPS;
pub use daemon::Node;
pub use error::NodeError;
pub use salvage::Damaged;
