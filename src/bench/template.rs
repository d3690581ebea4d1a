//! What roots are made of: templates of the user's own store, or programs of this host.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::error::{BenchError, Result};
use super::fixture;
use super::place::{Place, Taken, taken};
use super::settings::Settings;
use super::working_set::WorkingSet;
use crate::host::export::{Form, export_to};
use crate::host::{Access, Store};
use crate::layer::export::Watched;

/// The name of the template that is made of this host's programs.
pub const HOST: &str = "this host's programs";

/// A template as a plain directory, which every peer can use.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) name: String,
    pub(super) tree: PathBuf,
    pub(super) taken: Taken,
}

/// Writes the wanted templates out into `place`.
///
/// # Errors
/// [`BenchError::Host`] for a template that is not there.
pub(super) fn prepare(settings: &Settings, place: &Place) -> Result<Vec<Prepared>> {
    let mut all = Vec::new();
    for name in &settings.templates {
        let tree = place.path("template");
        let store = Store::open(&settings.store, Access::Read)?;
        let watched = Watched { cancel: &AtomicBool::new(false), read: &|_| {} };
        export_to(&store, name, &Form::Directory, &tree, false, &watched)?;
        all.push(Prepared { name: name.clone(), taken: taken(&tree)?, tree });
    }
    if all.is_empty() {
        let tree = place.path("template");
        WorkingSet::of_this_host()?.copy_to(&tree, &|| true)?;
        devices(&tree)?;
        fixture::directories(&tree.join("var/tmp"))?;
        fixture::directories(&tree.join("root"))?;
        all.push(Prepared { name: HOST.to_owned(), taken: taken(&tree)?, tree });
    }
    Ok(all)
}

/// The devices that programs take for granted.
fn devices(tree: &Path) -> Result<()> {
    fixture::directories(&tree.join("dev"))?;
    for (name, minor) in [("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)] {
        let path = tree.join("dev").join(name);
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(1, minor))
            .map_err(BenchError::at("make", path))?;
    }
    Ok(())
}
