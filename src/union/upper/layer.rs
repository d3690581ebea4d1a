//! Makes a layer of an upper directory: put on top of the tree it shows what the root shows.
//!
//! A directory that stands where its origin stood is left to merge. Any other becomes opaque
//! and gets a name for all that it shows, so moved directories become names of their own. A
//! hard link is one record: where one name of a file is in the layer, all that the root shows
//! are.

use std::collections::HashMap;
use std::vec;

use rustix::io::Errno;

use super::{Bytes, Entry, Found, Kept, Upper, UpperError, compare, hides, is_whiteout};
use crate::layer::{
    BuildError, FileKind, FileName, Inode, LayerBuilder, LayerPath, NewContent, NewNode, NodeId,
    TreeIno, read_node,
};
use crate::sys::inode;
use crate::union::UnionError;

/// Gives the content of a regular file of the private layer.
pub trait Contents {
    /// Why it cannot.
    type Error: From<UpperError> + From<BuildError>;

    /// The content of `entry`, which lies at `path`.
    ///
    /// # Errors
    /// Whatever keeps it from being had.
    fn content(
        &mut self,
        path: &LayerPath,
        entry: &Entry,
        bytes: &Bytes,
    ) -> Result<NewContent, Self::Error>;
}

/// The manifest of the layer that `upper` is; none if it changes nothing.
///
/// # Errors
/// [`UpperError::Entry`] for damage, [`BuildError`] for what no layer can hold, and those of
/// `contents`.
pub fn to_layer<C: Contents>(upper: &Upper, contents: &mut C) -> Result<Option<Vec<u8>>, C::Error> {
    let mut maker = Maker {
        upper,
        contents,
        builder: LayerBuilder::new(),
        private_links: HashMap::new(),
        tree_links: HashMap::new(),
        changed: false,
    };
    maker.walk()?;
    maker.link_the_rest()?;
    if !maker.changed {
        return Ok(None);
    }
    Ok(Some(maker.builder.finish()?))
}

struct Maker<'a, C> {
    upper: &'a Upper,
    contents: &'a mut C,
    builder: LayerBuilder,
    /// Each private inode with several names, by host number; and the tree file whose copy it is.
    private_links: HashMap<u64, (NodeId, Option<TreeIno>)>,
    /// Each tree file with several names that became part of the layer.
    tree_links: HashMap<TreeIno, NodeId>,
    changed: bool,
}

/// One directory on the way down. Its path is the walk's: one for each level would take memory
/// by the square of the depth.
struct Frame {
    dir: Kept,
    merges: Option<TreeIno>,
    /// It stands where its origin stood, so the layers below show through.
    in_place: bool,
    names: vec::IntoIter<(FileName, bool)>,
}

impl<C: Contents> Maker<'_, C> {
    fn walk(&mut self) -> Result<(), C::Error> {
        let root = self.upper.root()?;
        let mut path = LayerPath::root();
        let frame = self.directory(&path, root, Some(TreeIno::ROOT), 0)?;
        let mut frames = vec![frame];
        while let Some(frame) = frames.last_mut() {
            let Some((name, whiteout)) = frame.names.next() else {
                frames.pop();
                path.pop();
                continue;
            };
            path.push(name.clone());
            let depth = frames.len();
            let frame = frames.last().map(|frame| self.name(frame, &path, &name, whiteout, depth));
            match frame.transpose()?.flatten() {
                Some(entered) => frames.push(entered),
                None => path.pop(),
            }
        }
        Ok(())
    }

    /// Puts what a directory has under one name; a directory is returned to be walked.
    fn name(
        &mut self,
        frame: &Frame,
        path: &LayerPath,
        name: &FileName,
        whiteout: bool,
        depth: usize,
    ) -> Result<Option<Frame>, C::Error> {
        let at = |source: UnionError| UpperError::at(path, source);
        let (merges, in_place) = (frame.merges, frame.in_place);
        let below = self.upper.below(merges, name.as_bytes()).map_err(at)?;
        if whiteout {
            self.whiteout(path, in_place && below.is_some());
            return Ok(None);
        }
        let dir = frame.dir.open(self.upper).map_err(|errno| at(errno.into()))?;
        let fd = match inode::open_path(&*dir, name.as_bytes()) {
            Ok(fd) => fd,
            // Of a root that is not frozen: what is gone by now is gone.
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(at(errno.into()).into()),
        };
        let status = inode::status(&fd).map_err(|errno| at(errno.into()))?;
        if is_whiteout(&status) {
            self.whiteout(path, in_place && below.is_some());
            return Ok(None);
        }
        let entry = self.upper.read(fd, merges, name.as_bytes()).map_err(at)?;
        let here = below.filter(|_| in_place);
        if entry.kind == FileKind::Directory {
            return self.directory(path, entry, here, depth).map(Some);
        }
        self.file(path, &entry, here)?;
        Ok(None)
    }

    fn whiteout(&mut self, path: &LayerPath, hides: bool) {
        if hides {
            self.builder.whiteout(path);
            self.changed = true;
        }
    }

    /// Puts a directory; `here` is what the layers below show under its path.
    fn directory(
        &mut self,
        path: &LayerPath,
        dir: Entry,
        here: Option<TreeIno>,
        depth: usize,
    ) -> Result<Frame, C::Error> {
        let fail = |source: UnionError| UpperError::at(path, source);
        let tree = self.upper.tree();
        let below = here.map(|ino| tree.inode(ino)).transpose();
        let below = below.map_err(|error| fail(error.into()))?;
        let in_place = dir.origin.is_some() && dir.origin == here;
        let same = match &below {
            Some(below) if in_place => {
                compare::differences(tree, below, &dir).map_err(fail)?.is_empty()
            }
            Some(_) | None => false,
        };
        if !same {
            self.put(path, &dir, NewContent::Directory)?;
        }
        if !in_place && below.is_some_and(|below| below.kind == FileKind::Directory) {
            self.builder.opaque(path);
        }
        let mut names = Vec::new();
        for entry in self.upper.names(&dir.fd).map_err(|errno| fail(errno.into()))? {
            if let Ok(name) = FileName::new(&entry.name) {
                names.push((name, hides(&entry)));
            }
        }
        if let Some(origin) = dir.origin.filter(|_| !in_place) {
            self.copy_unlisted(path, origin, &names)?;
        }
        let merges = dir.origin;
        Ok(Frame { dir: Kept::new(dir.fd, depth), merges, in_place, names: names.into_iter() })
    }

    /// Puts what a directory away from its place shows of the tree.
    fn copy_unlisted(
        &mut self,
        path: &LayerPath,
        origin: TreeIno,
        listed: &[(FileName, bool)],
    ) -> Result<(), C::Error> {
        let tree = self.upper.tree();
        let mut left = vec![(path.clone(), origin)];
        while let Some((dir, ino)) = left.pop() {
            let fail = |source: crate::layer::ManifestError| UpperError::at(&dir, source);
            for entry in tree.entries(&tree.inode(ino).map_err(fail)?) {
                let entry = entry.map_err(fail)?;
                let (Some(ino), Ok(name)) = (entry.ino, FileName::new(entry.name)) else {
                    continue;
                };
                let top = dir == *path;
                if top && listed.binary_search_by(|(known, _)| known.cmp(&name)).is_ok() {
                    continue;
                }
                let inode = tree.inode(ino).map_err(fail)?;
                let at = dir.join(name);
                if inode.kind == FileKind::Directory {
                    let node = read_node(tree, &inode).map_err(BuildError::from)?;
                    self.builder.put(&at, node)?;
                    left.push((at, ino));
                } else {
                    self.tree_file(&at, &inode)?;
                }
            }
        }
        Ok(())
    }

    /// Puts a name of the tree under another path.
    fn tree_file(&mut self, path: &LayerPath, inode: &Inode) -> Result<(), C::Error> {
        let indexed = self.upper.indexed(inode);
        if let Some(entry) = indexed.map_err(|source| UpperError::at(path, source))? {
            return self.file(path, &entry, None);
        }
        self.changed = true;
        if let Some(first) = self.tree_links.get(&inode.ino) {
            return Ok(self.builder.hard_link_node(path, *first)?);
        }
        let node = read_node(self.upper.tree(), inode).map_err(BuildError::from)?;
        let id = self.builder.put(path, node)?;
        if inode.nlink > 1 {
            self.tree_links.insert(inode.ino, id);
        }
        Ok(())
    }

    /// Puts a private file; `here` is what the layers below show under its path.
    fn file(
        &mut self,
        path: &LayerPath,
        entry: &Entry,
        here: Option<TreeIno>,
    ) -> Result<(), C::Error> {
        if let Some((first, _)) = self.private_links.get(&entry.status.ino) {
            return Ok(self.builder.hard_link_node(path, *first)?);
        }
        if here.is_none() && entry.is_placed() {
            return Ok(());
        }
        let fail = |source: UnionError| UpperError::at(path, source);
        let bytes = self.upper.bytes(entry).map_err(fail)?;
        let tree = self.upper.tree();
        let origin = entry.origin.map(|ino| tree.inode(ino)).transpose();
        let origin = origin.map_err(|error| fail(error.into()))?;
        if let Some(origin) = origin.filter(|origin| Some(origin.ino) == here)
            && origin.nlink == 1
            && entry.status.nlink == 1
            && compare::same_content(tree, &origin, entry, &bytes).map_err(fail)?
            && compare::differences(tree, &origin, entry).map_err(fail)?.is_empty()
        {
            return Ok(());
        }
        let content = match entry.kind {
            FileKind::Regular => self.contents.content(path, entry, &bytes)?,
            FileKind::Symlink => {
                let target =
                    inode::symlink_target(&entry.fd).map_err(|errno| fail(errno.into()))?;
                NewContent::Symlink(target.into())
            }
            FileKind::Fifo => NewContent::Fifo,
            FileKind::Socket => NewContent::Socket,
            FileKind::CharDevice => NewContent::CharDevice(entry.rdev()),
            FileKind::BlockDevice => NewContent::BlockDevice(entry.rdev()),
            FileKind::Directory => NewContent::Directory,
        };
        let id = self.put(path, entry, content)?;
        if entry.status.nlink > 1 {
            self.private_links.insert(entry.status.ino, (id, entry.origin));
        }
        Ok(())
    }

    fn put(
        &mut self,
        path: &LayerPath,
        entry: &Entry,
        content: NewContent,
    ) -> Result<NodeId, C::Error> {
        let xattrs = entry.xattrs().map_err(|errno| UpperError::at(path, errno))?;
        let id = self
            .builder
            .put(path, NewNode { metadata: compare::metadata(entry), xattrs, content })?;
        self.changed = true;
        Ok(id)
    }

    /// Links the names that files of the layer still have in untouched directories.
    fn link_the_rest(&mut self) -> Result<(), C::Error> {
        // An index entry none of whose names was made yet.
        let index = self.upper.index();
        for ino in index.map_err(|errno| UpperError::at(&LayerPath::root(), errno))? {
            self.put_index(ino)?;
        }
        let trees = self.tree_links.drain().map(|(ino, first)| (ino, Shown::Tree, first));
        let mut files: Vec<(TreeIno, Shown, NodeId)> = trees.collect();
        files.extend(self.private_links.drain().filter_map(|(host_ino, (first, origin))| {
            Some((origin?, Shown::Private(host_ino), first))
        }));
        for (ino, shown, first) in files {
            for path in self.untouched_names(ino, shown)? {
                if self.builder.get(&path).is_none() {
                    self.builder.hard_link_node(&path, first)?;
                }
            }
        }
        Ok(())
    }

    fn put_index(&mut self, ino: TreeIno) -> Result<(), C::Error> {
        let fail = |source: UnionError| UpperError::at(&LayerPath::root(), source);
        let inode = self.upper.tree().inode(ino).map_err(|error| fail(error.into()))?;
        let Some(entry) = self.upper.indexed(&inode).map_err(fail)? else { return Ok(()) };
        let host_ino = entry.status.ino;
        if !self.private_links.contains_key(&host_ino)
            && let Some(path) =
                self.untouched_names(ino, Shown::Private(host_ino))?.into_iter().next()
        {
            self.file(&path, &entry, None)?;
            if let Some(id) = self.builder.get(&path) {
                self.private_links.insert(host_ino, (id, Some(ino)));
            }
        }
        Ok(())
    }

    /// The names that the tree has of a file under which the root shows that very inode.
    fn untouched_names(&self, ino: TreeIno, wanted: Shown) -> Result<Vec<LayerPath>, C::Error> {
        let tree = self.upper.tree();
        let fail = |error: crate::layer::ManifestError| UpperError::at(&LayerPath::root(), error);
        let mut names = Vec::new();
        for (dir, name) in tree.links(ino).map_err(fail)? {
            let dir = tree.path(&tree.inode(dir).map_err(fail)?).map_err(fail)?;
            let Ok(name) = FileName::new(name) else { continue };
            let path = LayerPath::parse(&dir).unwrap_or_default().join(name);
            let shown = match self.upper.resolve(&path)? {
                Found::Tree(found) => wanted == Shown::Tree && found.ino == ino,
                Found::Private(entry) => wanted == Shown::Private(entry.status.ino),
                Found::Absent { .. } => false,
            };
            if shown {
                names.push(path);
            }
        }
        Ok(names)
    }
}

/// The inode that a name has to show.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The tree's own.
    Tree,
    /// A private one, by its host number.
    Private(u64),
}
