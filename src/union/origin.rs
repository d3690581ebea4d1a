//! What an entry of an upper directory was copied up from, by its marks.
//!
//! Mica's own mark says it; without one the overlayfs rules do, so that a layer written by
//! the kernel's overlayfs is read as the kernel would (overlayfs.rst). Knows no nodes: whoever
//! looks at a private directory from outside goes by the same rules as the mount.

use super::UnionError;
use crate::layer::{FileKind, LayerId, Manifest, TreeIno};
use crate::private::marks::{self, Marks};

/// Tells the origin of upper entries over one tree.
#[derive(Clone, Copy)]
pub struct Origins<'a> {
    tree: &'a Manifest,
    layers: &'a [LayerId],
}

impl<'a> Origins<'a> {
    /// Over `tree`, which was merged from `layers`, lowest first.
    pub fn new(tree: &'a Manifest, layers: &'a [LayerId]) -> Self {
        Self { tree, layers }
    }

    /// The tree inode an upper entry merges with (a directory) or was copied up from.
    ///
    /// `parent` is what its directory merges with, `name` what it is called there.
    ///
    /// # Errors
    /// [`UnionError::Mark`] for a mark that does not fit the tree.
    pub fn of(
        &self,
        marks: &Marks,
        directory: bool,
        parent: Option<TreeIno>,
        name: &[u8],
    ) -> Result<Option<TreeIno>, UnionError> {
        if directory && marks.opaque {
            return Ok(None);
        }
        let fits = |ino: &TreeIno| -> Result<bool, UnionError> {
            Ok(ino.get() <= self.tree.len()
                && (self.tree.inode(*ino)?.kind == FileKind::Directory) == directory)
        };
        if let Some(origin) = &marks.origin {
            // Layer, index and number say the same thing twice: one flipped bit shows.
            if !fits(&origin.tree)? || self.mark(origin.tree)? != *origin {
                return Err(UnionError::Mark("trusted.mica.origin"));
            }
            return Ok(Some(origin.tree));
        }
        if !directory && !marks.metacopy {
            return Ok(None);
        }
        let below = match &marks.redirect {
            Some(path) if path.starts_with(b"/") => self.walk(path)?,
            Some(name) => self.below(parent, name)?,
            None => self.below(parent, name)?,
        };
        match below {
            Some(ino) if fits(&ino)? => Ok(Some(ino)),
            _ => Ok(None),
        }
    }

    /// The mark that says `ino` is the origin.
    ///
    /// # Errors
    /// [`UnionError::Invalid`] for a number that the tree gave to no layer.
    pub fn mark(&self, ino: TreeIno) -> Result<marks::Origin, UnionError> {
        let origin = self.tree.origin(ino)?.ok_or(UnionError::Invalid)?;
        let layer = usize::try_from(origin.layer).ok().and_then(|at| self.layers.get(at));
        Ok(marks::Origin {
            layer: *layer.ok_or(UnionError::Invalid)?.digest(),
            index: origin.ino.get(),
            tree: ino,
        })
    }

    fn below(&self, dir: Option<TreeIno>, name: &[u8]) -> Result<Option<TreeIno>, UnionError> {
        let Some(dir) = dir else { return Ok(None) };
        let dir = self.tree.inode(dir)?;
        Ok(self.tree.lookup(&dir, name)?.and_then(|entry| entry.ino))
    }

    fn walk(&self, path: &[u8]) -> Result<Option<TreeIno>, UnionError> {
        let mut at = TreeIno::ROOT;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            match self.below(Some(at), name)? {
                Some(ino) => at = ino,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}
