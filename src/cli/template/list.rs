//! `mica template list`

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::open;
use crate::cli::arguments::Json;
use crate::cli::output::{Output, size};
use crate::host::{Access, Roots, sentence, templates};

pub(super) fn run(json: Json, store: &Path, output: Output) -> Result<()> {
    let (store, layers) = open(store, Access::Read)?;
    let records = Roots::open(&store)?.list()?;
    let mut summaries = Vec::new();
    for listed in layers.templates().list()? {
        let read = listed.template.map_err(crate::host::HostError::from);
        match read.and_then(|template| templates::summary(&layers, &records, template)) {
            Ok(summary) => summaries.push(summary),
            // One damaged template hides no other.
            Err(error) => crate::cli::output::complain(&sentence(&error)),
        }
    }
    if json.json {
        let values: Vec<_> = summaries
            .iter()
            .map(|summary| {
                json!({
                    "template": summary.template,
                    "stack_id": summary.template.stack.id().to_string(),
                    "inodes": summary.inodes,
                    "content_bytes": summary.content_bytes,
                    "roots": summary.roots,
                })
            })
            .collect();
        return output.json(&values);
    }
    if output.is_quiet() {
        return output.names(summaries.iter().map(|summary| summary.template.name.to_string()));
    }
    let rows: Vec<Vec<String>> = summaries
        .iter()
        .map(|summary| {
            let template = &summary.template;
            vec![
                template.name.to_string(),
                template.stack.layers().len().to_string(),
                summary.inodes.to_string(),
                size(summary.content_bytes),
                humantime::format_rfc3339_seconds(template.provenance.created).to_string(),
                summary.roots.join(","),
            ]
        })
        .collect();
    output.table(&["TEMPLATE", "LAYERS", "INODES", "SIZE", "CREATED", "ROOTS"], &rows)
}
