//! `mica commit CT NAME[:TAG]`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::arguments::Commit;
use super::output::{Output, size};
use crate::host::commit::{CommitRequest, commit};
use crate::host::{Access, Store, interrupt_flag};
use crate::inspect::Library;

pub(super) fn run(wanted: &Commit, store: &Path, output: &Output) -> Result<ExitCode> {
    let name = wanted.name.parse()?;
    let container = Library::open(store)?.container(&wanted.container)?;
    super::log_to_stderr();
    let store = Store::open(store, Access::Write)?;
    let request = CommitRequest {
        record: container.record.as_ref(),
        private: &container.private,
        name,
        replace: wanted.replace,
        cancel: interrupt_flag()?,
    };
    let report = commit(&store, &request)?;
    let frozen_ms = report.frozen.map(|frozen| frozen.as_secs_f64() * 1000.0);
    if wanted.json.json {
        output.json(&json!({
            "template": report.template,
            "stack_id": report.template.stack.id().to_string(),
            "changed": report.changed,
            "new_objects": report.new_objects,
            "new_bytes": report.new_bytes,
            "frozen_ms": frozen_ms,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let frozen = frozen_ms.map_or_else(String::new, |ms| format!("; frozen for {ms:.1} ms"));
    if report.changed {
        output.remark(format!(
            "{}: {} new ({}){frozen}",
            report.template.name,
            super::output::count(report.new_objects, "object"),
            size(report.new_bytes),
        ))?;
    } else {
        output.note(format!("{} changed nothing", container.describe()));
        output.remark(format!("{}: the same layers{frozen}", report.template.name))?;
    }
    Ok(ExitCode::SUCCESS)
}
