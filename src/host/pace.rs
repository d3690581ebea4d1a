//! How fast, and whether now: what holds a re-share or a scrub back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::sys::priority::idle_io;

/// Sleeps are no longer than this: who is asked to stop, or to give a lease back, does it soon.
const SLICE: Duration = Duration::from_millis(10);

/// Holds a re-share or a scrub back; shared with who may pause or stop it.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes to read in a second; 0: as fast as it goes.
    bytes_per_second: u64,
    paused: Mutex<bool>,
    resumed: Condvar,
    stopped: AtomicBool,
    /// Set by a signal, from where nobody can be woken.
    interrupted: Option<&'static AtomicBool>,
    budget: Mutex<Option<Budget>>,
}

#[derive(Debug)]
struct Budget {
    /// When the bytes that were read so far are paid for.
    free_at: Instant,
}

/// What reading may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// Go on.
    On,
    /// Ask again, after giving back what others may wait for.
    Soon,
    /// Pause or end: give everything back.
    No,
}

impl Pace {
    /// As fast as it goes.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// So many bytes in a second, at most.
    #[must_use]
    pub fn limited(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, ..Self::default() }
    }

    /// Ends also once `interrupted` is set.
    #[must_use]
    pub fn until(self, interrupted: &'static AtomicBool) -> Self {
        Self { interrupted: Some(interrupted), ..self }
    }

    /// Lets the disk requests of the calling thread wait for everybody else's.
    pub fn step_back(&self) {
        if let Err(error) = idle_io() {
            tracing::debug!(%error, "reading with the priority of everybody else");
        }
    }

    /// Whether anything is held back at all.
    pub(super) fn is_limited(&self) -> bool {
        self.bytes_per_second > 0
    }

    /// Holds it until [`Pace::resume`]; what it is reading it reads again then.
    pub fn pause(&self) {
        *self.paused.lock() = true;
    }

    /// Lets it go on.
    pub fn resume(&self) {
        *self.paused.lock() = false;
        self.resumed.notify_all();
    }

    /// Whether it is held.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        *self.paused.lock()
    }

    /// Ends it after the file it is at.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.resumed.notify_all();
    }

    /// Whether it was told to end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
            || self.interrupted.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Waits while it is paused; false once it is stopped. Nobody may wait for the caller.
    pub(super) fn wait(&self) -> bool {
        let mut paused = self.paused.lock();
        while *paused && !self.is_stopped() {
            // Woken by resume and stop; the limit is for a stop that came just before.
            self.resumed.wait_for(&mut paused, SLICE * 10);
        }
        !self.is_stopped()
    }

    /// Sleeps up to `time`, and less if it is stopped; false then.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut paused = self.paused.lock();
        while Instant::now() < until && !self.is_stopped() {
            self.resumed.wait_until(&mut paused, until);
        }
        !self.is_stopped()
    }

    /// Counts bytes that were read.
    pub(super) fn spend(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let mut budget = self.budget.lock();
        let now = Instant::now();
        let from = budget.as_ref().map_or(now, |budget| budget.free_at.max(now));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *budget = Some(Budget { free_at: from + cost });
    }

    /// Whether more may be read now; sleeps a little if not.
    pub(super) fn next(&self) -> Go {
        if self.is_stopped() || self.is_paused() {
            return Go::No;
        }
        let left = match &*self.budget.lock() {
            Some(budget) => budget.free_at.saturating_duration_since(Instant::now()),
            None => Duration::ZERO,
        };
        if left.is_zero() {
            return Go::On;
        }
        std::thread::sleep(left.min(SLICE));
        Go::Soon
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_paid_for_in_time() {
        let pace = Pace::limited(1 << 20);
        assert_eq!(pace.next(), Go::On);
        let began = Instant::now();
        for _ in 0..4 {
            while pace.next() == Go::Soon {}
            pace.spend(1 << 16);
        }
        while pace.next() == Go::Soon {}
        // Four times a sixteenth of a second.
        assert!(began.elapsed() >= Duration::from_millis(240), "{:?}", began.elapsed());
    }

    #[test]
    fn a_pause_ends_with_resume_and_with_stop() {
        let pace = std::sync::Arc::new(Pace::unlimited());
        pace.pause();
        assert_eq!(pace.next(), Go::No);
        let waiting = std::sync::Arc::clone(&pace);
        let thread = std::thread::spawn(move || waiting.wait());
        pace.resume();
        assert!(thread.join().unwrap());
        pace.pause();
        let waiting = std::sync::Arc::clone(&pace);
        let thread = std::thread::spawn(move || waiting.wait());
        pace.stop();
        assert!(!thread.join().unwrap());
    }
}
