//! `mica logs CT` and `mica events`

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::api::{Client, at};
use crate::cli::arguments::{Json, Logs};
use crate::cli::output::Output;
use crate::container::log::{Stream, parse};
use crate::node::event::Event;

/// Gives `take` whole lines of what comes in pieces.
fn by_line(
    rest: &mut Vec<u8>,
    piece: &[u8],
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    rest.extend_from_slice(piece);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = rest.drain(..=end).collect();
        take(line.strip_suffix(b"\n").unwrap_or(&line))?;
    }
    Ok(())
}

pub(in crate::cli) fn logs(wanted: &Logs, store: &Path) -> Result<ExitCode> {
    let tail = wanted.tail.map_or_else(String::new, |lines| format!("&tail={lines}"));
    let path = format!("{}?follow={}{tail}", at(&wanted.container, "logs"), wanted.follow);
    let mut rest = Vec::new();
    let mut failed = None;
    // Whether the last line of each stream goes on.
    let mut begun = false;
    Client::connect(store)?.pour(&path, |piece| {
        let printed = by_line(&mut rest, piece, |line| {
            let Some(line) = parse(line) else { return Ok(()) };
            let mut text = Vec::new();
            if wanted.timestamps && !begun {
                text.extend_from_slice(line.time.as_bytes());
                text.push(b' ');
            }
            text.extend_from_slice(&line.text);
            if line.whole {
                text.push(b'\n');
            }
            begun = !line.whole;
            match line.stream {
                Stream::Stdout => io::stdout().lock().write_all(&text),
                Stream::Stderr => io::stderr().lock().write_all(&text),
            }
        });
        failed = printed.err();
        failed.is_none()
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

pub(in crate::cli) fn events(json: Json, store: &Path, output: Output) -> Result<ExitCode> {
    let mut rest = Vec::new();
    let mut failed = None;
    Client::connect(store)?.pour("/v1/events", |piece| {
        let printed = by_line(&mut rest, piece, |line| {
            let text = String::from_utf8_lossy(line).into_owned();
            let text = if json.json { text } else { told(&text).unwrap_or(text) };
            let mut out = io::stdout().lock();
            writeln!(out, "{text}").and_then(|()| out.flush())
        });
        failed = printed.err();
        failed.is_none()
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => {
            output.note("the daemon has ended");
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn told(line: &str) -> Option<String> {
    let event: Event = serde_json::from_str(line).ok()?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(event.at_ms);
    let time = humantime::format_rfc3339_millis(time);
    Some(
        format!("{time} {} {} {}", event.name, event.kind.text(), event.detail)
            .trim_end()
            .to_owned(),
    )
}
