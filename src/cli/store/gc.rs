//! `mica store gc`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::cli::arguments::Json;
use crate::cli::output::{Output, count, size};
use crate::host::collect::collect;
use crate::host::{Access, Store};

pub(super) fn run(dry_run: bool, json: Json, store: &Path, output: Output) -> Result<ExitCode> {
    let store = Store::open(store, Access::Write)?;
    let done = collect(&store, dry_run)?;
    if json.json {
        output.json(&json!({
            "dry_run": dry_run,
            "objects": done.objects,
            "layers": done.layers,
            "trees": done.trees,
            "dead_imports": done.imports,
            "bytes": done.bytes,
            "objects_kept": done.kept,
            "objects_pinned": done.pinned,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.remark(format!(
        "{}: {}, {}, {}, {} ({}); {} kept{}",
        if dry_run { "would remove" } else { "removed" },
        count(done.objects, "object"),
        count(done.layers, "layer"),
        count(done.trees, "tree"),
        count(done.imports, "dead import"),
        size(done.bytes),
        count(done.kept, "object"),
        if done.pinned > 0 {
            format!(", {} of them for running imports", done.pinned)
        } else {
            String::new()
        },
    ))?;
    Ok(ExitCode::SUCCESS)
}
