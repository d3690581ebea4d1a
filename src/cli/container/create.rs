//! `mica create NAME TEMPLATE` and `mica run TEMPLATE`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::session::{self, Terminal};
use super::{FAILED, failure, settings, status};
use crate::api::wire::{ContainerAnswer, Done};
use crate::api::{Client, at};
use crate::cli::arguments::{Create, Run};
use crate::cli::output::{Output, complain};
use crate::host::sentence;
use crate::node::create::Wanted;

pub(in crate::cli) fn create(wanted: &Create, store: &Path, output: Output) -> Result<ExitCode> {
    let asked = Wanted {
        name: Some(wanted.name.clone()),
        template: wanted.template.clone(),
        private: wanted.private.as_deref().map(std::path::absolute).transpose()?,
        system: wanted.system,
        command: wanted.command.clone(),
        settings: settings(&wanted.pairs, &wanted.settings)?,
    };
    let made: ContainerAnswer = Client::connect(store)?.post("/v1/containers", &asked)?;
    if wanted.json.json {
        output.json(&made)?;
    } else {
        output.remark(format!("{} created from {}", made.name, made.template))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(in crate::cli) fn run(wanted: &Run, store: &Path, output: Output) -> Result<ExitCode> {
    // Its status belongs to the command, so what fails of Mica's has one that few commands use.
    match run_to_end(wanted, store, output) {
        Err(error) => {
            complain(&sentence(error.as_ref()));
            Ok(ExitCode::from(failure(&error, FAILED)))
        }
        done => done,
    }
}

fn run_to_end(wanted: &Run, store: &Path, output: Output) -> Result<ExitCode> {
    let asked = Wanted {
        name: wanted.name.clone(),
        template: wanted.template.clone(),
        private: wanted.private.as_deref().map(std::path::absolute).transpose()?,
        system: wanted.system,
        command: wanted.command.clone(),
        settings: settings(&wanted.pairs, &wanted.settings)?,
    };
    let client = Client::connect(store)?;
    let made: ContainerAnswer = client.post("/v1/containers", &asked)?;
    let name = made.id.to_string();
    if wanted.detach {
        if let Err(error) = client.post::<Done>(&at(&name, "start"), &json!({})) {
            remove(&client, wanted, &name);
            return Err(error.into());
        }
        output.line(made.name.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let terminal = made.settings.contains_key("terminal");
    let interactive = made.settings.contains_key("interactive");
    let ended = client
        .streams(&at(&name, "attach"), &json!({ "start": true }))
        .map_err(anyhow::Error::from)
        .and_then(|connection| {
            let stop = || {
                let asked = Client::connect(store)
                    .and_then(|client| client.post::<Value>(&at(&name, "stop"), &json!({})));
                if let Err(error) = asked {
                    complain(&sentence(&error));
                }
            };
            let terminal = if terminal { Terminal::Given } else { Terminal::None };
            session::carry(connection, terminal, interactive, Some(&stop))
        });
    if wanted.rm {
        remove(&client, wanted, &name);
    }
    Ok(status(ended?))
}

/// Takes away what was only to run once.
fn remove(client: &Client, wanted: &Run, name: &str) {
    if !wanted.rm {
        return;
    }
    let gone = client.delete::<Done>(&format!("{}?force=true", at(name, "")));
    if let Err(error) = gone {
        complain(&sentence(&error));
    }
}
