//! `mica bench`, and `mica bench compare`

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::FOUND;
use super::arguments::{Bench, BenchPart, BenchVerb, Json};
use super::output::{Output, count};
use crate::bench::report::{headlines, write};
use crate::bench::{
    Change, Event, Part, Results, Scale, Settings, Watch, compare, measuring_process, number, run,
};
use crate::host::interrupt_flag;

pub(super) fn run_bench(wanted: &Bench, store: &Path, output: &Output) -> Result<ExitCode> {
    super::log_to_stderr();
    if let Some(BenchVerb::Compare { old, new, json }) = &wanted.verb {
        return run_compare(old, new, *json, *output);
    }
    let interrupted = interrupt_flag()?;
    let absolute =
        |path: &Path| path.canonicalize().with_context(|| format!("cannot use {}", path.display()));
    let settings = Settings {
        parts: match wanted.part {
            BenchPart::Savings => vec![Part::Savings],
            BenchPart::Memory => vec![Part::Memory],
            BenchPart::Speed => vec![Part::Speed],
            BenchPart::Growth => vec![Part::Growth],
            BenchPart::All => Part::ALL.to_vec(),
        },
        containers: wanted.containers,
        templates: wanted.template.clone(),
        workloads: wanted.workload.clone(),
        scale: if wanted.quick { Scale::Quick } else { Scale::Standard },
        only: None,
        store: std::path::absolute(store)?,
        dir: absolute(&wanted.dir)?,
        program: std::env::current_exe().context("cannot find mica's own program file")?,
    };
    // A report that cannot be written shall not be found out at the end.
    std::fs::create_dir_all(&wanted.out)
        .with_context(|| format!("cannot make {}", wanted.out.display()))?;
    let mut progress = Progress::new(*output);
    let measured = run(&settings, interrupted, &mut progress);
    progress.finish();
    let results = measured?;
    let files = write(&results, &wanted.out)?;
    if wanted.json.json {
        output.json(&results)?;
    } else {
        tell(&results, *output)?;
        let page = wanted.out.join("report.html");
        output.remark(format!(
            "{} in {}; begin with {}",
            count(u64::try_from(files.len())?, "file"),
            wanted.out.display(),
            page.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The other end of it, in namespaces of its own.
pub(super) fn run_process() -> Result<ExitCode> {
    super::log_to_stderr();
    measuring_process()?;
    Ok(ExitCode::SUCCESS)
}

/// What a person wants to know at once; the rest is in the report.
fn tell(results: &Results, output: Output) -> Result<()> {
    output.line(results.machine.line())?;
    if !results.machine.optimised {
        output.note("this build of Mica is not optimised: its times mean little");
    }
    for line in headlines(results) {
        output.line(format!("- {line}"))?;
    }
    let rows: Vec<Vec<String>> = results
        .speed
        .iter()
        .filter(|row| row.target.is_some())
        .map(|row| {
            let ours = row.find(&row.about);
            let ours = ours.map(|of| format!("{} {}", number(of.median()), row.unit.name()));
            let verdict = row.verdict.clone();
            vec![
                row.what.clone(),
                ours.unwrap_or_default(),
                row.told_ratio(),
                row.promised(),
                verdict,
            ]
        })
        .collect();
    if !rows.is_empty() {
        output.line("")?;
        output.table(&["SPEED", "MICA", "RATIO", "TARGET", ""], &rows)?;
    }
    Ok(())
}

fn run_compare(old: &Path, new: &Path, json: Json, output: Output) -> Result<ExitCode> {
    let compared = compare(&Results::read(old)?, &Results::read(new)?);
    if json.json {
        output.json(&compared)?;
    } else {
        for sentence in &compared.differing {
            output.note(sentence);
        }
        let told = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), number);
        let rows: Vec<Vec<String>> = compared
            .figures
            .iter()
            .filter(|one| one.change != Change::Same)
            .map(|one| {
                let ratio = one.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
                let change = match one.change {
                    Change::Better => "better",
                    Change::Worse => "worse",
                    Change::Same => "",
                    Change::Gone => "gone",
                    Change::New => "new",
                };
                let (old, new) = (told(one.old), told(one.new));
                vec![one.name.clone(), one.unit.clone(), old, new, ratio, change.to_owned()]
            })
            .collect();
        let same = compared.figures.len() - rows.len();
        if !rows.is_empty() {
            output.table(&["FIGURE", "UNIT", "OLD", "NEW", "RATIO", ""], &rows)?;
        }
        let same = count(u64::try_from(same)?, "figure");
        output.remark(format!("{same} not different by more than the rounds of a run are."))?;
    }
    let worse = compared.figures.iter().any(|one| one.change == Change::Worse);
    Ok(if worse { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

/// Draws how far a run is.
struct Progress {
    bar: ProgressBar,
    output: Output,
}

impl Progress {
    fn new(output: Output) -> Self {
        let visible = io::stderr().is_terminal() && !output.is_quiet();
        let bar = if visible { ProgressBar::new(1000) } else { ProgressBar::hidden() };
        bar.set_style(style());
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, output }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {bar:20} {msg}, {elapsed} so far")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Watch for Progress {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { name, done, left_seconds } => {
                let left = Duration::try_from_secs_f64(*left_seconds).unwrap_or_default();
                self.bar.set_message(format!("{name}, about {} left", HumanDuration(left)));
                self.bar.set_position(permille(*done));
            }
            // In a pipe the tables at the end are all there is.
            Event::Row(_) if self.bar.is_hidden() => {}
            Event::Row(row) => self.bar.suspend(|| self.output.shown(row)),
            Event::Note(note) => self.bar.suspend(|| self.output.note(note)),
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
fn permille(part: f64) -> u64 {
    (part.clamp(0.0, 1.0) * 1000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_a_valid_template_and_parts_are_clamped() {
        let bar = ProgressBar::hidden();
        bar.set_style(style());
        bar.inc(1);
        assert_eq!((permille(0.5), permille(7.0), permille(f64::NAN)), (500, 1000, 0));
    }
}
