//! `mica layer show LAYER`

use std::path::Path;

use anyhow::Result;

use super::id;
use crate::cli::arguments::Json;
use crate::cli::output::{Output, complain, size};
use crate::inspect::Library;

pub(super) fn run(wanted: &str, json: Json, store: &Path, output: Output) -> Result<()> {
    let library = Library::open(store)?;
    let id = id(&library, wanted)?;
    let summaries = library.layer_summaries()?;
    let Some(summary) = summaries.into_iter().find(|one| Some(one.layer) == id) else {
        anyhow::bail!("layer {wanted} has just been removed from the store");
    };
    if json.json {
        return output.json(&summary);
    }
    if output.is_quiet() {
        return output.names([summary.layer.to_string()]);
    }
    let mut rows =
        vec![("layer", summary.layer.to_string()), ("manifest", size(summary.manifest_bytes))];
    if let Some(measured) = &summary.measured {
        rows.extend([
            ("names", measured.names.to_string()),
            ("files", measured.files.to_string()),
            ("directories", measured.directories.to_string()),
            ("whiteouts", measured.whiteouts.to_string()),
            ("opaque", measured.opaque_directories.to_string()),
            ("size", size(measured.size_bytes)),
            ("content", size(measured.content_bytes)),
            ("exclusive", size(measured.exclusive_bytes)),
        ]);
    }
    rows.extend(summary.templates.iter().map(|name| ("template", name.to_string())));
    rows.extend(summary.roots.iter().map(|name| ("root", name.clone())));
    for (label, value) in rows {
        output.line(format!("{label:<12} {value}"))?;
    }
    if let Some(damage) = summary.damage {
        complain(&damage);
    }
    Ok(())
}
