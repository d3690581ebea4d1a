//! Layers lying on each other: every name they have, and what each layer makes of it.
//!
//! One pass over the layers builds it; from then on the root as any layer leaves it, what that
//! layer changed there, and what higher layers hide are read from memory. A private directory
//! is one more layer on top; two trees to compare are two layers of which the upper hides the
//! whole lower one. Content is not read.

mod lay;
mod outlook;
mod preview;
mod private;
mod source;
mod waste;

#[cfg(test)]
mod tests;

use crate::layer::{FileName, LayerId, LayerPath, Stack, TreeIno};

use super::text::printable;
use super::{Changes, Container, InspectError, Kind, Library, View};

pub use outlook::{Order, Outlook, Row, Scope};
pub use preview::Preview;
pub use source::Facts;
pub use waste::{Waste, Wasted};

/// A name that at least one layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceId(usize);

impl PlaceId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// Position among the places; a directory's is below those of everything in it.
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a layer does to a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// Nothing.
    #[default]
    Same,
    /// Nothing was there.
    Added,
    /// Something else was there, or the same with other metadata.
    Changed,
    /// What was there is gone.
    Removed,
    /// Of a private layer: what the template has elsewhere, or lies in a directory that it has
    /// elsewhere.
    Moved,
    /// Of a private layer: its marks cannot be understood.
    Damaged,
}

impl Mark {
    /// The letter of `mica diff`; none for what is the same.
    #[must_use]
    pub fn letter(self) -> Option<char> {
        match self {
            Self::Same => None,
            Self::Added => Some('A'),
            Self::Changed => Some('C'),
            Self::Removed => Some('D'),
            Self::Moved => Some('R'),
            Self::Damaged => Some('!'),
        }
    }
}

/// Names by what a layer does to them, all levels counted; what moves, with all that is in it,
/// is one change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Names where nothing was.
    pub added: u64,
    /// Names where something else was, moved and damaged ones too.
    pub changed: u64,
    /// Names where nothing is any more.
    pub removed: u64,
}

/// What a layer of the pile is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sheet {
    /// A layer of the store.
    Layer(LayerId),
    /// A whole tree, one side of a comparison; what sentences call it.
    Tree(String),
    /// A private directory; what sentences call it.
    Private(String),
}

/// One layer of the pile.
#[derive(Clone, Debug)]
pub struct Stratum {
    /// What it is.
    pub sheet: Sheet,
    /// Bytes of its regular files, hard links once; of a private layer those it has alone.
    pub bytes: u64,
    /// What it does to the layers below; everything in the lowest is added.
    pub counts: Counts,
    /// Why nothing of it is here.
    pub damage: Option<String>,
}

/// Layers on each other.
pub struct Strata {
    whole: String,
    places: Vec<Place>,
    versions: Vec<Version>,
    layers: Vec<Stratum>,
    /// What the layers of the store and the trees read; none for a damaged or private layer.
    views: Vec<Option<View>>,
    private: Option<Private>,
}

struct Private {
    container: Container,
    changes: Changes,
}

struct Place {
    parent: PlaceId,
    name: Box<[u8]>,
    /// In byte order of their names.
    children: Vec<PlaceId>,
    /// Index of the newest version.
    newest: Option<usize>,
}

/// What a layer leaves at a place.
#[derive(Clone, Copy, Debug)]
struct Version {
    layer: usize,
    mark: Mark,
    /// False: from this layer on, nothing; the rest tells what was there.
    shown: bool,
    kind: Kind,
    size: u64,
    source: Source,
    /// Index of the version below.
    earlier: Option<usize>,
}

/// Where more is known of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    /// An inode in the manifest of a layer.
    Manifest { layer: usize, ino: TreeIno },
    /// A change of the private layer, by its position.
    Change(usize),
}

impl Strata {
    /// The layers of a stack, each read and checked; a damaged one is told as such and left
    /// out. `whole` is what sentences call it.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage that the check of a layer does not know.
    pub fn of_stack(library: &Library, whole: String, stack: &Stack) -> Result<Self, InspectError> {
        let mut strata = Self::empty(whole);
        for id in stack.layers() {
            match library.layers().load_verified(id) {
                Ok(_) => {
                    let view = View::of_layer(library, *id)?;
                    strata.lay(Sheet::Layer(*id), view, false)?;
                }
                Err(error) => strata.lay_damaged(*id, &error),
            }
        }
        Ok(strata)
    }

    /// A container: the layers below its private directory, and what that changes on top.
    ///
    /// # Errors
    /// Those of [`Strata::of_stack`]; [`InspectError::Upper`] if the private directory cannot
    /// be walked.
    pub fn of_container(library: &Library, container: Container) -> Result<Self, InspectError> {
        let mut strata = Self::of_stack(library, container.describe(), container.upper.stack())?;
        let changes = Changes::of(&container.upper)?;
        strata.lay_private(container, changes)?;
        Ok(strata)
    }

    /// Two trees, `new` in the place of `old`.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn of_comparison(old: View, new: View) -> Result<Self, InspectError> {
        let mut strata = Self::empty(format!("{} → {}", old.whole(), new.whole()));
        strata.lay(Sheet::Tree(old.whole().to_owned()), old, true)?;
        strata.lay(Sheet::Tree(new.whole().to_owned()), new, true)?;
        Ok(strata)
    }

    fn empty(whole: String) -> Self {
        let root = Place {
            parent: PlaceId::ROOT,
            name: Box::default(),
            children: Vec::new(),
            newest: None,
        };
        Self {
            whole,
            places: vec![root],
            versions: Vec::new(),
            layers: Vec::new(),
            views: Vec::new(),
            private: None,
        }
    }

    /// What sentences call all of it.
    #[must_use]
    pub fn whole(&self) -> &str {
        &self.whole
    }

    /// The layers, lowest first; there is at least one.
    #[must_use]
    pub fn layers(&self) -> &[Stratum] {
        &self.layers
    }

    /// Number of places.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing at all is there; even an empty layer has a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The last name of a place; empty for the root.
    #[must_use]
    pub fn name(&self, place: PlaceId) -> &[u8] {
        &self.places[place.0].name
    }

    /// The directory that a place is in; the root's is itself.
    #[must_use]
    pub fn parent(&self, place: PlaceId) -> PlaceId {
        self.places[place.0].parent
    }

    /// The path of a place, for a person.
    #[must_use]
    pub fn shown_path(&self, place: PlaceId) -> String {
        printable(&self.path_bytes(place))
    }

    /// The absolute path of a place.
    #[must_use]
    pub fn path_bytes(&self, place: PlaceId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = place;
        while at != PlaceId::ROOT {
            names.push(self.name(at));
            at = self.parent(at);
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }

    /// The place of a path, whether a layer still shows it or not.
    #[must_use]
    pub fn find(&self, path: &LayerPath) -> Option<PlaceId> {
        path.names().iter().try_fold(PlaceId::ROOT, |at, name| self.child(at, name))
    }

    fn child(&self, dir: PlaceId, name: &FileName) -> Option<PlaceId> {
        let children = &self.places[dir.0].children;
        let at = children.binary_search_by(|child| self.name(*child).cmp(name.as_bytes()));
        at.ok().map(|at| children[at])
    }

    /// What `layer` leaves at a place: also that something is gone.
    fn at(&self, place: PlaceId, layer: usize) -> Option<&Version> {
        let mut index = self.places[place.0].newest;
        while let Some(version) = index.and_then(|index| self.versions.get(index)) {
            if version.layer <= layer {
                return Some(version);
            }
            index = version.earlier;
        }
        None
    }

    /// What is at a place as `layer` leaves it.
    fn shown(&self, place: PlaceId, layer: usize) -> Option<&Version> {
        self.at(place, layer).filter(|version| version.shown)
    }

    /// What `layer` does to a place.
    #[must_use]
    pub fn mark(&self, place: PlaceId, layer: usize) -> Mark {
        match self.at(place, layer) {
            Some(version) if version.layer == layer => version.mark,
            Some(_) | None => Mark::Same,
        }
    }
}
