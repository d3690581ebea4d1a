//! Threads that read and hash, while the one that decides makes objects and replaces files.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use super::Member;
use super::candidates::Candidate;
use super::content::{GaveUp, Leased, hash, lease};
use super::keeper::Keeper;
use crate::host::pace::Pace;
use crate::object::ObjectId;

/// A file to be read.
pub(super) struct Task {
    pub(super) file: Candidate,
    /// The files that may be the same have one number.
    pub(super) group: u64,
}

/// What became of a task.
pub(super) struct Done {
    pub(super) task: Task,
    /// The file under its lease, its name as an object and its 512-byte units of data.
    pub(super) read: Result<(Leased, ObjectId, u64), GaveUp>,
}

/// What a reader needs.
pub(super) struct Reader<'a> {
    pub(super) members: &'a [Member],
    pub(super) pace: &'a Pace,
    pub(super) keeper: &'a Keeper,
    pub(super) tasks: Receiver<Task>,
    pub(super) done: Sender<Done>,
}

impl Reader<'_> {
    /// Reads one file after another until no more come.
    pub(super) fn run(self) {
        if self.pace.is_limited() {
            self.pace.step_back();
        }
        let mut buffer = Vec::new();
        for task in &self.tasks {
            let read = self.read(&task, &mut buffer);
            if self.done.send(Done { task, read }).is_err() {
                return;
            }
        }
    }

    fn read(&self, task: &Task, buffer: &mut Vec<u8>) -> Result<(Leased, ObjectId, u64), GaveUp> {
        let member = self.members.get(task.file.root).ok_or(GaveUp::Failed)?;
        let leased = lease(&member.upper, task.file.clone())?;
        self.keeper.watch(&leased.lease);
        let (id, blocks) = hash(&leased, buffer, self.pace)?;
        Ok((leased, id, blocks))
    }
}

/// Readers for a pace: one where others are to be left alone.
pub(super) fn count(pace: &Pace) -> usize {
    if pace.is_limited() {
        return 1;
    }
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST)
}

/// More of them wait for one disk.
const MOST: usize = 8;

// Leases go from thread to thread.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Arc<crate::sys::lease::ReadLease>>();
};
