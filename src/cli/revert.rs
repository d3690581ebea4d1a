//! `mica revert CT PATH…`

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::arguments::Revert;
use super::diff::{absolute, described, line, shown};
use super::output::{Output, count};
use crate::host::revert::revert;
use crate::host::{Access, Store};
use crate::inspect::Library;
use crate::layer::LayerPath;

pub(super) fn run(wanted: &Revert, store: &Path, output: &Output) -> Result<ExitCode> {
    let container = Library::open(store)?.container(&wanted.container)?;
    let paths = wanted.paths.iter().map(|path| -> Result<LayerPath> {
        Ok(container.meant(&LayerPath::parse(path.as_bytes())?)?)
    });
    let plan = container.plan_revert(&paths.collect::<Result<Vec<_>>>()?)?;
    if !wanted.dry_run {
        super::log_to_stderr();
        let store = Store::open(store, Access::Write)?;
        revert(&store, container.record.as_ref(), &container.private, &plan.paths)?;
    }
    if wanted.json.json {
        let list: Vec<Value> =
            plan.changes.iter().map(|(path, change)| described(path, change)).collect();
        output.json(&json!({ "dry_run": wanted.dry_run, "reverted": list }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for path in &plan.unchanged {
        output.note(format!("{} is the template's already", shown(path)));
    }
    if output.is_quiet() {
        output.names(plan.changes.iter().map(|(path, _)| absolute(path)))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (path, change) in &plan.changes {
        output.line(line(path, change, *output))?;
    }
    let number = u64::try_from(plan.changes.len()).unwrap_or(u64::MAX);
    let would = if wanted.dry_run { "would be " } else { "" };
    output.remark(format!("{} {would}reverted", count(number, "change")))?;
    Ok(ExitCode::SUCCESS)
}
