//! The root of a container: its mount process.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::hurry::{Hurry, Waited};
use super::{Driver, watch};
use crate::host::disk_limit::Tree;
use crate::host::launch::{self, MountSpec};
use crate::host::options::GenericOptions;
use crate::host::roots::RootError;
use crate::host::unmount::{self, Unmounted};
use crate::host::{HostError, Roots, reserve};
use crate::node::registry::Recorded;
use crate::node::{NodeError, sharing};

/// How long a mount process may take to have everything on the disk once its root is gone.
const COURTESY: Duration = Duration::from_secs(5);

impl Driver {
    /// Mounts the root of a container; answers a descriptor that tells when its process ends.
    pub(super) fn mount(&self, recorded: &Recorded) -> Result<OwnedFd, NodeError> {
        self.grow_disk(recorded, false)?;
        self.mount_disk(recorded)?;
        let disk_bytes = self.left_to_the_mount(recorded, Tree::AtRest)?;
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
            disk_bytes,
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

    /// Unmounts the root of a container; not mounted is fine.
    ///
    /// Nobody of the container's is left by then. Who looks at the root from outside does not keep
    /// it, nor does another mount namespace that has a copy of it: they see a root that is gone.
    pub(super) fn unmount(&self, recorded: &Recorded) -> Result<(), NodeError> {
        let record = match reserve::of(&self.store, &self.private(recorded)) {
            Err(HostError::Root(RootError::Unknown { .. })) => return Ok(()),
            record => record?,
        };
        let process = self.find_mount(recorded)?;
        let roots = Roots::open(&self.store)?;
        let mut done = unmount::unmount_root(&roots, &record, true);
        let ended = matches!(done, Ok(Unmounted::Ended) | Err(HostError::NotMounted { .. }));
        if let Some(process) = process.filter(|_| !ended)
            && Hurry::default().wait(&process, COURTESY) == Waited::Impatient
        {
            tracing::info!(container = %recorded.config.name, "its root is held by another mount namespace, and is ended");
            // It may have ended this very moment.
            let _killed = pidfd_send_signal(&process, Signal::KILL);
            if Hurry::default().wait(&process, COURTESY) == Waited::Ended {
                done = unmount::unmount_root(&roots, &record, true);
            }
        }
        self.children.reap();
        match done {
            Ok(_) | Err(HostError::NotMounted { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
