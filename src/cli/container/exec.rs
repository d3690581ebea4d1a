//! `mica exec CT… -- COMMAND`, `mica enter CT`, `mica console CT`

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;

use super::paper::{Paper, Stream};
use super::session::{self, Terminal};
use super::{FAILED, status, targets};
use crate::api::wire::{self, ContainerAnswer, Size};
use crate::api::{Client, at};
use crate::cli::arguments::{Console, Enter, Exec};
use crate::cli::output::{Output, complain};
use crate::container::config::Kind;
use crate::container::console::Frame;
use crate::host::sentence;

/// The shell of whoever enters: its own, if the container knows one.
const SHELL: &str = "shell=$(getent passwd \"$(id -u)\" 2>/dev/null | cut -d: -f7); \
     [ -x \"$shell\" ] || shell=$(command -v bash || echo /bin/sh); cd; exec \"$shell\" -l";

fn size() -> Size {
    let (columns, rows) = ratatui::crossterm::terminal::size().unwrap_or((80, 24));
    Size { rows, columns }
}

pub(in crate::cli) fn exec(wanted: &Exec, store: &Path) -> Result<ExitCode> {
    match exec_to_end(wanted, store) {
        Err(error) => {
            complain(&sentence(error.as_ref()));
            Ok(ExitCode::from(FAILED))
        }
        done => done,
    }
}

fn exec_to_end(wanted: &Exec, store: &Path) -> Result<ExitCode> {
    let client = Client::connect(store)?;
    let mut all = targets(&client, &wanted.targets)?;
    let asked = wire::Exec {
        command: wanted.command.clone(),
        env: wanted.env.clone(),
        user: wanted.user.clone(),
        workdir: wanted.workdir.clone(),
        terminal: wanted.tty.then(size),
        interactive: wanted.interactive,
    };
    let several = all.len() > 1 || wanted.targets.all || means_several(&wanted.targets.containers);
    if !several && let Some(one) = all.pop() {
        return Ok(status(carry(&client, &one, &asked)?));
    }
    if wanted.tty || wanted.interactive {
        bail!("a terminal or standard input belongs to one container; name one");
    }
    // Those that do not run have nothing to run it in.
    if wanted.targets.all {
        all.retain(|one| one.phase.is_up());
    }
    Ok(status(fan_out(store, &all, &asked)))
}

fn means_several(words: &[String]) -> bool {
    words.iter().any(|word| word.contains(['*', '?']) || word.starts_with("label="))
}

fn carry(client: &Client, one: &ContainerAnswer, asked: &wire::Exec) -> Result<i32> {
    let connection = client.streams(&at(one.id.as_str(), "exec"), asked)?;
    let terminal = if asked.terminal.is_some() { Terminal::Given } else { Terminal::None };
    session::carry(connection, terminal, asked.interactive, None)
}

/// Runs the command in all of them at once; answers the worst status.
fn fan_out(store: &Path, all: &[ContainerAnswer], asked: &wire::Exec) -> i32 {
    let width = all.iter().map(|one| one.name.as_str().len()).max().unwrap_or(0);
    let paper = Paper::new(all.len());
    let run = |place: usize, one: &ContainerAnswer| -> Result<i32> {
        let connection = Client::connect(store)?.streams(&at(one.id.as_str(), "exec"), asked)?;
        let mut parts = [Vec::new(), Vec::new()];
        let prefix = format!("{:width$}  ", one.name.as_str());
        let print = |stream: usize, line: &[u8]| {
            let stream = if stream == 0 { Stream::Output } else { Stream::Error };
            paper.say(place, stream, [prefix.as_bytes(), line].concat())
        };
        let ended = session::relay(connection, Terminal::None, false, None, &mut |frame| {
            let (stream, bytes) = match frame {
                Frame::Output(bytes) => (0, bytes),
                Frame::Error(bytes) => (1, bytes),
                Frame::Input(_) | Frame::EndOfInput | Frame::Resize { .. } | Frame::Exit(_) => {
                    return Ok(());
                }
            };
            let Some(part) = parts.get_mut(stream) else { return Ok(()) };
            part.extend_from_slice(bytes);
            while let Some(end) = part.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = part.drain(..=end).collect();
                print(stream, &line)?;
            }
            Ok(())
        });
        for (stream, rest) in parts.iter().enumerate().filter(|(_, rest)| !rest.is_empty()) {
            print(stream, &[rest, b"\n".as_slice()].concat())?;
        }
        ended
    };
    std::thread::scope(|scope| {
        let run = &run;
        let paper = &paper;
        let start = |(place, one)| {
            scope.spawn(move || {
                let ended = run(place, one);
                paper.end(place)?;
                ended
            })
        };
        let running: Vec<_> = all.iter().enumerate().map(start).collect();
        scope.spawn(|| paper.be_patient());
        let ended = running.into_iter().zip(all).map(|(running, one)| match running.join() {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => {
                complain(&format!("{}: {}", one.name, sentence(error.as_ref())));
                FAILED.into()
            }
            Err(_panic) => FAILED.into(),
        });
        ended.max().unwrap_or(0)
    })
}

pub(in crate::cli) fn enter(wanted: &Enter, store: &Path) -> Result<ExitCode> {
    let client = Client::connect(store)?;
    let one: ContainerAnswer = client.get(&at(&wanted.container, ""))?;
    let terminal = io::stdin().is_terminal();
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
    let asked = wire::Exec {
        command: ["/bin/sh", "-c", SHELL].map(str::to_owned).to_vec(),
        env: if terminal { vec![format!("TERM={term}")] } else { Vec::new() },
        user: Some(wanted.user.clone().unwrap_or_else(|| "0".to_owned())),
        workdir: None,
        terminal: terminal.then(size),
        interactive: true,
    };
    Ok(status(carry(&client, &one, &asked)?))
}

pub(in crate::cli) fn console(wanted: &Console, store: &Path, output: Output) -> Result<ExitCode> {
    let client = Client::connect(store)?;
    let one: ContainerAnswer = client.get(&at(&wanted.container, ""))?;
    let has_terminal = one.kind == Kind::System || one.settings.contains_key("terminal");
    let at_terminal = io::stdin().is_terminal();
    // Only pipes end with their input: at a terminal's other end nobody would ever leave.
    if !at_terminal && (has_terminal || !one.settings.contains_key("interactive")) {
        let name = &one.name;
        bail!(
            "the console of {name} is for a terminal, and standard input is none; `mica logs -f {name}` shows \
             what it writes, `mica exec {name} -- COMMAND` runs a command"
        );
    }
    let connection = client.streams(&at(one.id.as_str(), "attach"), &json!({}))?;
    if at_terminal {
        output.note(format!("this is the console of {}; Ctrl-a q leaves it", one.name));
    }
    Ok(status(session::carry(connection, Terminal::Console, true, None)?))
}
