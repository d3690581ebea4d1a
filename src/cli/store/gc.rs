//! `mica store gc`

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::arguments::Json;
use crate::cli::output::{Output, count, size};
use crate::cli::progress::WorkProgress;
use crate::host::collect::{PARTS, collect};
use crate::host::{Access, Store, interrupt_flag};

pub(super) fn run(dry_run: bool, json: Json, store: &Path, output: Output) -> Result<ExitCode> {
    let store = Store::open(store, Access::Write)?;
    let interrupted = interrupt_flag()?;
    let progress = WorkProgress::of_steps(output, "collecting", PARTS);
    let done = collect(&store, dry_run, &|part| {
        progress.at(part.into());
        !interrupted.load(Ordering::Relaxed)
    });
    progress.finish();
    let done = done?;
    if done.ended_early {
        let (objects, bytes) = (count(done.objects, "object"), size(done.bytes));
        let removed = if dry_run { "nothing was" } else { "what was until then stays" };
        bail!(
            "interrupted after {objects} ({bytes}); {removed} removed, run it again for the rest"
        );
    }
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
