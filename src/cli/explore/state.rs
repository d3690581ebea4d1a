//! What the screen shows, and what keys do to it.

use anyhow::Result;

use super::keys::{Action, Move};
use crate::inspect::strata::{Mark, Order, Outlook, PlaceId, Preview, Row, Scope, Sheet, Waste};
use crate::inspect::text::printable;
use crate::inspect::{Library, Strata};

/// Columns that a preview moves sideways at once.
const SIDEWAYS: usize = 8;

/// Columns that a preview moves sideways at most: as many as it has bytes.
const WIDEST: usize = 64 * 1024;

/// Letters that can be searched for.
const LONGEST_SEARCH: usize = 200;

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Go,
    Quit,
}

/// The pane that the arrows move in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Focus {
    Layers,
    Tree,
}

/// What is open over, or in the place of, the tree.
pub(super) enum Panel {
    Tree,
    Waste,
    Preview(Box<Opened>),
    Help,
}

/// A file that is being looked into.
pub(super) struct Opened {
    pub(super) place: PlaceId,
    pub(super) preview: Preview,
    pub(super) cursor: Cursor,
    /// Columns that are out of sight on the left.
    pub(super) shift: usize,
}

impl Opened {
    fn act(&mut self, action: Action, page: usize) {
        if let Action::Move(to) = action {
            // The line in hand is the first on the screen.
            let lines = self.preview.lines.len();
            self.cursor.step(to, (lines + 1).saturating_sub(page).max(1), page);
            self.cursor.top = self.cursor.at;
        } else if action == Action::Left {
            self.shift = self.shift.saturating_sub(SIDEWAYS);
        } else if action == Action::Right {
            self.shift = self.shift.saturating_add(SIDEWAYS).min(WIDEST);
        }
    }
}

/// A line of a list, and the first one that is on the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) at: usize,
    pub(super) top: usize,
}

impl Cursor {
    fn step(&mut self, to: Move, len: usize, page: usize) {
        let last = len.saturating_sub(1);
        self.at = match to {
            Move::Up => self.at.saturating_sub(1),
            Move::Down => self.at + 1,
            Move::PageUp => self.at.saturating_sub(page.max(1)),
            Move::PageDown => self.at + page.max(1),
            Move::First => 0,
            Move::Last => last,
        }
        .min(last);
    }

    /// Moves the lines on the screen so that the one in hand is among them.
    pub(super) fn scroll(&mut self, len: usize, height: usize) {
        let highest = len.saturating_sub(height);
        self.top = self.top.min(self.at).max((self.at + 1).saturating_sub(height)).min(highest);
    }
}

/// The word that was searched for, and where it is.
pub(super) struct Search {
    pub(super) wanted: String,
    pub(super) matches: Vec<PlaceId>,
    pub(super) at: usize,
}

/// All that the screen shows.
pub(super) struct Explorer {
    library: Library,
    pub(super) strata: Strata,
    pub(super) waste: Waste,
    pub(super) outlook: Outlook,
    pub(super) order: Order,
    open: Vec<bool>,
    pub(super) rows: Vec<Row>,
    pub(super) tree: Cursor,
    pub(super) wasted: Cursor,
    pub(super) layers_top: usize,
    pub(super) focus: Focus,
    pub(super) panel: Panel,
    pub(super) typing: Option<String>,
    pub(super) search: Option<Search>,
    /// Something to be said once.
    pub(super) message: Option<String>,
    /// Lines of the list in hand, as last drawn.
    pub(super) page: usize,
}

impl Explorer {
    pub(super) fn new(library: Library, strata: Strata) -> Result<Self> {
        let top = strata.layers().len().saturating_sub(1);
        let waste = strata.waste()?;
        // What was compared is there for its differences.
        let compared =
            matches!(strata.layers().first().map(|layer| &layer.sheet), Some(Sheet::Tree(_)));
        let scope = if compared { Scope::Changes } else { Scope::Whole };
        let mut open = vec![false; strata.len()];
        if let Some(root) = open.first_mut() {
            *root = true;
        }
        let mut explorer = Self {
            library,
            waste,
            outlook: Outlook::new(&strata, top, scope),
            strata,
            order: Order::Name,
            open,
            rows: Vec::new(),
            tree: Cursor::default(),
            wasted: Cursor::default(),
            layers_top: 0,
            focus: Focus::Tree,
            panel: Panel::Tree,
            typing: None,
            search: None,
            message: None,
            page: 1,
        };
        explorer.list(PlaceId::ROOT);
        Ok(explorer)
    }

    pub(super) fn is_typing(&self) -> bool {
        self.typing.is_some()
    }

    /// Whether two trees are compared.
    pub(super) fn compares(&self) -> bool {
        matches!(self.strata.layers().first().map(|one| &one.sheet), Some(Sheet::Tree(_)))
    }

    pub(super) fn layer(&self) -> usize {
        self.outlook.layer()
    }

    pub(super) fn is_open(&self, place: PlaceId) -> bool {
        self.open.get(place.index()).copied().unwrap_or(false)
    }

    /// The place in hand.
    pub(super) fn selected(&self) -> PlaceId {
        self.rows.get(self.tree.at).map_or(PlaceId::ROOT, |row| row.place)
    }

    /// What the layer in hand does to a place; the lowest layer changes nothing.
    pub(super) fn mark(&self, place: PlaceId) -> Mark {
        if self.layer() == 0 { Mark::Same } else { self.strata.mark(place, self.layer()) }
    }

    /// Does what a key asks for.
    pub(super) fn act(&mut self, action: Action) -> Flow {
        self.message = None;
        if action == Action::Quit {
            return Flow::Quit;
        }
        if let Some(word) = self.typing.take() {
            self.type_on(word, action);
            return Flow::Go;
        }
        match (action, &mut self.panel) {
            (Action::Back, Panel::Tree) if self.search.is_some() => self.search = None,
            (Action::Back, Panel::Tree) => return Flow::Quit,
            (Action::Help, Panel::Help) | (Action::Waste, Panel::Waste) | (Action::Back, _) => {
                self.panel = Panel::Tree;
            }
            (Action::Help, _) => self.panel = Panel::Help,
            (Action::Enter, Panel::Help | Panel::Preview(_)) => self.panel = Panel::Tree,
            (_, Panel::Help) => {}
            (action, Panel::Preview(opened)) => opened.act(action, self.page),
            (Action::OtherPane, _) => {
                self.focus = match self.focus {
                    Focus::Layers => Focus::Tree,
                    Focus::Tree => Focus::Layers,
                };
            }
            (Action::LayerBelow, _) => self.step_layer(Move::Down),
            (Action::LayerAbove, _) => self.step_layer(Move::Up),
            (Action::Changes, _) => {
                self.look(
                    self.layer(),
                    match self.outlook.scope() {
                        Scope::Whole => Scope::Changes,
                        Scope::Changes => Scope::Whole,
                    },
                );
            }
            (Action::Waste, _) => self.show_waste(),
            (Action::Search, _) => {
                (self.panel, self.focus) = (Panel::Tree, Focus::Tree);
                self.typing = Some(String::new());
            }
            (Action::NextMatch, _) => self.step_match(true),
            (Action::PreviousMatch, _) => self.step_match(false),
            (Action::Right | Action::Enter, _) if self.focus == Focus::Layers => {
                self.focus = Focus::Tree;
            }
            (Action::Move(to), _) if self.focus == Focus::Layers => self.step_layer(to),
            (Action::Left | Action::OpenAll, _) if self.focus == Focus::Layers => {}
            (Action::Enter, Panel::Waste) => self.show_wasted(),
            (Action::Move(to), Panel::Waste) => {
                self.wasted.step(to, self.waste.contents.len(), self.page);
            }
            (Action::Left | Action::Right | Action::OpenAll | Action::Sort, Panel::Waste) => {}
            (Action::Left, _) => self.close(),
            (Action::Right, _) => self.open_directory(true),
            (Action::Enter, _) => self.enter(),
            (Action::OpenAll, _) => self.open_all(),
            (Action::Sort, _) => {
                self.order = match self.order {
                    Order::Name => Order::Size,
                    Order::Size => Order::Name,
                };
                self.look(self.layer(), self.outlook.scope());
            }
            (Action::Move(to), Panel::Tree) => self.tree.step(to, self.rows.len(), self.page),
            // Quitting was done above, and letters are typed only into a search.
            (Action::Quit | Action::Type(_) | Action::Erase, _) => {}
        }
        Flow::Go
    }

    /// Lists anew what is open, with `place`, or the nearest directory above it, in hand.
    fn list(&mut self, place: PlaceId) {
        let open = &self.open;
        let is_open = |place: PlaceId| open.get(place.index()).copied().unwrap_or(false);
        self.rows = self.outlook.rows(&self.strata, self.order, is_open);
        let mut wanted = place;
        let found = loop {
            match self.rows.iter().position(|row| row.place == wanted) {
                Some(at) => break at,
                None if wanted == PlaceId::ROOT => break 0,
                None => wanted = self.strata.parent(wanted),
            }
        };
        self.tree.at = found;
    }

    /// Shows a place: opens the directories above it.
    fn reveal(&mut self, place: PlaceId) {
        let mut above = place;
        while above != PlaceId::ROOT {
            above = self.strata.parent(above);
            if let Some(open) = self.open.get_mut(above.index()) {
                *open = true;
            }
        }
        self.list(place);
        if !(self.tree.top..self.tree.top + self.page).contains(&self.tree.at) {
            // Far from what was on the screen: with as much before it as after it.
            self.tree.top = self.tree.at.saturating_sub(self.page / 2);
        }
    }

    fn look(&mut self, layer: usize, scope: Scope) {
        let place = self.selected();
        if (layer, scope) != (self.layer(), self.outlook.scope()) {
            self.outlook = Outlook::new(&self.strata, layer, scope);
        }
        self.list(place);
        if let Some(search) = self.search.take() {
            self.find(search.wanted, false);
        }
    }

    /// To another layer; the highest is the first of the list.
    fn step_layer(&mut self, to: Move) {
        let last = self.strata.layers().len().saturating_sub(1);
        let mut cursor = Cursor { at: last - self.layer().min(last), top: 0 };
        cursor.step(to, last + 1, self.page);
        self.look(last - cursor.at, self.outlook.scope());
    }

    fn set_open(&mut self, place: PlaceId, wanted: bool) {
        if let Some(open) = self.open.get_mut(place.index()) {
            *open = wanted;
        }
    }

    fn is_directory(&self, place: PlaceId) -> bool {
        self.outlook.kind(&self.strata, place).is_none_or(|kind| kind.is_directory())
    }

    fn open_directory(&mut self, wanted: bool) {
        let place = self.selected();
        if self.is_directory(place) && self.is_open(place) != wanted {
            self.set_open(place, wanted);
            self.list(place);
        } else if wanted {
            self.tree.step(Move::Down, self.rows.len(), 1);
        }
    }

    fn close(&mut self) {
        let place = self.selected();
        if self.is_directory(place) && self.is_open(place) && place != PlaceId::ROOT {
            self.open_directory(false);
        } else {
            self.list(self.strata.parent(place));
        }
    }

    fn open_all(&mut self) {
        let place = self.selected();
        let wanted = !self.is_open(place) || {
            let children = self.outlook.children(&self.strata, place, Order::Name);
            children.into_iter().any(|child| self.is_directory(child) && !self.is_open(child))
        };
        let mut left = vec![place];
        while let Some(place) = left.pop() {
            if self.is_directory(place) {
                self.set_open(place, wanted || place == PlaceId::ROOT);
                left.extend(self.outlook.children(&self.strata, place, Order::Name));
            }
        }
        self.list(place);
    }

    fn enter(&mut self) {
        let place = self.selected();
        if self.is_directory(place) {
            return self.open_directory(!self.is_open(place));
        }
        match self.strata.preview(&self.library, place, self.layer()) {
            Ok(preview) => {
                let cursor = Cursor::default();
                self.panel = Panel::Preview(Box::new(Opened { place, preview, cursor, shift: 0 }));
            }
            Err(error) => {
                let sentence = crate::host::sentence(&error);
                self.message = Some(printable(sentence.as_bytes()).replace("\\\\", "\\"));
            }
        }
    }

    fn show_waste(&mut self) {
        if self.compares() {
            self.message = Some("Two trees are compared here: no layer hides another.".into());
        } else {
            (self.panel, self.focus) = (Panel::Waste, Focus::Tree);
        }
    }

    /// To the layer that has the wasted content in hand, and its place there.
    fn show_wasted(&mut self) {
        let Some(wasted) = self.waste.contents.get(self.wasted.at).copied() else { return };
        self.panel = Panel::Tree;
        self.look(wasted.layer, Scope::Whole);
        self.reveal(wasted.place);
    }

    // Any other key gives the search up.
    #[allow(clippy::wildcard_enum_match_arm)]
    fn type_on(&mut self, mut word: String, action: Action) {
        match action {
            Action::Type(letter) => {
                if word.len() < LONGEST_SEARCH && !letter.is_control() {
                    word.push(letter);
                }
                self.typing = Some(word);
            }
            Action::Erase => self.typing = word.pop().map(|_| word),
            Action::Enter if !word.is_empty() => self.find(word, true),
            _ => {}
        }
    }

    fn find(&mut self, wanted: String, go: bool) {
        let matches = self.outlook.search(&self.strata, self.order, &wanted);
        if matches.is_empty() && go {
            self.message = Some(format!("No name here has {wanted:?} in it."));
        }
        let at = matches.iter().position(|place| *place == self.selected()).unwrap_or(0);
        self.search = Some(Search { wanted, matches, at });
        if go {
            self.go_to_match();
        }
    }

    fn step_match(&mut self, next: bool) {
        match &mut self.search {
            None => self.message = Some("Nothing was searched for yet: / searches.".into()),
            Some(search) => {
                let len = search.matches.len().max(1);
                search.at = (search.at + if next { 1 } else { len - 1 }) % len;
                self.go_to_match();
            }
        }
    }

    fn go_to_match(&mut self) {
        (self.panel, self.focus) = (Panel::Tree, Focus::Tree);
        let search = self.search.as_ref();
        if let Some(place) = search.and_then(|search| search.matches.get(search.at).copied()) {
            self.reveal(place);
        }
    }
}
