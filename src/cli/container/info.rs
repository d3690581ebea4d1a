//! `mica info CT`, of a container

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::ps::status;
use crate::api::wire::InfoAnswer;
use crate::api::{Client, at};
use crate::cli::output::{Output, path, size};

/// Prints what there is to say of the container called `name`; answers whether there is one.
///
/// Without a daemon there is nobody to know.
pub(in crate::cli) fn run(name: &str, json: bool, store: &Path, output: Output) -> Result<bool> {
    let Ok(client) = Client::connect(store) else { return Ok(false) };
    let info: InfoAnswer = match client.get(&at(name, "")) {
        Err(error) if error.kind() == Some("no-container") => return Ok(false),
        info => info?,
    };
    if json {
        output.json(&info)?;
        return Ok(true);
    }
    let one = &info.container;
    let time = |ms: u64| {
        humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
            .to_string()
    };
    let mut rows: Vec<(&str, String)> = vec![
        ("container", one.name.to_string()),
        ("id", one.id.to_string()),
        ("status", status(one)),
        ("failure", one.failure.clone().unwrap_or_default()),
        ("note", if one.unwatched { unwatched(one.name.as_str()) } else { String::new() }),
        ("template", one.template.clone()),
        ("command", crate::container::config::unwords(&one.command)),
        ("created", time(one.created_ms)),
        ("started", one.started_ms.map(time).unwrap_or_default()),
        ("init", one.pid.map(|pid| format!("process {pid}")).unwrap_or_default()),
        ("restarts", if one.restarts > 0 { one.restarts.to_string() } else { String::new() }),
        ("addresses", one.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        ("root", if one.phase.is_up() { path(&one.root) } else { String::new() }),
        ("changes in", path(&one.private)),
        ("log", path(&one.log)),
    ];
    if let Some(used) = &info.usage {
        let bytes = |bytes: Option<u64>| bytes.map(size);
        let seconds = |ns: u64| format!("{:.2} s", Duration::from_nanos(ns).as_secs_f64());
        let pair = |one: Option<u64>, two: Option<u64>, words: [&str; 2]| {
            let [first, second] = words;
            Some(format!("{} {first}, {} {second}", size(one?), size(two?)))
        };
        let memory = bytes(used.memory_bytes).map(|all| {
            let parts = pair(
                used.memory_exclusive_bytes,
                used.memory_shared_bytes,
                ["its own", "pages of files"],
            );
            format!("{all} ({})", parts.unwrap_or_default())
        });
        let more = [
            ("processor", used.cpu_ns.map(seconds)),
            ("memory", memory),
            ("swap", used.swap_bytes.filter(|bytes| *bytes > 0).map(size)),
            ("processes", used.pids.map(|pids| pids.to_string())),
            ("disk", bytes(used.disk_bytes)),
            ("disk i/o", pair(used.io_read_bytes, used.io_written_bytes, ["read", "written"])),
            ("network", pair(used.received_bytes, used.sent_bytes, ["received", "sent"])),
        ];
        rows.extend(more.into_iter().filter_map(|(label, value)| Some((label, value?))));
    }
    for (label, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        output.line(format!("{label:<12} {value}"))?;
    }
    let rows: Vec<Vec<String>> = one
        .settings
        .iter()
        .map(|(key, value)| {
            let short = info.shortfalls.get(key).map_or("", String::as_str);
            vec![key.clone(), value.clone(), short.to_owned()]
        })
        .collect();
    if !rows.is_empty() {
        output.line("")?;
        output.table(&["SETTING", "VALUE", "DOES NOT HOLD HERE"], &rows)?;
    }
    Ok(true)
}

/// What it means that nobody watches a container, and what to do about it.
fn unwatched(name: &str) -> String {
    format!(
        "the process that watches it was killed: its output is not kept any more, and how it ends will not be \
         known; `mica restart {name}` gives it another"
    )
}
