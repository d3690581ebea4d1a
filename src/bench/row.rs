//! Rows: what was measured, beside what was promised.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::measure::{Ratio, Series, quantile};

/// What a row asks of Mica.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// At most so many times what the base takes.
    RatioAtMost(f64),
    /// At least so many times what the base gives.
    RatioAtLeast(f64),
    /// At most so much, in the row's unit.
    AtMost(f64),
}

/// What a row's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Nanoseconds for each operation.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// 10⁶ bytes in a second.
    #[serde(rename = "MB/s")]
    Megabytes,
    /// 2²⁰ bytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// Operations in a second.
    #[serde(rename = "1/s")]
    PerSecond,
}

impl Unit {
    /// As it is written behind a number.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
            Self::Megabytes => "MB/s",
            Self::Mebibytes => "MiB",
            Self::PerSecond => "1/s",
        }
    }

    /// Whether a smaller number is the better one.
    #[must_use]
    pub fn less_is_better(self) -> bool {
        match self {
            Self::Milliseconds | Self::Nanoseconds | Self::Mebibytes => true,
            Self::Megabytes | Self::PerSecond => false,
        }
    }
}

/// The contender that the targets speak of.
pub(super) const OURS: &str = "mica";
/// The contender that ratios are to, unless a row says another.
pub(super) const BASE: &str = "overlayfs";

/// One answered question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The section it belongs to.
    pub section: String,
    /// The question.
    pub what: String,
    /// What the numbers are.
    pub unit: Unit,
    /// What was promised.
    pub target: Option<Target>,
    /// Whom the ratio is to.
    pub base: String,
    /// Whose ratio it is.
    pub about: String,
    /// All contenders.
    pub contenders: Vec<Series>,
    /// The ratio of the two, if both were measured.
    pub ratio: Option<Ratio>,
    /// "met", "missed", or that and "unclear" when a quarter of the rounds says otherwise.
    pub verdict: String,
    /// What else a reader has to know.
    pub note: String,
    /// One, five and fifteen minutes' load when it was done.
    pub load: String,
}

impl Row {
    /// A row of Mica beside kernel overlayfs.
    pub(super) fn new(
        what: impl Into<String>,
        unit: Unit,
        target: Option<Target>,
        contenders: Vec<Series>,
    ) -> Self {
        let mut row = Self {
            section: String::new(),
            what: what.into(),
            unit,
            target,
            base: BASE.to_owned(),
            about: OURS.to_owned(),
            contenders,
            ratio: None,
            verdict: String::new(),
            note: String::new(),
            load: super::machine::load(),
        };
        row.judge();
        row
    }

    /// The same with a remark.
    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        let note = note.into();
        if !self.note.is_empty() && !note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(&note);
        self
    }

    /// The same about another contender than Mica as it comes.
    pub(super) fn about(mut self, ours: &str) -> Self {
        ours.clone_into(&mut self.about);
        self.judge();
        self
    }

    /// The same with ratios to another contender.
    pub(super) fn beside(mut self, base: &str) -> Self {
        base.clone_into(&mut self.base);
        self.judge();
        self
    }

    /// What was measured of one contender.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Series> {
        self.contenders.iter().find(|series| series.name == name)
    }

    fn judge(&mut self) {
        let pair = self.find(&self.about).zip(self.find(&self.base));
        let ratio = pair.filter(|_| self.about != self.base).map(|(of, to)| Ratio::of(of, to));
        let judged = self.target.and_then(|target| match target {
            Target::RatioAtMost(limit) => ratio.map(|r| (r.low, r.median, r.high, limit)),
            // Turned round, so that less is better here too.
            Target::RatioAtLeast(limit) => ratio.map(|r| (-r.high, -r.median, -r.low, -limit)),
            Target::AtMost(limit) => self.find(&self.about).map(|series| {
                let at = |part| quantile(&series.samples, part);
                (at(0.25), at(0.5), at(0.75), limit)
            }),
        });
        self.verdict = match judged {
            None => "",
            Some((_, _, high, limit)) if high <= limit => "met",
            Some((low, _, _, limit)) if low > limit => "missed",
            Some((_, median, _, limit)) if median <= limit => "met, unclear",
            Some(_) => "missed, unclear",
        }
        .to_owned();
        self.ratio = ratio;
    }

    /// What was promised, for a person; empty if nothing was.
    #[must_use]
    pub fn promised(&self) -> String {
        match self.target {
            Some(Target::RatioAtMost(limit)) => format!("≤ {limit} × {}", self.base),
            Some(Target::RatioAtLeast(limit)) => format!("≥ {limit} × {}", self.base),
            Some(Target::AtMost(limit)) => format!("≤ {limit} {}", self.unit.name()),
            None => String::new(),
        }
    }

    /// The ratio for a person, refused when the rounds differ more than the contenders.
    #[must_use]
    pub fn told_ratio(&self) -> String {
        match &self.ratio {
            None => String::new(),
            Some(Ratio { median, low, high, clear: true }) => {
                format!("{median:.2} ({low:.2} – {high:.2})")
            }
            Some(Ratio { low, high, .. }) => format!("no clear difference ({low:.2} – {high:.2})"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.what, self.unit.name())?;
        for series in &self.contenders {
            let (min, max) = series.range();
            let [median, min, max] = [series.median(), min, max].map(number);
            write!(f, "\n  {:<26} {median:>12} ({min} – {max})", series.name)?;
        }
        if self.ratio.is_some() {
            write!(f, "\n  {} by {}: {}", self.about, self.base, self.told_ratio())?;
        }
        if self.target.is_some() {
            write!(f, "\n  target {}: {}", self.promised(), self.verdict)?;
        }
        if !self.note.is_empty() {
            write!(f, "\n  {}", self.note)?;
        }
        Ok(())
    }
}

/// Three significant digits or more, whatever the size.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, samples: &[f64]) -> Series {
        Series { name: name.to_owned(), samples: samples.to_vec() }
    }

    #[test]
    fn verdicts_are_about_quarters_of_the_rounds() {
        let verdict = |target, ours: &[f64]| {
            let contenders = vec![series(OURS, ours), series(BASE, &[1.0; 4])];
            Row::new("x", Unit::Milliseconds, Some(target), contenders).verdict
        };
        assert_eq!(verdict(Target::RatioAtMost(1.2), &[1.0, 1.1, 1.1, 1.1]), "met");
        assert_eq!(verdict(Target::RatioAtMost(1.2), &[2.0, 2.1, 2.2, 2.0]), "missed");
        assert_eq!(verdict(Target::RatioAtMost(1.2), &[1.0, 1.1, 1.2, 1.4]), "met, unclear");
        assert_eq!(verdict(Target::RatioAtLeast(0.9), &[0.5, 0.5, 0.6, 0.5]), "missed");
        assert_eq!(verdict(Target::AtMost(5.0), &[4.0, 4.0, 4.0, 9.0]), "met, unclear");
    }

    #[test]
    fn a_row_without_its_base_has_no_ratio() {
        let row = Row::new("x", Unit::Nanoseconds, None, vec![series(OURS, &[1.0])]);
        assert_eq!((row.ratio, row.verdict.as_str()), (None, ""));
        assert!(row.to_string().contains("mica"));
    }
}
