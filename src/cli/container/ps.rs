//! `mica ps`

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::api::wire::ContainerAnswer;
use crate::api::{Client, of};
use crate::cli::arguments::Ps;
use crate::cli::output::Output;
use crate::node::phase::Phase;
use crate::node::state::now_ms;

pub(in crate::cli) fn run(wanted: &Ps, store: &Path, output: Output) -> Result<ExitCode> {
    let client = Client::connect(store)?;
    let mut all: Vec<ContainerAnswer> = client.get(&of("/v1/containers", &wanted.containers))?;
    // Who names them wants to see them; one that is damaged wants to be seen.
    if !wanted.all && wanted.containers.is_empty() {
        all.retain(|one| one.phase.is_up() || one.damaged);
    }
    if wanted.json.json {
        output.json(&all)?;
    } else if output.is_quiet() {
        output.names(all.iter().map(|one| one.name.as_str()))?;
    } else {
        let rows: Vec<Vec<String>> = all.iter().map(row).collect();
        output.table(&["NAME", "STATUS", "KIND", "ADDRESS", "PORTS", "TEMPLATE", "ID"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How long something has lasted, in its largest two units.
pub(super) fn lasted(since_ms: u64) -> String {
    let seconds = now_ms().saturating_sub(since_ms) / 1000;
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// What a container is doing, for people.
pub(super) fn status(one: &ContainerAnswer) -> String {
    let mut text = match one.phase {
        Phase::Running => {
            format!("running {}", one.started_ms.map(lasted).unwrap_or_default())
        }
        Phase::Stopped => match &one.exit {
            Some(exit) if exit.out_of_memory => format!("stopped ({}, out of memory)", exit.status),
            Some(exit) => format!("stopped ({})", exit.status),
            None => "stopped".to_owned(),
        },
        Phase::Created | Phase::Starting | Phase::Paused | Phase::Stopping | Phase::Failed => {
            one.phase.to_string()
        }
    };
    let health = one.health.filter(|_| one.phase.is_up()).map(|health| health.text());
    for (said, yes) in [
        (health.unwrap_or_default(), health.is_some()),
        ("damaged", one.damaged),
        ("degraded", one.degraded),
        ("unwatched", one.unwatched),
        ("privileged", one.privileged),
    ] {
        if yes {
            text.push_str(", ");
            text.push_str(said);
        }
    }
    text
}

fn row(one: &ContainerAnswer) -> Vec<String> {
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let kind = match one.kind {
        crate::container::config::Kind::System => "system",
        crate::container::config::Kind::Application => "application",
    };
    vec![
        one.name.to_string(),
        status(one),
        kind.to_owned(),
        dash(one.addresses.first().map(ToString::to_string).unwrap_or_default()),
        dash(one.settings.get("port").cloned().unwrap_or_default()),
        one.template.clone(),
        one.id.short().to_owned(),
    ]
}
