//! `mica layer list`

use std::path::Path;

use anyhow::Result;

use crate::cli::arguments::Json;
use crate::cli::output::{Output, Paint, complain, size};
use crate::inspect::Library;
use crate::inspect::summary::LayerSummary;

pub(super) fn run(json: Json, store: &Path, output: Output) -> Result<()> {
    let summaries = Library::open(store)?.layer_summaries()?;
    if json.json {
        return output.json(&summaries);
    }
    if output.is_quiet() {
        return output.names(summaries.iter().map(|summary| summary.layer.to_string()));
    }
    let rows: Vec<Vec<String>> = summaries.iter().map(|summary| row(summary, output)).collect();
    output.table(&["LAYER", "NAMES", "FILES", "SIZE", "EXCLUSIVE", "TEMPLATES"], &rows)?;
    for summary in summaries {
        if let Some(damage) = summary.damage {
            complain(&damage);
        }
    }
    Ok(())
}

fn row(summary: &LayerSummary, output: Output) -> Vec<String> {
    // Enough digits to be unique, and to be seen whole beside the rest.
    let mut row = vec![summary.layer.to_string().chars().take(16).collect()];
    match &summary.measured {
        Some(measured) => row.extend([
            measured.names.to_string(),
            measured.files.to_string(),
            size(measured.size_bytes),
            size(measured.exclusive_bytes),
        ]),
        None => row.extend(["damaged", "-", "-", "-"].map(|cell| output.paint(Paint::Alarm, cell))),
    }
    let templates: Vec<String> = summary.templates.iter().map(ToString::to_string).collect();
    row.push(templates.join(","));
    row
}
