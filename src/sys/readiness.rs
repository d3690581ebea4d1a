//! Descriptors that an event loop waits for.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Has the event loop that this runs in wait for `fd`, which must not block.
///
/// # Errors
/// What epoll answers: `EPERM` for a regular file.
pub fn awaited(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open as long as it lives, and nobody replaces or closes the one that an
    // AsyncFd holds: only shared references to it are given out.
    let registered = unsafe { AsyncFd::register(fd) };
    registered.map_err(io::Error::from)
}
