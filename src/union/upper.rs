//! A private directory seen from outside: what lies under a name, by the rules of the mount.
//!
//! Reads the host's directories each time and takes no lock, so a mounted root can be looked
//! at as well as one at rest. What vanishes between two steps counts as never there.

pub mod compare;
pub mod layer;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Origins, UnionError, kind_of};
use crate::layer::store::LayersError;
use crate::layer::{
    FileKind, Inode, LayerId, LayerPath, Layers, Manifest, NewXattr, Stack, TreeIno,
};
use crate::object::ObjectId;
use crate::private::listing::{UpperEntry, UpperKind, read_upper};
use crate::private::marks::{self, Marks};
use crate::private::{PrivateError, PrivateView};
use crate::sys::handle::FileHandle;
use crate::sys::inode::{self, Status};

/// Why a private directory cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// It is none, or not a whole one.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The tree below cannot be read.
    #[error(transparent)]
    Layers(#[from] LayersError),
    /// An entry cannot be read.
    #[error("cannot look at {path} in the private directory: {source}")]
    Entry {
        /// Where it is in the root.
        path: LayerPath,
        /// Why.
        source: UnionError,
    },
}

impl UpperError {
    /// What became of the entry at `path`.
    pub fn at(path: &LayerPath, source: impl Into<UnionError>) -> Self {
        Self::Entry { path: path.clone(), source: source.into() }
    }
}

/// A private directory over its tree.
pub struct Upper {
    tree: Manifest,
    layers: Vec<LayerId>,
    view: PrivateView,
}

/// One inode of the upper directory.
#[derive(Debug)]
pub struct Entry {
    /// The inode, `O_PATH`.
    pub fd: OwnedFd,
    /// What the host says of it.
    pub status: Status,
    /// What the merged view shows it as.
    pub kind: FileKind,
    /// Its marks.
    pub marks: Marks,
    /// What it merges with (a directory) or was copied up from.
    pub origin: Option<TreeIno>,
}

impl Entry {
    /// Whether it is nothing but a place for a mount, which the container did not make.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        is_placed(&self.marks, &self.status)
    }
}

/// Whether an inode is nothing but a place for a mount: one that was used since is more.
pub(super) fn is_placed(marks: &Marks, status: &Status) -> bool {
    let unused = match status.mode & libc::S_IFMT {
        libc::S_IFREG => status.size == 0 && status.nlink == 1,
        libc::S_IFDIR => true,
        _ => false,
    };
    marks.placed && marks.origin.is_none() && unused
}

/// Where the bytes of a private regular file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// In the private directory.
    Private,
    /// In the store: only metadata was copied.
    Object {
        /// The object.
        id: ObjectId,
        /// Length in bytes.
        size: u64,
        /// 512-byte units that are not holes.
        data_blocks: u64,
    },
}

/// What lies under a name of a merged directory.
#[derive(Debug)]
pub enum Found {
    /// Nothing; `hidden` is what the tree has there.
    Absent {
        /// Removed by a whiteout.
        hidden: Option<TreeIno>,
    },
    /// An untouched inode of the tree.
    Tree(Inode),
    /// An inode of the private layer.
    Private(Box<Entry>),
}

impl Upper {
    /// Opens the private directory `path` over the tree of the stack that it records.
    ///
    /// # Errors
    /// [`UpperError::Private`] if it is none; [`UpperError::Layers`] if the tree is gone.
    pub fn open(path: &Path, layers: &Layers) -> Result<Self, UpperError> {
        let view = PrivateView::open(path)?;
        let tree = layers.tree(&view.record().stack)?;
        Ok(Self { layers: view.record().stack.layers().to_vec(), tree, view })
    }

    /// The tree below.
    pub fn tree(&self) -> &Manifest {
        &self.tree
    }

    /// The stack that the changes lie on.
    pub fn stack(&self) -> &Stack {
        &self.view.record().stack
    }

    /// The private directory.
    pub fn view(&self) -> &PrivateView {
        &self.view
    }

    /// The root directory, which merges with the tree's whatever its marks say.
    ///
    /// # Errors
    /// [`UpperError::Entry`].
    pub fn root(&self) -> Result<Entry, UpperError> {
        let fail = |source: Errno| UpperError::at(&LayerPath::root(), source);
        let fd = inode::open_path(self.view.upper(), b".").map_err(fail)?;
        let status = inode::status(&fd).map_err(fail)?;
        let marks = Marks::default();
        let origin = Some(TreeIno::ROOT);
        Ok(Entry { fd, status, kind: FileKind::Directory, marks, origin })
    }

    /// Reads one inode, which its directory, merged with `parent`, calls `name`.
    ///
    /// # Errors
    /// [`UnionError::Mark`] for damaged marks, [`UnionError::Host`].
    pub fn read(
        &self,
        fd: OwnedFd,
        parent: Option<TreeIno>,
        name: &[u8],
    ) -> Result<Entry, UnionError> {
        let status = inode::status(&fd)?;
        // A mark that a mount takes away between its name and its value looks damaged, once.
        let marks = Marks::read(&fd).or_else(|_| Marks::read(&fd))?;
        let kind = kind_of(&status, &marks)?;
        let directory = kind == FileKind::Directory;
        let origins = Origins::new(&self.tree, &self.layers);
        let origin = origins.of(&marks, directory, parent, name)?;
        Ok(Entry { fd, status, kind, marks, origin })
    }

    /// What `name` stands for in the private directory `dir`.
    ///
    /// # Errors
    /// As [`Upper::read`].
    pub fn child(&self, dir: &Entry, name: &[u8]) -> Result<Found, UnionError> {
        let below = self.below(dir.origin, name)?;
        let fd = match inode::open_path(&dir.fd, name) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                let Some(ino) = below else { return Ok(Found::Absent { hidden: None }) };
                let inode = self.tree.inode(ino)?;
                return Ok(match self.indexed(&inode)? {
                    Some(entry) => Found::Private(Box::new(entry)),
                    None => Found::Tree(inode),
                });
            }
            Err(errno) => return Err(errno.into()),
        };
        let status = inode::status(&fd)?;
        if is_whiteout(&status) {
            return Ok(Found::Absent { hidden: below });
        }
        Ok(Found::Private(Box::new(self.read(fd, dir.origin, name)?)))
    }

    /// What lies at `path` in the merged view; follows no symlink.
    ///
    /// # Errors
    /// [`UpperError::Entry`] for damage on the way.
    pub fn resolve(&self, path: &LayerPath) -> Result<Found, UpperError> {
        let mut at = Found::Private(Box::new(self.root()?));
        for (depth, name) in path.names().iter().enumerate() {
            let here = || LayerPath::from_names(path.names()[..=depth].to_vec());
            at = match at {
                Found::Private(dir) if dir.kind == FileKind::Directory => self
                    .child(&dir, name.as_bytes())
                    .map_err(|source| UpperError::at(&here(), source))?,
                Found::Tree(dir) if dir.kind == FileKind::Directory => self
                    .tree_child(&dir, name.as_bytes())
                    .map_err(|source| UpperError::at(&here(), source))?,
                Found::Absent { .. } | Found::Private(_) | Found::Tree(_) => {
                    return Ok(Found::Absent { hidden: None });
                }
            };
        }
        Ok(at)
    }

    /// What `name` stands for in an untouched directory of the tree.
    ///
    /// # Errors
    /// As [`Upper::read`].
    pub fn tree_child(&self, dir: &Inode, name: &[u8]) -> Result<Found, UnionError> {
        let Some(ino) = self.tree.lookup(dir, name)?.and_then(|entry| entry.ino) else {
            return Ok(Found::Absent { hidden: None });
        };
        let inode = self.tree.inode(ino)?;
        Ok(match self.indexed(&inode)? {
            Some(entry) => Found::Private(Box::new(entry)),
            None => Found::Tree(inode),
        })
    }

    /// What the tree has under `name` in directory `dir`.
    ///
    /// # Errors
    /// [`UnionError::Manifest`].
    pub fn below(&self, dir: Option<TreeIno>, name: &[u8]) -> Result<Option<TreeIno>, UnionError> {
        let Some(dir) = dir else { return Ok(None) };
        let dir = self.tree.inode(dir)?;
        Ok(self.tree.lookup(&dir, name)?.and_then(|entry| entry.ino))
    }

    /// The copy that stands for all names of a hard-linked tree file, if there is one.
    ///
    /// # Errors
    /// As [`Upper::read`].
    pub fn indexed(&self, inode: &Inode) -> Result<Option<Entry>, UnionError> {
        let Some(index) = self.view.index() else { return Ok(None) };
        if inode.nlink < 2 || inode.kind == FileKind::Directory {
            return Ok(None);
        }
        let fd = match inode::open_path(index, format!("{:08x}", inode.ino.get()).as_bytes()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let entry = self.read(fd, None, b"")?;
        if entry.origin != Some(inode.ino) {
            return Err(UnionError::Mark("trusted.mica.origin"));
        }
        Ok(Some(entry))
    }

    /// The tree files that have a copy in `index/`.
    ///
    /// # Errors
    /// The host's errno.
    pub fn index(&self) -> Result<BTreeSet<TreeIno>, Errno> {
        let Some(index) = self.view.index() else { return Ok(BTreeSet::new()) };
        let number = |entry: &UpperEntry| {
            let digits = std::str::from_utf8(&entry.name).ok()?;
            u32::from_str_radix(digits, 16).ok().and_then(TreeIno::new)
        };
        let numbers = read_upper(index)?.iter().filter_map(number).collect::<BTreeSet<_>>();
        Ok(numbers.into_iter().filter(|ino| ino.get() <= self.tree.len()).collect())
    }

    /// The names of a directory of the upper layer, in byte order. One that was removed
    /// meanwhile has none.
    ///
    /// # Errors
    /// The host's errno.
    pub fn names(&self, dir: impl AsFd) -> Result<Vec<UpperEntry>, Errno> {
        let mut names = match read_upper(dir) {
            Err(Errno::NOENT | Errno::STALE) => Vec::new(),
            names => names?,
        };
        names.sort_unstable_by(|one, two| one.name.cmp(&two.name));
        Ok(names)
    }

    /// Where the bytes of a private regular file are.
    ///
    /// # Errors
    /// [`UnionError::Mark`] for a metadata-only copy of nothing.
    pub fn bytes(&self, entry: &Entry) -> Result<Bytes, UnionError> {
        let marks = &entry.marks;
        if !marks.metacopy || entry.kind != FileKind::Regular {
            return Ok(Bytes::Private);
        }
        if let Some(mark) = marks.object {
            let size = marks.filling.as_ref().map_or(entry.status.size, |filling| filling.size);
            return Ok(Bytes::Object { id: mark.id, size, data_blocks: mark.blocks_of(size) });
        }
        // A metadata-only copy whose tree file cannot be told is damage, not an empty file.
        let lost = UnionError::Mark("trusted.overlay.metacopy");
        let Some(origin) = entry.origin else { return Err(lost) };
        let inode = self.tree.inode(origin)?;
        match self.tree.object(&inode)? {
            Some(id) => Ok(Bytes::Object { id, size: inode.size, data_blocks: inode.data_blocks }),
            None => Err(lost),
        }
    }
}

impl Entry {
    /// The extended attributes that the container sees, in byte order of their names.
    ///
    /// # Errors
    /// The host's errno.
    pub fn xattrs(&self) -> Result<Vec<NewXattr>, Errno> {
        let mut found = Vec::new();
        for name in inode::xattr_names(&self.fd)? {
            // An attribute that went meanwhile is none.
            if let Some(shown) = marks::unescape(&name)
                && let Some(value) = inode::xattr(&self.fd, &name)?
            {
                found.push((shown.into(), value.into()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The device number that the container sees.
    pub fn rdev(&self) -> u64 {
        match self.kind {
            FileKind::CharDevice | FileKind::BlockDevice if !self.marks.rdev => self.status.rdev,
            FileKind::CharDevice
            | FileKind::BlockDevice
            | FileKind::Regular
            | FileKind::Directory
            | FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket => 0,
        }
    }
}

/// A directory of the upper layer on the way down: the first are kept open, those below are
/// found again by handle, for a container may make directories as deep as it likes.
#[derive(Debug)]
pub enum Kept {
    /// Near the top, or on a host without handles.
    Open(Arc<OwnedFd>),
    /// Far below.
    Handle(FileHandle),
}

/// Directories kept open at once.
const KEPT_OPEN: usize = 64;

impl Kept {
    /// Keeps the directory `fd`, which is `depth` below the root.
    pub fn new(fd: OwnedFd, depth: usize) -> Self {
        let handle = if depth < KEPT_OPEN { None } else { FileHandle::of(&fd).ok() };
        handle.map_or_else(|| Self::Open(Arc::new(fd)), Self::Handle)
    }

    /// The directory.
    ///
    /// # Errors
    /// `ESTALE` if it was removed.
    pub fn open(&self, upper: &Upper) -> Result<Arc<OwnedFd>, Errno> {
        match self {
            Self::Open(fd) => Ok(Arc::clone(fd)),
            Self::Handle(handle) => handle.open(upper.view.upper()).map(Arc::new),
        }
    }
}

/// Whether the host says that a name is gone.
pub fn is_whiteout(status: &Status) -> bool {
    status.mode & libc::S_IFMT == libc::S_IFCHR && status.rdev == 0
}

/// Whether an entry of a listing is a whiteout.
pub fn hides(entry: &UpperEntry) -> bool {
    entry.kind == UpperKind::Whiteout
}
