//! `mica template import NAME[:TAG] SOURCE`

use std::io::{self, IsTerminal};
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::arguments::Import;
use crate::cli::output::{Output, count, size};
use crate::cli::progress::ImportProgress;
use crate::host::Store;
use crate::host::import::{ImportRequest, import_template};
use crate::host::interrupt_flag;
use crate::layer::import::{Choice, Excludes};
use std::os::unix::ffi::OsStrExt;

pub(super) fn run(wanted: &Import, store: &Path, output: Output) -> Result<()> {
    let name = wanted.name.parse()?;
    if wanted.source == Path::new("-") && io::stdin().is_terminal() {
        bail!("standard input is a terminal; pipe an archive into it, or name a file or directory");
    }
    let request = ImportRequest {
        name,
        source: wanted.source.clone(),
        on: wanted.on.clone(),
        replace: wanted.replace,
        excludes: Excludes::new(wanted.exclude.iter().map(|glob| glob.as_bytes()))?,
        choice: Choice {
            reference: wanted.image.clone(),
            platform: wanted.platform.as_deref().map(str::parse).transpose()?,
        },
        cancel: interrupt_flag()?,
    };
    super::super::log_to_stderr();
    let store = Store::open_or_create(store)?;
    let progress = ImportProgress::new(output);
    let imported = import_template(&store, &request, &progress);
    progress.finish();
    let report = imported?;
    let (hits, hit_bytes) = progress.hits();
    if wanted.json.json {
        return output.json(&json!({
            "template": report.template,
            "stack_id": report.template.stack.id().to_string(),
            "names": report.names,
            "new_objects": report.new_objects,
            "new_bytes": report.new_bytes,
            "hits": hits,
            "hit_bytes": hit_bytes,
        }));
    }
    output.remark(format!(
        "{}: {}; {} new ({}), {} already there ({})",
        report.template.name,
        count(report.names, "name"),
        indicatif::HumanCount(report.new_objects),
        size(report.new_bytes),
        indicatif::HumanCount(hits),
        size(hit_bytes),
    ))
}
