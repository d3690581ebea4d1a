//! Immutable objects, named by the digest of their content.
//!
//! ```text
//! STORE/objects/ab/cdef…       content, 0444, immutable where the host file system can
//! STORE/quarantine/<digest>    objects that a scrub found damaged
//! STORE/staging/<import>/      unfinished objects of one import; its flock says: alive
//! STORE/staging/<import>/pins  the digests that this import relies on, one a line
//! ```
//! [`Objects`] and [`Staging`] write, [`Sweep`] removes, [`ObjectReader`] is all that a mount
//! process ever sees: it cannot reach an object for writing.
//!
//! Knows nothing of paths, layers or FUSE. After a crash every published object is whole; a
//! staged one is removed by the next sweep. Format: docs/FORMAT.md, "Store".

mod content;
mod error;
mod id;
mod pins;
mod publish;
mod put;
mod reader;
mod scrub;
mod staging;
mod store;
mod survey;
mod sweep;
#[cfg(test)]
mod tests;

pub use content::Reading;
pub use error::ObjectError;
pub use id::{Digest, DigestError, ObjectId, identify};
pub use publish::Published;
pub use put::{Put, ReadSparse, next_piece};
pub use reader::{CopyOut, ObjectFile, ObjectReader};
pub use scrub::{Damage, DiskReader, Examined, Suspect};
pub use staging::Staging;
pub use store::{Objects, Stored, Verdict};
pub use survey::{Survey, Surveyed};
pub use sweep::{Sweep, Swept};

/// The locks, beside the types, that keep an object from being written (docs/ARCHITECTURE.md,
/// "the one law").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locks {
    /// Objects are opened through a detached read-only clone of their mount.
    pub readonly_mount: bool,
    /// Objects carry the immutable flag of the host file system.
    pub immutable: bool,
}

impl Locks {
    /// Every lock that the host allows: the only setting outside of tests.
    pub const ALL: Self = Self { readonly_mount: true, immutable: true };
}

/// A place where the crash tests kill the process; nothing outside of tests.
#[inline]
pub(crate) fn crash_point(point: &'static str) {
    #[cfg(test)]
    tests::die_at(point);
    #[cfg(not(test))]
    let _nowhere_else = point;
}
