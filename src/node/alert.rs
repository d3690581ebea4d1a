//! Telling when a container uses more than a share of its limits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Node;
use super::event::EventKind;
use crate::container::cgroup::Usage;
use crate::container::config::{ContainerConfig, ContainerId, CpuLimit};

/// How often containers that have an alert are looked at.
const EVERY: Duration = Duration::from_secs(5);

/// One that was told is told again only after its use was so many hundredths below.
const SLACK_PERCENT: u64 = 5;

/// What a container uses of each limit that it has an alert for, in hundredths, with the hundredths
/// that it may use untold.
///
/// `cpu_percent` is of one processor, `disk_bytes` what its private files take.
fn uses(
    config: &ContainerConfig,
    usage: &Usage,
    cpu_percent: Option<u64>,
    disk_bytes: Option<u64>,
) -> Vec<(&'static str, u64, u64)> {
    let alerts = &config.alerts;
    let share = |used: Option<u64>, limit: Option<u64>| {
        let limit = limit.filter(|limit| *limit > 0)?;
        Some(used?.saturating_mul(100) / limit)
    };
    let processors = match &config.limits.cpu {
        // In hundredths of one; a limit of less than one hundredth is none.
        Some(CpuLimit::Quota(quota)) => format!("{:.0}", quota * 100.0).parse().ok(),
        Some(CpuLimit::Set(set)) => u64::try_from(set.len()).ok().map(|count| count * 100),
        None => std::thread::available_parallelism()
            .ok()
            .and_then(|count| u64::try_from(count.get()).ok())
            .map(|count| count * 100),
    };
    let all = [
        ("memory", alerts.memory, share(usage.memory_bytes, config.limits.memory_bytes)),
        ("pids", alerts.pids, share(usage.pids, config.limits.pids)),
        ("disk", alerts.disk, share(disk_bytes, config.limits.disk_bytes)),
        ("cpu", alerts.cpu, share(cpu_percent, processors)),
    ];
    all.into_iter()
        .filter_map(|(what, alert, used)| Some((what, used?, u64::from(alert?))))
        .collect()
}

/// Which alerts are news, given those that were told; and which were told by now.
fn news(
    uses: &[(&'static str, u64, u64)],
    told: &BTreeSet<&'static str>,
) -> (Vec<String>, BTreeSet<&'static str>) {
    let mut news = Vec::new();
    let mut now = BTreeSet::new();
    for (what, used, alert) in uses {
        let was = told.contains(what);
        if used >= alert || was && used + SLACK_PERCENT >= *alert {
            now.insert(*what);
            if !was {
                news.push(format!("{what} at {used}% of its limit (alert.{what}={alert}%)"));
            }
        }
    }
    (news, now)
}

/// Looks at containers that have alerts, as long as there is a daemon; and gives memory back.
pub(super) fn watch(node: &Arc<Node>) {
    let node: Weak<Node> = Arc::downgrade(node);
    tokio::spawn(async move {
        let mut told: BTreeMap<ContainerId, BTreeSet<&'static str>> = BTreeMap::new();
        let mut before: BTreeMap<ContainerId, u64> = BTreeMap::new();
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(node) = node.upgrade() else { return };
            for handle in node.all() {
                let view = handle.view();
                let config = view.recorded.config.clone();
                if config.alerts == crate::container::config::Alerts::default()
                    || !view.phase.is_up()
                {
                    told.remove(&config.id);
                    continue;
                }
                let driver = Arc::clone(node.driver());
                let disk = config.alerts.disk.is_some();
                let look = tokio::task::spawn_blocking(move || {
                    let disk_bytes = if disk { driver.disk_bytes(&view.recorded) } else { None };
                    Some((driver.usage(&view.recorded).ok()?, disk_bytes))
                });
                // One that is going down has nothing to tell.
                let Ok(Some((usage, disk_bytes))) = look.await else { continue };
                let now_ns = usage.cpu_ns.unwrap_or(0);
                let cpu_percent = before.insert(config.id.clone(), now_ns).map(|before| {
                    let ns = u64::try_from(EVERY.as_nanos()).unwrap_or(u64::MAX);
                    now_ns.saturating_sub(before).saturating_mul(100) / ns
                });
                let uses = uses(&config, &usage, cpu_percent, disk_bytes);
                let was = told.remove(&config.id).unwrap_or_default();
                let (news, now) = news(&uses, &was);
                for text in news {
                    node.events().tell(&config, EventKind::Alert, text);
                }
                told.insert(config.id, now);
            }
            // What a burst of requests leaves in the arenas of many threads, none of which has a use for it.
            if let Err(error) = tokio::task::spawn_blocking(crate::sys::memory::give_back).await {
                tracing::debug!(%error, "memory is not given back");
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::config::{ContainerId, Kind};

    fn config(settings: &[(&str, &str)]) -> ContainerConfig {
        let id = ContainerId::random().expect("random bytes");
        let name = "c1".parse().expect("a name");
        let mut config = ContainerConfig::new(id, name, "debian:12", Kind::System);
        for (key, value) in settings {
            config.set(key, value).expect("a setting");
        }
        config
    }

    #[test]
    fn an_alert_is_told_once_until_the_use_went_down_again() {
        let config = config(&[("limits.memory", "100MiB"), ("alert.memory", "90%")]);
        let mut told = BTreeSet::new();
        let mut see = |mib: u64| {
            let usage = Usage { memory_bytes: Some(mib << 20), ..Usage::default() };
            let (news, now) = news(&uses(&config, &usage, None, None), &told);
            told = now;
            news
        };
        assert!(see(50).is_empty());
        assert_eq!(see(95), ["memory at 95% of its limit (alert.memory=90%)"]);
        assert!(see(99).is_empty(), "it was told");
        assert!(see(88).is_empty() && see(91).is_empty(), "it hardly went down");
        assert!(see(50).is_empty());
        assert_eq!(see(90).len(), 1);
    }

    #[test]
    fn processor_time_counts_against_the_quota() {
        let config = config(&[("limits.cpu", "0.5"), ("alert.cpu", "80%")]);
        let used = |percent| uses(&config, &Usage::default(), Some(percent), None);
        assert_eq!(used(45), [("cpu", 90, 80)]);
        assert!(uses(&config, &Usage::default(), None, None).is_empty());
    }
}
