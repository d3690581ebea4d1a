//! Asking a container, again and again, whether it works.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::driver::Driver;
use super::machine::View;
use super::phase::Phase;
use crate::container::config::HealthCheck;

/// What a health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It has not succeeded yet, and may still.
    Starting,
    /// It works.
    Healthy,
    /// It failed as often in a row as it may.
    Unhealthy,
}

impl Health {
    /// The word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What one more answer makes of the health of a container.
fn judged(
    before: Health,
    works: bool,
    failures: &mut u32,
    check: &HealthCheck,
    ran: Duration,
) -> Health {
    if works {
        *failures = 0;
        return Health::Healthy;
    }
    if before == Health::Starting && ran < Duration::from_secs(check.grace_s) {
        return before;
    }
    *failures = failures.saturating_add(1);
    if *failures >= check.retries.max(1) { Health::Unhealthy } else { before }
}

/// Begins to ask, until the container is down, its check is taken away, or `report` answers that
/// nobody listens any more.
pub(super) fn watch(
    driver: Arc<Driver>,
    mut view: watch::Receiver<Arc<View>>,
    report: impl Fn(Health) -> bool + Send + 'static,
) {
    tokio::spawn(async move {
        let begun = Instant::now();
        let mut health = Health::Starting;
        let mut failures = 0;
        loop {
            let seen = Arc::clone(&view.borrow());
            let Some(check) = seen.recorded.config.health.clone() else { return };
            let interval = Duration::from_secs(check.interval_s.max(1));
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                down = view.wait_for(|view| !view.phase.is_up()) => {
                    // Down, or gone altogether.
                    drop(down);
                    return;
                }
            }
            let seen = Arc::clone(&view.borrow());
            if seen.phase != Phase::Running {
                continue;
            }
            let asked = Arc::clone(&driver);
            let answer = tokio::task::spawn_blocking(move || asked.works(&seen.recorded));
            let works = answer.await.unwrap_or(false);
            health = judged(health, works, &mut failures, &check, begun.elapsed());
            if !report(health) {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_in_a_row_and_not_while_it_starts() {
        let check = HealthCheck { retries: 2, grace_s: 10, ..HealthCheck::default() };
        let mut failures = 0;
        let mut health = Health::Starting;
        let mut see = |works, seconds| {
            health = judged(health, works, &mut failures, &check, Duration::from_secs(seconds));
            health
        };
        assert_eq!(see(false, 1), Health::Starting);
        assert_eq!(see(false, 2), Health::Starting);
        assert_eq!(see(true, 3), Health::Healthy);
        assert_eq!(see(false, 4), Health::Healthy);
        assert_eq!(see(true, 5), Health::Healthy);
        assert_eq!(see(false, 6), Health::Healthy);
        assert_eq!(see(false, 7), Health::Unhealthy);
        assert_eq!(see(true, 8), Health::Healthy);
    }
}
