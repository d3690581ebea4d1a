//! `mica umount ROOT…`

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::arguments::Umount;
use super::output::{Output, complain};
use crate::host::unmount::{Unmounted, unmount};
use crate::host::{Access, Roots, Store, StoreError, sentence};
use crate::node::registry::Places;

pub(super) fn run(wanted: &Umount, store: &Path, output: &Output) -> Result<ExitCode> {
    // A mountpoint can be unmounted without its store.
    let store = match Store::open(store, Access::Write) {
        Err(StoreError::Absent { .. }) if !wanted.all => None,
        opened => Some(opened?),
    };
    let roots = match &store {
        Some(store) if wanted.all => mounted(store)?,
        _ => wanted.roots.clone(),
    };
    let mut status = ExitCode::SUCCESS;
    for root in roots {
        if !wanted.lazy
            && let Some(name) = store.as_ref().and_then(|store| container(store, &root))
        {
            if wanted.all {
                output.note(format!("{name} is a container's root and stays; mica stop {name}"));
            } else {
                complain(&format!(
                    "{name} is the root of a container, which would go on without it; mica stop {name}"
                ));
                status = ExitCode::from(super::FAILED);
            }
            continue;
        }
        // One that is busy does not keep the others mounted.
        match unmount(store.as_ref(), &root, wanted.lazy) {
            Ok(Unmounted::Ended) => {
                output.remark(format!("{} unmounted", root.display()))?;
            }
            Ok(Unmounted::StillUsed) => output.note(format!(
                "{} is unmounted here, and its process goes on: it still has users",
                root.display()
            )),
            Err(error) => {
                complain(&sentence(&error));
                status = ExitCode::from(super::FAILED);
            }
        }
    }
    Ok(status)
}

/// The name of the root, if the daemon mounted it for a container.
fn container(store: &Store, root: &OsString) -> Option<String> {
    let record = Roots::open(store).ok()?.find(root).ok()?;
    let mount = record.mount?;
    Places::of_root(store.path(), &mount.mountpoint).map(|_| record.name)
}

fn mounted(store: &Store) -> Result<Vec<OsString>> {
    let records = Roots::open(store)?.list()?;
    let mounted = records.into_iter().filter(|record| record.mount.is_some());
    Ok(mounted.map(|record| record.name.into()).collect())
}
