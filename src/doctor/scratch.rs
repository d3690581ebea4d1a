//! The directory in which things are tried, gone when they were.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::host::destroy::destroy;
use crate::host::{Access, Store, unmount};

/// A directory of its own on the store's file system, with room for a store and a root.
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes it in the store, or else in the nearest directory that exists above it.
    pub(super) fn beside(store: &Path) -> io::Result<Self> {
        let absolute = std::path::absolute(store)?;
        let mut base = absolute.as_path();
        while !base.is_dir() {
            base = base.parent().unwrap_or(Path::new("/"));
        }
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let path = base.join(format!(".mica-doctor-{}-{since:x}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    pub(super) fn mountpoint(&self) -> PathBuf {
        self.path.join("root")
    }

    fn take_away(&self) -> Result<(), Box<dyn std::error::Error>> {
        if let Ok(store) = Store::open(&self.store(), Access::Write) {
            let mountpoint = self.mountpoint();
            if mountpoint.is_dir() {
                match unmount::unmount(Some(&store), OsStr::new(&mountpoint), true) {
                    Ok(_) | Err(crate::host::HostError::NotMounted { .. }) => {}
                    Err(crate::host::HostError::Root(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            destroy(store, false)?;
        }
        Ok(fs::remove_dir_all(&self.path)?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.take_away() {
            tracing::warn!(path = %self.path.display(), %error, "the scratch directory stays");
        }
    }
}
