//! `mica set CT… KEY=VALUE…`

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;

use super::{each, settings};
use crate::api::at;
use crate::api::wire::Done;
use crate::cli::arguments::{Set, Targets};
use crate::cli::output::Output;
use crate::node::daemon::SetDone;

pub(in crate::cli) fn run(wanted: &Set, store: &Path, output: Output) -> Result<ExitCode> {
    // `label=x` means containers, everything else with `=` is a setting.
    let is_setting = |word: &&String| word.contains('=') && !word.starts_with("label=");
    let (pairs, containers): (Vec<&String>, Vec<&String>) =
        wanted.words.iter().partition(is_setting);
    let pairs: Vec<String> = pairs.into_iter().cloned().collect();
    let settings = settings(&pairs, &wanted.settings)?;
    let inside = wanted.userpasswd.is_some() || wanted.ssh_key.is_some();
    if containers.is_empty() {
        bail!("no container is named; the names come before the settings");
    }
    if settings.is_empty() && !inside {
        bail!("nothing is to be set; write KEY=VALUE (docs/CONTAINERS.md lists the keys)");
    }
    let targets = Targets { containers: containers.into_iter().cloned().collect(), all: false };
    let key = wanted.ssh_key.as_deref().map(std::path::absolute).transpose()?;
    each(store, &targets, |client, one| {
        let name = one.id.as_str();
        let mut done: Vec<SetDone> = Vec::new();
        if !settings.is_empty() {
            done = client.patch(&at(name, ""), &json!({ "settings": settings }))?;
        }
        if inside {
            let body = json!({ "userpasswd": wanted.userpasswd, "ssh_key": key });
            let _done: Done = client.post(&at(name, "password"), &body)?;
        }
        if wanted.json.json {
            return output.json(&json!({ "name": one.name, "set": done }));
        }
        for done in done {
            output.remark(format!("{}: {}", one.name, told(&done)))?;
            for note in done.notes {
                output.note(format!("{}: {note}", one.name));
            }
        }
        Ok(())
    })
}

/// What became of a setting.
fn told(done: &SetDone) -> String {
    let what = match &done.value {
        Some(value) => format!("{}={value}", done.key),
        // Which variable or label it was is what somebody just wrote.
        None if ["environment", "label"].contains(&done.key.as_str()) => {
            format!("{} set", done.key)
        }
        None => format!("{} taken back", done.key),
    };
    if done.live { what } else { format!("{what}, from its next start on") }
}
