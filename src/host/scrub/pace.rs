//! Reading no faster than was asked for.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::ScrubProgress;

/// Longest sleep between two looks at whether to go on.
const NAP: Duration = Duration::from_millis(100);

/// Holds a rate on average since it began, and asks whether to go on.
pub(super) struct Pace<'a> {
    bytes_per_second: Option<NonZeroU64>,
    proceed: &'a (dyn Fn(ScrubProgress) -> bool + Sync),
    begun: Instant,
    read: u64,
}

impl<'a> Pace<'a> {
    pub(super) fn new(
        bytes_per_second: Option<NonZeroU64>,
        proceed: &'a (dyn Fn(ScrubProgress) -> bool + Sync),
    ) -> Self {
        Self { bytes_per_second, proceed, begun: Instant::now(), read: 0 }
    }

    /// Counts a piece, waits until it is due, and tells whether to go on.
    pub(super) fn read(&mut self, bytes: u64, progress: ScrubProgress) -> bool {
        self.read += bytes;
        loop {
            if !(self.proceed)(progress) {
                return false;
            }
            let early = self.due().saturating_sub(self.begun.elapsed());
            if early.is_zero() {
                return true;
            }
            std::thread::sleep(early.min(NAP));
        }
    }

    /// When what was read so far may have been read, since the beginning.
    fn due(&self) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let nanos = u128::from(self.read) * 1_000_000_000 / u128::from(rate.get());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_says_when_bytes_are_due_and_none_says_at_once() {
        let mut pace = Pace::new(NonZeroU64::new(1 << 20), &|_| false);
        pace.read = 3 << 19;
        assert_eq!(pace.due(), Duration::from_millis(1500));
        assert!(!pace.read(1, ScrubProgress::default()), "told to end before the wait");
        pace.bytes_per_second = None;
        assert_eq!(pace.due(), Duration::ZERO);
    }
}
