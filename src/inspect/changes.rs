//! What a private layer changes against its tree.
//!
//! One walk of the upper directory, without the private directory's lock: of a mounted root it
//! tells what was there when it came by. A directory that was copied up only because something
//! below it changed is no change. Content is not read: a private copy counts as changed
//! content, whatever is in it. A place for a mount that the supervisor made is no change either.

mod moved;
mod side;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::vec;

use rustix::io::Errno;

use super::InspectError;
use super::upper::{Bytes, Entry, Kept, Upper, compare, hides, is_whiteout};
use crate::layer::{FileKind, FileName, LayerPath, Manifest, ManifestError, TreeIno};
use crate::object::ObjectId;
use crate::sys::inode;
use crate::union::UnionError;

pub use crate::union::upper::compare::Differences;
pub use side::Side;

/// How a path differs from the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The tree has nothing here. `link_to` is another name of the same file, if it is a new
    /// hard link to a file of the tree.
    Added {
        /// A name that the file has in the tree.
        link_to: Option<LayerPath>,
    },
    /// Other content: bytes of its own, another target, another device number; or another file
    /// of the same type.
    Content,
    /// Owner, mode, time or attributes.
    Metadata,
    /// What the tree has here is gone.
    Removed,
    /// Another directory, which shows nothing of what the tree has in the one it stands for.
    Opaque,
    /// What the tree has under another path; nothing is there any more, or something else.
    Moved {
        /// Where the tree has it.
        from: LayerPath,
        /// Its content changed too.
        content: bool,
    },
    /// Something of another type.
    Replaced,
    /// Its marks cannot be understood; the root answers EIO here.
    Damaged(String),
}

/// One changed path.
#[derive(Clone, Debug)]
pub struct Change {
    /// How.
    pub kind: ChangeKind,
    /// What the tree has: at this path, or where the file was moved or linked from.
    pub old: Option<Side>,
    /// What the root shows.
    pub new: Option<Side>,
    /// Which metadata differs between the two.
    pub differences: Differences,
    /// When the private inode last changed (ctime); unknown for what is gone.
    pub since: Option<(i64, u32)>,
    /// The tree inode it was copied up from or merges with.
    pub origin: Option<TreeIno>,
    /// Its content is an object of the store, which costs this root nothing.
    pub object: Option<ObjectId>,
    /// Host inode; names with the same one are hard links. 0 for what is gone.
    pub host_ino: u64,
    /// Of a directory of the tree that is gone: what was in it.
    pub hidden: Hidden,
    place: usize,
}

/// What went with a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Names in it, on all levels.
    pub names: u64,
    /// Bytes of its regular files, each name counted.
    pub bytes: u64,
}

/// Everything that a private layer changes, in the order of a walk: directories before what is
/// in them, names in byte order.
#[derive(Debug)]
pub struct Changes {
    list: Vec<Change>,
    places: Vec<Place>,
}

/// A path, as its directory and its last name; the root is its own directory.
#[derive(Debug)]
struct Place {
    parent: usize,
    name: Option<FileName>,
}

impl Changes {
    /// Walks `upper`.
    ///
    /// # Errors
    /// [`InspectError::Upper`] if the host refuses to show a directory; damaged entries are
    /// changes of their own kind.
    pub fn of(upper: &Upper) -> Result<Self, InspectError> {
        let mut walk = Walk::new(upper);
        walk.run()?;
        walk.finish()
    }

    /// The changes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Change> {
        self.list.iter()
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Where a change is.
    pub fn path(&self, change: &Change) -> LayerPath {
        path_of(&self.places, change.place)
    }
}

fn path_of(places: &[Place], mut at: usize) -> LayerPath {
    let mut names = Vec::new();
    while let Some(place) = places.get(at)
        && let Some(name) = &place.name
    {
        names.push(name.clone());
        at = place.parent;
    }
    names.reverse();
    LayerPath::from_names(names)
}

/// One directory on the way down.
struct Frame {
    dir: Kept,
    place: usize,
    /// What its unlisted names come from.
    merges: Option<TreeIno>,
    /// What its names are compared with.
    baseline: Option<TreeIno>,
    names: vec::IntoIter<Name>,
}

/// A name to be looked at.
struct Name {
    name: FileName,
    sort: NameSort,
}

enum NameSort {
    /// The upper directory has it.
    Upper { whiteout: bool },
    /// Only the tree has it, in a directory that does not show it.
    Gone(TreeIno),
}

/// A change at a name that its origin does not have in the tree.
struct Newcomer {
    /// Index of the change.
    at: usize,
    /// Against the origin.
    differences: Differences,
}

struct Walk<'a> {
    upper: &'a Upper,
    changes: Changes,
    /// Where the directories of the tree are that were copied up.
    merged: HashMap<TreeIno, usize>,
    /// Names of the tree that the upper directory answers for.
    covered: HashSet<(TreeIno, FileName)>,
    /// Names of the tree under which their own file still is.
    in_place: HashSet<(TreeIno, FileName)>,
    /// By origin.
    newcomers: HashMap<TreeIno, Vec<Newcomer>>,
    /// Where in `changes` a name of the tree is said to be gone.
    removals: HashMap<(TreeIno, FileName), usize>,
}

impl<'a> Walk<'a> {
    fn new(upper: &'a Upper) -> Self {
        Self {
            upper,
            changes: Changes { list: Vec::new(), places: vec![Place { parent: 0, name: None }] },
            merged: HashMap::new(),
            covered: HashSet::new(),
            in_place: HashSet::new(),
            newcomers: HashMap::new(),
            removals: HashMap::new(),
        }
    }

    fn tree(&self) -> &'a Manifest {
        self.upper.tree()
    }

    fn run(&mut self) -> Result<(), InspectError> {
        let root = self.upper.root()?;
        let fail = |source| InspectError::upper(&LayerPath::root(), source);
        self.metadata_change(&root, TreeIno::ROOT, 0).map_err(fail)?;
        self.merged.insert(TreeIno::ROOT, 0);
        let frame = self.frame(root, 0, Some(TreeIno::ROOT), None, 0).map_err(fail)?;
        let mut frames = vec![frame];
        while let Some(frame) = frames.last_mut() {
            let Some(name) = frame.names.next() else {
                frames.pop();
                continue;
            };
            let (parent, merges, baseline) = (frame.place, frame.merges, frame.baseline);
            let at = |walk: &Self| path_of(&walk.changes.places, parent).join(name.name.clone());
            let found = match &name.sort {
                NameSort::Gone(ino) => self.gone(parent, baseline, &name.name, *ino).map(|()| None),
                NameSort::Upper { whiteout: true } => {
                    self.whiteout(parent, merges, baseline, &name.name).map(|()| None)
                }
                NameSort::Upper { whiteout: false } => match frame.dir.open(self.upper) {
                    Ok(dir) => self.entry(&dir, parent, merges, baseline, &name.name),
                    Err(Errno::NOENT | Errno::STALE) => Ok(None),
                    Err(errno) => Err(errno.into()),
                },
            };
            let found = found.map_err(|source| InspectError::upper(&at(self), source))?;
            if let Some((entry, place, counterpart)) = found {
                let depth = frames.len();
                let frame = self.frame(entry, place, None, counterpart, depth);
                frames.push(frame.map_err(|source| InspectError::upper(&at(self), source))?);
            }
        }
        Ok(())
    }

    /// Prepares a directory for being walked. `counterpart` is what the tree has at its path.
    fn frame(
        &self,
        dir: Entry,
        place: usize,
        merges: Option<TreeIno>,
        counterpart: Option<TreeIno>,
        depth: usize,
    ) -> Result<Frame, UnionError> {
        let merges = merges.or(dir.origin);
        let counterpart = match counterpart {
            Some(ino) if self.tree().inode(ino)?.kind == FileKind::Directory => Some(ino),
            _ => None,
        };
        let mut names = Vec::new();
        for entry in self.upper.names(&dir.fd)? {
            // The host's names are names; one that is not would be the host's damage.
            let Ok(name) = FileName::new(&entry.name) else { continue };
            names.push(Name { name, sort: NameSort::Upper { whiteout: hides(&entry) } });
        }
        if let Some(counterpart) = counterpart.filter(|ino| Some(*ino) != merges) {
            names.extend(self.hidden_names(counterpart, merges, &names)?);
            names.sort_by(|one, two| one.name.cmp(&two.name));
        }
        Ok(Frame {
            dir: Kept::new(dir.fd, depth),
            place,
            merges,
            baseline: merges.or(counterpart),
            names: names.into_iter(),
        })
    }

    /// The names of tree directory `dir` that a directory standing in its place does not show.
    fn hidden_names(
        &self,
        dir: TreeIno,
        merges: Option<TreeIno>,
        upper: &[Name],
    ) -> Result<Vec<Name>, UnionError> {
        let mut hidden = Vec::new();
        for entry in self.tree().entries(&self.tree().inode(dir)?) {
            let entry = entry?;
            let (Some(ino), Ok(name)) = (entry.ino, FileName::new(entry.name)) else { continue };
            let listed = upper.binary_search_by(|known| known.name.cmp(&name)).is_ok();
            if !listed && self.upper.below(merges, entry.name)?.is_none() {
                hidden.push(Name { name, sort: NameSort::Gone(ino) });
            }
        }
        Ok(hidden)
    }

    fn whiteout(
        &mut self,
        parent: usize,
        merges: Option<TreeIno>,
        baseline: Option<TreeIno>,
        name: &FileName,
    ) -> Result<(), UnionError> {
        self.cover(merges, name)?;
        match self.upper.below(baseline, name.as_bytes())? {
            Some(ino) => self.gone(parent, baseline, name, ino),
            None => Ok(()),
        }
    }

    /// Notes that a name of the tree is gone.
    fn gone(
        &mut self,
        parent: usize,
        dir: Option<TreeIno>,
        name: &FileName,
        ino: TreeIno,
    ) -> Result<(), UnionError> {
        let inode = self.tree().inode(ino)?;
        let hidden = match inode.kind {
            FileKind::Directory => hidden_in(self.tree(), ino)?,
            FileKind::Regular
            | FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => Hidden::default(),
        };
        let place = self.place(parent, name);
        if let Some(dir) = dir {
            self.removals.insert((dir, name.clone()), self.changes.list.len());
        }
        self.changes.list.push(Change {
            kind: ChangeKind::Removed,
            old: Some(Side::of_tree(self.tree(), &inode)?),
            new: None,
            differences: Differences::default(),
            since: None,
            origin: Some(ino),
            object: None,
            host_ino: 0,
            hidden,
            place,
        });
        Ok(())
    }

    /// Looks at one entry; a directory is returned to be walked.
    fn entry(
        &mut self,
        dir: &OwnedFd,
        parent: usize,
        merges: Option<TreeIno>,
        baseline: Option<TreeIno>,
        name: &FileName,
    ) -> Result<Option<(Entry, usize, Option<TreeIno>)>, UnionError> {
        let fd = match inode::open_path(dir, name.as_bytes()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        if is_whiteout(&inode::status(&fd)?) {
            // It was removed since the directory was listed.
            return self.whiteout(parent, merges, baseline, name).map(|()| None);
        }
        self.cover(merges, name)?;
        let counterpart = self.upper.below(baseline, name.as_bytes())?;
        let entry = match self.upper.read(fd, merges, name.as_bytes()) {
            Ok(entry) => entry,
            Err(error @ UnionError::Mark(_)) => {
                self.damaged(parent, name, counterpart, &error)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let place = self.place(parent, name);
        let at_home = entry.origin.is_some() && entry.origin == counterpart;
        if let Some(origin) = entry.origin.filter(|_| at_home) {
            if let Some(merges) = merges {
                self.in_place.insert((merges, name.clone()));
            }
            self.change_at_home(&entry, origin, place)?;
        } else {
            self.change_elsewhere(&entry, counterpart, place)?;
        }
        if entry.kind != FileKind::Directory {
            return Ok(None);
        }
        if let Some(origin) = entry.origin {
            self.merged.insert(origin, place);
        }
        Ok(Some((entry, place, counterpart)))
    }

    /// What stands where its origin stood.
    fn change_at_home(
        &mut self,
        entry: &Entry,
        origin: TreeIno,
        place: usize,
    ) -> Result<(), UnionError> {
        let old = self.tree().inode(origin)?;
        let bytes = match self.upper.bytes(entry) {
            Ok(bytes) => bytes,
            Err(error @ UnionError::Mark(_)) => {
                let kind = ChangeKind::Damaged(error.to_string());
                return self.push(kind, entry, Some(origin), Bytes::Private, place);
            }
            Err(error) => return Err(error),
        };
        if !compare::same_content(self.tree(), &old, entry, &bytes)? {
            return self.push(ChangeKind::Content, entry, Some(origin), bytes, place);
        }
        self.metadata_change(entry, origin, place)
    }

    /// What stands where the tree has nothing or something else.
    fn change_elsewhere(
        &mut self,
        entry: &Entry,
        counterpart: Option<TreeIno>,
        place: usize,
    ) -> Result<(), UnionError> {
        let bytes = match self.upper.bytes(entry) {
            Ok(bytes) => bytes,
            Err(error @ UnionError::Mark(_)) => {
                let kind = ChangeKind::Damaged(error.to_string());
                return self.push(kind, entry, counterpart, Bytes::Private, place);
            }
            Err(error) => return Err(error),
        };
        let kind = match counterpart {
            None if entry.is_placed() => return Ok(()),
            None => ChangeKind::Added { link_to: None },
            Some(ino) if self.tree().inode(ino)?.kind != entry.kind => ChangeKind::Replaced,
            Some(_) if entry.kind == FileKind::Directory => ChangeKind::Opaque,
            Some(_) => ChangeKind::Content,
        };
        if let Some(origin) = entry.origin {
            let differences =
                compare::differences(self.tree(), &self.tree().inode(origin)?, entry)?;
            let newcomer = Newcomer { at: self.changes.list.len(), differences };
            self.newcomers.entry(origin).or_default().push(newcomer);
        }
        self.push(kind, entry, counterpart, bytes, place)
    }

    fn metadata_change(
        &mut self,
        entry: &Entry,
        origin: TreeIno,
        place: usize,
    ) -> Result<(), UnionError> {
        let old = self.tree().inode(origin)?;
        if compare::differences(self.tree(), &old, entry)?.is_empty() {
            return Ok(());
        }
        let bytes = self.upper.bytes(entry)?;
        self.push(ChangeKind::Metadata, entry, Some(origin), bytes, place)
    }

    fn push(
        &mut self,
        kind: ChangeKind,
        entry: &Entry,
        old: Option<TreeIno>,
        bytes: Bytes,
        place: usize,
    ) -> Result<(), UnionError> {
        let old = old.map(|ino| self.tree().inode(ino)).transpose()?;
        let differences = match &old {
            Some(old) => compare::differences(self.tree(), old, entry)?,
            None => Differences::default(),
        };
        self.changes.list.push(Change {
            kind,
            old: old.map(|old| Side::of_tree(self.tree(), &old)).transpose()?,
            new: Some(Side::of_entry(entry, &bytes)),
            differences,
            since: Some(entry.status.ctime),
            origin: entry.origin,
            object: match bytes {
                Bytes::Object { id, .. } => Some(id),
                Bytes::Private => None,
            },
            host_ino: entry.status.ino,
            hidden: Hidden::default(),
            place,
        });
        Ok(())
    }

    fn damaged(
        &mut self,
        parent: usize,
        name: &FileName,
        counterpart: Option<TreeIno>,
        error: &UnionError,
    ) -> Result<(), UnionError> {
        let place = self.place(parent, name);
        let old = counterpart.map(|ino| self.tree().inode(ino)).transpose()?;
        self.changes.list.push(Change {
            kind: ChangeKind::Damaged(error.to_string()),
            old: old.map(|old| Side::of_tree(self.tree(), &old)).transpose()?,
            new: None,
            differences: Differences::default(),
            since: None,
            origin: None,
            object: None,
            host_ino: 0,
            hidden: Hidden::default(),
            place,
        });
        Ok(())
    }

    fn place(&mut self, parent: usize, name: &FileName) -> usize {
        self.changes.places.push(Place { parent, name: Some(name.clone()) });
        self.changes.places.len() - 1
    }

    /// Notes that the upper directory answers for a name of the tree.
    fn cover(&mut self, merges: Option<TreeIno>, name: &FileName) -> Result<(), UnionError> {
        if let Some(dir) = merges
            && self.upper.below(merges, name.as_bytes())?.is_some()
        {
            self.covered.insert((dir, name.clone()));
        }
        Ok(())
    }
}

/// Counts what is in a directory of the tree.
fn hidden_in(tree: &Manifest, dir: TreeIno) -> Result<Hidden, ManifestError> {
    let mut hidden = Hidden::default();
    let mut left = vec![dir];
    while let Some(dir) = left.pop() {
        for entry in tree.entries(&tree.inode(dir)?) {
            let Some(ino) = entry?.ino else { continue };
            let inode = tree.inode(ino)?;
            hidden.names += 1;
            match inode.kind {
                FileKind::Directory => left.push(ino),
                FileKind::Regular => hidden.bytes = hidden.bytes.saturating_add(inode.size),
                FileKind::Symlink
                | FileKind::Fifo
                | FileKind::Socket
                | FileKind::CharDevice
                | FileKind::BlockDevice => {}
            }
        }
    }
    Ok(hidden)
}
