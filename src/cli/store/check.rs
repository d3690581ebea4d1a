//! `mica store check`

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::arguments::Json;
use crate::cli::output::{Output, complain, count, size};
use crate::cli::progress::ByteProgress;
use crate::host::check::{CheckOptions, Finding, Watch, check};
use crate::host::{Access, Store, interrupt_flag};

pub(super) fn run(
    options: CheckOptions,
    json: Json,
    store: &Path,
    output: Output,
) -> Result<ExitCode> {
    let store = Store::open(store, Access::Write)?;
    let interrupted = interrupt_flag()?;
    let progress = ByteProgress::new(output);
    let watch = Watch {
        proceed: &|| !interrupted.load(Ordering::Relaxed),
        hashed: &|bytes| progress.read(bytes),
    };
    let checked = check(&store, options, &watch);
    progress.finish();
    let checked = checked?;
    if interrupted.load(Ordering::Relaxed) {
        bail!("the check was interrupted; what it had found until then is not the whole story");
    }
    let damaged = checked.findings.iter().any(Finding::is_damage);
    if json.json {
        let findings: Vec<_> = checked
            .findings
            .iter()
            .map(|finding| json!({ "damage": finding.is_damage(), "text": finding.to_string() }))
            .collect();
        output.json(&json!({
            "whole": !damaged,
            "templates": checked.templates,
            "roots": checked.roots,
            "layers": checked.layers,
            "objects": checked.objects,
            "hashed_bytes": checked.hashed_bytes,
            "private_files": checked.private_files,
            "references": checked.references,
            "fixed": checked.fixed,
            "findings": findings,
        }))?;
    } else {
        for finding in &checked.findings {
            complain(&finding.to_string());
        }
        for fixed in &checked.fixed {
            output.remark(format!("made again: {fixed}"))?;
        }
        let hashed = if options.rehash {
            format!(", {} hashed again", size(checked.hashed_bytes))
        } else {
            String::new()
        };
        output.remark(format!(
            "{}: {}, {}, {}, {}, {}{hashed}",
            if damaged { "damaged" } else { "whole" },
            count(checked.templates, "template"),
            count(checked.roots, "root"),
            count(checked.layers, "layer"),
            count(checked.objects, "object"),
            count(checked.private_files, "private file"),
        ))?;
    }
    Ok(if damaged { ExitCode::from(crate::cli::FOUND) } else { ExitCode::SUCCESS })
}
