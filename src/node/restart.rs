//! When a container whose init ended is started again.

use std::time::Duration;

use crate::container::config::RestartPolicy;

/// The first wait; each one after it is twice as long.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// A container that ran so long has recovered: its waits begin anew.
pub const RECOVERED: Duration = Duration::from_secs(10);

/// How long to wait before the next start, of a container that ended by itself after having been
/// started again `tries` times in a row; none: it stays as it is.
#[must_use]
pub fn wait(policy: RestartPolicy, failed: bool, tries: u32) -> Option<Duration> {
    let again = match policy {
        RestartPolicy::No => false,
        RestartPolicy::OnFailure { max } => failed && (max == 0 || tries < max),
        RestartPolicy::Always => true,
    };
    let factor = 1_u32.checked_shl(tries).unwrap_or(u32::MAX);
    again.then(|| FIRST.saturating_mul(factor).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute() {
        let waits: Vec<u128> = (0..12)
            .filter_map(|tries| wait(RestartPolicy::Always, false, tries))
            .map(|wait| wait.as_millis())
            .collect();
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]
        );
        assert_eq!(wait(RestartPolicy::Always, true, u32::MAX), Some(LONGEST));
    }

    #[test]
    fn a_policy_says_whether_at_all() {
        assert_eq!(wait(RestartPolicy::No, true, 0), None);
        assert_eq!(wait(RestartPolicy::OnFailure { max: 0 }, false, 0), None);
        assert!(wait(RestartPolicy::OnFailure { max: 0 }, true, 50).is_some());
        assert!(wait(RestartPolicy::OnFailure { max: 3 }, true, 2).is_some());
        assert_eq!(wait(RestartPolicy::OnFailure { max: 3 }, true, 3), None);
    }
}
