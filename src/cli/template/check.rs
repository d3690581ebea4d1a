//! `mica template check [TEMPLATE…]`

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use serde::Serialize;

use super::open;
use crate::cli::FOUND;
use crate::cli::arguments::TemplateCheck;
use crate::cli::output::{Output, complain, count, size};
use crate::cli::progress::{ByteProgress, ImportProgress};
use crate::host::check::{Checked, Watch, check_templates};
use crate::host::mend::{Mended, mend};
use crate::host::{Access, Store, interrupt_flag, templates};
use crate::layer::{Layers, TemplateName};

/// The answer in JSON.
#[derive(Debug, Serialize)]
struct Answer {
    /// Whether nothing is missing or damaged (any more).
    whole: bool,
    templates: u64,
    layers: u64,
    objects: u64,
    hashed_bytes: u64,
    /// What is missing or damaged (still), in sentences.
    findings: Vec<String>,
    /// What --fix put back, or with --dry-run would put back.
    #[serde(skip_serializing_if = "Option::is_none")]
    fixed: Option<Fixed>,
}

#[derive(Debug, Serialize)]
struct Fixed {
    objects: u64,
    bytes: u64,
    layers: u64,
}

/// A source is read once more for what a layer that came back names.
const MOST_ROUNDS: usize = 3;

pub(super) fn run(wanted: &TemplateCheck, store: &Path, output: Output) -> Result<ExitCode> {
    let access = if wanted.fix.is_some() { Access::Write } else { Access::Read };
    let (store, layers) = open(store, access)?;
    let named = !wanted.templates.is_empty();
    let names = named.then(|| templates::matching(&layers, &wanted.templates)).transpose()?;
    let names = names.as_deref();
    let interrupted = interrupt_flag()?;
    let mut checked = check(&store, names, interrupted, output)?;
    let mut fixed = None;
    if let Some(source) = &wanted.fix {
        let mut total = Mended::default();
        for _ in 0..MOST_ROUNDS {
            if checked.findings.is_empty() {
                break;
            }
            let mended = fix(&store, &layers, names, &checked, source, wanted.dry_run, output)?;
            total = Mended {
                objects: total.objects + mended.objects,
                bytes: total.bytes + mended.bytes,
                layers: total.layers + mended.layers,
            };
            if wanted.dry_run || mended == Mended::default() {
                break;
            }
            checked = check(&store, names, interrupted, output)?;
        }
        fixed = Some(total);
    }
    tell(&checked, fixed, wanted, output)?;
    Ok(if checked.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn check(
    store: &Store,
    names: Option<&[TemplateName]>,
    interrupted: &AtomicBool,
    output: Output,
) -> Result<Checked> {
    let progress = ByteProgress::new(output);
    let watch = Watch {
        proceed: &|| !interrupted.load(Ordering::Relaxed),
        hashed: &|bytes| progress.read(bytes),
    };
    let checked = check_templates(store, names, &watch);
    progress.finish();
    let checked = checked?;
    if interrupted.load(Ordering::Relaxed) {
        bail!("the check was interrupted; what it had found until then is not the whole story");
    }
    Ok(checked)
}

fn fix(
    store: &Store,
    layers: &Layers,
    names: Option<&[TemplateName]>,
    checked: &Checked,
    source: &Path,
    dry_run: bool,
    output: Output,
) -> Result<Mended> {
    let readable = layers.templates().list()?.into_iter().filter_map(|one| one.template.ok());
    let stacks: Vec<_> = readable
        .filter(|template| names.is_none_or(|names| names.contains(&template.name)))
        .map(|template| template.stack)
        .collect();
    let progress = ImportProgress::new(output);
    let cancel = interrupt_flag()?;
    let mended = mend(store, &checked.findings, &stacks, source, dry_run, cancel, &progress);
    progress.finish();
    Ok(mended?)
}

fn tell(
    checked: &Checked,
    fixed: Option<Mended>,
    wanted: &TemplateCheck,
    output: Output,
) -> Result<()> {
    let whole = checked.findings.is_empty();
    if wanted.json.json {
        return output.json(&Answer {
            whole,
            templates: checked.templates,
            layers: checked.layers,
            objects: checked.objects,
            hashed_bytes: checked.hashed_bytes,
            findings: checked.findings.iter().map(ToString::to_string).collect(),
            fixed: fixed.map(|Mended { objects, bytes, layers }| Fixed { objects, bytes, layers }),
        });
    }
    for finding in &checked.findings {
        complain(&finding.to_string());
    }
    if let Some(fixed) = fixed {
        let verb = if wanted.dry_run { "would be put back" } else { "put back" };
        output.remark(format!(
            "{verb}: {} ({}), {}",
            count(fixed.objects, "object"),
            size(fixed.bytes),
            count(fixed.layers, "layer"),
        ))?;
    }
    output.remark(format!(
        "{}: {}, {}, {}, {} hashed",
        if whole { "whole" } else { "damaged" },
        count(checked.templates, "template"),
        count(checked.layers, "layer"),
        count(checked.objects, "object"),
        size(checked.hashed_bytes),
    ))
}
