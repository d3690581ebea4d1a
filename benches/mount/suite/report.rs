//! Rows: what was measured, beside what was promised.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::Settings;
use super::machine;
use super::measure::{Ratio, Series, quantile};

/// What the table asks of Mica.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// At most so many times what kernel overlayfs takes.
    RatioAtMost(f64),
    /// At least so many times what kernel overlayfs gives.
    RatioAtLeast(f64),
    /// At most so much, in the row's unit.
    AtMost(f64),
    /// Nothing: for the picture.
    None,
}

/// What a row's numbers are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Nanoseconds for each operation.
    Nanoseconds,
    /// 10⁶ bytes in a second.
    Megabytes,
    /// 2²⁰ bytes.
    Mebibytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
            Self::Megabytes => "MB/s",
            Self::Mebibytes => "MiB",
        }
    }
}

/// The contender that the targets speak of.
pub(super) const OURS: &str = "mica";
/// The contender that ratios are to, unless a row says another.
pub(super) const BASE: &str = "overlayfs";

/// One answered question.
pub(super) struct Row {
    /// The question.
    pub(super) what: String,
    /// What the numbers are.
    pub(super) unit: Unit,
    /// What was promised.
    pub(super) target: Target,
    /// Whom the ratio is to.
    pub(super) base: &'static str,
    /// Whose ratio it is.
    pub(super) ours: &'static str,
    /// All contenders.
    pub(super) series: Vec<Series>,
    /// What else a reader has to know.
    pub(super) note: String,
}

impl Row {
    /// A row of Mica beside kernel overlayfs.
    pub(super) fn new(
        what: impl Into<String>,
        unit: Unit,
        target: Target,
        series: Vec<Series>,
    ) -> Self {
        let note = String::new();
        Self { what: what.into(), unit, target, base: BASE, ours: OURS, series, note }
    }

    /// The same with a remark.
    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// The same about another contender than Mica as it comes.
    pub(super) fn about(mut self, ours: &'static str) -> Self {
        self.ours = ours;
        self
    }

    /// The same with ratios to another contender.
    pub(super) fn beside(mut self, base: &'static str) -> Self {
        self.base = base;
        self
    }

    fn find(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }

    fn ratio(&self) -> Option<Ratio> {
        Some(Ratio::of(self.find(self.ours)?, self.find(self.base)?))
    }

    /// "met", "missed", or "unclear" when a quarter of the rounds says the one and another
    /// quarter the other.
    fn verdict(&self) -> &'static str {
        let judged = match self.target {
            Target::RatioAtMost(limit) => self.ratio().map(|r| (r.low, r.median, r.high, limit)),
            // Turned round, so that less is better here too.
            Target::RatioAtLeast(limit) => {
                self.ratio().map(|r| (-r.high, -r.median, -r.low, -limit))
            }
            Target::AtMost(limit) => self.find(self.ours).map(|series| {
                let at = |part| quantile(&series.samples, part);
                (at(0.25), at(0.5), at(0.75), limit)
            }),
            Target::None => None,
        };
        match judged {
            None => "",
            Some((_, _, high, limit)) if high <= limit => "met",
            Some((low, _, _, limit)) if low > limit => "missed",
            Some((_, median, _, limit)) if median <= limit => "met, unclear",
            Some(_) => "missed, unclear",
        }
    }

    fn target(&self) -> String {
        match self.target {
            Target::RatioAtMost(limit) => format!("≤ {limit} × {}", self.base),
            Target::RatioAtLeast(limit) => format!("≥ {limit} × {}", self.base),
            Target::AtMost(limit) => format!("≤ {limit} {}", self.unit.name()),
            Target::None => String::new(),
        }
    }

    fn print(&self) {
        println!("\n{} [{}]", self.what, self.unit.name());
        for series in &self.series {
            let (min, max) = series.range();
            println!(
                "  {:<24} {:>12} ({} – {})",
                series.name,
                number(series.median()),
                number(min),
                number(max)
            );
        }
        if let Some(ratio) = self.ratio() {
            let Ratio { median, low, high } = ratio;
            let said = if ratio.is_clear() {
                format!("{median:.2} ({low:.2} – {high:.2})")
            } else {
                format!("no clear difference ({low:.2} – {high:.2})")
            };
            println!("  {} by {}: {said}", self.ours, self.base);
        }
        if !self.target().is_empty() {
            println!("  target {}: {}", self.target(), self.verdict());
        }
        if !self.note.is_empty() {
            println!("  {}", self.note);
        }
    }

    fn json(&self) -> Value {
        let series: serde_json::Map<String, Value> = self
            .series
            .iter()
            .map(|series| {
                let (min, max) = series.range();
                let of = json!({
                    "median": series.median(), "min": min, "max": max, "samples": series.samples,
                });
                (series.name.to_owned(), of)
            })
            .collect();
        json!({
            "what": self.what,
            "unit": self.unit.name(),
            "target": self.target(),
            "verdict": self.verdict(),
            "about": self.ours,
            "base": self.base,
            "ratio": self.ratio().map(|ratio| json!({
                "median": ratio.median, "low": ratio.low, "high": ratio.high,
                "clear": ratio.is_clear(),
            })),
            "contenders": series,
            "note": self.note,
            "load": machine::load(),
        })
    }
}

/// Three significant digits or more, whatever the size.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// All rows of a run.
pub(super) struct Report {
    machine: Value,
    settings: Value,
    rows: Vec<Value>,
}

impl Report {
    /// Prints what the run is made on.
    pub(super) fn begin(settings: &Settings) -> Self {
        let machine = machine::describe(&settings.scratch);
        if let Some(machine) = machine.as_object() {
            for (name, value) in machine {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                println!("{name:<14} {text}");
            }
        }
        if cfg!(debug_assertions) {
            println!("not optimised: the figures mean nothing");
        }
        let sizes = format!("{:?}", settings.sizes);
        println!("sizes          {sizes}");
        println!("priority       {}", settings.nice);
        let settings =
            json!({ "sizes": sizes, "name": settings.sizes.name, "nice": settings.nice });
        Self { machine, settings, rows: Vec::new() }
    }

    /// Prints and keeps a row.
    pub(super) fn row(&mut self, row: &Row) {
        row.print();
        self.rows.push(row.json());
    }

    /// Says how long a section took.
    pub(super) fn section(&self, name: &str, took: Duration) {
        println!("\n-- {name}: {:.1} s, load {}", took.as_secs_f64(), machine::load());
    }

    /// Writes all rows to `file`.
    pub(super) fn end(self, file: &Path) {
        let Self { machine, settings, rows } = self;
        let all = json!({ "machine": machine, "settings": settings, "rows": rows });
        let text = serde_json::to_vec_pretty(&all).expect("numbers and texts");
        std::fs::write(file, text).expect("the figures can be written");
        println!("figures: {}", file.display());
    }
}
