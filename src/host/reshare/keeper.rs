//! Giving leases back as soon as somebody waits for one, whatever their holder is doing.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::sys::lease::{ReadLease, a_lease_was_wanted};

/// How often it is asked whether a signal told of somebody who waits.
const TICK: Duration = Duration::from_millis(2);
/// Ticks after which every lease is asked, signal or not: another part of the process may ignore it.
const TICKS: u32 = 16;

/// Knows every lease of a run. Files under a lease wait for others to be replaced with them, also
/// while a disk takes its time, and nobody who wants to write is to wait for that.
#[derive(Default)]
pub(super) struct Keeper {
    leases: Mutex<Vec<Weak<ReadLease>>>,
    ended: Mutex<bool>,
    woken: Condvar,
}

impl Keeper {
    /// Watches over a lease for as long as it lives.
    pub(super) fn watch(&self, lease: &Arc<ReadLease>) {
        self.leases.lock().push(Arc::downgrade(lease));
    }

    /// Gives back what is wanted until the end is told.
    pub(super) fn run(&self) {
        let mut ended = self.ended.lock();
        let mut ticks = 0_u32;
        while !*ended {
            self.woken.wait_for(&mut ended, TICK);
            ticks = ticks.wrapping_add(1);
            if a_lease_was_wanted() || ticks.is_multiple_of(TICKS) {
                self.look();
            }
        }
    }

    fn look(&self) {
        // Those that are watched from here on are fresh.
        let mut known = std::mem::take(&mut *self.leases.lock());
        known.retain(|lease| lease.upgrade().is_some_and(|lease| !lease.give_back_if_wanted()));
        self.leases.lock().append(&mut known);
    }

    /// The run is over when the value is dropped.
    pub(super) fn ended_with(&self) -> Over<'_> {
        Over(self)
    }
}

/// Ends a [`Keeper`].
pub(super) struct Over<'a>(&'a Keeper);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        *self.0.ended.lock() = true;
        self.0.woken.notify_all();
    }
}
