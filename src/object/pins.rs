//! Pins: what running imports rely on, so that no sweep removes it under them.
//!
//! Each import appends digests to its own file while it holds the pin lock shared; a sweep
//! reads all of them and removes a batch while it holds it exclusively. The lock is a flock
//! on `staging/` itself. Pins protect against other processes only, so they need not survive
//! a power cut, and a torn last line belongs to a dead import.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{Dir, FileType, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::{Errno, retry_on_intr};

use super::ObjectId;
use crate::sys::sparse::read_full;

/// Name of the pin file in a staging directory.
pub(super) const PINS: &str = "pins";

/// Bytes of one line: 64 digits and a line feed.
const LINE_BYTES: usize = 65;

/// The lock between imports and sweeps. Taken last; only short system calls are made under it.
pub(super) struct PinLock {
    staging: Mutex<OwnedFd>,
}

impl PinLock {
    /// `staging` is a descriptor of `staging/` that nothing else locks.
    pub(super) fn new(staging: OwnedFd) -> Self {
        Self { staging: Mutex::new(staging) }
    }

    /// Keeps sweeps away while the guard lives.
    pub(super) fn shared(&self) -> io::Result<PinGuard<'_>> {
        self.acquire(FlockOperation::LockShared)
    }

    /// Keeps imports from pinning while the guard lives.
    pub(super) fn exclusive(&self) -> io::Result<PinGuard<'_>> {
        self.acquire(FlockOperation::LockExclusive)
    }

    fn acquire(&self, operation: FlockOperation) -> io::Result<PinGuard<'_>> {
        let staging = self.staging.lock();
        retry_on_intr(|| flock(&*staging, operation))?;
        Ok(PinGuard { staging })
    }
}

/// The pin lock, held.
pub(super) struct PinGuard<'a> {
    staging: MutexGuard<'a, OwnedFd>,
}

impl Drop for PinGuard<'_> {
    fn drop(&mut self) {
        // A lock this descriptor holds can always be released.
        let unlocked = flock(&*self.staging, FlockOperation::Unlock);
        debug_assert!(unlocked.is_ok(), "{unlocked:?}");
    }
}

/// The lines that pin `ids`.
pub(super) fn lines(ids: impl Iterator<Item = ObjectId>) -> String {
    let mut text = String::new();
    for id in ids {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{id}");
    }
    text
}

/// Everything that any import has pinned, as far as read.
#[derive(Default)]
pub(super) struct Pinned {
    ids: HashSet<ObjectId>,
    /// Bytes already read of each pin file, by staging directory.
    read: HashMap<CString, u64>,
    /// Staging directories whose pins do not count.
    ignored: HashSet<CString>,
}

impl Pinned {
    /// Nothing read yet; pins in the `ignored` staging directories will not count.
    pub(super) fn ignoring(ignored: HashSet<CString>) -> Self {
        Self { ignored, ..Self::default() }
    }

    pub(super) fn contains(&self, id: &ObjectId) -> bool {
        self.ids.contains(id)
    }

    /// Reads what was appended since the last time. A pin once read counts on.
    pub(super) fn refresh(&mut self, staging: BorrowedFd<'_>) -> io::Result<()> {
        for name in subdirectories(staging)? {
            if self.ignored.contains(&name) {
                continue;
            }
            let path = [name.as_bytes(), b"/", PINS.as_bytes()].concat();
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = match openat(staging, path.as_slice(), flags, Mode::empty()) {
                Ok(file) => file,
                // Finished since, or not yet that far.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let offset = self.read.entry(name).or_insert(0);
            *offset += read_pins(file.as_fd(), *offset, &mut self.ids)?;
        }
        Ok(())
    }
}

/// Reads whole lines from `offset` on; returns their length in bytes.
fn read_pins(file: BorrowedFd<'_>, offset: u64, ids: &mut HashSet<ObjectId>) -> io::Result<u64> {
    let mut buffer = vec![0; 1024 * LINE_BYTES];
    let mut done = 0;
    loop {
        let filled = read_full(file, &mut buffer, offset + done)?;
        let whole = filled / LINE_BYTES * LINE_BYTES;
        for line in buffer[..whole].chunks(LINE_BYTES) {
            let id = std::str::from_utf8(&line[..LINE_BYTES - 1])
                .ok()
                .and_then(|l| l.parse::<ObjectId>().ok());
            // A line that is no digest pins nothing.
            ids.extend(id);
        }
        done += u64::try_from(whole).map_err(|_| Errno::OVERFLOW)?;
        if filled < buffer.len() {
            return Ok(done);
        }
    }
}

/// Names of the directories in `dir`, in no order.
pub(super) fn subdirectories(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_dir = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if is_dir && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
