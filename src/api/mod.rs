//! The daemon's door: HTTP and JSON over a Unix socket that only root can reach.
//!
//! Routes and what they answer, and the client that the command line is. Decides nothing
//! about containers and makes no system calls of its own. Nothing of it survives a crash but a
//! socket that nobody listens on, which the next daemon removes.

mod client;
mod exec;
mod launch;
mod logs;
mod metrics;
mod observe;
mod refusal;
mod routes;
mod server;
mod sharing;
pub mod wire;

pub use client::{Client, ClientError, Connection, at, of};
pub use launch::{LaunchError, run_in_background, start};
pub use refusal::kind_of;
pub use server::{Background, ServeError, run};
