//! Unmounting a root from outside its mount process, and waiting for that to end.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::error::HostError;
use super::roots::{RootError, RootRecord, Roots};
use super::store::Store;
use super::{mount_table, mountpoint};
use crate::control::Client;

/// How long to wait for an unmounted root's process to end: it has everything on disk by
/// then, unless another mount namespace still uses the root.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// The same for a root that may have users: long enough for one that has none.
const PATIENCE_WITH_USERS: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How long to wait for a process whose root somebody else unmounted a moment ago.
const COURTESY: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

/// How long a mount process may take to say how it is.
const QUICK: Duration = Duration::from_millis(500);

/// How an unmount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// The process has ended; the root can be mounted again.
    Ended,
    /// The root left the tree here, and its process goes on: it still has users.
    StillUsed,
}

/// Unmounts the root that `wanted` means: a name, a mountpoint or a private directory.
///
/// A mount of Mica's that is no root of `store` (or when there is none) is unmounted by its
/// mountpoint. A root whose process died is detached.
///
/// # Errors
/// [`HostError::MountpointBusy`] unless `detach`, [`HostError::NotMounted`],
/// [`RootError::Unknown`].
pub fn unmount(
    store: Option<&Store>,
    wanted: &OsStr,
    detach: bool,
) -> Result<Unmounted, HostError> {
    let found = match store {
        Some(store) => {
            let roots = Roots::open(store)?;
            match roots.find(wanted) {
                Ok(record) => return unmount_root(&roots, &record, detach),
                Err(error @ RootError::Unknown { .. }) => Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        None => None,
    };
    let not_mounted = || HostError::NotMounted { wanted: wanted.to_string_lossy().into_owned() };
    let unknown = || found.map_or_else(not_mounted, HostError::from);
    let Ok(path) = mount_table::canonical(Path::new(wanted)) else { return Err(unknown()) };
    let there = mount_table::at(&path).map_err(HostError::system("look up", &path))?;
    if !there.is_some_and(|entry| entry.is_mica()) {
        return Err(unknown());
    }
    if mountpoint::is_dead_mount(&path) {
        mountpoint::clear_dead(&path)?;
    } else {
        mountpoint::unmount(&path, None, detach)?;
    }
    Ok(Unmounted::Ended)
}

/// Unmounts a registered root.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_root(
    roots: &Roots,
    record: &RootRecord,
    detach: bool,
) -> Result<Unmounted, HostError> {
    let not_mounted = || HostError::NotMounted { wanted: record.name.clone() };
    let Some(mount) = &record.mount else { return Err(not_mounted()) };
    if let Some(mut client) = record.living() {
        let process = watch(&client)?;
        client.stop(detach)?;
        let patience = if detach { &PATIENCE_WITH_USERS } else { &PATIENCE };
        return wait(process.as_ref(), patience);
    }
    // Dead: the record and perhaps the mount are what is left of it.
    mountpoint::clear_dead(&mount.mountpoint)?;
    let locked = roots.lock()?;
    match roots.find(OsStr::new(&record.name)) {
        Ok(now) if now == *record => locked.detach(&now)?,
        // Mounted again, or gone, in the meantime.
        _changed => {}
    }
    Ok(Unmounted::Ended)
}

/// A descriptor that tells when the process behind `client` ends; `None` if it has.
fn watch(client: &Client) -> Result<Option<OwnedFd>, HostError> {
    let pid = client.peer()?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(errno) => Err(HostError::system("watch", "the mount process")(errno)),
    }
}

fn wait(process: Option<&OwnedFd>, patience: &Timespec) -> Result<Unmounted, HostError> {
    let Some(process) = process else { return Ok(Unmounted::Ended) };
    let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    let ended = rustix::io::retry_on_intr(|| poll(&mut fds, Some(patience)))
        .map_err(io::Error::from)
        .map_err(HostError::system("wait for", "the mount process"))?;
    Ok(if ended > 0 { Unmounted::Ended } else { Unmounted::StillUsed })
}

/// Waits a moment for mount processes that are about to end, because their root was
/// unmounted by umount(8): until they have, their records say they are mounted.
///
/// Not to be called with the registry locked: they take their records back under its lock.
///
/// # Errors
/// When the registry cannot be read.
pub fn let_end(roots: &Roots) -> Result<(), HostError> {
    // Read once: the table is as long as there are roots. The last one mounted at a place counts.
    let table = mount_table::read().unwrap_or_default();
    let here: HashMap<&Path, bool> =
        table.iter().map(|entry| (entry.mountpoint.as_path(), entry.is_mica())).collect();
    for record in roots.list()? {
        let Some(mount) = &record.mount else { continue };
        // What is in the tree here needs no question.
        if here.get(mount.mountpoint.as_path()).copied().unwrap_or(false) {
            continue;
        }
        let Some(mut client) = record.living() else { continue };
        let process = watch(&client)?;
        client.set_patience(QUICK)?;
        let ending = match client.status() {
            Ok(status) => !status.mounted,
            // Silent: still on its way to a mount.
            Err(error) => error.is_hang_up(),
        };
        if ending {
            wait(process.as_ref(), &COURTESY)?;
        }
    }
    Ok(())
}
