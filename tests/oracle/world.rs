//! What carries out a history and what can be seen of it afterwards.
//!
//! A world is a tree plus the handles that the history holds open in it: a directory of the
//! host, a mount, the in-memory model, or `fs` without a kernel. Knows nothing of comparing.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::operation::{Place, Step};

/// Open file slots of a world.
pub(crate) const HANDLES: usize = 6;
/// Mapping slots of a world.
pub(crate) const MAPS: usize = 3;
/// Directory listing slots of a world.
pub(crate) const LISTINGS: usize = 3;

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    Character,
    Block,
}

/// A time as far as two worlds can agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Set by somebody, or brought by a layer.
    Set(i64, u32),
    /// Stamped by the file system since the history began.
    Now,
}

/// What one world shows of one file. `PartialEq` compares what two worlds must agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) kind: Kind,
    /// Permission, setuid, setgid and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u64,
    /// Bytes; `None` for a directory, whose size means nothing.
    pub(crate) size: Option<u64>,
    /// Major and minor, for devices.
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) mtime: Moment,
    /// Target of a symbolic link.
    pub(crate) target: Option<Vec<u8>>,
    /// `None` when it was not asked for.
    pub(crate) xattrs: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// `None` when it was not asked for, or not a regular file.
    pub(crate) content: Option<Vec<u8>>,
}

/// Which file it is, for as long as it lives. Not comparable between worlds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity {
    /// st_ino.
    pub(crate) inode: u64,
    /// Tells two files apart that had one number after each other; 0 where the world has none.
    pub(crate) generation: u64,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// `lstat` and `readlink`.
    Stat,
    /// And extended attributes.
    Xattrs,
    /// And the content of regular files.
    Content,
}

/// What a call answered when it did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Count(u64),
    Bytes(Vec<u8>),
    /// Sorted; `.` and `..` left out.
    Names(BTreeMap<Vec<u8>, Kind>),
    /// In the order read, and not for equality between worlds: see `drive`.
    Listed(Vec<Vec<u8>>),
    Seen(Box<Observation>),
    /// The world broke a rule by itself; the text says which.
    Broken(String),
}

/// What a call answered.
pub(crate) type Outcome = Result<Answer, Errno>;

/// Something that carries out steps.
pub(crate) trait World {
    /// Carries out one step.
    fn apply(&mut self, step: &Step) -> Outcome;

    /// Looks at the file at a place, not following a final symbolic link.
    fn observe(&mut self, place: &Place, look: Look) -> Result<(Observation, Identity), Errno>;

    /// Names in a directory, with the kind and the inode number that the listing shows.
    fn names(&mut self, place: &Place) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Errno>;

    /// The file that a handle is open on.
    fn identity(&mut self, slot: usize) -> Option<Identity>;

    /// The file at a place, through a final symbolic link.
    fn identity_at(&mut self, place: &Place) -> Option<Identity>;

    /// Closes every handle, map and listing.
    fn close_all(&mut self);
}
