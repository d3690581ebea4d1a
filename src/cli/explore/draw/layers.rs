//! The layers on the left, the highest on top, and what is to be said of the one in hand.

use super::super::fit;
use super::super::state::{Cursor, Explorer, Focus, Panel};
use super::{Area, BOLD, FAINT, PLAIN, REVERSED, layer_name, layer_number, mark_style};
use crate::inspect::strata::{Mark, Sheet, Stratum};

/// Lines about the layer in hand.
const ABOUT: usize = 7;

pub(super) fn draw(area: &mut Area<'_>, explorer: &mut Explorer) {
    let waste = matches!(explorer.panel, Panel::Waste);
    let focused = explorer.focus == Focus::Layers;
    let heading = if waste {
        format!("{:>4} {:>8} {:>9}", "#", "SIZE", "HIDDEN")
    } else {
        format!("{:>4} {:>8}{:>6}{:>5}{:>5}", "#", "SIZE", "A", "C", "D")
    };
    area.text(0, &heading, if focused { BOLD } else { FAINT });
    let len = explorer.strata.layers().len();
    let height = area.height().saturating_sub(ABOUT + 2).min(len);
    let last = len.saturating_sub(1);
    let mut cursor = Cursor { at: last.saturating_sub(explorer.layer()), top: explorer.layers_top };
    cursor.scroll(len, height);
    explorer.layers_top = cursor.top;
    if focused {
        explorer.page = height;
    }
    for row in 0..height {
        let index = last.saturating_sub(cursor.top + row);
        let Some(layer) = explorer.strata.layers().get(index) else { continue };
        let selected = index == explorer.layer();
        let marker = if selected { "▸" } else { " " };
        let number = layer_number(explorer, index);
        let text = if layer.damage.is_some() {
            format!("{marker}{number:>3}  damaged")
        } else if waste {
            let hidden = explorer.waste.by_layer.get(index).copied().unwrap_or(0);
            let hidden = if hidden == 0 { "-".to_owned() } else { fit::size(hidden) };
            format!("{marker}{number:>3} {:>8} {hidden:>9}", fit::size(layer.bytes))
        } else {
            let measure = explorer.compares() && index == 0;
            let (a, c, d) = if measure { Default::default() } else { counts(layer) };
            format!("{marker}{number:>3} {:>8}{a:>6}{c:>5}{d:>5}", fit::size(layer.bytes))
        };
        let style = match (selected, layer.damage.is_some()) {
            (_, true) => mark_style(Mark::Damaged),
            (true, false) => BOLD,
            (false, false) => PLAIN,
        };
        area.text(row + 1, &text, style);
        if selected && focused {
            area.paint(row + 1, REVERSED);
        }
    }
    about(area, height + 2, explorer);
}

fn counts(layer: &Stratum) -> (String, String, String) {
    let counts = layer.counts;
    let shown = |number, columns| match number {
        0 => "-".to_owned(),
        number => fit::number(number, columns),
    };
    (shown(counts.added, 5), shown(counts.changed, 4), shown(counts.removed, 4))
}

fn about(area: &mut Area<'_>, top: usize, explorer: &Explorer) {
    let index = explorer.layer();
    let Some(layer) = explorer.strata.layers().get(index) else { return };
    let columns = area.width().saturating_sub(2);
    let name = layer_name(explorer, index);
    area.text(top, &format!(" {}", fit::cut(&capital(&name), columns)), BOLD);
    let mut lines = Vec::new();
    match &layer.sheet {
        Sheet::Layer(id) => lines.push((fit::cut(&id.to_string(), columns), FAINT)),
        Sheet::Private(whole) => lines.push((fit::cut(whole, columns), FAINT)),
        Sheet::Tree(_) => {}
    }
    match &layer.damage {
        Some(damage) => {
            let damage = fit::wrapped(&format!("Left out: {damage}"), columns);
            lines.extend(damage.into_iter().map(|line| (line, mark_style(Mark::Damaged))));
        }
        // The old side of a comparison is what the other is measured by.
        None if explorer.compares() && index == 0 => {}
        None => {
            let counts = layer.counts;
            for (mark, word, number) in [
                (Mark::Added, "added", counts.added),
                (Mark::Changed, "changed", counts.changed),
                (Mark::Removed, "removed", counts.removed),
            ] {
                let names = if number == 1 { "name" } else { "names" };
                let number = indicatif::HumanCount(number).to_string();
                let letter = mark.letter().unwrap_or(' ');
                lines.push((format!("{letter} {word:<8}{number:>9} {names}"), mark_style(mark)));
            }
            let hidden = explorer.waste.by_layer.get(index).copied().unwrap_or(0);
            if !explorer.compares() {
                lines.push((format!("  {:<8}{:>9}", "hidden", fit::size(hidden)), PLAIN));
            }
        }
    }
    for (row, (line, style)) in lines.iter().enumerate() {
        area.text(top + 1 + row, &format!(" {line}"), *style);
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
