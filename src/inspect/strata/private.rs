//! Putting a private layer onto the layers of its template.

use std::collections::HashSet;

use crate::layer::{FileKind, FileName, LayerPath};

use super::{Counts, Mark, PlaceId, Private, Sheet, Source, Strata, Stratum, Version};
use crate::inspect::changes::{Change, ChangeKind};
use crate::inspect::{Changes, Container, InspectError, Kind};

impl Strata {
    pub(super) fn lay_private(
        &mut self,
        container: Container,
        changes: Changes,
    ) -> Result<(), InspectError> {
        let layer = self.layers.len();
        self.layers.push(Stratum {
            sheet: Sheet::Private(container.describe()),
            bytes: own_bytes(&changes),
            counts: Counts::default(),
            damage: None,
        });
        self.views.push(None);
        // What moved away, by where the template has it: not there, and not in the new place
        // of a directory above it either.
        let mut moved = HashSet::new();
        for change in changes.iter() {
            if let ChangeKind::Moved { from, .. } = &change.kind
                && let Some(place) = self.find(from)
            {
                self.move_away(place, layer);
                moved.insert(place);
            }
        }
        for (index, change) in changes.iter().enumerate() {
            self.put_change(layer, index, change, &changes.path(change), &moved);
        }
        self.private = Some(Private { container, changes });
        Ok(())
    }

    fn put_change(
        &mut self,
        layer: usize,
        index: usize,
        change: &Change,
        path: &LayerPath,
        moved: &HashSet<PlaceId>,
    ) {
        let place = self.place_of(path);
        let mark = match &change.kind {
            ChangeKind::Removed => return self.remove(place, layer),
            ChangeKind::Added { .. } => Mark::Added,
            ChangeKind::Moved { .. } => Mark::Moved,
            ChangeKind::Damaged(_) => Mark::Damaged,
            ChangeKind::Metadata => {
                let times_alone = change.differences.words() == ["mtime"];
                if times_alone && is_directory(change) {
                    // Its names changed, which they tell themselves.
                    return;
                }
                Mark::Changed
            }
            ChangeKind::Content | ChangeKind::Opaque | ChangeKind::Replaced => Mark::Changed,
        };
        if change.kind != ChangeKind::Metadata {
            self.remove_below(place, layer);
        }
        let side = change.new.as_ref().or(change.old.as_ref());
        let kind = side.map_or(FileKind::Regular, |side| side.kind);
        let size = side.map_or(0, |side| side.size);
        self.put(place, layer, Version::new(mark, Kind::File(kind), size, Source::Change(index)));
        if let ChangeKind::Moved { from, .. } = &change.kind
            && kind == FileKind::Directory
            && let Some(from) = self.find(from)
        {
            self.graft(from, place, layer, moved);
        }
    }

    /// Shows what the template has below `from` below `to`.
    fn graft(&mut self, from: PlaceId, to: PlaceId, layer: usize, moved: &HashSet<PlaceId>) {
        let Some(template) = layer.checked_sub(1) else { return };
        let mut left = vec![(from, to)];
        while let Some((from, to)) = left.pop() {
            for child in self.places[from.0].children.clone() {
                // What this very layer put there is nothing of the template's.
                let Some(there) = self.shown(child, template).copied() else { continue };
                if moved.contains(&child) {
                    continue;
                }
                let name = self.places[child.0].name.clone();
                let place = self.child_or_new(to, &name);
                self.record(place, layer, Version { mark: Mark::Moved, ..there });
                left.push((child, place));
            }
        }
    }

    /// The place of a path, made if no layer had it.
    fn place_of(&mut self, path: &LayerPath) -> PlaceId {
        path.names()
            .iter()
            .map(FileName::as_bytes)
            .fold(PlaceId::ROOT, |at, name| self.child_or_new(at, name))
    }

    fn child_or_new(&mut self, dir: PlaceId, name: &[u8]) -> PlaceId {
        let children = &self.places[dir.0].children;
        match children.binary_search_by(|child| self.name(*child).cmp(name)) {
            Ok(at) => children[at],
            Err(at) => {
                let place = self.new_place(dir, name);
                self.places[dir.0].children.insert(at, place);
                place
            }
        }
    }
}

fn is_directory(change: &Change) -> bool {
    change.new.as_ref().is_some_and(|side| side.kind == FileKind::Directory)
}

/// Bytes of the regular files that only the private directory has, hard links once.
fn own_bytes(changes: &Changes) -> u64 {
    let mut seen = HashSet::new();
    let own = changes.iter().filter(|change| change.object.is_none());
    own.filter(|change| change.host_ino != 0 && seen.insert(change.host_ino))
        .filter_map(|change| change.new.as_ref())
        .filter(|side| side.kind == FileKind::Regular)
        .fold(0_u64, |sum, side| sum.saturating_add(side.size))
}
