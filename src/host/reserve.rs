//! Roots that are not mounted yet: those of containers, from the moment they are created.
//!
//! The record counts as a reference, so a template is not deleted under a container that was
//! never started, and the private layer is bound to the stack that the template names now.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::error::HostError;
use super::roots::{NewRoot, RootRecord, Roots};
use super::store::Store;
use super::{mountpoint, referred, templates};
use crate::control::Client;
use crate::layer::{Layers, Template};
use crate::object::ObjectId;
use crate::private::PrivateLayer;
use crate::sys::descent::{Found, walk};
use crate::sys::durable::sync_file_system;

/// How often a frozen root is told that it is still needed so.
const KEEP_FROZEN: Duration = Duration::from_secs(5);

/// Where a reserved root keeps, and will keep, its changes.
#[derive(Debug, Clone, Copy)]
pub struct Reservation<'a> {
    /// What to call the root.
    pub name: &'a str,
    /// Where its private directory is now.
    pub private: &'a Path,
    /// Where that will be when the root is mounted.
    pub future: &'a Path,
    /// Where it will be mounted.
    pub mountpoint: &'a Path,
}

/// Binds a new or empty private directory to the present stack of `template` and registers the
/// root, unmounted.
///
/// # Errors
/// [`super::RootError::NameTaken`], and what a private layer says of a directory that it cannot be;
/// nothing is registered then.
pub fn reserve(
    store: &Store,
    template: &Template,
    wanted: Reservation<'_>,
) -> Result<RootRecord, HostError> {
    let roots = Roots::open(store)?;
    let locked = roots.lock()?;
    // The template may have gone while its reader had no lock.
    templates::find(&Layers::open(store.path())?, &template.name.to_string())?;
    let new = NewRoot {
        name: Some(wanted.name.to_owned()),
        template: template.name.clone(),
        stack: template.stack.clone(),
        private: Some(wanted.future.to_owned()),
        mountpoint: wanted.mountpoint.to_owned(),
    };
    let (record, socket) = locked.register(new)?;
    drop(socket);
    match PrivateLayer::open(wanted.private, &template.stack) {
        Ok(_bound) => {
            locked.detach(&record)?;
            Ok(RootRecord { mount: None, ..record })
        }
        Err(error) => {
            locked.remove(&record)?;
            Err(error.into())
        }
    }
}

/// Makes the private directory of another root out of the changes in `from` as they are at one
/// moment, bound to the same stack, and registers it. One that is mounted is frozen meanwhile; who
/// writes to files that it has open already must stand still too, which is the caller's to see to.
///
/// # Errors
/// As [`reserve`]; [`HostError::System`] for what could not be copied.
pub fn copy(store: &Store, from: &Path, wanted: Reservation<'_>) -> Result<RootRecord, HostError> {
    let source = of(store, from)?;
    // Before anything stands still; what is made meanwhile is found when cp(1) gives up.
    can_be_named(from, wanted.private)?;
    let mut still = Still::hold(&source, from)?;
    copy_tree(from, wanted.private, &mut still)?;
    let roots = Roots::open(store)?;
    let refers: HashSet<ObjectId> =
        referred::of_record(&roots, &source)?.chain(referred::of_private(from)?).collect();
    let locked = roots.lock()?;
    let new = NewRoot {
        name: Some(wanted.name.to_owned()),
        template: source.template,
        stack: source.stack,
        private: Some(wanted.future.to_owned()),
        mountpoint: wanted.mountpoint.to_owned(),
    };
    let (mut record, socket) = locked.register(new)?;
    // What may be shared of the one may be shared of the other; written with the next step.
    record.reshare = source.reshare;
    drop(socket);
    // Before the first one changes: what only the copy refers to then would be nobody's.
    let noted = referred::note(&roots, &record, refers.into_iter());
    if let Err(error) = noted.and_then(|()| still.release()) {
        locked.remove(&record)?;
        return Err(error);
    }
    locked.detach(&record)?;
    Ok(RootRecord { mount: None, ..record })
}

/// A private directory that nobody changes by way of its root.
enum Still {
    /// Not mounted, and kept from being mounted.
    Locked(#[allow(dead_code, reason = "held for its lock")] PrivateLayer),
    /// Mounted, and frozen until the connection ends.
    Frozen(Client),
}

impl Still {
    fn hold(root: &RootRecord, private: &Path) -> Result<Self, HostError> {
        let Some(mut client) = root.living() else {
            return Ok(Self::Locked(PrivateLayer::open(private, &root.stack)?));
        };
        if let Some(mount) = &root.mount {
            // What mappings of cached files hold goes to the private directory.
            sync_file_system(&mount.mountpoint)
                .map_err(HostError::system("write back", &mount.mountpoint))?;
        }
        client.freeze()?;
        Ok(Self::Frozen(client))
    }

    /// Says that it is still needed.
    fn keep(&mut self) -> Result<(), HostError> {
        match self {
            Self::Locked(_) => Ok(()),
            Self::Frozen(client) => Ok(client.status().map(drop)?),
        }
    }

    fn release(self) -> Result<(), HostError> {
        match self {
            Self::Locked(_) => Ok(()),
            Self::Frozen(mut client) => Ok(client.thaw()?),
        }
    }
}

/// Copies a private directory with everything a file there can have: by cp(1), which every host
/// has and which knows reflinks, holes, links and extended attributes.
fn copy_tree(from: &Path, to: &Path, still: &mut Still) -> Result<(), HostError> {
    let mut source = from.as_os_str().to_owned();
    source.push("/.");
    let mut copy = Command::new("cp");
    // Not --archive, which is silent about attributes that it could not copy.
    copy.args(["-dR", "--preserve=mode,ownership,timestamps,links,xattr", "--reflink=auto"]);
    copy.args(["--sparse=auto", "--no-target-directory", "--"]);
    copy.arg(&source).arg(to).env("LC_ALL", "C");
    let output = std::thread::scope(|scope| {
        let (done, ended) = mpsc::channel();
        let copying = scope.spawn(move || {
            let output = copy.output();
            // Who waits is told by the end of the channel all the same.
            let _told = done.send(());
            output
        });
        let mut kept = Ok(());
        while ended.recv_timeout(KEEP_FROZEN) == Err(RecvTimeoutError::Timeout) {
            if kept.is_ok() {
                kept = still.keep();
            }
        }
        let lost = |_| Err(io::ErrorKind::Interrupted.into());
        let output = copying.join().unwrap_or_else(lost);
        kept.map(|()| output)
    })?;
    let output = output.map_err(HostError::system("run cp for", from))?;
    if output.status.success() {
        return Ok(());
    }
    can_be_named(from, to)?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(HostError::system("copy", from)(io::Error::other(said)))
}

/// Refuses what cp(1) cannot copy from one directory to the other: it goes by whole paths.
fn can_be_named(from: &Path, to: &Path) -> Result<(), HostError> {
    /// `PATH_MAX`, with the NUL at the end.
    const LONGEST_BYTES: usize = 4096;
    let failed = HostError::system("copy", from);
    // cp(1) gets `from` with two bytes more.
    let ends = (from.as_os_str().len() + 2).max(to.as_os_str().len());
    let visit = &mut |found: &Found<'_>| {
        let within = found.path.strip_prefix(from).unwrap_or(found.path);
        if ends + 1 + within.as_os_str().len() < LONGEST_BYTES {
            return Ok(true);
        }
        let start: PathBuf = within.iter().take(4).collect();
        Err(io::Error::other(format!(
            "the container has a path of {} bytes, below {}, which is longer than the kernel lets \
             it be copied to another place; remove or move what lies that deep, and copy again",
            within.as_os_str().len(),
            start.display()
        )))
    };
    walk(from, visit).map_err(failed)
}

/// Takes over the root whose changes are in `private`, made by hand: it is registered if it is
/// not, and gets the name `name`.
///
/// # Errors
/// [`HostError::PrivateInUse`] while it is mounted, [`HostError::OtherTemplate`] for one of another
/// stack, and what a private layer says of a directory that it cannot be.
pub fn adopt(
    store: &Store,
    template: &Template,
    name: &str,
    private: &Path,
    mountpoint: &Path,
) -> Result<RootRecord, HostError> {
    let private = mountpoint::future_path(private)?;
    let roots = Roots::open(store)?;
    let known =
        roots.list()?.into_iter().find(|record| record.private.as_deref() == Some(&private));
    let Some(mut record) = known else {
        let wanted = Reservation { name, private: &private, future: &private, mountpoint };
        return reserve(store, template, wanted);
    };
    let locked = roots.lock()?;
    if let Some(mount) = &record.mount
        && record.living().is_some()
    {
        let mountpoint = mount.mountpoint.clone();
        return Err(HostError::PrivateInUse { private, name: record.name, mountpoint });
    }
    if record.stack != template.stack {
        return Err(HostError::OtherTemplate {
            private,
            name: record.name,
            bound: record.template,
            wanted: template.name.to_string(),
        });
    }
    locked.rename(&mut record, name)?;
    record.mount = None;
    locked.write(&record)?;
    Ok(record)
}

/// Gives the root whose changes are in `private` another name; one that nobody registered has none.
///
/// # Errors
/// [`super::RootError::NameTaken`].
pub fn rename(store: &Store, private: &Path, name: &str) -> Result<(), HostError> {
    let roots = Roots::open(store)?;
    let locked = roots.lock()?;
    let known = roots.list()?.into_iter().find(|record| record.private.as_deref() == Some(private));
    if let Some(mut record) = known {
        locked.rename(&mut record, name)?;
        locked.write(&record)?;
    }
    Ok(())
}

/// Takes away the record of the unmounted root whose changes are, or were, in `private`.
///
/// # Errors
/// [`HostError::RootMounted`].
pub fn release(store: &Store, private: &Path) -> Result<(), HostError> {
    let roots = Roots::open(store)?;
    let locked = roots.lock()?;
    for record in roots.list()? {
        if record.private.as_deref() != Some(private) {
            continue;
        }
        if let Some(mount) = &record.mount
            && record.living().is_some()
        {
            let mountpoint = mount.mountpoint.clone();
            return Err(HostError::RootMounted { name: record.name, mountpoint });
        }
        locked.remove(&record)?;
    }
    Ok(())
}

/// The root whose changes are in `private`.
///
/// # Errors
/// [`super::RootError::Unknown`].
pub fn of(store: &Store, private: &Path) -> Result<RootRecord, HostError> {
    Ok(Roots::open(store)?.find(OsStr::new(private))?)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};

    use super::*;

    #[test]
    fn what_is_too_deep_to_be_copied_is_refused_before_and_says_where_it_is() {
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let to = Path::new("/var/tmp/elsewhere");
        let mut dir = rustix::fs::open(scratch.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for level in 0..2100 {
            if level == 1900 {
                can_be_named(scratch.path(), to).unwrap();
            }
            mkdirat(&dir, c"d", Mode::RWXU).unwrap();
            dir = openat(&dir, c"d", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let error = can_be_named(scratch.path(), to).unwrap_err();
        let said = crate::host::sentence(&error);
        assert!(said.contains("below d/d/d/d, which is longer"), "{said}");
        let removed = Command::new("rm").arg("-rf").arg(scratch.path()).status().unwrap();
        assert!(removed.success());
    }
}
