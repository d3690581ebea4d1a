//! The socket through which a running mount process is asked and told.
//!
//! One JSON value a line, in each direction, over a Unix socket that only root may use.
//! Owns the protocol, the server inside a mount process and the client. Must never know
//! who asks, or where sockets are registered. Nothing survives a crash: a socket file
//! nobody listens on is removed by the next server that wants its place.

mod client;
mod descriptors;
mod protocol;
mod server;

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

pub use client::Client;
pub use protocol::{Answer, FORGOTTEN, FileToReplace, Outcome, REPLACEMENTS, Request, Status};
pub(crate) use server::bytes;
pub use server::{Server, Service, Socket};

/// Longest line that either side reads, in bytes; a longer one ends the connection.
pub const LINE_LIMIT_BYTES: u64 = 64 * 1024;

/// Why talking to a mount process failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The place of the socket cannot be reached or made.
    #[error("cannot use the control socket {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A process already serves this socket.
    #[error("another mount process already serves {path}")]
    AlreadyServed {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke, or the other side took too long.
    #[error("the mount process did not answer")]
    Lost(#[source] io::Error),
    /// What came is not the protocol; the other side may be another version.
    #[error("the mount process answered something that is not of this version's protocol")]
    Protocol(#[source] serde_json::Error),
    /// The mount process understood and says no.
    #[error("{reason}")]
    Refused {
        /// The process's own sentence.
        reason: String,
    },
}

impl ControlError {
    /// Whether the other side closed the connection: its process is ending or gone.
    #[must_use]
    pub fn is_hang_up(&self) -> bool {
        matches!(self, Self::Lost(error) if client::is_hang_up(error))
    }
}

/// A name for `path` short enough for a socket address, and what keeps it valid.
///
/// A socket address holds 107 bytes; stores may lie deeper. The directory is opened and
/// named through /proc instead.
fn short_name(path: &Path) -> io::Result<(Option<rustix::fd::OwnedFd>, PathBuf)> {
    const ADDRESS_LIMIT: usize = 107;
    if path.as_os_str().len() <= ADDRESS_LIMIT {
        return Ok((None, path.to_owned()));
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    short.push(name);
    Ok((Some(directory), short))
}
