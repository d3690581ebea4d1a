//! What there is to see from one layer: which places, how large, in which rows.

use std::collections::HashSet;

use super::{Mark, PlaceId, Strata};
use crate::inspect::Kind;

/// Which places are to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything that the layer and those below show, and what it takes away.
    Whole,
    /// Only what the layer changes, and the directories on the way there.
    Changes,
}

/// How the names of a directory are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In byte order.
    Name,
    /// The largest first.
    Size,
}

/// The view from one layer. Made by one pass over all places; asking it is quick.
pub struct Outlook {
    layer: usize,
    scope: Scope,
    seen: Vec<Seen>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    listed: bool,
    gone: bool,
    /// Something in it is changed.
    changed_below: bool,
    bytes: u64,
}

/// One line of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it shows.
    pub place: PlaceId,
    /// Directories above it; 0 for the root.
    pub depth: usize,
}

impl Outlook {
    /// Looks at everything from `layer`.
    ///
    /// The bytes of a directory are those of the regular files in it, hard links once; what the
    /// layer takes away counts in directories that went with it. Among the changes alone, only
    /// what the layer adds or changes counts.
    #[must_use]
    pub fn new(strata: &Strata, layer: usize, scope: Scope) -> Self {
        let mut seen = vec![Seen::default(); strata.len()];
        let mut linked = HashSet::new();
        for (index, one) in seen.iter_mut().enumerate() {
            let Some(version) = strata.at(PlaceId(index), layer) else { continue };
            let mark = if version.layer == layer { version.mark } else { Mark::Same };
            one.gone = !version.shown;
            one.listed = match scope {
                Scope::Whole => version.shown || mark == Mark::Removed,
                Scope::Changes => mark != Mark::Same,
            };
            one.changed_below = mark != Mark::Same;
            let counts = one.listed && version.kind.is_regular();
            if counts && linked.insert((strata.identity(version), version.shown)) {
                one.bytes = version.size;
            }
        }
        // A directory comes before everything in it: backwards, each is summed up before it is
        // added to what it lies in.
        for index in (1..seen.len()).rev() {
            let below = seen[index];
            let Some(dir) = seen.get_mut(strata.places[index].parent.0) else { continue };
            dir.changed_below |= below.changed_below;
            dir.listed |= below.listed;
            if dir.gone || !below.gone {
                dir.bytes = dir.bytes.saturating_add(below.bytes);
            }
        }
        for (index, one) in seen.iter_mut().enumerate() {
            one.changed_below &= strata.mark(PlaceId(index), layer) == Mark::Same;
        }
        // Even where nothing changed there is a root to stand on.
        if let Some(root) = seen.first_mut() {
            root.listed = true;
        }
        Self { layer, scope, seen }
    }

    /// The layer.
    #[must_use]
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// What is to be seen.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether a place is to be seen.
    #[must_use]
    pub fn lists(&self, place: PlaceId) -> bool {
        self.seen.get(place.0).is_some_and(|one| one.listed)
    }

    /// Bytes of a file, or of everything in a directory.
    #[must_use]
    pub fn bytes(&self, strata: &Strata, place: PlaceId) -> u64 {
        match self.kind(strata, place) {
            Some(kind) if !kind.is_directory() => {
                strata.at(place, self.layer).map_or(0, |version| version.size)
            }
            _ => self.seen.get(place.0).map_or(0, |one| one.bytes),
        }
    }

    /// What a place is, or was before the layer took it away.
    #[must_use]
    pub fn kind(&self, strata: &Strata, place: PlaceId) -> Option<Kind> {
        strata.at(place, self.layer).map(|version| version.kind)
    }

    /// Whether the layer leaves a directory itself as it was, but changes something in it.
    #[must_use]
    pub fn changes_below(&self, place: PlaceId) -> bool {
        self.seen.get(place.0).is_some_and(|one| one.changed_below)
    }

    /// The names in a directory that are to be seen.
    #[must_use]
    pub fn children(&self, strata: &Strata, dir: PlaceId, order: Order) -> Vec<PlaceId> {
        let all = strata.places.get(dir.0).map_or(&[][..], |place| &place.children);
        let mut children: Vec<PlaceId> =
            all.iter().copied().filter(|child| self.lists(*child)).collect();
        match order {
            Order::Name => {}
            Order::Size => children.sort_by_key(|one| std::cmp::Reverse(self.bytes(strata, *one))),
        }
        children
    }

    /// The rows of a listing, in which directories for which `open` says so show their names.
    #[must_use]
    pub fn rows(
        &self,
        strata: &Strata,
        order: Order,
        mut open: impl FnMut(PlaceId) -> bool,
    ) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut left = vec![Row { place: PlaceId::ROOT, depth: 0 }];
        while let Some(row) = left.pop() {
            rows.push(row);
            if open(row.place) {
                let children = self.children(strata, row.place, order).into_iter().rev();
                left.extend(children.map(|place| Row { place, depth: row.depth + 1 }));
            }
        }
        rows
    }

    /// Every place to be seen whose name holds `wanted`, in the order of a listing where
    /// everything is open; with a slash in it, the whole path is searched. Letters of ASCII
    /// match in either case, unless one in `wanted` is a capital.
    #[must_use]
    pub fn search(&self, strata: &Strata, order: Order, wanted: &str) -> Vec<PlaceId> {
        if wanted.is_empty() {
            return Vec::new();
        }
        let exact = wanted.bytes().any(|byte| byte.is_ascii_uppercase());
        let holds = |text: &[u8]| {
            text.windows(wanted.len()).any(|part| {
                if exact {
                    part == wanted.as_bytes()
                } else {
                    part.eq_ignore_ascii_case(wanted.as_bytes())
                }
            })
        };
        let rows = self.rows(strata, order, |_| true).into_iter().map(|row| row.place);
        if wanted.contains('/') {
            rows.filter(|place| holds(&strata.path_bytes(*place))).collect()
        } else {
            rows.filter(|place| holds(strata.name(*place))).collect()
        }
    }
}
