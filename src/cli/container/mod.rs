//! The verbs that act on containers: clients of the daemon.

pub(super) mod create;
pub(super) mod exec;
pub(super) mod info;
pub(super) mod lifecycle;
pub(super) mod logs;
mod paper;
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
use crate::api::{Client, ClientError, of};
use crate::host::sentence;

/// Mica itself failed where the status belongs to a command.
const FAILED: u8 = 125;

/// The status of what was not done: the command's, where that is the reason.
fn failure(error: &anyhow::Error, otherwise: u8) -> u8 {
    let refused = error.downcast_ref::<ClientError>();
    refused.and_then(ClientError::command_status).unwrap_or(otherwise)
}

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
        return match act(&client, one) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => {
                complain(&sentence(error.as_ref()));
                Ok(ExitCode::from(failure(&error, super::FAILED)))
            }
        };
    }
    // All at once: most of the time of a stop is waiting.
    let worst = std::thread::scope(|scope| {
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
        let mut worst = 0;
        for done in started {
            let status = match done.join() {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    complain(&sentence(error.as_ref()));
                    failure(&error, super::FAILED)
                }
                Err(_panic) => super::FAILED,
            };
            worst = worst.max(status);
        }
        worst
    });
    Ok(ExitCode::from(worst))
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
