//! Putting one layer of the store, or a whole tree, onto those below.

use crate::layer::{FileKind, LayerId, LayersError};

use super::{Counts, Mark, Place, PlaceId, Sheet, Source, Strata, Stratum, Version};
use crate::inspect::summary::held;
use crate::inspect::{InspectError, Kind, Node, View};

impl Strata {
    /// Puts `view` on top. `covers`: nothing of the layers below stays, as if each of its
    /// directories were opaque.
    pub(super) fn lay(
        &mut self,
        sheet: Sheet,
        view: View,
        covers: bool,
    ) -> Result<(), InspectError> {
        let layer = self.layers.len();
        self.layers.push(Stratum {
            sheet,
            bytes: held(view.manifest())?.size_bytes,
            counts: Counts::default(),
            damage: None,
        });
        self.views.push(Some(view.clone()));
        let root = view.root()?;
        self.put_node(PlaceId::ROOT, layer, &root)?;
        // Directories that this layer has and whose names are still to be looked at.
        let mut left = vec![(PlaceId::ROOT, root)];
        while let Some((place, dir)) = left.pop() {
            let covers = covers || dir.opaque;
            let known = std::mem::take(&mut self.places[place.0].children);
            let mut children = Vec::with_capacity(known.len());
            let mut known = known.into_iter().peekable();
            for entry in view.children(&dir)? {
                let (name, node) = entry?;
                // Both lists are in byte order.
                while let Some(only_below) = known.next_if(|id| self.name(*id) < name) {
                    if covers {
                        self.remove(only_below, layer);
                    }
                    children.push(only_below);
                }
                let below = known.next_if(|id| self.name(*id) == name);
                if node.kind == Kind::Whiteout {
                    if let Some(below) = below {
                        self.remove(below, layer);
                        children.push(below);
                    }
                    continue;
                }
                let child = below.unwrap_or_else(|| self.new_place(place, name));
                children.push(child);
                self.put_node(child, layer, &node)?;
                if node.kind.is_directory() {
                    left.push((child, node));
                }
            }
            for only_below in known {
                if covers {
                    self.remove(only_below, layer);
                }
                children.push(only_below);
            }
            self.places[place.0].children = children;
        }
        Ok(())
    }

    /// Notes a layer that cannot be read.
    pub(super) fn lay_damaged(&mut self, id: LayerId, error: &LayersError) {
        self.layers.push(Stratum {
            sheet: Sheet::Layer(id),
            bytes: 0,
            counts: Counts::default(),
            damage: Some(crate::host::sentence(error)),
        });
        self.views.push(None);
    }

    /// A place that no layer had so far; the caller makes it a child.
    pub(super) fn new_place(&mut self, parent: PlaceId, name: &[u8]) -> PlaceId {
        let name = name.into();
        self.places.push(Place { parent, name, children: Vec::new(), newest: None });
        PlaceId(self.places.len() - 1)
    }

    fn put_node(&mut self, place: PlaceId, layer: usize, node: &Node) -> Result<(), InspectError> {
        let Some(ino) = node.ino else { return Ok(()) };
        let source = Source::Manifest { layer, ino };
        let mark = match self.shown(place, layer).copied() {
            // Every tree has a root: a first layer does not add it.
            None if place == PlaceId::ROOT => Mark::Same,
            None => Mark::Added,
            Some(below) if below.kind == Kind::File(FileKind::Directory) && node.implicit => {
                return Ok(());
            }
            Some(below) if self.is_same(below.source, source)? => return Ok(()),
            Some(below) => {
                if below.kind.is_directory() && !node.kind.is_directory() {
                    self.remove_below(place, layer);
                }
                Mark::Changed
            }
        };
        self.put(place, layer, Version::new(mark, node.kind, node.size, source));
        Ok(())
    }

    /// Records what `layer` leaves at a place.
    pub(super) fn put(&mut self, place: PlaceId, layer: usize, version: Version) {
        let counts = &mut self.layers[layer].counts;
        match version.mark {
            Mark::Added => counts.added += 1,
            Mark::Changed | Mark::Moved | Mark::Damaged => counts.changed += 1,
            Mark::Removed => counts.removed += 1,
            Mark::Same => {}
        }
        self.record(place, layer, version);
    }

    /// As [`Strata::put`], without counting it.
    pub(super) fn record(&mut self, place: PlaceId, layer: usize, version: Version) {
        let earlier = self.places[place.0].newest;
        self.versions.push(Version { layer, earlier, ..version });
        self.places[place.0].newest = Some(self.versions.len() - 1);
    }

    /// Takes away a place and everything below it.
    pub(super) fn remove(&mut self, place: PlaceId, layer: usize) {
        self.take_away(place, layer, Self::put);
    }

    /// Takes away what is to be seen in another place of the same layer: nothing is lost.
    pub(super) fn move_away(&mut self, place: PlaceId, layer: usize) {
        self.take_away(place, layer, Self::record);
    }

    fn take_away(
        &mut self,
        place: PlaceId,
        layer: usize,
        note: fn(&mut Self, PlaceId, usize, Version),
    ) {
        let mut left = vec![place];
        while let Some(place) = left.pop() {
            let Some(there) = self.shown(place, layer).copied() else { continue };
            let gone = Version { mark: Mark::Removed, shown: false, ..there };
            note(self, place, layer, gone);
            left.extend(&self.places[place.0].children);
        }
    }

    pub(super) fn remove_below(&mut self, place: PlaceId, layer: usize) {
        for child in self.places[place.0].children.clone() {
            self.remove(child, layer);
        }
    }

    /// Whether two inodes are the same but for their times, as `template diff` has it.
    fn is_same(&self, one: Source, other: Source) -> Result<bool, InspectError> {
        let (Some((one_view, one)), Some((other_view, other))) =
            (self.node_of(one)?, self.node_of(other)?)
        else {
            return Ok(false);
        };
        // The mode of a symlink means nothing; who has an implicit directory is not told.
        let link = one.kind == Kind::File(FileKind::Symlink);
        let described = !one.implicit && !other.implicit;
        Ok((one.kind, one.object, one.rdev) == (other.kind, other.object, other.rdev)
            && (link || !described || one.mode == other.mode)
            && (!described || (one.uid, one.gid) == (other.uid, other.gid))
            && one_view.target(&one)? == other_view.target(&other)?
            && one_view.xattrs(&one)? == other_view.xattrs(&other)?)
    }

    pub(super) fn node_of(&self, source: Source) -> Result<Option<(&View, Node)>, InspectError> {
        let Source::Manifest { layer, ino } = source else { return Ok(None) };
        match self.views.get(layer) {
            Some(Some(view)) => Ok(Some((view, view.node(ino)?))),
            Some(None) | None => Ok(None),
        }
    }
}

impl Version {
    pub(super) fn new(mark: Mark, kind: Kind, size: u64, source: Source) -> Self {
        Self { layer: 0, mark, shown: true, kind, size, source, earlier: None }
    }
}
