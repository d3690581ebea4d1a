//! Bringing private files back together: what containers hold alike becomes one object.
//!
//! Candidates are found by size, then by a sample of their ends, then by their whole content,
//! which is read under a lease: while that holds nobody has written. A mounted root replaces its
//! files itself, told over its control socket; the directory of one at rest is locked and
//! changed by the same code. Nothing that a cut leaves harms: a root shows its own file or the
//! object with the same bytes, and a second run does the rest.

mod apply;
mod background;
mod candidates;
mod content;
mod keeper;
mod readers;
mod run;
mod sift;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use crate::host::pace::Pace;
pub use background::{Background, Rhythm};
pub use run::reshare;

use super::roots::{ResharePolicy, RootRecord};
use crate::layer::import::Excludes;
use crate::union::SharedSet;
use crate::union::upper::Upper;

/// Files shorter than this are left alone, in bytes: a reference takes as much.
pub const LEAST_BYTES: u64 = 4096;

/// What to share, and how.
pub struct Wanted<'a> {
    /// The roots; those without a private directory are passed over.
    pub roots: Vec<RootRecord>,
    /// Paths that are left alone.
    pub exclude: Excludes,
    /// Leave alone what has changed more lately than this.
    pub least_age: Option<Duration>,
    /// Find out what would be won, and change nothing.
    pub dry_run: bool,
    /// How fast, and until when.
    pub pace: &'a Pace,
}

/// What a run did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Files that are references now.
    pub files: u64,
    /// Bytes of the disk that became free, less what new objects take. What somebody still has
    /// open becomes free with its last close.
    pub disk_bytes: i64,
    /// Bytes of private files that were in memory, less what new objects take there.
    pub memory_bytes: i64,
    /// Objects that were not in the store before.
    pub new_objects: u64,
    /// Their length together.
    pub new_bytes: u64,
    /// Bytes that were read under a lease and hashed.
    pub hashed_bytes: u64,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
    /// Whether it was ended before its end.
    pub interrupted: bool,
    /// What was left alone, and why.
    pub skipped: Skipped,
    /// Each root that something was done in, or could not be.
    pub roots: BTreeMap<String, RootReport>,
}

/// What was done in one root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RootReport {
    /// Files that are references now.
    pub files: u64,
    /// Bytes of the disk that its private directory no longer takes.
    pub disk_bytes: u64,
    /// Bytes of those files that were in memory.
    pub memory_bytes: u64,
    /// Why nothing, or not all, was done.
    pub notes: Vec<String>,
}

/// What was left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Private files that were looked at, these among them.
    pub files: u64,
    /// Shorter than [`LEAST_BYTES`].
    pub small: u64,
    /// Nearly all hole: to hash them takes more than they do.
    pub sparse: u64,
    /// Paths that are excluded, with what lies below.
    pub excluded: u64,
    /// Directories of a container inside, with what lies below.
    pub nested: u64,
    /// With several names.
    pub linked: u64,
    /// Changed a short while ago.
    pub young: u64,
    /// Open for writing, or wanted by a writer meanwhile.
    pub in_use: u64,
    /// Changed or replaced meanwhile.
    pub changed: u64,
    /// Damaged, or not to be read.
    pub unreadable: u64,
}

/// A root that takes part.
struct Member {
    record: RootRecord,
    private: PathBuf,
    policy: ResharePolicy,
    upper: Upper,
    shared: SharedSet,
    /// What `shared` was made of.
    patterns: Vec<String>,
}
