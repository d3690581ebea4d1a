//! How much a container's private files may take, and who holds them to it: an image that is their
//! disk, the host's file system where it can, or the mount.
//!
//! An image is mounted as long as there is a daemon that knows the container, running or not: what
//! is in it is looked at (`diff`), shared and counted like any other private directory.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant};

use super::Driver;
use crate::container::config::{ContainerConfig, ContainerId, bytes};
use crate::host::disk_limit::{HeldBy, Tree};
use crate::host::{HostError, disk_image, disk_limit, reserve};
use crate::node::NodeError;
use crate::node::registry::{Places, Recorded};

/// How long the kernel may take to let go of the files of a root that was unmounted.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked.
const EVERY: Duration = Duration::from_millis(10);

/// Makes the place for a new container's private files: a directory that the host can limit, or an
/// image, mounted.
pub(in crate::node) fn make(places: &Places, config: &ContainerConfig) -> Result<(), NodeError> {
    if config.private.is_some() {
        return Ok(());
    }
    let private = places.private(config);
    let Some(bytes) = config.limits.disk_bytes.filter(|_| config.disk_image) else {
        return Ok(disk_limit::prepare(&private)?);
    };
    disk_image::create(&places.image(), bytes)?;
    let mounted = disk_image::mount(&places.image(), &places.disk()).map_err(NodeError::from);
    mounted
        .and_then(|()| {
            let made = DirBuilder::new().mode(0o700).create(&private);
            made.map_err(NodeError::system("make", &private))
        })
        .inspect_err(|_| leave(places))
}

/// Takes away what would keep a container's directory from being removed.
pub(in crate::node) fn leave(places: &Places) {
    if let Err(error) = disk_image::detach(&places.disk()) {
        tracing::warn!(error = %crate::host::sentence(&error), "a disk image stays mounted");
    }
}

/// The number of a container's project quota: of all a host's containers hardly two begin alike.
fn project(id: &ContainerId) -> u32 {
    let digits = id.as_str().get(..8).unwrap_or_default();
    u32::from_str_radix(digits, 16).unwrap_or_default().max(1)
}

impl Driver {
    /// Mounts the image of a container that has one; mounted is fine.
    ///
    /// # Errors
    /// What mount(8) says.
    pub fn mount_disk(&self, recorded: &Recorded) -> Result<(), NodeError> {
        if !recorded.config.disk_image {
            return Ok(());
        }
        let places = self.places(recorded);
        Ok(disk_image::mount(&places.image(), &places.disk())?)
    }

    /// Has the host hold a container to its size; answers the limit that is left to the mount.
    pub(super) fn left_to_the_mount(
        &self,
        recorded: &Recorded,
        tree: Tree,
    ) -> Result<Option<u64>, NodeError> {
        let config = &recorded.config;
        if config.disk_image {
            return Ok(None);
        }
        let bytes = config.limits.disk_bytes;
        Ok(match disk_limit::limit(&self.private(recorded), bytes, project(&config.id), tree)? {
            HeldBy::Qgroup | HeldBy::ProjectQuota => None,
            HeldBy::Mount { why } => {
                tracing::debug!(container = %config.name, why, "the mount holds the disk limit");
                bytes
            }
        })
    }

    /// Takes the host's limit off a container that will be no more. A quota of nothing harms nobody,
    /// so one that stays is only told.
    pub(super) fn lift_disk_limit(&self, recorded: &Recorded) {
        let config = &recorded.config;
        if config.limits.disk_bytes.is_none() || config.disk_image || config.private.is_some() {
            return;
        }
        let private = self.private(recorded);
        if let Err(error) = disk_limit::limit(&private, None, project(&config.id), Tree::AtRest) {
            tracing::info!(container = %config.name, error = %crate::host::sentence(&error), "a quota stays");
        }
    }

    /// Holds the private files of a mounted root to their size. Answers what of it does not hold.
    pub(super) fn limit_disk(&self, recorded: &Recorded) -> Result<Option<String>, NodeError> {
        if recorded.config.disk_image {
            return self.grow_disk(recorded, true).map(|()| None);
        }
        let record = reserve::of(&self.store, &self.private(recorded))?;
        let Some(mut client) = record.living() else { return Ok(None) };
        let wanted = self.left_to_the_mount(recorded, Tree::InUse)?;
        if client.disk_use().map_err(HostError::from)?.limit_bytes == wanted {
            return Ok(None);
        }
        let told = client.limit_disk(wanted).map_err(HostError::from)?;
        Ok(wanted.is_some().then(|| unheld(told.unheld_files)).flatten())
    }

    /// What of a mounted root's disk limit does not hold now; less and less, as files are closed.
    #[must_use]
    pub fn unheld_disk(&self, recorded: &Recorded) -> Option<String> {
        recorded.config.limits.disk_bytes?;
        let record = reserve::of(&self.store, &self.private(recorded)).ok()?;
        let told = record.living()?.disk_use().ok()?;
        told.limit_bytes.and_then(|_| unheld(told.unheld_files))
    }

    /// Refuses a size that its image would have to shrink to.
    ///
    /// # Errors
    /// [`NodeError::DiskShrinks`].
    pub fn refuse_smaller_disk(&self, config: &ContainerConfig) -> Result<(), NodeError> {
        let Some(wanted) = config.limits.disk_bytes else { return Ok(()) };
        let places = self.registry.places(&config.id);
        let now = disk_image::extent(&places.image(), &places.disk())?.bytes;
        if wanted >= now {
            return Ok(());
        }
        Err(NodeError::DiskShrinks {
            name: config.name.clone(),
            now: bytes(now),
            wanted: bytes(wanted),
        })
    }

    /// Gives the image of a container that has one the size of its limit; at rest, what was cut short
    /// in that, or found broken in use, is put right.
    ///
    /// # Errors
    /// [`NodeError::DiskImage`]: it would have to be smaller, or it is in use and this host lets
    /// nobody resize it so.
    pub fn grow_disk(&self, recorded: &Recorded, in_use: bool) -> Result<(), NodeError> {
        let config = &recorded.config;
        let Some(bytes) = config.limits.disk_bytes.filter(|_| config.disk_image) else {
            return Ok(());
        };
        let places = self.places(recorded);
        let (image, disk) = (places.image(), places.disk());
        let refused = |source: HostError| NodeError::DiskImage {
            name: config.name.clone(),
            source: Box::new(source),
        };
        let extent = disk_image::extent(&image, &disk)?;
        // Larger: a change that was taken back, and no reason to refuse a start or to end what runs.
        let grown = extent.bytes >= bytes || extent.fills(bytes);
        if grown && (in_use || extent.sound) {
            return Ok(());
        }
        let bytes = bytes.max(extent.bytes);
        if in_use {
            return disk_image::grow(&image, &disk, bytes).map_err(refused);
        }
        let until = Instant::now() + PATIENCE;
        while let Err(error) = disk_image::unmount(&disk) {
            if Instant::now() >= until {
                return Err(error.into());
            }
            std::thread::sleep(EVERY);
        }
        let grown = disk_image::grow_at_rest(&image, bytes).map_err(refused);
        let mounted = self.mount_disk(recorded);
        grown.and(mounted)
    }
}

/// What is said of files that nobody can hold to a limit yet.
fn unheld(files: usize) -> Option<String> {
    (files > 0).then(|| {
        format!(
            "{files} files are still written by descriptors or mappings from before the limit; it \
             holds for them once those are closed"
        )
    })
}
