//! `mica store forget ROOT`

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::cli::output::Output;
use crate::host::destroy::forget;
use crate::host::{Access, Store};

pub(super) fn run(
    root: &OsStr,
    force: bool,
    dry_run: bool,
    store: &Path,
    output: Output,
) -> Result<ExitCode> {
    let store = Store::open(store, Access::Write)?;
    let record = forget(&store, root, force, dry_run)?;
    let done = if dry_run { "would be forgotten" } else { "forgotten" };
    output.remark(format!("root {} of {} {done}", record.name, record.template))?;
    Ok(ExitCode::SUCCESS)
}
