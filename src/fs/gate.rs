//! Holding changes back for a moment, so that what the root shows can be copied as one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What changes the root passes through here.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    inside: u32,
}

/// A change under way.
pub(super) struct Passing<'a>(&'a Gate);

/// Changes are held back until this is dropped.
pub struct Frozen(Arc<Gate>);

/// Why changes cannot be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreezeError {
    /// Somebody else holds them back.
    #[error("the root is frozen already, by another commit")]
    Frozen,
    /// One that began before takes too long.
    #[error("a change that began before does not end; try again when less is written")]
    Busy,
}

impl Gate {
    /// Waits until changes are let through; the change ends when the value is dropped.
    ///
    /// Never while another one of the same thread is under way: a freeze that waits for that
    /// one would wait for ever.
    pub(super) fn pass(&self) -> Passing<'_> {
        let mut state = self.state.lock();
        while state.closed {
            self.moved.wait(&mut state);
        }
        state.inside += 1;
        Passing(self)
    }

    /// Holds changes back and waits for those under way.
    pub(super) fn close(self: &Arc<Self>, patience: Duration) -> Result<Frozen, FreezeError> {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        if state.closed {
            return Err(FreezeError::Frozen);
        }
        state.closed = true;
        while state.inside > 0 {
            if self.moved.wait_until(&mut state, deadline).timed_out() && state.inside > 0 {
                state.closed = false;
                self.moved.notify_all();
                return Err(FreezeError::Busy);
            }
        }
        drop(state);
        Ok(Frozen(Arc::clone(self)))
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.inside -= 1;
        if state.inside == 0 && state.closed {
            self.0.moved.notify_all();
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.state.lock().closed = false;
        self.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_wait_while_it_is_closed_and_go_on_after() {
        let gate = Arc::new(Gate::default());
        let frozen = gate.close(Duration::ZERO).unwrap();
        assert_eq!(gate.close(Duration::ZERO).err(), Some(FreezeError::Frozen));
        let (done, ended) = std::sync::mpsc::channel();
        let waiting = Arc::clone(&gate);
        let thread = std::thread::spawn(move || {
            drop(waiting.pass());
            done.send(()).unwrap();
        });
        assert!(ended.try_recv().is_err());
        drop(frozen);
        ended.recv().unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_change_that_does_not_end_keeps_it_open() {
        let gate = Arc::new(Gate::default());
        let change = gate.pass();
        assert_eq!(gate.close(Duration::from_millis(1)).err(), Some(FreezeError::Busy));
        drop(change);
        drop(gate.close(Duration::ZERO).unwrap());
        drop(gate.pass());
    }
}
