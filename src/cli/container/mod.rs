//! The verbs that act on containers: clients of the daemon.

pub(super) mod create;
pub(super) mod exec;
pub(super) mod info;
pub(super) mod lifecycle;
pub(super) mod logs;
pub(super) mod ps;
mod session;
pub(super) mod set;
pub(super) mod top;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::arguments::Targets;
use super::output::complain;
use crate::api::wire::ContainerAnswer;
use crate::api::{Client, of};
use crate::host::sentence;

/// Mica itself failed where the status belongs to a command.
const FAILED: u8 = 125;

/// The containers that words mean.
fn targets(client: &Client, targets: &Targets) -> Result<Vec<ContainerAnswer>> {
    Ok(client.get(&of("/v1/containers", &targets.containers))?)
}

/// Does something to each of several containers; one that fails keeps none of the others from it.
fn each(
    store: &Path,
    wanted: &Targets,
    act: impl Fn(&Client, &ContainerAnswer) -> Result<()> + Sync,
) -> Result<ExitCode> {
    let client = Client::connect(store)?;
    let all = targets(&client, wanted)?;
    if let [one] = all.as_slice() {
        act(&client, one)?;
        return Ok(ExitCode::SUCCESS);
    }
    // All at once: most of the time of a stop is waiting.
    let failed = std::thread::scope(|scope| {
        let act = &act;
        let started: Vec<_> = all
            .iter()
            .map(|one| {
                scope.spawn(move || {
                    Client::connect(store)
                        .map_err(anyhow::Error::from)
                        .and_then(|own| act(&own, one))
                })
            })
            .collect();
        let mut failed = false;
        for done in started {
            if let Ok(Err(error)) = done.join() {
                complain(&sentence(error.as_ref()));
                failed = true;
            }
        }
        failed
    });
    Ok(if failed { ExitCode::from(super::FAILED) } else { ExitCode::SUCCESS })
}

/// `KEY=VALUE` words, then options.
fn settings(
    pairs: &[String],
    options: &super::arguments::Settings,
) -> Result<Vec<(String, String)>> {
    let mut settings = Vec::new();
    for pair in pairs {
        match pair.split_once('=') {
            Some((key, value)) => settings.push((key.to_owned(), value.to_owned())),
            None => {
                anyhow::bail!("{pair:?} is no setting; write KEY=VALUE, and a command after \"--\"")
            }
        }
    }
    settings.extend(options.0.iter().cloned());
    Ok(settings)
}

/// The status of a command, as this program's own.
fn status(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status & 0xff).unwrap_or(FAILED))
}
