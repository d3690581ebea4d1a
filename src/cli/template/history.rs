//! `mica template history TEMPLATE`

use std::path::Path;

use anyhow::Result;

use crate::cli::arguments::Json;
use crate::cli::output::{Output, Paint, complain, printable, size};
use crate::inspect::Library;
use crate::inspect::history::HistoryRow;

/// Digits of a digest that are enough for a person.
const DIGITS: usize = 12;

pub(super) fn run(wanted: &str, json: Json, store: &Path, output: Output) -> Result<()> {
    let library = Library::open(store)?;
    let history = library.history(&library.template(wanted)?)?;
    if json.json {
        return output.json(&history);
    }
    if output.is_quiet() {
        return output.names(history.layers.iter().map(|row| row.layer.to_string()));
    }
    // The newest first, as hands know it.
    let rows: Vec<Vec<String>> = history.layers.iter().rev().map(|one| row(one, output)).collect();
    output.table(
        &["LAYER", "DIGEST", "SIZE", "ADDED", "CHANGED", "DELETED", "HIDES", "FROM"],
        &rows,
    )?;
    for row in &history.layers {
        if let Some(damage) = &row.damage {
            complain(&format!("layer {} of template {}: {damage}", row.number, history.template));
        }
    }
    Ok(())
}

fn row(row: &HistoryRow, output: Output) -> Vec<String> {
    let digest: String = row.layer.to_string().chars().take(DIGITS).collect();
    let mut cells = vec![row.number.to_string(), digest];
    cells.push(match (&row.damage, row.size_bytes) {
        (None, Some(bytes)) => size(bytes),
        (Some(_), _) | (None, None) => output.paint(Paint::Alarm, "damaged"),
    });
    let amount = |names: u64, bytes: u64| format!("{names} ({})", size(bytes));
    match &row.tally {
        Some(tally) => cells.extend([
            amount(tally.added, tally.added_bytes),
            amount(tally.changed, tally.changed_bytes),
            amount(tally.deleted, tally.deleted_bytes),
            size(tally.hidden_bytes),
        ]),
        None => cells.extend(["-", "-", "-", "-"].map(str::to_owned)),
    }
    let from = row.provenance.iter().map(|from| printable(from.source.as_bytes()));
    cells.push(from.collect::<Vec<_>>().join(", "));
    cells
}
