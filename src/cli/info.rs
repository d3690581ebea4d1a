//! `mica info CT`, and of a root that is no container's

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde_json::json;

use super::arguments::Info;
use super::mount::listed;
use super::output::{Output, path};
use crate::host::{Access, Roots, Store};

pub(super) fn run(wanted: &Info, store: &Path, output: &Output) -> Result<ExitCode> {
    if let Some(name) = wanted.root.to_str()
        && super::container::info::run(name, wanted.json.json, store, *output)?
    {
        return Ok(ExitCode::SUCCESS);
    }
    let store = Store::open(store, Access::Read)?;
    let roots = Roots::open(&store)?;
    let record = roots.find(&wanted.root)?;
    let mut client = record.living();
    let status = client.as_mut().map(crate::control::Client::status).transpose()?;
    let statistics = client.as_mut().map(crate::control::Client::statistics).transpose()?;
    if wanted.json.json {
        let mut value = listed(&record);
        value["status"] = json!(status);
        value["statistics"] = json!(statistics);
        output.json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let time = |seconds: u64| {
        humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
            .to_string()
    };
    let mut rows = vec![
        ("root", record.name.clone()),
        ("template", record.template.to_string()),
        ("stack", record.stack.id().to_string()),
        ("changes in", record.private.as_deref().map(path).unwrap_or_default()),
        ("made", time(record.created)),
    ];
    match &status {
        Some(status) => rows.extend([
            ("mounted at", path(&status.mountpoint)),
            ("since", time(status.since)),
            ("process", status.pid.to_string()),
            ("read-only", yes_no(status.read_only)),
            ("passthrough", yes_no(status.passthrough)),
        ]),
        None => rows.push(("mounted at", "not mounted".to_owned())),
    }
    rows.push(("log", path(&roots.log_path(&record.id))));
    for (label, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        output.line(format!("{label:<12} {value}"))?;
    }
    if let Some(statistics) = statistics {
        let requests = statistics.requests.iter().map(|(name, count)| (name.as_str(), *count));
        let counters = statistics.values().into_iter().filter(|(_, count)| *count > 0);
        let rows: Vec<Vec<String>> = counters
            .chain(requests)
            .map(|(name, count)| vec![name.to_owned(), count.to_string()])
            .collect();
        output.line("")?;
        output.table(&["COUNTED", "TIMES"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}
