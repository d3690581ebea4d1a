//! `mica template delete TEMPLATE…`

use std::path::Path;

use anyhow::Result;

use super::open;
use crate::cli::output::Output;
use crate::host::{Access, templates};

pub(super) fn run(wanted: &[String], dry_run: bool, store: &Path, output: Output) -> Result<()> {
    let (store, layers) = open(store, Access::Write)?;
    let names = templates::matching(&layers, wanted)?;
    templates::delete(&store, &layers, &names, dry_run)?;
    for name in names {
        output
            .remark(format!("{name} {}", if dry_run { "would be deleted" } else { "deleted" }))?;
    }
    Ok(())
}
