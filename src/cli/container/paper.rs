//! What several containers say at once, on one terminal.
//!
//! Lines come out in the order of the containers, whichever is faster: those of a later one wait until
//! the earlier ones have ended. Nobody waits for long, though; after a second lines come as they are
//! said.

use std::io::{self, Write};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long lines are held back.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Output,
    Error,
}

/// A line that is held back.
type Line = (Stream, Vec<u8>);

#[derive(Debug, Default)]
struct Held {
    /// For each container, what it said and nobody has seen.
    lines: Vec<Vec<Line>>,
    ended: Vec<bool>,
    /// Whether lines are shown as they come.
    hasty: bool,
}

/// The order in which lines are shown.
#[derive(Debug)]
pub(super) struct Paper {
    // Lines of two containers do not mix: it is held while one is written.
    held: Mutex<Held>,
    ended: Condvar,
}

impl Paper {
    /// For so many containers.
    pub(super) fn new(count: usize) -> Self {
        let held = Held { lines: vec![Vec::new(); count], ended: vec![false; count], hasty: false };
        Self { held: Mutex::new(held), ended: Condvar::new() }
    }

    /// Shows a line of one of them when its turn comes.
    pub(super) fn say(&self, at: usize, stream: Stream, line: Vec<u8>) -> io::Result<()> {
        let mut held = self.held.lock();
        if let Some(lines) = held.lines.get_mut(at) {
            lines.push((stream, line));
        }
        show(held.due())
    }

    /// One of them will say no more.
    pub(super) fn end(&self, at: usize) -> io::Result<()> {
        let mut held = self.held.lock();
        if let Some(ended) = held.ended.get_mut(at) {
            *ended = true;
        }
        self.ended.notify_all();
        show(held.due())
    }

    /// Holds lines back for a while, at most until all have ended.
    pub(super) fn be_patient(&self) -> io::Result<()> {
        let mut held = self.held.lock();
        let going_on = |held: &mut Held| held.ended.contains(&false);
        self.ended.wait_while_for(&mut held, going_on, PATIENCE);
        held.hasty = true;
        show(held.due())
    }
}

impl Held {
    /// What may be shown now, in its order; it is held no longer.
    fn due(&mut self) -> Vec<Line> {
        let waits = self.ended.iter().position(|ended| !ended).filter(|_| !self.hasty);
        let count = waits.map_or(self.lines.len(), |first| first + 1);
        self.lines.iter_mut().take(count).flat_map(std::mem::take).collect()
    }
}

fn show(lines: Vec<Line>) -> io::Result<()> {
    for (stream, line) in lines {
        match stream {
            Stream::Output => io::stdout().lock().write_all(&line)?,
            Stream::Error => io::stderr().lock().write_all(&line)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_the_order_of_those_who_say_them_until_patience_ends() {
        let line = |text: &str| (Stream::Output, text.as_bytes().to_vec());
        let mut held = Held { lines: vec![Vec::new(); 3], ended: vec![false; 3], hasty: false };
        held.lines[2].push(line("c"));
        held.lines[0].push(line("a"));
        assert_eq!(held.due(), [line("a")]);
        held.ended[1] = true;
        held.lines[1].push(line("b"));
        assert_eq!(held.due(), []);
        held.ended[0] = true;
        assert_eq!(held.due(), [line("b"), line("c")]);
        held.ended = vec![false; 3];
        held.hasty = true;
        held.lines[2].push(line("c"));
        assert_eq!(held.due(), [line("c")]);
    }
}
