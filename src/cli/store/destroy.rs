//! `mica store destroy --yes`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::cli::output::{Output, count, path, size};
use crate::host::destroy::destroy;
use crate::host::{Access, Store};

pub(super) fn run(really: bool, store: &Path, output: Output) -> Result<ExitCode> {
    let store = Store::open(store, Access::Write)?;
    let place = path(store.path());
    let done = destroy(store, !really)?;
    for private in &done.orphans {
        output.note(format!(
            "{} has lost its template and cannot be mounted any more",
            private.display()
        ));
    }
    for left in &done.left {
        output.note(format!("{} is not Mica's and stays", left.display()));
    }
    output.remark(format!(
        "{place} {}: {} ({})",
        if really { "destroyed" } else { "would be destroyed" },
        count(done.objects, "object"),
        size(done.bytes),
    ))?;
    Ok(ExitCode::SUCCESS)
}
