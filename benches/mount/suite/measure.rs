//! Measuring in turns, and what may be concluded from it.

use std::time::Instant;

/// One contender's work: does it once and says what was measured.
pub(super) struct Work<'a> {
    /// The contender's name.
    pub(super) name: &'static str,
    run: Box<dyn FnMut() -> f64 + 'a>,
}

impl<'a> Work<'a> {
    /// Work that measures itself: only the part that counts.
    pub(super) fn new(name: &'static str, run: impl FnMut() -> f64 + 'a) -> Self {
        Self { name, run: Box::new(run) }
    }
}

/// All that was measured of one contender, round by round.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) samples: Vec<f64>,
}

impl Series {
    /// The value with as many samples below as above.
    pub(super) fn median(&self) -> f64 {
        quantile(&self.samples, 0.5)
    }

    /// The least and the greatest.
    pub(super) fn range(&self) -> (f64, f64) {
        (quantile(&self.samples, 0.0), quantile(&self.samples, 1.0))
    }
}

/// A quotient of two contenders, of each round by itself: what slows a whole round down
/// does not count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratio {
    /// Half of the rounds are below.
    pub(super) median: f64,
    /// A quarter of the rounds is below.
    pub(super) low: f64,
    /// A quarter of the rounds is above.
    pub(super) high: f64,
}

impl Ratio {
    /// `what` by `base`.
    pub(super) fn of(what: &Series, base: &Series) -> Self {
        let each: Vec<f64> =
            what.samples.iter().zip(&base.samples).map(|(what, base)| what / base).collect();
        Self {
            median: quantile(&each, 0.5),
            low: quantile(&each, 0.25),
            high: quantile(&each, 0.75),
        }
    }

    /// Whether the rounds differ by less than the contenders do.
    pub(super) fn is_clear(&self) -> bool {
        self.high - self.low < (self.median - 1.0).abs()
    }
}

/// The value below which `part` of the samples lie, between two samples interpolated.
pub(super) fn quantile(samples: &[f64], part: f64) -> f64 {
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
pub(super) fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed().as_secs_f64()
}

/// Lets every contender work in turns: `warm_ups` rounds that do not count, then `rounds`.
///
/// Each round begins with the next contender, so that none always follows the same one.
pub(super) fn interleave(mut works: Vec<Work<'_>>, warm_ups: usize, rounds: usize) -> Vec<Series> {
    let mut series: Vec<Series> =
        works.iter().map(|work| Series { name: work.name, samples: Vec::new() }).collect();
    for round in 0..warm_ups + rounds {
        for turn in 0..works.len() {
            let at = (round + turn) % works.len();
            let measured = (works[at].run)();
            if round >= warm_ups {
                series[at].samples.push(measured);
            }
        }
    }
    series
}
