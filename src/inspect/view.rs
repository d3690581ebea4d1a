//! One tree to look at, wherever it comes from.
//!
//! A view is the merged tree of a stack, or a single layer with its whiteouts and opaque
//! directories as they are. It reads the mapped manifest in place: walking it costs no system
//! call and copies nothing but the path in hand.

use crate::layer::{
    EntryKind, FileKind, FileName, Inode, LayerId, LayerPath, Manifest, ManifestError, Stack,
    Timestamp, TreeIno,
};
use crate::object::{ObjectError, ObjectId, ObjectReader};

use super::text::printable;
use super::{InspectError, Library, Meaning};

/// A tree to look at.
#[derive(Clone)]
pub struct View {
    whole: String,
    manifest: Manifest,
    layers: Vec<LayerId>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A file of some kind.
    File(FileKind),
    /// In a single layer: nothing, and what the layers below have there is gone.
    Whiteout,
}

impl Kind {
    /// The kind in one word, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::File(FileKind::Regular) => "file",
            Self::File(FileKind::Directory) => "directory",
            Self::File(FileKind::Symlink) => "symlink",
            Self::File(FileKind::Fifo) => "fifo",
            Self::File(FileKind::Socket) => "socket",
            Self::File(FileKind::CharDevice) => "char-device",
            Self::File(FileKind::BlockDevice) => "block-device",
            Self::Whiteout => "whiteout",
        }
    }

    /// The letter that ls(1) has for it; `w` for a whiteout.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::File(FileKind::Regular) => '-',
            Self::File(FileKind::Directory) => 'd',
            Self::File(FileKind::Symlink) => 'l',
            Self::File(FileKind::Fifo) => 'p',
            Self::File(FileKind::Socket) => 's',
            Self::File(FileKind::CharDevice) => 'c',
            Self::File(FileKind::BlockDevice) => 'b',
            Self::Whiteout => 'w',
        }
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_regular(self) -> bool {
        self == Self::File(FileKind::Regular)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(self) -> bool {
        self == Self::File(FileKind::Directory)
    }

    fn with_article(self) -> &'static str {
        match self {
            Self::File(FileKind::Regular) => "a file",
            Self::File(FileKind::Directory) => "a directory",
            Self::File(FileKind::Symlink) => "a symbolic link",
            Self::File(FileKind::Fifo) => "a named pipe",
            Self::File(FileKind::Socket) => "a socket",
            Self::File(FileKind::CharDevice) => "a character device",
            Self::File(FileKind::BlockDevice) => "a block device",
            Self::Whiteout => "a whiteout",
        }
    }
}

/// One file of a view, or a whiteout.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission, set-id and sticky bits (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// `dev_t` as Linux encodes it; 0 unless a device.
    pub rdev: u64,
    /// Bytes of content, or of a symlink's target; 0 for anything else.
    pub size: u64,
    /// Bytes that the content takes on disk, holes left out.
    pub disk_bytes: u64,
    /// Names it has; for a directory 2 + its subdirectories.
    pub nlink: u32,
    /// Its number in the manifest; none for a whiteout.
    pub ino: Option<TreeIno>,
    /// The content of a regular file.
    pub object: Option<ObjectId>,
    /// Index in the stack of the layer that its record comes from, lowest 0. A directory that
    /// several layers have counts for the lowest. None in a single layer.
    pub layer: Option<u32>,
    /// In a single layer: the directory hides everything below it.
    pub opaque: bool,
    /// In a single layer: a directory on the way to others, which the layer does not describe.
    pub implicit: bool,
    inode: Option<Inode>,
}

/// An extended attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xattr<'a> {
    /// Its name with its namespace.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// How a walk goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into the directory in hand, or to the next name.
    Into,
    /// Past whatever is in the directory in hand.
    Past,
    /// No further.
    Stop,
}

impl Library {
    /// The view of what `meaning` means; of a root, what lies under its private layer.
    ///
    /// # Errors
    /// [`InspectError::Layers`] if its layers cannot be read or merged;
    /// [`InspectError::Unknown`] for an object, which is no tree.
    pub fn view(&self, meaning: &Meaning) -> Result<View, InspectError> {
        let stack = match meaning {
            Meaning::Template(template) => &template.stack,
            Meaning::Root(record) => &record.stack,
            Meaning::Stack(stack) => stack,
            Meaning::Layer(id) => return View::of_layer(self, *id),
            Meaning::Object(id) => {
                return Err(InspectError::Unknown {
                    what: "template or layer".to_owned(),
                    word: id.to_string(),
                    hint: "; it is the digest of an object, the content of a file".to_owned(),
                });
            }
        };
        View::of_stack(self, meaning.describe(), stack)
    }
}

impl View {
    /// The merged tree of a stack; `whole` is what sentences call it.
    ///
    /// # Errors
    /// [`InspectError::Layers`].
    pub fn of_stack(library: &Library, whole: String, stack: &Stack) -> Result<Self, InspectError> {
        let mut manifest = library.layers().tree(stack)?;
        if manifest.verify_digest().is_err() {
            // It is derived: from whole layers it can be made again.
            manifest = library.layers().tree_verified(stack)?;
        }
        Ok(Self { whole, manifest, layers: stack.layers().to_vec() })
    }

    /// A single layer, with its whiteouts. Its manifest is hashed: what is shown is what the
    /// digest says.
    ///
    /// # Errors
    /// [`InspectError::Layers`].
    pub fn of_layer(library: &Library, id: LayerId) -> Result<Self, InspectError> {
        let manifest = library.open_layer(&id)?;
        Ok(Self { whole: format!("layer {id}"), manifest, layers: vec![id] })
    }

    pub(super) fn of_manifest(whole: String, manifest: Manifest, layers: Vec<LayerId>) -> Self {
        Self { whole, manifest, layers }
    }

    /// What sentences call it: `template debian:12`.
    #[must_use]
    pub fn whole(&self) -> &str {
        &self.whole
    }

    /// The manifest underneath.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The layers it is made of, lowest first.
    #[must_use]
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// The root directory.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn root(&self) -> Result<Node, InspectError> {
        Ok(self.node(TreeIno::ROOT)?)
    }

    /// The file with this number in the manifest.
    ///
    /// # Errors
    /// [`ManifestError`] if there is none, or for damage.
    pub fn node(&self, ino: TreeIno) -> Result<Node, ManifestError> {
        let inode = self.manifest.inode(ino)?;
        Ok(Node {
            kind: Kind::File(inode.kind),
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            rdev: inode.rdev,
            size: inode.size,
            disk_bytes: inode.data_blocks.saturating_mul(512),
            nlink: inode.nlink,
            ino: Some(ino),
            object: self.manifest.object(&inode)?,
            layer: self.manifest.origin(ino)?.map(|origin| origin.layer),
            opaque: inode.opaque,
            implicit: inode.implicit,
            inode: Some(inode),
        })
    }

    /// What lies at `path`, following no symlink; none if there is nothing.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn find(&self, path: &LayerPath) -> Result<Option<Node>, InspectError> {
        let mut node = self.root()?;
        for name in path.names() {
            let Some(inode) = node.inode.filter(|inode| inode.kind == FileKind::Directory) else {
                return Ok(None);
            };
            node = match self.manifest.lookup(&inode, name.as_bytes())? {
                Some(entry) => self.entry_node(entry.kind, entry.ino)?,
                None => return Ok(None),
            };
        }
        Ok(Some(node))
    }

    /// As [`View::find`], but nothing there is an error.
    ///
    /// # Errors
    /// [`InspectError::NoPath`] with the nearest name beside it.
    pub fn get(&self, path: &LayerPath) -> Result<Node, InspectError> {
        match self.find(path)? {
            Some(node) => Ok(node),
            None => Err(InspectError::NoPath {
                whole: self.whole.clone(),
                path: absolute(path),
                hint: self.hint(path)?,
            }),
        }
    }

    /// The name that was probably meant, where the path leaves what there is.
    fn hint(&self, path: &LayerPath) -> Result<String, InspectError> {
        let mut dir = LayerPath::root();
        for name in path.names() {
            let below = dir.join(name.clone());
            if self.find(&below)?.is_some() {
                dir = below;
                continue;
            }
            let mut names = Vec::new();
            for child in self.children(&self.get(&dir)?)? {
                names.push(String::from_utf8_lossy(child?.0).into_owned());
            }
            let wanted = String::from_utf8_lossy(name.as_bytes()).into_owned();
            let near = crate::host::nearest(&wanted, names.iter().map(String::as_str));
            let near = near.and_then(|near| FileName::new(near.as_bytes()).ok());
            return Ok(near.map_or_else(String::new, |near| {
                format!("; did you mean {}?", absolute(&dir.join(near)))
            }));
        }
        Ok(String::new())
    }

    /// The names in a directory and what they stand for, in byte order; none in anything else.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage, here or while iterating.
    pub fn children<'a>(
        &'a self,
        dir: &Node,
    ) -> Result<impl Iterator<Item = Result<(&'a [u8], Node), InspectError>> + use<'a>, InspectError>
    {
        let inode = dir.inode.filter(|inode| inode.kind == FileKind::Directory);
        let entries = inode.map(|inode| self.manifest.entries(&inode)).into_iter().flatten();
        Ok(entries.map(|entry| {
            let entry = entry?;
            Ok((entry.name, self.entry_node(entry.kind, entry.ino)?))
        }))
    }

    /// Visits `from` and everything below it, each directory before its names, those in byte
    /// order. Paths are relative to the root of the view, without a leading slash.
    ///
    /// # Errors
    /// [`InspectError::NoPath`], [`InspectError::Manifest`] for damage, and what `visit` says.
    pub fn walk<E: From<InspectError>>(
        &self,
        from: &LayerPath,
        mut visit: impl FnMut(&[u8], &Node) -> Result<Step, E>,
    ) -> Result<(), E> {
        let start = self.get(from)?;
        let mut path = from.to_bytes();
        match visit(&path, &start)? {
            Step::Into => {}
            Step::Past | Step::Stop => return Ok(()),
        }
        // Directories on the way down: the next index, and the length of the path.
        let mut trail: Vec<(Inode, u32, usize)> = Vec::new();
        let enter = |node: &Node, len: usize, trail: &mut Vec<_>| {
            if let Some(inode) = node.inode.filter(|inode| inode.kind == FileKind::Directory) {
                trail.push((inode, 0, len));
            }
        };
        enter(&start, path.len(), &mut trail);
        while let Some((dir, next, len)) = trail.last_mut() {
            path.truncate(*len);
            let entry = self.manifest.entry(dir, *next).map_err(InspectError::from)?;
            let Some(entry) = entry else {
                trail.pop();
                continue;
            };
            *next += 1;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.name);
            let node = self.entry_node(entry.kind, entry.ino).map_err(InspectError::from)?;
            match visit(&path, &node)? {
                Step::Into => enter(&node, path.len(), &mut trail),
                Step::Past => {}
                Step::Stop => return Ok(()),
            }
        }
        Ok(())
    }

    /// The target of a symlink; empty for anything else.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn target(&self, node: &Node) -> Result<&[u8], InspectError> {
        match &node.inode {
            Some(inode) => Ok(self.manifest.symlink_target(inode)?),
            None => Ok(&[]),
        }
    }

    /// The extended attributes, in byte order of their names.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr<'_>>, InspectError> {
        let Some(inode) = &node.inode else { return Ok(Vec::new()) };
        let xattrs = self.manifest.xattrs(inode)?;
        let xattrs = xattrs.map(|xattr| xattr.map(|(name, value)| Xattr { name, value }));
        Ok(xattrs.collect::<Result<_, _>>()?)
    }

    /// Whether a file has capabilities of its own (capabilities(7)).
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn has_capabilities(&self, node: &Node) -> Result<bool, InspectError> {
        match &node.inode {
            Some(inode) if inode.xattr_count > 0 => {
                Ok(self.manifest.xattr(inode, b"security.capability")?.is_some())
            }
            Some(_) | None => Ok(false),
        }
    }

    /// Hands the content of the regular file at `path` to `take`, piece by piece.
    ///
    /// # Errors
    /// [`InspectError::NotThat`] for anything but a regular file, [`InspectError::Content`] if
    /// its object is missing, damaged (told once all of it was handed over) or cannot be read, and
    /// what `take` says.
    pub fn read<E: From<InspectError>>(
        &self,
        objects: &ObjectReader,
        path: &LayerPath,
        node: &Node,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(object) = node.object else {
            return Err(InspectError::NotThat {
                whole: self.whole.clone(),
                path: absolute(path),
                found: node.kind.with_article(),
                needed: "a regular file",
            }
            .into());
        };
        let read = objects.read_whole(&object, |piece| take(piece).map_err(Stopped::Taker));
        read.map_err(|stopped| match stopped {
            Stopped::Taker(error) => error,
            Stopped::Object(source) => {
                InspectError::Content { path: absolute(path), source }.into()
            }
        })
    }

    fn entry_node(&self, kind: EntryKind, ino: Option<TreeIno>) -> Result<Node, ManifestError> {
        match (kind, ino) {
            (EntryKind::Inode(_), Some(ino)) => self.node(ino),
            (EntryKind::Whiteout, _) | (EntryKind::Inode(_), None) => Ok(Node {
                kind: Kind::Whiteout,
                mode: 0,
                uid: 0,
                gid: 0,
                mtime: Timestamp::default(),
                rdev: 0,
                size: 0,
                disk_bytes: 0,
                nlink: 0,
                ino: None,
                object: None,
                layer: None,
                opaque: false,
                implicit: false,
                inode: None,
            }),
        }
    }
}

/// A path as sentences have it.
fn absolute(path: &LayerPath) -> String {
    format!("/{}", printable(&path.to_bytes()))
}

/// Why a content was not read to its end.
enum Stopped<E> {
    Object(ObjectError),
    Taker(E),
}

impl<E> From<ObjectError> for Stopped<E> {
    fn from(error: ObjectError) -> Self {
        Self::Object(error)
    }
}
