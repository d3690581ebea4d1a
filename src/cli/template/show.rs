//! `mica template show TEMPLATE`

use std::path::Path;

use anyhow::Result;

use super::list::kind;
use crate::cli::arguments::Json;
use crate::cli::output::{Output, complain, printable, size};
use crate::inspect::Library;

pub(super) fn run(wanted: &str, json: Json, store: &Path, output: Output) -> Result<()> {
    let library = Library::open(store)?;
    let template = library.template(wanted)?;
    let summary = library.summary(&template.name)?;
    if json.json {
        return output.json(&summary);
    }
    if output.is_quiet() {
        return output.names([template.name.to_string()]);
    }
    let mut rows = vec![
        ("template", template.name.to_string()),
        ("kind", kind(template.kind).to_owned()),
        ("stack", template.stack.id().to_string()),
    ];
    rows.extend(template.stack.layers().iter().map(|layer| ("layer", layer.to_string())));
    if let Some(measured) = &summary.measured {
        rows.extend([
            ("names", measured.names.to_string()),
            ("files", measured.files.to_string()),
            ("size", size(measured.size_bytes)),
            ("content", size(measured.content_bytes)),
            ("exclusive", size(measured.exclusive_bytes)),
            ("shared", size(measured.shared_bytes)),
        ]);
    }
    let provenance = &template.provenance;
    rows.extend([
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
        output.line(format!("{label:<14} {}", printable(value.as_bytes())))?;
    }
    if let Some(damage) = &summary.damage {
        complain(&format!("template {}: {damage}", template.name));
    }
    Ok(())
}
