//! `mica node start|run|stop|status|sharing|unit`

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::arguments::{Json, NodeVerb, Sharing};
use super::output::Output;
use super::output::size;
use crate::api::wire::{NodeAnswer, StopNode};
use crate::api::{self, Background, Client, ClientError};
use crate::node::life;
use crate::node::sharing::{SharingAnswer, SharingChange};

/// How long the daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn run(verb: &NodeVerb, store: &Path, output: Output) -> Result<ExitCode> {
    let store = &std::path::absolute(store)
        .with_context(|| format!("cannot resolve {}", store.display()))?;
    match verb {
        NodeVerb::Start => {
            // One that was killed a moment ago may still listen, and answers nothing: its place is
            // waited for.
            let answer = Client::connect(store).and_then(|client| client.get("/v1/node"));
            if let Ok(answer) = answer {
                let answer: NodeAnswer = answer;
                output.remark(format!("the daemon runs already, process {}", answer.pid))?;
                return Ok(ExitCode::SUCCESS);
            }
            let answer = api::start(&program()?, store)?;
            output.remark(format!("the daemon runs, process {}", answer.pid))?;
        }
        NodeVerb::Run { background: true } => {
            super::log_to_file();
            api::run_in_background(store, &program()?)?;
        }
        NodeVerb::Run { background: false } => {
            super::log_to_stderr_from("info");
            let remark = |answer: &NodeAnswer| {
                let text = format!("the daemon runs, process {}", answer.pid);
                // It serves, whether or not anybody reads this.
                let _told = output.remark(text);
            };
            api::run(store, program()?, Background::No, remark)?;
        }
        NodeVerb::Stop { containers } => stop(*containers, store, output)?,
        NodeVerb::Status(json) => return status(*json, store, output),
        NodeVerb::Sharing(wanted) => sharing(wanted, store, output)?,
        NodeVerb::Unit => {
            output.line(life::unit(&program()?, store).trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// This program's own file.
pub(super) fn program() -> Result<std::path::PathBuf> {
    std::env::current_exe().context("cannot find mica's own program file")
}

fn stop(containers: bool, store: &Path, output: Output) -> Result<()> {
    let client = match Client::connect(store) {
        Err(ClientError::NoDaemon { .. }) => {
            output.remark("no daemon runs")?;
            return Ok(());
        }
        client => client?,
    };
    let before: NodeAnswer = client.post("/v1/node/stop", &StopNode { containers })?;
    if !life::await_end(&before.store, PATIENCE)? {
        bail!(
            "the daemon (process {}) has not ended after {} s; see {}",
            before.pid,
            PATIENCE.as_secs(),
            life::log(store).display()
        );
    }
    let run_on: usize =
        before.containers.iter().filter(|(phase, _)| phase.is_up()).map(|(_, count)| count).sum();
    output.remark(match run_on {
        0 => "the daemon has ended".to_owned(),
        1 => "the daemon has ended; 1 container runs on".to_owned(),
        count => format!("the daemon has ended; {count} containers run on"),
    })
}

fn status(json: Json, store: &Path, output: Output) -> Result<ExitCode> {
    let client = match Client::connect(store) {
        Err(error @ ClientError::NoDaemon { .. }) if !json.json => {
            output.line(error.to_string())?;
            return Ok(ExitCode::from(super::FOUND));
        }
        client => client?,
    };
    let answer: NodeAnswer = client.get("/v1/node")?;
    if json.json {
        output.json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let counts: Vec<String> =
        answer.containers.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
    let uptime = humantime::format_duration(Duration::from_secs(answer.uptime_s)).to_string();
    for (label, value) in [
        ("daemon", format!("process {}, Mica {}", answer.pid, answer.version)),
        ("store", answer.store.display().to_string()),
        ("running for", uptime),
        ("memory", size(answer.memory_bytes)),
        ("containers", counts),
        ("socket", life::socket(&answer.store).display().to_string()),
        ("log", life::log(&answer.store).display().to_string()),
    ] {
        output.line(format!("{label:<12} {value}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn sharing(wanted: &Sharing, store: &Path, output: Output) -> Result<()> {
    let client = Client::connect(store)?;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let change = SharingChange {
        paused: (wanted.pause || wanted.resume).then_some(wanted.pause),
        every_ms: wanted.every.map(ms),
        bytes_per_second: wanted.rate,
        least_age_ms: wanted.min_age.map(ms),
    };
    let answer: SharingAnswer = if change == SharingChange::default() {
        client.get("/v1/sharing")?
    } else {
        client.patch("/v1/sharing", &change)?
    };
    if wanted.json.json {
        return output.json(&answer);
    }
    let settings = answer.settings;
    let time = |ms| humantime::format_duration(Duration::from_millis(ms)).to_string();
    let rate = match settings.bytes_per_second {
        0 => "as fast as it goes".to_owned(),
        bytes => format!("{} a second", size(bytes)),
    };
    let last = match &answer.last {
        None => "none yet".to_owned(),
        Some(last) => match &last.failed {
            Some(reason) => format!("nothing was done: {reason}"),
            None => {
                let won = |bytes: i64| size(u64::try_from(bytes).unwrap_or(0));
                format!(
                    "{} files in {}, {} of disk and {} of memory won",
                    last.files,
                    time(last.milliseconds),
                    won(last.disk_bytes),
                    won(last.memory_bytes)
                )
            }
        },
    };
    for (label, value) in [
        ("state", if settings.paused { "paused" } else { "goes on" }.to_owned()),
        ("runs every", time(settings.every_ms)),
        ("reads", rate),
        ("leaves alone", format!("what changed within {}", time(settings.least_age_ms))),
        ("last run", last),
    ] {
        output.line(format!("{label:<12} {value}"))?;
    }
    Ok(())
}
