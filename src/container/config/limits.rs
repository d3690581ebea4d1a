//! What a container may use at most, what it gets in any case, and what is reported.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::units::{ValueError, error};

/// How much of the processors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuLimit {
    /// Time: 1.5 is one and a half processors' worth, whichever they are.
    Quota(f64),
    /// These processors and no others.
    Set(BTreeSet<u32>),
}

impl CpuLimit {
    /// `1.5` and `150%` are time, `0-3`, `0,2` and `1-1` a set: as Incus and docker tell them apart.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let wanted = "processor time (1.5, or 150%) or a set of processors (0-3, or 0,2)";
        let trimmed = text.trim();
        if trimmed.contains([',', '-']) {
            return parse_set(trimmed).map(Self::Set).ok_or_else(|| error(text, wanted));
        }
        let (number, factor) = match trimmed.strip_suffix('%') {
            Some(percent) => (percent.trim(), 0.01),
            None => (trimmed, 1.0),
        };
        match f64::from_str(number) {
            // The kernel's shortest quota is 1 ms in 100 ms.
            Ok(value) if value.is_finite() && (0.01..=100_000.0).contains(&(value * factor)) => {
                Ok(Self::Quota(value * factor))
            }
            Ok(_) | Err(_) => Err(error(text, wanted)),
        }
    }

    /// As [`CpuLimit::parse`] reads it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Quota(quota) => quota.to_string(),
            Self::Set(set) => set_text(set),
        }
    }
}

pub(super) fn parse_set(text: &str) -> Option<BTreeSet<u32>> {
    const MOST: u32 = 8192;
    let mut set = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last) = (u32::from_str(first).ok()?, u32::from_str(last).ok()?);
        if first > last || last >= MOST {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

/// A set as the kernel writes it; one processor alone as `3-3`, so that it is not taken for time.
fn set_text(set: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            Some(_) | None => ranges.push((*cpu, *cpu)),
        }
    }
    let alone = set.len() == 1;
    let mut text = String::new();
    for (first, last) in ranges {
        let comma = if text.is_empty() { "" } else { "," };
        let written = if first == last && !alone {
            write!(text, "{comma}{first}")
        } else {
            write!(text, "{comma}{first}-{last}")
        };
        debug_assert!(written.is_ok(), "writing to a string succeeds");
    }
    text
}

/// The most a container may use; none is no limit.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of memory, page cache included.
    pub memory_bytes: Option<u64>,
    /// Bytes of swap space beside it.
    pub swap_bytes: Option<u64>,
    /// Processors.
    pub cpu: Option<CpuLimit>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read and bytes written in a second, each.
    pub io_bytes_per_s: Option<u64>,
    /// Requests to disks in a second, reads and writes each.
    pub io_requests_per_s: Option<u64>,
    /// Bits in a second, in and out each.
    pub network_bits_per_s: Option<u64>,
    /// Bytes of its private files on disk.
    pub disk_bytes: Option<u64>,
}

/// What a container gets in any case, also when others want it too.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Guarantees {
    /// Processors' worth of time.
    pub cpu: Option<f64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
}

/// How a container counts beside others. The weights are 1 : 4 : 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// What is left.
    Low,
    /// As everybody.
    #[default]
    Normal,
    /// Before others.
    High,
}

impl Priority {
    /// The word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// Shares of a limit, in percent, at which an event is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Alerts {
    /// Of the memory limit.
    pub memory: Option<u8>,
    /// Of the disk limit.
    pub disk: Option<u8>,
    /// Of the limit of processes.
    pub pids: Option<u8>,
    /// Of the processor time.
    pub cpu: Option<u8>,
}
