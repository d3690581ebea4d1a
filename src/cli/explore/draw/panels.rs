//! What stands in the place of the tree: waste, a file, the keys.

use super::super::fit;
use super::super::keys::KEYS;
use super::super::state::{Explorer, Focus, Panel};
use super::{Area, BOLD, FAINT, PLAIN, REVERSED, ends, layer_number};
use crate::inspect::text::printable;

/// Lines over the wasted contents.
const WASTE_HEAD: usize = 2;

pub(super) fn waste(area: &mut Area<'_>, explorer: &mut Explorer) {
    let waste = &explorer.waste;
    let layers = explorer.strata.layers();
    let all = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.bytes));
    if waste.contents.is_empty() {
        area.text(0, "Hidden by higher layers: nothing", BOLD);
        area.text(2, "  Every byte of every layer is there to be seen.", FAINT);
        return;
    }
    let sum = format!(
        "Hidden by higher layers: {} ({})",
        fit::size(waste.bytes),
        fit::share(waste.bytes, all)
    );
    area.text(0, &fit::cut(&sum, area.width()), BOLD);
    area.text(1, &format!("{:>8} {:>4} {:>4}  FILE", "SIZE", "IN", "BY"), FAINT);
    let height = area.height().saturating_sub(WASTE_HEAD);
    let focused = explorer.focus == Focus::Tree;
    if focused {
        explorer.page = height;
    }
    explorer.wasted.scroll(waste.contents.len(), height);
    let shown = waste.contents.iter().enumerate().skip(explorer.wasted.top).take(height);
    for (line, (index, wasted)) in shown.enumerate() {
        let more = match wasted.names {
            0 | 1 => String::new(),
            names => format!(" +{}", names - 1),
        };
        let columns = area.width().saturating_sub(20 + fit::width(&more));
        let text = format!(
            "{:>8} {:>4} {:>4}  {}{more}",
            fit::size(wasted.bytes),
            layer_number(explorer, wasted.layer),
            layer_number(explorer, wasted.hidden_by),
            fit::path(&explorer.strata.shown_path(wasted.place), columns)
        );
        area.text(line + WASTE_HEAD, &text, PLAIN);
        if index == explorer.wasted.at {
            area.paint(line + WASTE_HEAD, if focused { REVERSED } else { BOLD });
        }
    }
}

pub(super) fn preview(area: &mut Area<'_>, explorer: &mut Explorer) {
    let height = area.height().saturating_sub(2);
    explorer.page = height;
    let Panel::Preview(opened) = &mut explorer.panel else { return };
    let preview = &opened.preview;
    let lines = preview.lines.len();
    opened.cursor.top = opened.cursor.at.min(lines.saturating_sub(1));
    let top = opened.cursor.top;
    let name = printable(explorer.strata.name(opened.place));
    let what = if preview.dump { "bytes" } else { "text" };
    let part = if preview.cut { ", the beginning" } else { "" };
    let bottom = (top + height).min(lines);
    let right = format!("{what}{part}   lines {}–{bottom} of {lines}", (top + 1).min(lines));
    ends(area, 0, &format!(" {name}"), &right, BOLD);
    for (row, line) in preview.lines.iter().skip(top).take(height).enumerate() {
        let columns = area.width().saturating_sub(1);
        let line = fit::cut(fit::shifted(line, opened.shift), columns);
        area.text(row + 2, &format!(" {line}"), PLAIN);
    }
}

pub(super) fn help(area: &mut Area<'_>) {
    area.text(0, " Keys", BOLD);
    for (row, (keys, meaning)) in KEYS.iter().enumerate() {
        area.text(row + 1, &format!("  {}  {meaning}", fit::left(keys, 9)), PLAIN);
    }
    let row = KEYS.len() + 2;
    area.text(row, " Letters", BOLD);
    for (line, text) in [
        "  A added   C changed   D removed   R moved   ! damaged   · changed inside",
        "  SIZE of a directory: the files in it, hard links once.",
        "  Hidden: contents that a lower layer holds and no name shows any more.",
    ]
    .into_iter()
    .enumerate()
    {
        area.text(row + 1 + line, text, PLAIN);
    }
}
