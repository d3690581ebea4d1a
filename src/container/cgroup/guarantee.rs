//! What was promised to containers: whether the host has it, and how the kernel is told.
//!
//! The kernel knows no guaranteed processor time, only weights. Under full contention a group
//! gets its weight's part of all weights, so a guarantee is a weight, and which one depends on
//! all others: [`weights`] works it out. Everything but the last function is pure.

use std::fs;

use super::error::CgroupError;
use super::layout::{Controller, Layout, Version};
use super::limits::Weight;
use super::{GroupPath, apply};

/// What a container was promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guarantee {
    /// Processor time, in thousandths of one processor.
    pub cpu_thousandths: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

/// What a host has to promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Processor time, in thousandths of one processor.
    pub cpu_thousandths: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

impl Capacity {
    /// Kept for the host itself: this part of its memory, and this part of its processors.
    const RESERVE: u64 = 20;

    /// What this host has, less a twentieth that is its own.
    ///
    /// # Errors
    /// What reading `/proc/meminfo` answers.
    pub fn of_host() -> Result<Self, CgroupError> {
        let file = std::path::Path::new("/proc/meminfo");
        let text = fs::read_to_string(file).map_err(CgroupError::system("read", file))?;
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let total =
            total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        let total = total.ok_or_else(|| CgroupError::garbled(file, &text))? * 1024;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let processors = u64::try_from(processors).unwrap_or(u64::MAX).saturating_mul(1000);
        let less = |whole: u64| whole - whole / Self::RESERVE;
        Ok(Self { cpu_thousandths: less(processors), memory_bytes: less(total) })
    }
}

/// More was promised than there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverCommitted {
    /// Processor time.
    #[error(
        "guarantee.cpu={wanted} cannot be kept: {promised} processors of {capacity} are promised already; \
         lower a guarantee, or this one", 
        wanted = processors(*wanted), promised = processors(*promised), capacity = processors(*capacity)
    )]
    Cpu {
        /// Thousandths that were asked for.
        wanted: u64,
        /// Thousandths that others have.
        promised: u64,
        /// Thousandths that there are.
        capacity: u64,
    },
    /// Memory.
    #[error(
        "guarantee.memory={wanted} bytes cannot be kept: {promised} bytes of {capacity} are promised \
         already; lower a guarantee, or this one"
    )]
    Memory {
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes that others have.
        promised: u64,
        /// Bytes that there are.
        capacity: u64,
    },
}

/// Thousandths as a person writes processors.
fn processors(thousandths: u64) -> String {
    let text = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Says whether `wanted` can be promised beside what `others` have.
///
/// # Errors
/// [`OverCommitted`] names what there is too little of. Who asks for nothing is always admitted.
pub fn admit(
    others: &[Guarantee],
    wanted: Guarantee,
    capacity: Capacity,
) -> Result<(), OverCommitted> {
    let sum = |part: fn(&Guarantee) -> u64| others.iter().map(part).fold(0, u64::saturating_add);
    let promised = sum(|other| other.cpu_thousandths);
    if wanted.cpu_thousandths > 0
        && promised.saturating_add(wanted.cpu_thousandths) > capacity.cpu_thousandths
    {
        let (wanted, capacity) = (wanted.cpu_thousandths, capacity.cpu_thousandths);
        return Err(OverCommitted::Cpu { wanted, promised, capacity });
    }
    let promised = sum(|other| other.memory_bytes);
    if wanted.memory_bytes > 0
        && promised.saturating_add(wanted.memory_bytes) > capacity.memory_bytes
    {
        let (wanted, capacity) = (wanted.memory_bytes, capacity.memory_bytes);
        return Err(OverCommitted::Memory { wanted, promised, capacity });
    }
    Ok(())
}

/// The weight of each running container, so that under full contention everyone gets at least
/// what it was promised, in thousandths of a processor, and the rest is shared by `weight`.
///
/// `containers` are weights asked for and guarantees, 0 for none; `processors` is what the host
/// has, in thousandths. With no guarantee at all the answer is the weights asked for. To be
/// applied to all of them whenever one starts, stops or is changed.
pub fn weights(containers: &[(Weight, u64)], processors: u64) -> Vec<Weight> {
    if containers.iter().all(|(_, guarantee)| *guarantee == 0) || processors == 0 {
        return containers.iter().map(|(weight, _)| *weight).collect();
    }
    let whole = to_f64(processors);
    let parts: Vec<(f64, f64)> = containers
        .iter()
        .map(|(weight, guarantee)| (f64::from(weight.get()), to_f64(*guarantee) / whole))
        .collect();
    // Everyone gets the greater of its guarantee and `level` × its weight; all together are 1.
    // Whoever falls below its guarantee is set aside with it, and the rest is levelled again.
    let mut kept = vec![false; parts.len()];
    let mut level;
    loop {
        let sum = |of_kept: bool, part: fn(&(f64, f64)) -> f64| -> f64 {
            parts
                .iter()
                .zip(&kept)
                .filter(|(_, kept)| **kept == of_kept)
                .map(|(both, _)| part(both))
                .sum()
        };
        let free = (1.0 - sum(true, |(_, guarantee)| *guarantee)).max(0.0);
        let asked = sum(false, |(weight, _)| *weight);
        level = if asked > 0.0 { free / asked } else { 0.0 };
        let mut changed = false;
        for ((weight, guarantee), kept) in parts.iter().zip(&mut kept) {
            if !*kept && weight * level < *guarantee {
                *kept = true;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let share = |(weight, guarantee): &(f64, f64)| (weight * level).max(*guarantee);
    let most = parts.iter().map(share).fold(f64::MIN_POSITIVE, f64::max);
    let weight = |part: &(f64, f64)| {
        let scaled = share(part) / most * f64::from(Weight::MOST.get());
        // A guarantee is rounded up, the rest down.
        let whole = if part.1 > 0.0 { scaled.ceil() } else { scaled.floor() };
        let whole = whole.clamp(1.0, f64::from(Weight::MOST.get()));
        format!("{whole:.0}").parse().ok().and_then(|whole| Weight::new(whole).ok())
    };
    parts.iter().map(|part| weight(part).unwrap_or(Weight::LEAST)).collect()
}

fn to_f64(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

/// Makes the group above all containers as strong as what was promised beneath it: against the
/// rest of the host a container is only as strong as that one.
///
/// # Errors
/// What writing it answers; a host without the controllers has nothing to set.
pub fn protect_parent(
    layout: &Layout,
    parent: &GroupPath,
    promised: Guarantee,
) -> Result<(), CgroupError> {
    let weight = if promised.cpu_thousandths > 0 { Weight::MOST } else { Weight::default() };
    apply::set_cpu_weight(layout, parent, weight)?;
    let memory = layout.with(Controller::Memory).filter(|known| known.version == Version::V2);
    if let Some(hierarchy) = memory {
        let file = hierarchy.mountpoint.join(parent.as_str()).join("memory.min");
        fs::write(&file, promised.memory_bytes.to_string())
            .map_err(CgroupError::system("write", &file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Capacity = Capacity { cpu_thousandths: 1900, memory_bytes: 1 << 30 };

    #[test]
    fn what_the_host_has_is_promised_once() {
        let half = Guarantee { cpu_thousandths: 950, memory_bytes: 1 << 29 };
        assert_eq!(admit(&[], half, HOST), Ok(()));
        assert_eq!(admit(&[half], half, HOST), Ok(()));
        let refused = admit(&[half, half], Guarantee { cpu_thousandths: 1, memory_bytes: 0 }, HOST);
        let told = refused.unwrap_err().to_string();
        assert!(
            told.starts_with("guarantee.cpu=0.001 cannot be kept: 1.9 processors of 1.9"),
            "{told}"
        );
        let refused = admit(&[half, half], Guarantee { cpu_thousandths: 0, memory_bytes: 1 }, HOST);
        assert!(matches!(refused, Err(OverCommitted::Memory { wanted: 1, .. })), "{refused:?}");
        assert_eq!(admit(&[half, half], Guarantee::default(), HOST), Ok(()), "nothing is asked");
        let absurd = Guarantee { cpu_thousandths: u64::MAX, memory_bytes: u64::MAX };
        assert!(admit(&[absurd], absurd, HOST).is_err());
    }

    /// What each gets of `processors` if all want everything.
    fn under_contention(weights: &[Weight], processors: f64) -> Vec<f64> {
        let sum: f64 = weights.iter().map(|weight| f64::from(weight.get())).sum();
        weights.iter().map(|weight| f64::from(weight.get()) / sum * processors).collect()
    }

    #[test]
    fn everyone_gets_its_guarantee_and_the_rest_goes_by_weight() {
        let weight = |number| Weight::new(number).unwrap();
        let asked = [(weight(100), 1000), (weight(100), 0), (weight(400), 0), (weight(25), 100)];
        let got = under_contention(&weights(&asked, 2000), 2000.0);
        for ((_, guarantee), got) in asked.iter().zip(&got) {
            assert!(*got >= to_f64(*guarantee) * 0.999, "{got:?}");
        }
        let ratio = got[2] / got[1];
        assert!((3.9..4.1).contains(&ratio), "the unpromised keep their proportion: {ratio}");
    }

    #[test]
    fn without_guarantees_weights_stay_and_a_strong_one_needs_none() {
        let weight = |number| Weight::new(number).unwrap();
        let asked = [(weight(100), 0), (weight(400), 0)];
        assert_eq!(weights(&asked, 2000), [weight(100), weight(400)]);
        // Gets 1600 of 2000 by weight already.
        let asked = [(weight(100), 0), (weight(400), 100)];
        let got = under_contention(&weights(&asked, 2000), 2000.0);
        assert!((got[1] / got[0] - 4.0).abs() < 0.05, "{got:?}");
        assert_eq!(weights(&[], 2000), []);
        assert_eq!(weights(&[(weight(7), 5)], 0), [weight(7)]);
    }

    #[test]
    fn a_hundred_idle_neighbours_do_not_starve_a_promise() {
        let mut asked = vec![(Weight::default(), 0); 100];
        asked.push((Weight::default(), 1900));
        let got = under_contention(&weights(&asked, 2000), 2000.0);
        assert!(got[100] >= 1899.0 && got[0] > 0.9, "{} {}", got[100], got[0]);
    }
}
