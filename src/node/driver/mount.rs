//! The root of a container: its mount process.

use std::os::fd::OwnedFd;

use super::{Driver, watch};
use crate::host::launch::{self, MountSpec};
use crate::host::options::GenericOptions;
use crate::host::roots::RootError;
use crate::host::{HostError, Roots, reserve, unmount};
use crate::node::registry::Recorded;
use crate::node::{NodeError, sharing};

impl Driver {
    /// Mounts the root of a container; answers a descriptor that tells when its process ends.
    pub(super) fn mount(&self, recorded: &Recorded) -> Result<OwnedFd, NodeError> {
        let spec = MountSpec {
            store: self.store.path().to_owned(),
            template: recorded.config.template.clone(),
            mountpoint: self.places(recorded).root(),
            private: Some(self.private(recorded)),
            name: Some(recorded.config.name.to_string()),
            passthrough: true,
            shared_paths: None,
            fsname: None,
            unheard: false,
            disk_bytes: recorded.config.limits.disk_bytes,
            generic: GenericOptions::default(),
        };
        self.allow_sharing(recorded)?;
        let ready = launch::start(&self.program, &spec)?;
        self.children.add(ready.pid);
        for note in &ready.notes {
            tracing::info!(container = %recorded.config.name, note, "mounted");
        }
        watch(ready.pid)
    }

    /// Lets the root share with whom the container's settings say, from now on.
    ///
    /// # Errors
    /// Why that cannot be noted.
    pub fn allow_sharing(&self, recorded: &Recorded) -> Result<(), NodeError> {
        sharing::allow(&self.store, &self.private(recorded), recorded.config.reshare)
    }

    /// The mount process of a container that runs; none if the root is not mounted.
    pub(super) fn find_mount(&self, recorded: &Recorded) -> Result<Option<OwnedFd>, NodeError> {
        let record = reserve::of(&self.store, &self.private(recorded))?;
        let Some(client) = record.living() else { return Ok(None) };
        let pid = client.peer().map_err(HostError::from)?;
        Ok(watch(pid.as_raw_pid().unsigned_abs()).ok())
    }

    /// Holds the private files of a mounted root to their size. Answers what of it does not hold.
    pub(super) fn limit_disk(&self, recorded: &Recorded) -> Result<Option<String>, NodeError> {
        let record = reserve::of(&self.store, &self.private(recorded))?;
        let wanted = recorded.config.limits.disk_bytes;
        let Some(mut client) = record.living() else { return Ok(None) };
        if client.disk_use().map_err(HostError::from)?.limit_bytes == wanted {
            return Ok(None);
        }
        let told = client.limit_disk(wanted).map_err(HostError::from)?;
        Ok((wanted.is_some() && told.unheld_files > 0).then(|| {
            format!(
                "{} files are still written by descriptors or mappings from before the limit; it \
                 holds for them once those are closed",
                told.unheld_files
            )
        }))
    }

    /// Unmounts the root of a container; not mounted is fine.
    pub(super) fn unmount(&self, recorded: &Recorded) -> Result<(), NodeError> {
        let record = match reserve::of(&self.store, &self.private(recorded)) {
            Err(HostError::Root(RootError::Unknown { .. })) => return Ok(()),
            record => record?,
        };
        let roots = Roots::open(&self.store)?;
        let done = match unmount::unmount_root(&roots, &record, false) {
            // Somebody looks at it from outside: it goes with its last user.
            Err(HostError::MountpointBusy { .. }) => unmount::unmount_root(&roots, &record, true),
            done => done,
        };
        self.children.reap();
        match done {
            Ok(_) | Err(HostError::NotMounted { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
