//! The tree on the right: only the rows that are on the screen are looked up.

use ratatui::text::{Line, Span};

use super::super::fit;
use super::super::state::{Explorer, Focus};
use super::{Area, BOLD, FAINT, PLAIN, REVERSED, layer_name, mark_style, mode};
use crate::inspect::strata::{Mark, Order, PlaceId, Row, Scope};
use crate::inspect::text::printable;

/// Columns that a tree needs before mode and owner have room beside it.
const WIDE: usize = 72;

pub(super) fn draw(area: &mut Area<'_>, explorer: &mut Explorer) {
    let focused = explorer.focus == Focus::Tree;
    let wide = area.width() >= WIDE;
    heading(area, explorer, focused, wide);
    let height = area.height().saturating_sub(1);
    if focused {
        explorer.page = height;
    }
    explorer.tree.scroll(explorer.rows.len(), height);
    let shown = explorer.rows.iter().enumerate().skip(explorer.tree.top).take(height);
    for (line, (index, row)) in shown.enumerate() {
        let selected = index == explorer.tree.at;
        area.line(line + 1, &tree_row(explorer, row, area.width(), wide));
        if selected {
            area.paint(line + 1, if focused { REVERSED } else { BOLD });
        }
    }
    if explorer.rows.len() == 1 && height > 3 {
        let empty = match explorer.outlook.scope() {
            Scope::Changes if explorer.compares() => "Nothing differs.",
            Scope::Changes => "This layer changes nothing.",
            Scope::Whole if explorer.is_open(PlaceId::ROOT) => "There is nothing in here.",
            Scope::Whole => return,
        };
        area.text(3, &format!("    {empty}"), FAINT);
    }
}

fn heading(area: &mut Area<'_>, explorer: &Explorer, focused: bool, wide: bool) {
    let layer = explorer.layer();
    let name = layer_name(explorer, layer);
    let what = match (explorer.compares(), explorer.outlook.scope()) {
        (true, Scope::Whole) => format!("All of {name}"),
        (true, Scope::Changes) if layer == 0 => format!("All of {name}"),
        (true, Scope::Changes) => format!("What {name} changes"),
        (false, Scope::Whole) => format!("Everything up to {name}"),
        (false, Scope::Changes) => format!("Only what {name} changes"),
    };
    let what = match explorer.order {
        Order::Name => what,
        Order::Size => format!("{what}, by size"),
    };
    let size = fit::right("SIZE", fit::SIZE + 1);
    let right = if wide { format!("{:<10}  {:>11} {size}", "MODE", "OWNER") } else { size };
    super::ends(area, 0, &what, &right, if focused { BOLD } else { FAINT });
}

fn tree_row(explorer: &Explorer, row: &Row, columns: usize, wide: bool) -> Line<'static> {
    let (strata, outlook) = (&explorer.strata, &explorer.outlook);
    let place = row.place;
    let mark = explorer.mark(place);
    let style = mark_style(mark);
    let kind = outlook.kind(strata, place);
    let directory = kind.is_none_or(|kind| kind.is_directory());
    let letter = match mark.letter() {
        Some(letter) => letter,
        None if explorer.layer() > 0 && outlook.changes_below(place) => '·',
        None => ' ',
    };
    // However deep, half of the row is for the name.
    let indent = (2 * row.depth).min(columns / 2);
    let fold = match (directory, explorer.is_open(place)) {
        (true, true) => "▾ ",
        (true, false) => "▸ ",
        (false, _) => "  ",
    };
    let facts = strata.facts(place, explorer.layer()).ok().flatten();
    let mut name = printable(strata.name(place));
    if directory {
        name.push('/');
    }
    let target = facts.as_ref().map_or("", |facts| facts.target.as_str());
    let sized = directory || kind.is_some_and(super::is_file);
    let size = match outlook.bytes(strata, place) {
        0 if directory => "-".to_owned(),
        bytes if sized => fit::size(bytes),
        _ => String::new(),
    };
    let size = fit::right(&size, fit::SIZE + 1);
    let right = match &facts {
        Some(facts) if wide => {
            let owner = format!("{}:{}", facts.metadata.uid, facts.metadata.gid);
            format!("{}  {:>11} {size}", mode(facts), fit::cut(&owner, 11))
        }
        _ => size,
    };
    let taken = 2 + indent + fold.chars().count() + fit::width(&right) + 1;
    let room = columns.saturating_sub(taken);
    let name = fit::name(&name, room);
    let after = if target.is_empty() || room < fit::width(&name) + 6 {
        String::new()
    } else {
        fit::cut(&format!(" → {target}"), room - fit::width(&name))
    };
    let gap = room.saturating_sub(fit::width(&name) + fit::width(&after)) + 1;
    let name_style = if directory { style.patch(BOLD) } else { style };
    let faint = if mark == Mark::Same { FAINT } else { style };
    Line::from(vec![
        Span::styled(format!("{letter} "), style.patch(BOLD)),
        Span::styled(" ".repeat(indent), PLAIN),
        Span::styled(fold, faint),
        Span::styled(name, name_style),
        Span::styled(after, faint),
        Span::raw(" ".repeat(gap)),
        Span::styled(right, style),
    ])
}
