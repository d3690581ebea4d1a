//! Which key means what.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Up or down in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
}

/// What somebody at the keyboard wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    /// Out of what is open; out of the program if nothing is.
    Back,
    Move(Move),
    Left,
    Right,
    Enter,
    OtherPane,
    LayerBelow,
    LayerAbove,
    Changes,
    Sort,
    OpenAll,
    Waste,
    Help,
    Search,
    NextMatch,
    PreviousMatch,
    Type(char),
    Erase,
}

/// The keys, for the help screen.
pub(super) const KEYS: &[(&str, &str)] = &[
    ("↑ ↓  k j", "up and down; PgUp PgDn Home End (g G) further"),
    ("→ ←  l h", "open and close a directory; ← also to the one above"),
    ("Enter", "look into a file; open or close a directory"),
    ("*", "open everything in a directory, or close it all"),
    ("Tab", "to the layers, and back to the tree"),
    ("[ ]", "one layer down, one layer up"),
    ("c", "only what this layer changes; again: everything"),
    ("s", "the largest first; again: by name"),
    ("w", "waste: what higher layers hide"),
    ("/  n N", "search names (with a slash: paths); next, previous"),
    ("?", "this help"),
    ("Esc", "back; at the tree: quit"),
    ("q Ctrl-C", "quit"),
];

/// What a key means; `typing`: while a word to search for is being typed.
// Most keys mean nothing here.
#[allow(clippy::wildcard_enum_match_arm)]
pub(super) fn action(key: KeyEvent, typing: bool) -> Option<Action> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let letter = match key.code {
        KeyCode::Char('c' | 'd') if control => return Some(Action::Quit),
        KeyCode::Char(_) if control || key.modifiers.contains(KeyModifiers::ALT) => return None,
        KeyCode::Esc => return Some(Action::Back),
        KeyCode::Enter => return Some(Action::Enter),
        KeyCode::Backspace if typing => return Some(Action::Erase),
        KeyCode::Char(letter) if typing => return Some(Action::Type(letter)),
        _ if typing => return None,
        KeyCode::Up => return Some(Action::Move(Move::Up)),
        KeyCode::Down => return Some(Action::Move(Move::Down)),
        KeyCode::PageUp => return Some(Action::Move(Move::PageUp)),
        KeyCode::PageDown => return Some(Action::Move(Move::PageDown)),
        KeyCode::Home => return Some(Action::Move(Move::First)),
        KeyCode::End => return Some(Action::Move(Move::Last)),
        KeyCode::Left => return Some(Action::Left),
        KeyCode::Right => return Some(Action::Right),
        KeyCode::Tab | KeyCode::BackTab => return Some(Action::OtherPane),
        KeyCode::F(1) => return Some(Action::Help),
        KeyCode::Char(letter) => letter,
        _ => return None,
    };
    Some(match letter {
        'q' => Action::Quit,
        'k' => Action::Move(Move::Up),
        'j' => Action::Move(Move::Down),
        'g' => Action::Move(Move::First),
        'G' => Action::Move(Move::Last),
        'h' => Action::Left,
        'l' => Action::Right,
        ' ' => Action::Move(Move::PageDown),
        '[' => Action::LayerBelow,
        ']' => Action::LayerAbove,
        'c' => Action::Changes,
        's' => Action::Sort,
        '*' => Action::OpenAll,
        'w' => Action::Waste,
        '?' => Action::Help,
        '/' => Action::Search,
        'n' => Action::NextMatch,
        'N' => Action::PreviousMatch,
        _ => return None,
    })
}
