//! `mica template show TEMPLATE`

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::open;
use crate::cli::arguments::Json;
use crate::cli::output::{Output, size};
use crate::host::{Access, Roots, templates};

pub(super) fn run(wanted: &str, json: Json, store: &Path, output: Output) -> Result<()> {
    let (store, layers) = open(store, Access::Read)?;
    let records = Roots::open(&store)?.list()?;
    let template = templates::find(&layers, wanted)?;
    let summary = templates::summary(&layers, &records, template)?;
    let template = &summary.template;
    if json.json {
        return output.json(&json!({
            "template": template,
            "stack_id": template.stack.id().to_string(),
            "inodes": summary.inodes,
            "content_bytes": summary.content_bytes,
            "roots": summary.roots,
        }));
    }
    let mut rows =
        vec![("template", template.name.to_string()), ("stack", template.stack.id().to_string())];
    rows.extend(template.stack.layers().iter().map(|layer| ("layer", layer.to_string())));
    let provenance = &template.provenance;
    rows.extend([
        ("inodes", summary.inodes.to_string()),
        ("size", size(summary.content_bytes)),
        ("source", provenance.source.clone()),
        ("source digest", provenance.source_digest.clone().unwrap_or_default()),
        ("created", humantime::format_rfc3339_seconds(provenance.created).to_string()),
        ("shared paths", template.shared_paths.join(" ")),
        ("roots", summary.roots.join(" ")),
    ]);
    let config = &template.config;
    rows.extend([
        ("architecture", config.architecture.clone()),
        ("user", config.user.clone()),
        ("directory", config.working_dir.clone()),
        ("entrypoint", config.entrypoint.join(" ")),
        ("command", config.cmd.join(" ")),
    ]);
    rows.extend(config.env.iter().map(|variable| ("environment", variable.clone())));
    for (label, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        output.line(format!("{label:<14} {value}"))?;
    }
    Ok(())
}
