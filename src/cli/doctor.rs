//! `mica doctor`

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::arguments::Doctor;
use super::output::Output;
use crate::doctor::{Need, examine, stand_in_own_namespace};

pub(super) fn run(wanted: &Doctor, store: &Path, output: &Output) -> Result<ExitCode> {
    super::log_to_stderr();
    let program = std::env::current_exe().context("cannot find mica's own program file")?;
    let report = examine(store, &program).with_context(|| {
        format!(
            "cannot make a scratch directory beside the store at {}; run as root, or name another \
             place with --store",
            store.display()
        )
    })?;
    let status = if report.can_mount() { ExitCode::SUCCESS } else { ExitCode::from(super::FOUND) };
    if wanted.json.json {
        output.json(&report)?;
        return Ok(status);
    }
    output.remark(format!("tried on the file system of {}", report.tried_at.display()))?;
    let rows: Vec<Vec<String>> = report
        .findings
        .iter()
        .map(|finding| {
            let answer = match (finding.works, finding.need) {
                (true, _) => "yes",
                (false, Need::Required) => "NO",
                (false, Need::Wanted | Need::Future) => "no",
            };
            vec![finding.capability.name().to_owned(), answer.to_owned(), finding.seen.clone()]
        })
        .collect();
    output.table(&["CAPABILITY", "WORKS", "SEEN"], &rows)?;
    for finding in &report.findings {
        if let Some(remedy) = finding.remedy {
            let matters = match finding.need {
                Need::Required => "required",
                Need::Wanted => "wanted",
                Need::Future => "not used yet",
            };
            output.line(format!("{} ({matters}): {remedy}", finding.capability.name()))?;
        }
    }
    Ok(status)
}

/// The hidden verb behind the trial of idmapped mounts.
pub(super) fn run_user_namespace() -> Result<ExitCode> {
    stand_in_own_namespace()?;
    Ok(ExitCode::SUCCESS)
}
