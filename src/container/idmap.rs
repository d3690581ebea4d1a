//! Which users of the host the users of a container are.

use serde::{Deserialize, Serialize};

/// A range of numbers of users and groups of the host: `first` is the container's 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct IdRange {
    first: u32,
    count: u32,
}

/// Why two numbers are no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}:{1} is no range of users: it begins at 1 at least, holds one at least, and ends below 4294967295"
)]
pub struct RangeError(u32, u32);

/// Users that a container has by default: enough for every distribution's `nobody` (65534).
pub const DEFAULT_COUNT: u32 = 65_536;

/// Where allocated ranges begin: beyond what distributions, systemd-nspawn (524288 to
/// 1879048191) and `/etc/subuid` (from 100000 on, by 65536) hand out by themselves.
const FIRST_ALLOCATED: u32 = 0x7000_0000;

impl IdRange {
    /// A range that neither holds the host's root nor the number that means nobody.
    #[must_use]
    pub fn new(first: u32, count: u32) -> Option<Self> {
        let end = first.checked_add(count)?;
        (first > 0 && count > 0 && end < u32::MAX).then_some(Self { first, count })
    }

    /// The host's number of the container's root.
    #[must_use]
    pub fn first(self) -> u32 {
        self.first
    }

    /// How many users.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// Whether a user is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first < other.first.saturating_add(other.count)
            && other.first < self.first.saturating_add(self.count)
    }

    /// The lowest range of the default size that overlaps none of `taken`; none when all are taken.
    #[must_use]
    pub fn allocate(taken: &[Self]) -> Option<Self> {
        let mut taken = taken.to_vec();
        taken.sort_unstable();
        let mut first = FIRST_ALLOCATED;
        for other in taken {
            let candidate = Self::new(first, DEFAULT_COUNT)?;
            if candidate.overlaps(other) {
                // Ranges stay on multiples, so that people can tell them apart.
                first = other
                    .first
                    .checked_add(other.count)?
                    .checked_next_multiple_of(DEFAULT_COUNT)?;
            }
        }
        Self::new(first, DEFAULT_COUNT)
    }
}

impl TryFrom<(u32, u32)> for IdRange {
    type Error = RangeError;

    fn try_from((first, count): (u32, u32)) -> Result<Self, RangeError> {
        Self::new(first, count).ok_or(RangeError(first, count))
    }
}

impl From<IdRange> for (u32, u32) {
    fn from(range: IdRange) -> Self {
        (range.first, range.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocated_ranges_never_overlap() {
        let mut taken = vec![IdRange::new(FIRST_ALLOCATED + 100, 10).expect("a range")];
        for _ in 0..200 {
            let next = IdRange::allocate(&taken).expect("room");
            assert!(taken.iter().all(|other| !next.overlaps(*other)), "{next:?}");
            taken.push(next);
        }
        taken.swap_remove(100);
        let again = IdRange::allocate(&taken).expect("the gap");
        assert!(taken.iter().all(|other| !again.overlaps(*other)));
    }

    #[test]
    fn the_hosts_root_and_nobody_are_in_no_range() {
        assert_eq!(IdRange::new(0, 65_536), None);
        assert_eq!(IdRange::new(1, 0), None);
        assert_eq!(IdRange::new(u32::MAX - 1, 1), None);
        assert_eq!(IdRange::new(u32::MAX, 2), None);
        assert!(serde_json::from_str::<IdRange>("[0,1]").is_err());
    }
}
