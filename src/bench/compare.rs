//! Two runs beside each other.

use serde::Serialize;

use super::measure::quantile;
use super::results::{Figure, Results};

/// What became of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is better, by more than it varies.
    Better,
    /// It is worse, by more than it varies.
    Worse,
    /// What changed is less than what it varies.
    Same,
    /// Only the old run has it.
    Gone,
    /// Only the new run has it.
    New,
}

/// One figure of both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Median of the old run.
    pub old: Option<f64>,
    /// Median of the new run.
    pub new: Option<f64>,
    /// New by old; none where the spread is wider than the effect.
    pub ratio: Option<f64>,
    /// What that means.
    pub change: Change,
}

/// Two runs beside each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What was not the same around them, as sentences: then differences may not be Mica's.
    pub differing: Vec<String>,
    /// All figures.
    pub figures: Vec<Compared>,
}

/// Single figures that differ by less than this part are the same.
const ALIKE: f64 = 0.02;

/// Puts two runs beside each other.
#[must_use]
pub fn compare(old: &Results, new: &Results) -> Comparison {
    let mut differing = Vec::new();
    let mut look = |what: &str, old: &str, new: &str| {
        if old != new {
            differing.push(format!("{what}: {old} before, {new} now"));
        }
    };
    look("machine", &old.machine.line(), &new.machine.line());
    look("fuse-overlayfs", &old.machine.fuse_overlayfs, &new.machine.fuse_overlayfs);
    let names = |results: &Results| {
        results.templates.iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(", ")
    };
    look("templates", &names(old), &names(new));
    let containers = |results: &Results| results.settings.containers.to_string();
    look("containers", &containers(old), &containers(new));
    let scale = |results: &Results| format!("{:?}", results.settings.scale).to_lowercase();
    look("scale", &scale(old), &scale(new));

    let (old, new) = (old.figures(), new.figures());
    let find = |all: &[(String, Figure)], name: &str| {
        all.iter().find(|(other, _)| other == name).map(|(_, figure)| figure.clone())
    };
    let mut figures: Vec<Compared> = old
        .iter()
        .map(|(name, figure)| judge(name, Some(figure), find(&new, name).as_ref()))
        .collect();
    let added = new.iter().filter(|(name, _)| find(&old, name).is_none());
    figures.extend(added.map(|(name, figure)| judge(name, None, Some(figure))));
    Comparison { differing, figures }
}

fn judge(name: &str, old: Option<&Figure>, new: Option<&Figure>) -> Compared {
    let median = |figure: &Figure| quantile(&figure.samples, 0.5);
    let unit = old.or(new).map(|figure| figure.unit.clone()).unwrap_or_default();
    let (change, ratio) = match (old, new) {
        (Some(old), Some(new)) => {
            let ratio = median(new) / median(old);
            if !is_clear(old, new) {
                (Change::Same, None)
            } else if (ratio < 1.0) == old.less_is_better {
                (Change::Better, Some(ratio))
            } else {
                (Change::Worse, Some(ratio))
            }
        }
        (Some(_), None) => (Change::Gone, None),
        (None, _) => (Change::New, None),
    };
    Compared {
        name: name.to_owned(),
        unit,
        old: old.map(median),
        new: new.map(median),
        ratio,
        change,
    }
}

/// Whether the middle halves of the rounds lie apart, and by more than either is wide.
fn is_clear(old: &Figure, new: &Figure) -> bool {
    let quarters = |figure: &Figure| [0.25, 0.5, 0.75].map(|part| quantile(&figure.samples, part));
    let ([old_low, old, old_high], [new_low, new, new_high]) = (quarters(old), quarters(new));
    let effect = (new - old).abs();
    let apart = old_high < new_low || new_high < old_low;
    apart && effect > ALIKE * old.abs() && effect > (old_high - old_low).max(new_high - new_low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(samples: &[f64], less_is_better: bool) -> Figure {
        Figure { unit: "ms".to_owned(), less_is_better, samples: samples.to_vec() }
    }

    #[test]
    fn a_change_counts_only_when_it_is_larger_than_the_spread() {
        let change = |old: &[f64], new: &[f64], less| {
            judge("x", Some(&figure(old, less)), Some(&figure(new, less))).change
        };
        assert_eq!(change(&[1.0, 1.1, 1.0], &[2.0, 2.1, 2.0], true), Change::Worse);
        assert_eq!(change(&[1.0, 1.1, 1.0], &[2.0, 2.1, 2.0], false), Change::Better);
        assert_eq!(change(&[1.0, 2.0, 3.0], &[1.5, 2.5, 3.5], true), Change::Same);
        assert_eq!(change(&[100.0], &[101.0], true), Change::Same);
        assert_eq!(change(&[100.0], &[50.0], true), Change::Better);
    }

    #[test]
    fn figures_of_one_run_alone_are_told() {
        let one = figure(&[1.0], true);
        assert_eq!(judge("x", Some(&one), None).change, Change::Gone);
        assert_eq!(judge("x", None, Some(&one)).change, Change::New);
    }
}
