//! The place of the demo, and taking it away again whatever happened.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::host::destroy::destroy;
use crate::host::unmount::unmount;
use crate::host::{Access, Roots, Store};

/// A directory of its own with everything the demo makes in it.
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn new(base: &Path) -> Result<Self> {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let base = base.canonicalize().with_context(|| format!("cannot use {}", base.display()))?;
        let path = base.join(format!("mica-demo-{}-{since:x}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("cannot make {}; name another place with --dir", path.display())
        })?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    pub(super) fn mountpoint(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Unmounts, destroys and removes everything.
    pub(super) fn remove(self) -> Result<()> {
        let removed = self.take_away();
        if removed.is_ok() {
            std::mem::forget(self);
        }
        removed
    }

    fn take_away(&self) -> Result<()> {
        let told = || format!("cannot remove the scratch directory {}", self.path.display());
        if let Ok(store) = Store::open(&self.store(), Access::Write) {
            for root in Roots::open(&store)?.list()?.iter().filter(|root| root.mount.is_some()) {
                // Lazily: nobody but the demo has any business in there.
                unmount(Some(&store), OsStr::new(&root.name), true).with_context(told)?;
            }
            destroy(store, false).with_context(told)?;
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(told),
            _gone => Ok(()),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.take_away() {
            super::super::output::complain(&crate::host::sentence(error.as_ref()));
        }
    }
}
