//! What does a root cost beside kernel overlayfs, a plain directory and fuse-overlayfs?
//!
//! Answers every row of the table in docs/PERFORMANCE.md: the speed part of `mica bench` at full
//! size, with all peers in turns in one run.
//!
//! ```text
//! cargo bench --bench mount                   all rows, about ten minutes, 10 GiB of disk
//! cargo bench --bench mount -- --quick        the same rows, smaller
//! cargo bench --bench mount -- --only first   the sections whose name holds "first"
//!     --json FILE      where the figures go     --scratch DIR    on the disk to measure
//! ```
//!
//! Needs root. Drops the machine's page cache.

use std::path::PathBuf;
use std::process::ExitCode;

use mica::bench::{Event, Part, Scale, Settings, Watch, run};
use mica::host::{interrupt_flag, sentence};

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("mount: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), String> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut json = target.join("mount-bench.json");
    let mut settings = Settings {
        parts: vec![Part::Speed],
        containers: 1,
        templates: Vec::new(),
        workloads: Vec::new(),
        // Without --bench it is `cargo test --benches` that calls: see that it works.
        scale: Scale::Tiny,
        only: None,
        store: target.clone(),
        dir: target,
        program: PathBuf::from(env!("CARGO_BIN_EXE_mica")),
    };
    let mut scale = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let absolute =
            |path: String| std::path::absolute(&path).map_err(|e| format!("{path}: {e}"));
        match argument.as_str() {
            "--bench" => settings.scale = Scale::Full,
            "--quick" => scale = Some(Scale::Quick),
            "--tiny" => scale = Some(Scale::Tiny),
            "--only" => settings.only = Some(value()?),
            "--json" => json = absolute(value()?)?,
            "--scratch" => settings.dir = absolute(value()?)?,
            _ => return Err(format!("no such option: {argument}; see benches/mount.rs")),
        }
    }
    settings.scale = scale.unwrap_or(settings.scale);
    let interrupted = interrupt_flag().map_err(|error| error.to_string())?;
    let results = run(&settings, interrupted, &mut Printer).map_err(|error| sentence(&error))?;
    println!("{}; load {}", results.machine.line(), results.machine.load);
    let text = serde_json::to_vec(&results).map_err(|error| error.to_string())?;
    std::fs::write(&json, text).map_err(|error| format!("{}: {error}", json.display()))?;
    println!("figures: {}", json.display());
    Ok(())
}

/// Prints each row as it comes.
struct Printer;

impl Watch for Printer {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { name, left_seconds, .. } => {
                println!("\n-- {name}, about {left_seconds:.0} s left");
            }
            Event::Row(row) => println!("\n{row}"),
            Event::Note(note) => println!("\n{note}"),
        }
    }
}
