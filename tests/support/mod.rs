//! What the whole-journey tests share: scratch directories, disks in files, stores, mounts.
//!
//! Each is a guard that undoes its work when dropped, also when the test panicked, so that a red
//! test leaves no mount, loop device or process behind. Knows nothing of any one journey.

// Every test binary takes its own part of this.
#![allow(dead_code, unused_imports)]

mod command;
mod debian;
mod disk;
mod forge;
pub(crate) mod library;
mod mounted;
mod patience;
mod power;
mod scratch;
mod seed;
mod snapshot;
mod steps;
mod workshop;

pub(crate) use command::{Succeed, mica, require_root, while_nobody_starts};
pub(crate) use debian::debian;
pub(crate) use disk::{Disk, DiskFormat};
pub(crate) use forge::{Forge, pax_records};
pub(crate) use mounted::{MountOptions, Mounted, Store};
pub(crate) use patience::{PATIENCE, again_until};
pub(crate) use power::{LogFlush, ignore_syncs, shut_down};
pub(crate) use scratch::{Scratch, is_mountpoint, unmount_beneath};
pub(crate) use seed::{seed, seeds};
pub(crate) use snapshot::{Described, Snapshot, assert_same, snapshot};
pub(crate) use steps::Step;
pub(crate) use workshop::{Heard, Workshop};
