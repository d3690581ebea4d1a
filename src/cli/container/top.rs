//! `mica top`

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::ps::lasted;
use crate::api::wire::{ContainerAnswer, UsageAnswer};
use crate::api::{Client, of};
use crate::cli::arguments::Top;
use crate::cli::output::{Output, size};
use crate::host::interrupt_flag;

/// How far apart the two looks of `--once` are.
const GLANCE: Duration = Duration::from_millis(500);

/// How often somebody who wants to end is noticed.
const EVERY: Duration = Duration::from_millis(100);

/// A container and what it used between two looks.
struct Row {
    now: UsageAnswer,
    /// Hundredths of one processor.
    cpu_percent: f64,
    read_per_s: u64,
    written_per_s: u64,
    received_per_s: u64,
    sent_per_s: u64,
}

/// What a counter grew by in a second.
fn rate(before: Option<u64>, now: Option<u64>, ms: u64) -> u64 {
    let grown = now.unwrap_or(0).saturating_sub(before.unwrap_or(0));
    grown.saturating_mul(1000) / ms.max(1)
}

fn rows(before: &[UsageAnswer], now: Vec<UsageAnswer>) -> Vec<Row> {
    let row = |now: UsageAnswer| {
        let none = UsageAnswer { at_ms: now.at_ms, ..now.clone() };
        let before = before.iter().find(|before| before.name == now.name).unwrap_or(&none);
        let ms = now.at_ms.saturating_sub(before.at_ms);
        let per_s = |of: fn(&UsageAnswer) -> Option<u64>| rate(of(before), of(&now), ms);
        let cpu_ns = per_s(|usage| usage.cpu_ns);
        Row {
            cpu_percent: Duration::from_nanos(cpu_ns).as_secs_f64() * 100.0,
            read_per_s: per_s(|usage| usage.io_read_bytes),
            written_per_s: per_s(|usage| usage.io_written_bytes),
            received_per_s: per_s(|usage| usage.received_bytes),
            sent_per_s: per_s(|usage| usage.sent_bytes),
            now,
        }
    };
    let mut rows: Vec<Row> = now.into_iter().map(row).collect();
    rows.sort_by(|one, two| two.cpu_percent.total_cmp(&one.cpu_percent));
    rows
}

pub(in crate::cli) fn run(wanted: &Top, store: &Path, output: Output) -> Result<ExitCode> {
    let client = Client::connect(store)?;
    let path = of("/v1/usage", &wanted.containers);
    let once = wanted.once || wanted.json.json || !io::stdout().is_terminal();
    let interrupted = interrupt_flag()?;
    let mut before: Vec<UsageAnswer> = client.get(&path)?;
    loop {
        let wait = if once { GLANCE } else { Duration::from_secs(wanted.interval) };
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if interrupted.load(Ordering::Relaxed) {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(EVERY.min(until.saturating_duration_since(Instant::now())));
        }
        let now: Vec<UsageAnswer> = client.get(&path)?;
        let known: Vec<ContainerAnswer> = client.get(&of("/v1/containers", &wanted.containers))?;
        let rows = rows(&before, now.clone());
        if wanted.json.json {
            let rows: Vec<_> = rows.iter().map(as_json).collect();
            output.json(&rows)?;
            return Ok(ExitCode::SUCCESS);
        }
        if !once {
            // Up to the left corner, and everything below goes.
            io::stdout().lock().write_all(b"\x1b[H\x1b[J")?;
        }
        print(&rows, &known, output)?;
        if once {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

fn as_json(row: &Row) -> serde_json::Value {
    json!({
        "usage": row.now,
        // Nothing measures more than that.
        "cpu_percent": (row.cpu_percent * 100.0).round() / 100.0,
        "io_read_bytes_per_s": row.read_per_s,
        "io_written_bytes_per_s": row.written_per_s,
        "received_bytes_per_s": row.received_per_s,
        "sent_bytes_per_s": row.sent_per_s,
    })
}

fn print(rows: &[Row], known: &[ContainerAnswer], output: Output) -> Result<()> {
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), size);
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let one = known.iter().find(|one| one.name.as_str() == row.now.name);
            vec![
                row.now.name.clone(),
                format!("{:.1}", row.cpu_percent),
                bytes(row.now.memory_bytes),
                bytes(row.now.memory_exclusive_bytes),
                bytes(row.now.memory_shared_bytes),
                size(row.read_per_s),
                size(row.written_per_s),
                size(row.received_per_s),
                size(row.sent_per_s),
                row.now.pids.map_or_else(|| "-".to_owned(), |pids| pids.to_string()),
                one.map_or_else(String::new, |one| one.restarts.to_string()),
                one.and_then(|one| one.started_ms).map(lasted).unwrap_or_default(),
            ]
        })
        .collect();
    output.table(
        &[
            "NAME",
            "CPU %",
            "MEMORY",
            "OWN",
            "FILES",
            "READ/S",
            "WRITTEN/S",
            "IN/S",
            "OUT/S",
            "PIDS",
            "RESTARTS",
            "UP",
        ],
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_a_second_and_a_new_container_has_none() {
        let usage = |name: &str, at_ms, cpu_ns| UsageAnswer {
            name: name.to_owned(),
            at_ms,
            cpu_ns: Some(cpu_ns),
            ..UsageAnswer::default()
        };
        let before = [usage("a", 1000, 0)];
        let rows = rows(&before, vec![usage("b", 3000, 9_000), usage("a", 3000, 1_000_000_000)]);
        let seen: Vec<(&str, f64)> =
            rows.iter().map(|row| (row.now.name.as_str(), row.cpu_percent)).collect();
        assert_eq!(seen, [("a", 50.0), ("b", 0.0)]);
    }
}
