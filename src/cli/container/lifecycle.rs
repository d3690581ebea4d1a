//! `mica start|stop|restart|pause|resume|delete CT…`, `mica rename`, `mica copy`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{each, settings, targets};
use crate::api::wire::{self, ContainerAnswer, Done};
use crate::api::{Client, at};
use crate::cli::arguments::{Copy, Delete, Rename, Stop, Targets};
use crate::cli::output::Output;

/// Asks for one thing, with what is said when it is done and when it was so already.
fn ask(
    store: &Path,
    wanted: &Targets,
    output: Output,
    verb: &str,
    body: &serde_json::Value,
    said: [&str; 2],
) -> Result<ExitCode> {
    each(store, wanted, |client, one| {
        let done: Done = client.post(&at(one.id.as_str(), verb), body)?;
        let [done_word, already_word] = said;
        output.remark(format!(
            "{} {}",
            done.name,
            if done.already { already_word } else { done_word }
        ))
    })
}

pub(in crate::cli) fn start(wanted: &Targets, store: &Path, output: Output) -> Result<ExitCode> {
    ask(store, wanted, output, "start", &json!({}), ["started", "runs already"])
}

pub(in crate::cli) fn stop(wanted: &Stop, store: &Path, output: Output) -> Result<ExitCode> {
    let body = json!({ "kill": wanted.kill });
    ask(store, &wanted.targets, output, "stop", &body, ["stopped", "does not run"])
}

pub(in crate::cli) fn restart(wanted: &Stop, store: &Path, output: Output) -> Result<ExitCode> {
    let body = json!({ "kill": wanted.kill });
    ask(store, &wanted.targets, output, "restart", &body, ["restarted", "restarted"])
}

pub(in crate::cli) fn pause(wanted: &Targets, store: &Path, output: Output) -> Result<ExitCode> {
    ask(store, wanted, output, "pause", &json!({}), ["paused", "is paused already"])
}

pub(in crate::cli) fn resume(wanted: &Targets, store: &Path, output: Output) -> Result<ExitCode> {
    ask(store, wanted, output, "resume", &json!({}), ["goes on", "is not paused"])
}

pub(in crate::cli) fn delete(wanted: &Delete, store: &Path, output: Output) -> Result<ExitCode> {
    if wanted.dry_run {
        let client = Client::connect(store)?;
        for one in targets(&client, &wanted.targets)? {
            let running = if one.phase.is_up() && !wanted.force {
                format!(", but it is {}: it takes --force", one.phase)
            } else {
                String::new()
            };
            output.line(format!("{} would be deleted{running}", one.name))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    each(store, &wanted.targets, |client, one| {
        let path = format!("{}?force={}", at(one.id.as_str(), ""), wanted.force);
        let done: Done = client.delete(&path)?;
        output.remark(format!("{} deleted", done.name))
    })
}

pub(in crate::cli) fn rename(wanted: &Rename, store: &Path, output: Output) -> Result<ExitCode> {
    let body = json!({ "name": wanted.name, "force": wanted.force });
    let client = Client::connect(store)?;
    let now: ContainerAnswer = client.post(&at(&wanted.container, "rename"), &body)?;
    output.remark(format!("{} is {} now", wanted.container, now.name))?;
    Ok(ExitCode::SUCCESS)
}

pub(in crate::cli) fn copy(wanted: &Copy, store: &Path, output: Output) -> Result<ExitCode> {
    let settings = settings(&wanted.pairs, &wanted.settings)?;
    let body = wire::Copy { name: wanted.name.clone(), settings };
    let client = Client::connect(store)?;
    let made: ContainerAnswer = client.post(&at(&wanted.container, "copy"), &body)?;
    output.remark(format!("{} created from {}", made.name, wanted.container))?;
    Ok(ExitCode::SUCCESS)
}
