//! `mica template list`

use std::path::Path;

use anyhow::Result;

use crate::cli::arguments::Json;
use crate::cli::output::{Output, Paint, age, complain, size};
use crate::inspect::Library;
use crate::inspect::summary::{ListedSummary, TemplateSummary};
use crate::layer::TemplateKind;

pub(super) fn run(json: Json, store: &Path, output: Output) -> Result<()> {
    let summaries = Library::open(store)?.summaries()?;
    if json.json {
        return output.json(&summaries);
    }
    // One damaged template hides no other.
    let mut good = Vec::new();
    for listed in &summaries {
        match listed {
            ListedSummary::Template(summary) => good.push(summary.as_ref()),
            ListedSummary::Unusable { damage, .. } => complain(damage),
        }
    }
    if output.is_quiet() {
        return output.names(good.iter().map(|summary| summary.template.name.to_string()));
    }
    let rows: Vec<Vec<String>> = good.iter().map(|summary| row(summary, output)).collect();
    output.table(
        &["TEMPLATE", "KIND", "LAYERS", "FILES", "SIZE", "EXCLUSIVE", "SHARED", "AGE", "ROOTS"],
        &rows,
    )?;
    for summary in good {
        if let Some(damage) = &summary.damage {
            complain(&format!("template {}: {damage}", summary.template.name));
        }
    }
    Ok(())
}

fn row(summary: &TemplateSummary, output: Output) -> Vec<String> {
    let template = &summary.template;
    let mut row =
        vec![template.name.to_string(), kind(template.kind).to_owned(), summary.layers.to_string()];
    match &summary.measured {
        Some(measured) => row.extend([
            measured.files.to_string(),
            size(measured.size_bytes),
            size(measured.exclusive_bytes),
            size(measured.shared_bytes),
        ]),
        None => row.extend(["damaged", "-", "-", "-"].map(|cell| output.paint(Paint::Alarm, cell))),
    }
    row.push(age(template.provenance.created));
    row.push(summary.roots.join(","));
    row
}

pub(super) fn kind(kind: TemplateKind) -> &'static str {
    match kind {
        TemplateKind::Os => "os",
        TemplateKind::App => "app",
    }
}
