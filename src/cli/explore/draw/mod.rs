//! How the screen looks. Text alone tells everything; colour only helps.

mod layers;
mod panels;
mod tree;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::fit;
use super::state::{Explorer, Focus, Panel};
use crate::cli::output::count;
use crate::inspect::Kind;
use crate::inspect::strata::{Facts, Mark, Scope, Sheet};
use crate::inspect::text::{printable, short_time};
use crate::layer::FileKind;

/// The smallest terminal that everything fits.
pub(super) const SMALLEST: (u16, u16) = (80, 24);

/// Columns of the layers' pane.
const LAYERS_WIDTH: u16 = 30;

pub(super) const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
pub(super) const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
pub(super) const PLAIN: Style = Style::new();
pub(super) const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// A part of the screen, written line by line.
pub(super) struct Area<'a> {
    buffer: &'a mut Buffer,
    rect: Rect,
}

impl Area<'_> {
    pub(super) fn width(&self) -> usize {
        usize::from(self.rect.width)
    }

    pub(super) fn height(&self) -> usize {
        usize::from(self.rect.height)
    }

    /// Writes a line; below the area there is nothing.
    pub(super) fn line(&mut self, row: usize, line: &Line<'_>) {
        if let Some(y) = self.y(row) {
            self.buffer.set_line(self.rect.x, y, line, self.rect.width);
        }
    }

    pub(super) fn text(&mut self, row: usize, text: &str, style: Style) {
        self.line(row, &Line::from(Span::styled(text, style)));
    }

    /// Gives a whole line a look.
    pub(super) fn paint(&mut self, row: usize, style: Style) {
        if let Some(y) = self.y(row) {
            self.buffer.set_style(Rect { y, height: 1, ..self.rect }, style);
        }
    }

    fn y(&self, row: usize) -> Option<u16> {
        let row = u16::try_from(row).ok().filter(|row| *row < self.rect.height)?;
        self.rect.y.checked_add(row)
    }
}

/// Draws everything.
pub(super) fn screen(frame: &mut Frame<'_>, explorer: &mut Explorer) {
    let whole = frame.area();
    let buffer = frame.buffer_mut();
    if whole.width < SMALLEST.0 || whole.height < SMALLEST.1 {
        return too_small(&mut Area { buffer, rect: whole });
    }
    let part = |y, height| Rect { y: whole.y + y, height, ..whole };
    let body = part(1, whole.height - 3);
    title(&mut Area { buffer, rect: part(0, 1) }, explorer);
    match explorer.panel {
        Panel::Help => panels::help(&mut Area { buffer, rect: body }),
        Panel::Preview(_) => panels::preview(&mut Area { buffer, rect: body }, explorer),
        Panel::Tree | Panel::Waste => {
            let left = Rect { width: LAYERS_WIDTH, ..body };
            layers::draw(&mut Area { buffer, rect: left }, explorer);
            let mut rule =
                Area { buffer, rect: Rect { x: body.x + LAYERS_WIDTH, width: 1, ..body } };
            for row in 0..rule.height() {
                rule.text(row, "│", FAINT);
            }
            let taken = LAYERS_WIDTH + 2;
            let right = Rect { x: body.x + taken, width: body.width - taken, ..body };
            let area = &mut Area { buffer, rect: right };
            if matches!(explorer.panel, Panel::Waste) {
                panels::waste(area, explorer);
            } else {
                tree::draw(area, explorer);
            }
        }
    }
    status(&mut Area { buffer, rect: part(whole.height - 2, 1) }, explorer);
    hints(&mut Area { buffer, rect: part(whole.height - 1, 1) }, explorer);
}

fn too_small(area: &mut Area<'_>) {
    let (width, height) = SMALLEST;
    let here = format!("this one has {}×{}", area.width(), area.height());
    for (row, text) in [
        "The explorer needs a terminal of".to_owned(),
        format!("{width}×{height} characters;"),
        format!("{here}."),
        "q quits.".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        area.text(row, &fit::cut(text, area.width()), PLAIN);
    }
}

/// Two texts at either end of one line; the left one gives way.
pub(super) fn ends(area: &mut Area<'_>, row: usize, left: &str, right: &str, style: Style) {
    let columns = area.width().saturating_sub(fit::width(right));
    let text = format!("{}{right}", fit::left(&fit::cut(left, columns.saturating_sub(2)), columns));
    area.text(row, &text, style);
}

fn title(area: &mut Area<'_>, explorer: &Explorer) {
    let strata = &explorer.strata;
    let whole = format!(" {}", printable(strata.whole().as_bytes()).replace("\\\\", "\\"));
    let bytes = strata.layers().iter().fold(0_u64, |sum, one| sum.saturating_add(one.bytes));
    let about = match strata.layers().last() {
        Some(new) if explorer.compares() => {
            let counts = new.counts;
            format!("{} A, {} C, {} D ", counts.added, counts.changed, counts.removed)
        }
        _ => {
            let layers = count(u64::try_from(strata.layers().len()).unwrap_or(u64::MAX), "layer");
            let hidden = fit::size(explorer.waste.bytes);
            format!("{layers}, {}, {hidden} hidden ", fit::size(bytes))
        }
    };
    ends(area, 0, &whole, &about, REVERSED);
    area.paint(0, REVERSED);
}

/// What the layer at `index` is called in a narrow column.
pub(super) fn layer_number(explorer: &Explorer, index: usize) -> String {
    match explorer.strata.layers().get(index).map(|layer| &layer.sheet) {
        Some(Sheet::Private(_)) => "own".to_owned(),
        Some(Sheet::Tree(_)) => if index == 0 { "old" } else { "new" }.to_owned(),
        Some(Sheet::Layer(_)) | None => (index + 1).to_string(),
    }
}

/// What it is called in a sentence.
pub(super) fn layer_name(explorer: &Explorer, index: usize) -> String {
    match explorer.strata.layers().get(index).map(|layer| &layer.sheet) {
        Some(Sheet::Private(_)) => "the private layer".to_owned(),
        Some(Sheet::Tree(whole)) => whole.clone(),
        Some(Sheet::Layer(_)) | None => format!("layer {}", index + 1),
    }
}

pub(super) fn mark_style(mark: Mark) -> Style {
    use ratatui::style::Color;
    match mark {
        Mark::Same => PLAIN,
        Mark::Added => PLAIN.fg(Color::Green),
        Mark::Changed => PLAIN.fg(Color::Yellow),
        Mark::Removed => PLAIN.fg(Color::Red),
        Mark::Moved => PLAIN.fg(Color::Magenta),
        Mark::Damaged => BOLD.fg(Color::Red),
    }
}

fn mark_word(mark: Mark) -> Option<&'static str> {
    match mark {
        Mark::Same => None,
        Mark::Added => Some("added"),
        Mark::Changed => Some("changed"),
        Mark::Removed => Some("removed"),
        Mark::Moved => Some("moved"),
        Mark::Damaged => Some("damaged"),
    }
}

/// Type and permissions as ls(1) has them.
pub(super) fn mode(facts: &Facts) -> String {
    let bits = facts.metadata.mode;
    let mut text = String::with_capacity(10);
    text.push(facts.kind.letter());
    for (shift, special, set, unset) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let has = |bit: u32| bits & (bit << shift) != 0;
        text.push(if has(4) { 'r' } else { '-' });
        text.push(if has(2) { 'w' } else { '-' });
        text.push(match (bits & special != 0, has(1)) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The place in hand: its path on the left, what it is on the right.
fn status(area: &mut Area<'_>, explorer: &Explorer) {
    let (place, layer) = match &explorer.panel {
        Panel::Tree => (explorer.selected(), explorer.layer()),
        Panel::Preview(opened) => (opened.place, explorer.layer()),
        Panel::Waste => match explorer.waste.contents.get(explorer.wasted.at) {
            Some(wasted) => (wasted.place, wasted.layer),
            None => return,
        },
        Panel::Help => return,
    };
    let mut about = String::new();
    let facts = explorer.strata.facts(place, layer).ok().flatten();
    if let Some(facts) = &facts {
        let time = short_time(facts.metadata.mtime);
        let (uid, gid) = (facts.metadata.uid, facts.metadata.gid);
        about = format!("{} {uid}:{gid} {time}", mode(facts));
        let at_layer = explorer.mark(place);
        let from = layer_number(explorer, facts.layer);
        let digits = from.starts_with(|first: char| first.is_ascii_digit());
        about.push_str(&if digits { format!(" layer {from}") } else { format!(" {from}") });
        if let Some(word) = mark_word(at_layer).filter(|_| matches!(explorer.panel, Panel::Tree)) {
            about.push_str(&format!(" {word}"));
        }
    }
    let remark =
        facts.and_then(|facts| facts.remark).map_or_else(String::new, |r| format!(" ({r})"));
    let path = format!("{}{remark}", explorer.strata.shown_path(place));
    let columns = area.width().saturating_sub(fit::width(&about) + 3);
    let text = format!(" {} {about} ", fit::left(&fit::path(&path, columns), columns));
    area.text(0, &text, BOLD);
}

fn hints(area: &mut Area<'_>, explorer: &Explorer) {
    if let Some(word) = &explorer.typing {
        let line = format!(" /{}█", fit::path(word, area.width().saturating_sub(4)));
        return area.text(0, &line, PLAIN);
    }
    if let Some(message) = &explorer.message {
        return area.text(
            0,
            &format!(" {}", fit::cut(message, area.width().saturating_sub(2))),
            BOLD,
        );
    }
    let found = explorer.search.as_ref().filter(|search| !search.matches.is_empty());
    let keys = match (&explorer.panel, found) {
        (Panel::Help, _) => "Esc back   q quit".to_owned(),
        (Panel::Preview(_), _) => {
            "Esc back   ↑↓ PgUp PgDn scroll   ←→ sideways   q quit".to_owned()
        }
        (Panel::Waste, _) => {
            "Esc back   ↑↓ move   Enter show in the tree   ? keys   q quit".to_owned()
        }
        (Panel::Tree, Some(search)) => {
            let word = fit::cut(&search.wanted, 20);
            format!(
                "{} of {} for {word:?}   n next   N previous   Esc done   ? keys",
                search.at + 1,
                search.matches.len()
            )
        }
        (Panel::Tree, None) => {
            let other = if explorer.focus == Focus::Tree { "layers" } else { "tree" };
            let scope = match explorer.outlook.scope() {
                Scope::Whole => "changes only",
                Scope::Changes => "everything",
            };
            let waste = if explorer.compares() { "" } else { "   w waste" };
            format!("? keys   Tab {other}   c {scope}{waste}   / search   s sort   q quit")
        }
    };
    area.text(0, &format!(" {}", fit::cut(&keys, area.width().saturating_sub(2))), FAINT);
}

/// Whether a name stands for a regular file.
pub(super) fn is_file(kind: Kind) -> bool {
    kind == Kind::File(FileKind::Regular)
}
