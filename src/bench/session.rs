//! One run, from within: what it measures with, where, and what came out so far.

use std::path::PathBuf;

use super::contender::Lower;
use super::copies::Copies;
use super::error::{BenchError, Result};
use super::machine::Everywhere;
use super::place::Place;
use super::results::{Curve, Latency, Results, Skipped};
use super::row::Row;
use super::settings::{Settings, Sizes};
use super::watch::{Clock, Event};

/// What every part of a run gets.
pub(super) struct Session<'a> {
    pub(super) settings: &'a Settings,
    pub(super) sizes: Sizes,
    /// The run's own directory.
    pub(super) scratch: PathBuf,
    /// The processors that the run was given.
    pub(super) everywhere: Everywhere,
    pub(super) results: Results,
    /// Full copies, which several parts use.
    pub(super) copies: Option<Copies>,
    pub(super) clock: Clock,
    pub(super) emit: &'a mut dyn FnMut(&Event),
    pub(super) section: String,
    pub(super) places: u32,
}

impl Session<'_> {
    /// A fresh directory, gone with the value.
    pub(super) fn place(&mut self, name: &str) -> Result<Place> {
        self.places += 1;
        Place::new(&self.scratch, &format!("{name}-{}", self.places))
    }

    /// A store in `place` with `tree` as its template.
    pub(super) fn import(&self, place: &Place, tree: &std::path::Path) -> Result<Lower> {
        Lower::import(place, tree, &self.settings.program)
    }

    /// A planned step begins.
    pub(super) fn step(&mut self, name: &str) {
        let (done, left_seconds) = self.clock.enter(name);
        (self.emit)(&Event::Step { name: name.to_owned(), done, left_seconds });
    }

    /// Runs a planned step, whose rows belong to `section`; what fails in it is told with its name.
    pub(super) fn part(
        &mut self,
        step: &str,
        section: &str,
        measure: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.step(step);
        section.clone_into(&mut self.section);
        measure(self)
            .map_err(|source| BenchError::Step { step: step.to_owned(), source: Box::new(source) })
    }

    /// Keeps a row, and shows it.
    pub(super) fn row(&mut self, mut row: Row) {
        row.section.clone_from(&self.section);
        (self.emit)(&Event::Row(Box::new(row.clone())));
        self.results.speed.push(row);
    }

    pub(super) fn latency(&mut self, latency: Latency) {
        self.results.latencies.push(latency);
    }

    pub(super) fn curve(&mut self, curve: Curve) {
        self.results.growth.push(curve);
    }

    /// Keeps why something is not measured, and tells it.
    pub(super) fn skip(&mut self, what: &str, why: String) {
        // Paths of the run's own directory, which is gone when somebody reads this.
        let why = why.replace(&*self.scratch.to_string_lossy(), "…");
        (self.emit)(&Event::Note(format!("{what}: not measured: {why}")));
        self.results.skipped.push(Skipped { what: what.to_owned(), why });
    }
}
