//! What a group may use: plain values, checked where they are made.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::disk::Disk;
use super::error::CgroupError;
use crate::container::config::{ContainerConfig, CpuLimit, Priority};

/// Everything that can be limited. What is `None` is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most memory, page cache included, in bytes.
    pub memory_bytes: Option<u64>,
    /// Most swap beside that, in bytes; `Some(0)` forbids it.
    pub swap_bytes: Option<u64>,
    /// Memory that is not taken away while others have some to spare, in bytes.
    pub memory_guarantee_bytes: Option<u64>,
    /// Most processor time.
    pub cpu_quota: Option<CpuQuota>,
    /// The only processors to run on.
    pub cpu_set: Option<CpuSet>,
    /// The part of the processors under contention.
    pub cpu_weight: Weight,
    /// Most processes and threads.
    pub pids: Option<u64>,
    /// How fast one disk may be read, and written.
    pub io: Option<IoLimit>,
    /// Whether it makes groups where limits of disk traffic do not reach, see [`Delegation`].
    ///
    /// [`Delegation`]: super::Delegation
    pub nesting: bool,
}

impl Limits {
    /// What `config` asks for; `disk` is beneath the container's private files, if one is.
    ///
    /// # Errors
    /// [`CgroupError::BadLimit`].
    pub fn of(config: &ContainerConfig, disk: Option<Disk>) -> Result<Self, CgroupError> {
        let asked = &config.limits;
        let (cpu_quota, cpu_set) = match &asked.cpu {
            None => (None, None),
            Some(CpuLimit::Quota(processors)) => {
                (Some(CpuQuota::from_processors(*processors)?), None)
            }
            Some(CpuLimit::Set(set)) => (None, Some(CpuSet::of(set)?)),
        };
        let io = disk.map(|disk| IoLimit {
            disk,
            bytes_per_s: asked.io_bytes_per_s,
            requests_per_s: asked.io_requests_per_s,
        });
        Ok(Self {
            memory_bytes: asked.memory_bytes,
            swap_bytes: asked.swap_bytes,
            memory_guarantee_bytes: config.guarantees.memory_bytes,
            cpu_quota,
            cpu_set,
            cpu_weight: config.priority.into(),
            pids: asked.pids,
            io: io.filter(|io| io.bytes_per_s.is_some() || io.requests_per_s.is_some()),
            nesting: config.nesting,
        })
    }
}

/// Processor time, in thousandths of one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuQuota(u32);

impl CpuQuota {
    /// The kernel's shortest quota is 1 ms in its period of 100 ms.
    const LEAST: u32 = 10;
    const MOST: u32 = 10_000_000;

    /// So many thousandths of a processor: at least 10.
    ///
    /// # Errors
    /// [`CgroupError::BadLimit`] outside 0.01 to 10,000 processors.
    pub fn from_thousandths(thousandths: u32) -> Result<Self, CgroupError> {
        Self::checked(thousandths, f64::from(thousandths) / 1000.0)
    }

    /// So many processors: `1.5`.
    ///
    /// # Errors
    /// [`CgroupError::BadLimit`] outside 0.01 to 10,000 processors, and for what is no number.
    pub fn from_processors(processors: f64) -> Result<Self, CgroupError> {
        // Through text, so that no conversion can cut: a quota has at most eight digits.
        let thousandths = format!("{:.0}", processors * 1000.0);
        Self::checked(thousandths.parse().unwrap_or(0), processors)
    }

    fn checked(thousandths: u32, processors: f64) -> Result<Self, CgroupError> {
        if (Self::LEAST..=Self::MOST).contains(&thousandths) {
            return Ok(Self(thousandths));
        }
        Err(CgroupError::BadLimit {
            key: "limits.cpu",
            value: processors.to_string(),
            reason: "a quota is 0.01 to 10000 processors".to_owned(),
        })
    }

    /// Thousandths of a processor.
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

/// A weight as cgroup2 counts them: 1 to 10,000, and 100 for who asked for nothing.
///
/// Two groups that both want a processor get it in the proportion of their weights. A v1
/// hierarchy gets shares in the same proportion, 1024 for 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Default for Weight {
    fn default() -> Self {
        Self(100)
    }
}

impl Weight {
    /// The least.
    pub const LEAST: Self = Self(1);
    /// The most.
    pub const MOST: Self = Self(10_000);

    /// A weight of 1 to 10,000.
    ///
    /// # Errors
    /// [`CgroupError::BadLimit`] outside.
    pub fn new(weight: u16) -> Result<Self, CgroupError> {
        if !(Self::LEAST.0..=Self::MOST.0).contains(&weight) {
            return Err(CgroupError::BadLimit {
                key: "limits.cpu.weight",
                value: weight.to_string(),
                reason: "a weight is 1 to 10000, and 100 is what everybody has".to_owned(),
            });
        }
        Ok(Self(weight))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// `cpu.shares` of a v1 hierarchy.
    pub(super) fn shares(self) -> u64 {
        (u64::from(self.0) * 1024 / 100).clamp(2, 262_144)
    }
}

impl From<Priority> for Weight {
    /// 25, 100 or 400.
    fn from(priority: Priority) -> Self {
        Self(match priority {
            Priority::Low => 25,
            Priority::Normal => 100,
            Priority::High => 400,
        })
    }
}

/// A set of processors, written as the kernel writes it: `0-3,5`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CpuSet(BTreeSet<u16>);

impl CpuSet {
    /// Processors a set may name: the kernel's own bound is 8192.
    const MOST: u16 = 8191;

    /// These processors.
    ///
    /// # Errors
    /// [`CgroupError::BadLimit`] for none at all, and for numbers past the kernel's own bound.
    pub fn of(processors: &BTreeSet<u32>) -> Result<Self, CgroupError> {
        let fits = |one: &u32| u16::try_from(*one).ok().filter(|one| *one <= Self::MOST);
        let set: Option<BTreeSet<u16>> = processors.iter().map(fits).collect();
        set.filter(|set| !set.is_empty()).map(Self).ok_or_else(|| CgroupError::BadLimit {
            key: "limits.cpu",
            value: format!("{processors:?}"),
            reason: "it takes at least one processor, and none past 8191".to_owned(),
        })
    }

    /// The processors, lowest first; never none.
    pub fn processors(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().copied()
    }

    /// Both together.
    pub(super) fn union(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }
}

impl FromStr for CpuSet {
    type Err = CgroupError;

    fn from_str(text: &str) -> Result<Self, CgroupError> {
        let bad = |reason: &str| CgroupError::BadLimit {
            key: "limits.cpu",
            value: text.to_owned(),
            reason: reason.to_owned(),
        };
        let number = |text: &str| -> Result<u16, CgroupError> {
            let number = text.trim().parse().map_err(|_| bad("processors are named like 0-3,5"))?;
            if number > Self::MOST { Err(bad("there is no such processor")) } else { Ok(number) }
        };
        let mut set = BTreeSet::new();
        for part in text.trim().split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(bad("a range goes from low to high"));
            }
            set.extend(first..=last);
        }
        Ok(Self(set))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|next| *next == last + 1) {
                last = next;
            }
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

/// How fast one disk may be read, and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimit {
    /// The disk that holds the container's private files and the store's objects.
    pub disk: Disk,
    /// Bytes a second, each way.
    pub bytes_per_s: Option<u64>,
    /// Requests a second, each way.
    pub requests_per_s: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_processors_are_read_and_written_as_the_kernel_does() {
        for text in ["0", "0-3", "0-3,5", "1,3,5-7", "8191"] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), text);
        }
        assert_eq!("3,1,2,1\n".parse::<CpuSet>().unwrap().to_string(), "1-3");
        for text in ["", "-", "3-1", "a", "0-", "8192", "0-99999", "1,,2", "-1"] {
            assert!(text.parse::<CpuSet>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn quotas_take_what_the_kernel_takes() {
        assert_eq!(CpuQuota::from_processors(1.5).unwrap().thousandths(), 1500);
        assert_eq!(CpuQuota::from_processors(0.01).unwrap().thousandths(), 10);
        for bad in [0.0, 0.001, -1.0, f64::NAN, f64::INFINITY, 1e9, 20_000.0] {
            let refused = CpuQuota::from_processors(bad).unwrap_err().to_string();
            assert!(refused.contains("0.01 to 10000"), "{refused}");
        }
    }

    #[test]
    fn weights_keep_their_proportion_as_shares() {
        assert_eq!(Weight::default().shares(), 1024);
        assert_eq!(Weight::from(Priority::High).shares(), 4096);
        assert_eq!(Weight::from(Priority::Low).shares(), 256);
        assert_eq!(Weight::LEAST.shares(), 10);
        assert!(Weight::new(0).is_err() && Weight::new(10_001).is_err());
    }
}
