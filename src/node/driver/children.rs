//! Processes that this one started and that outlive its interest: each stays a zombie until
//! somebody asks how it ended.

use parking_lot::Mutex;
use rustix::process::{Pid, WaitOptions, waitpid};

/// Mount processes and monitors that are children of this process.
#[derive(Debug, Default)]
pub(super) struct Children(Mutex<Vec<Pid>>);

impl Children {
    pub(super) fn add(&self, pid: u32) {
        self.0.lock().extend(i32::try_from(pid).ok().and_then(Pid::from_raw));
    }

    /// Reaps those that have ended.
    pub(super) fn reap(&self) {
        // Anything but "still running" means that there is nothing left to wait for.
        self.0.lock().retain(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)));
    }
}
