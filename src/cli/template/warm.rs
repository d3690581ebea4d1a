//! `mica template warm TEMPLATE…`

use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};

use super::open;
use crate::cli::arguments::Json;
use crate::cli::output::{Output, count, size};
use crate::host::warm::warm;
use crate::host::{Access, interrupt_flag, templates};

pub(super) fn run(wanted: &[String], json: Json, store: &Path, output: Output) -> Result<()> {
    let (store, layers) = open(store, Access::Read)?;
    let names = templates::matching(&layers, wanted)?;
    let interrupted = interrupt_flag()?;
    let warmed = warm(&store, &names, interrupted)?;
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted; {} of it are in memory", size(warmed.bytes));
    }
    if json.json {
        return output.json(&warmed);
    }
    output.remark(format!(
        "{} of {} in memory, of which {} were before",
        size(warmed.bytes),
        count(warmed.objects, "object"),
        size(warmed.cached_before_bytes)
    ))
}
