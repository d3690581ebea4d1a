//! Telling a step that waits that somebody does not want to.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// A bell that is rung once.
#[derive(Debug)]
pub struct Hurry(Option<OwnedFd>);

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// The process ended.
    Ended,
    /// Time is up, or somebody is in a hurry.
    Impatient,
}

impl Default for Hurry {
    fn default() -> Self {
        // Without descriptors left there is no hurrying; waits still have their limit.
        Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok())
    }
}

impl Hurry {
    /// Rings.
    pub fn now(&self) {
        if let Some(bell) = &self.0 {
            // It only fails when it has been rung 2^64 times.
            let _rung = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }

    /// Waits until the process behind a pidfd ended.
    pub(super) fn wait(&self, process: &OwnedFd, limit: Duration) -> Waited {
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        fds.extend(self.0.iter().map(|bell| PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)));
        let polled = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)));
        let ended = polled.is_ok() && fds.first().is_some_and(|fd| !fd.revents().is_empty());
        if ended { Waited::Ended } else { Waited::Impatient }
    }
}
