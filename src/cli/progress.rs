//! Progress of long work on a terminal; silence everywhere else.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressState, ProgressStyle};

use super::output::Output;
use crate::host::import::Watch;
use crate::layer::import::{Note, Progress};

/// How often the line is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

/// Watches an import for a person: files, bytes, dedup hits, rate, time left.
pub(super) struct ImportProgress {
    bar: ProgressBar,
    output: Output,
    entries: AtomicU64,
    hits: AtomicU64,
    hit_bytes: AtomicU64,
}

impl ImportProgress {
    pub(super) fn new(output: Output) -> Self {
        let visible = io::stderr().is_terminal() && !output.is_quiet();
        let bar = if visible { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(style(false));
        bar.enable_steady_tick(REDRAW);
        Self {
            bar,
            output,
            entries: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            hit_bytes: AtomicU64::new(0),
        }
    }

    /// Takes the line away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Files whose content was in the store already, and their bytes.
    pub(super) fn hits(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.hit_bytes.load(Ordering::Relaxed))
    }
}

impl Progress for ImportProgress {
    fn expect(&self, _files: Option<u64>, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            self.bar.set_length(bytes);
            self.bar.set_style(style(true));
        }
    }

    fn layer(&self, index: usize, count: usize) {
        if count > 1 {
            self.bar.set_prefix(format!("layer {} of {count}, ", index + 1));
        }
    }

    fn read(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn entry(&self) {
        let entries = self.entries.fetch_add(1, Ordering::Relaxed) + 1;
        // Drawing is limited by time; formatting a number for every file is not worth it.
        if entries.is_multiple_of(64) {
            let hits = self.hits.load(Ordering::Relaxed);
            let (entries, hits) = (HumanCount(entries), HumanCount(hits));
            self.bar.set_message(format!("{entries} files, {hits} already there"));
        }
    }

    fn stored(&self, bytes: u64, hit: bool) {
        if hit {
            self.hits.fetch_add(1, Ordering::Relaxed);
            self.hit_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn note(&self, note: &Note) {
        self.bar.suspend(|| self.output.note(note.to_string()));
    }
}

impl Watch for ImportProgress {
    fn publishing(&self) {
        // What is left takes as long as the disk does: a rate would only run down.
        let entries = HumanCount(self.entries.load(Ordering::Relaxed));
        self.bar.set_style(publishing_style());
        self.bar.set_message(format!("{entries} files read, publishing"));
    }
}

fn publishing_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}, {elapsed} in all")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// The line, with or without a known end.
fn style(has_end: bool) -> ProgressStyle {
    let template = if has_end {
        "{bar:20} {prefix}{msg}, {size} of {whole}, {rate}/s, {eta} left"
    } else {
        "{spinner} {prefix}{msg}, {size}, {rate}/s"
    };
    style_of(template)
}

/// A line with sizes and a rate for people.
fn style_of(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("size", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            // A line that cannot be formatted is a line not drawn.
            let _drawn = write!(to, "{}", BinaryBytes(state.pos()));
        })
        .with_key("whole", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            let _drawn = write!(to, "{}", BinaryBytes(state.len().unwrap_or_default()));
        })
        .with_key("rate", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            let _drawn = write!(to, "{}", BinaryBytes(whole(state.per_sec())));
        })
}

/// A rate as whole bytes; what is no sensible number counts as none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
fn whole(rate: f64) -> u64 {
    if rate.is_finite() { rate.clamp(0.0, 1e15) as u64 } else { 0 }
}

/// Watches work whose extent is known: how much is done, and the time left.
pub(super) struct WorkProgress {
    bar: ProgressBar,
}

impl WorkProgress {
    /// `total` steps of equal length.
    pub(super) fn of_steps(output: Output, verb: &'static str, total: u64) -> Self {
        Self::new(output, verb, total, "{bar:20} {prefix} {percent} %, {eta} left")
    }

    fn new(output: Output, verb: &'static str, total: u64, template: &str) -> Self {
        let visible = io::stderr().is_terminal() && !output.is_quiet();
        let bar = if visible { ProgressBar::new(total) } else { ProgressBar::hidden() };
        bar.set_style(style_of(template));
        bar.set_prefix(verb);
        bar.enable_steady_tick(REDRAW);
        Self { bar }
    }

    /// So much is done.
    pub(super) fn at(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Takes the line away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Counts the bytes that an export or a check has read, for a person.
pub(super) struct ByteProgress {
    bar: ProgressBar,
}

impl ByteProgress {
    pub(super) fn new(output: Output) -> Self {
        let visible = io::stderr().is_terminal() && !output.is_quiet();
        let bar = if visible { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(style(false));
        bar.enable_steady_tick(REDRAW);
        Self { bar }
    }

    /// Content of this many bytes was read.
    pub(super) fn read(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Takes the line away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_valid_templates_and_rates_are_clamped() {
        for has_end in [false, true] {
            let bar = ProgressBar::hidden();
            bar.set_style(style(has_end));
            bar.inc(1);
        }
        ProgressBar::hidden().set_style(publishing_style());
        assert_eq!((whole(f64::NAN), whole(-1.0), whole(12.9)), (0, 0, 12));
    }
}
