//! What a run says while it goes on: to whom it draws, and what is left of it.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::results::StepTime;
use super::row::Row;

/// Something that a watcher may show.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The next step begins.
    Step {
        /// What is measured now.
        name: String,
        /// How much of the run is behind it, 0 to 1.
        done: f64,
        /// Seconds left, by what was planned and by how that went so far.
        left_seconds: f64,
    },
    /// A row is measured.
    Row(Box<Row>),
    /// Something that a reader of the figures has to know.
    Note(String),
}

/// Shows a run to somebody.
pub trait Watch {
    /// Something happened.
    fn event(&mut self, event: &Event);
}

/// Nobody watches.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn event(&mut self, _event: &Event) {}
}

/// How far a run of planned steps has come.
#[derive(Debug)]
pub(super) struct Clock {
    begun: Instant,
    /// Names and planned seconds.
    steps: Vec<(String, f64)>,
    at: usize,
    entered: Option<(String, Instant)>,
    took: Vec<StepTime>,
}

impl Clock {
    pub(super) fn new(steps: Vec<(String, f64)>) -> Self {
        Self { begun: Instant::now(), steps, at: 0, entered: None, took: Vec::new() }
    }

    /// The step named `name` begins: what is done, and the seconds left.
    pub(super) fn enter(&mut self, name: &str) -> (f64, f64) {
        self.leave();
        self.entered = Some((name.to_owned(), Instant::now()));
        if let Some(found) = self.steps[self.at..].iter().position(|(step, _)| step == name) {
            self.at += found;
        }
        let (before, after) = self.steps.split_at(self.at);
        let sum = |steps: &[(String, f64)]| steps.iter().map(|(_, seconds)| seconds).sum::<f64>();
        forecast(self.begun.elapsed().as_secs_f64(), sum(before), sum(after))
    }

    /// The step that was entered last is over.
    fn leave(&mut self) {
        if let Some((name, entered)) = self.entered.take() {
            let planned = self.steps.iter().find(|(step, _)| *step == name);
            let planned_seconds = planned.map_or(0.0, |(_, seconds)| *seconds);
            let seconds = entered.elapsed().as_secs_f64();
            self.took.push(StepTime { name, planned_seconds, seconds });
        }
    }

    /// How long each step took, the last one too.
    pub(super) fn finish(mut self) -> Vec<StepTime> {
        self.leave();
        self.took
    }
}

/// How much is done and how many seconds are left, of steps planned to take `before` seconds
/// that took `elapsed`, and of steps planned to take `after`.
fn forecast(elapsed: f64, before: f64, after: f64) -> (f64, f64) {
    let all = before + after;
    if all <= 0.0 {
        return (1.0, 0.0);
    }
    // The plan counts as much as half a minute of experience: early steps are no measure.
    let pace = (elapsed + 30.0) / (before + 30.0);
    (before / all, after * pace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_how_it_went() {
        let (done, left) = forecast(0.0, 0.0, 100.0);
        assert_eq!((done, left), (0.0, 100.0));
        let (done, left) = forecast(200.0, 100.0, 100.0);
        assert_eq!(done, 0.5);
        assert!((150.0..200.0).contains(&left), "twice as slow as planned: {left}");
        let mut clock = Clock::new(vec![("a".to_owned(), 1.0), ("b".to_owned(), 3.0)]);
        assert_eq!(clock.enter("b").0, 0.25);
        let took = clock.finish();
        assert_eq!(took.len(), 1, "the first step was never entered: {took:?}");
        assert_eq!((took[0].name.as_str(), took[0].planned_seconds), ("b", 3.0));
    }
}
