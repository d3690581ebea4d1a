//! Measuring in turns, and what may be concluded from it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::Result;

/// One contender's work: does it once and says what was measured.
pub(super) struct Work<'a> {
    /// The contender's name.
    name: String,
    run: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Work<'a> {
    /// Work that measures itself: only the part that counts.
    pub(super) fn new(name: impl Into<String>, run: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// All that was measured of one contender, round by round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The contender.
    pub name: String,
    /// One number for each round, in the row's unit.
    pub samples: Vec<f64>,
}

impl Series {
    /// The value with as many samples below as above.
    #[must_use]
    pub fn median(&self) -> f64 {
        quantile(&self.samples, 0.5)
    }

    /// The least and the greatest.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        (quantile(&self.samples, 0.0), quantile(&self.samples, 1.0))
    }
}

/// A quotient of two contenders, of each round by itself: what slows a whole round down
/// does not count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Half of the rounds are below.
    pub median: f64,
    /// A quarter of the rounds is below.
    pub low: f64,
    /// A quarter of the rounds is above.
    pub high: f64,
    /// Whether there are rounds enough and they differ by less than the contenders do; otherwise
    /// there is no ratio.
    pub clear: bool,
}

impl Ratio {
    /// `what` by `base`.
    #[must_use]
    pub fn of(what: &Series, base: &Series) -> Self {
        let pairs = what.samples.iter().zip(&base.samples);
        let each: Vec<f64> = pairs.map(|(what, base)| what / base).collect();
        let [low, median, high] = [0.25, 0.5, 0.75].map(|part| quantile(&each, part));
        let enough = each.len() >= LEAST;
        Self { median, low, high, clear: enough && high - low < (median - 1.0).abs() }
    }
}

/// The value below which `part` of the samples lie, between two samples interpolated.
#[must_use]
pub fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let mut below = 0;
    while below < last && (below + 1) as f64 <= part * last as f64 {
        below += 1;
    }
    let rest = part * last as f64 - below as f64;
    let above = sorted[(below + 1).min(last)];
    sorted[below] + (above - sorted[below]) * rest
}

/// Seconds that `work` takes.
pub(super) fn seconds<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    std::hint::black_box(work()?);
    Ok(start.elapsed().as_secs_f64())
}

/// How long the rounds of one row may take in all before there are enough of them.
const PATIENCE: Duration = Duration::from_secs(40);

/// Rounds below which nothing is concluded.
const LEAST: usize = 3;

/// Lets every contender work in turns: `warm_ups` rounds that do not count, then `rounds`.
///
/// Each round begins with the next contender, so that none always follows the same one. What
/// takes longer than [`PATIENCE`] has fewer rounds, but [`LEAST`], so that a run ends in its time
/// on a slow disk too.
pub(super) fn interleave(
    mut works: Vec<Work<'_>>,
    warm_ups: usize,
    rounds: usize,
) -> Result<Vec<Series>> {
    let mut series: Vec<Series> =
        works.iter().map(|work| Series { name: work.name.clone(), samples: vec![] }).collect();
    let begun = Instant::now();
    for round in 0..warm_ups + rounds {
        if round >= warm_ups + LEAST && begun.elapsed() > PATIENCE {
            break;
        }
        for turn in 0..works.len() {
            let at = (round + turn) % works.len();
            let measured = (works[at].run)()?;
            if round >= warm_ups {
                series[at].samples.push(measured);
            }
        }
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(samples: &[f64]) -> Series {
        Series { name: "a".to_owned(), samples: samples.to_vec() }
    }

    #[test]
    fn quantiles_lie_between_the_samples() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.5), 2.5);
        assert_eq!(series(&[5.0, 1.0]).range(), (1.0, 5.0));
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_ratio_is_refused_when_the_rounds_differ_more_than_the_contenders() {
        let base = series(&[1.0, 1.0, 1.0, 1.0]);
        assert!(Ratio::of(&series(&[2.0, 2.1, 2.0, 1.9]), &base).clear);
        assert!(!Ratio::of(&series(&[1.1, 0.7, 1.6, 0.9]), &base).clear);
        assert!(!Ratio::of(&series(&[2.0, 2.0]), &base).clear, "two rounds are none");
    }

    #[test]
    fn every_contender_goes_first_in_turn() {
        let order = std::cell::RefCell::new(Vec::new());
        let work = |name: &'static str| {
            let order = &order;
            Work::new(name, move || {
                order.borrow_mut().push(name);
                Ok(1.0)
            })
        };
        let series = interleave(vec![work("a"), work("b")], 1, 2).expect("nothing fails");
        assert_eq!(*order.borrow(), ["a", "b", "b", "a", "a", "b"]);
        assert!(series.iter().all(|one| one.samples.len() == 2), "warming up does not count");
    }
}
