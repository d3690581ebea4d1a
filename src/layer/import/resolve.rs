//! Where a path leads in a layer and the tree below it.

use super::ImportError;
use super::metadata::printable;
use crate::layer::builder::Child;
use crate::layer::{
    FileKind, FileName, Inode, LayerBuilder, LayerPath, Manifest, NewContent, NodeId, PathError,
};

/// What stands at a path, in the layer or below it.
pub(super) enum Found {
    Missing,
    Directory,
    Symlink(Box<[u8]>),
    Other,
}

/// A component of a path being resolved.
pub(super) enum Step {
    Up,
    Down(FileName),
}

/// A position in the layer and, where it shines through, in the tree below.
pub(super) struct Walk<'a> {
    builder: &'a LayerBuilder,
    below: Option<&'a Manifest>,
    root: (Option<NodeId>, Option<Inode>),
    /// Each name on the way and what the two trees have there.
    levels: Vec<(FileName, Option<NodeId>, Option<Inode>)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        builder: &'a LayerBuilder,
        below: Option<&'a Manifest>,
    ) -> Result<Self, ImportError> {
        let root = builder.root();
        let below = below.filter(|_| !builder.is_opaque(root));
        let inode = below.map(Manifest::root).transpose()?;
        Ok(Self { builder, below, root: (Some(root), inode), levels: Vec::new() })
    }

    pub(super) fn down(&mut self, name: FileName) -> Result<Found, ImportError> {
        let (above, below) = match self.levels.last() {
            Some((_, above, below)) => (*above, *below),
            None => self.root,
        };
        let child = above.and_then(|above| self.builder.child(above, &name));
        let (above, hides) = match child {
            Some(Child::Whiteout) => (None, true),
            Some(Child::Node(id)) => (Some(id), self.builder.is_opaque(id)),
            None => (None, false),
        };
        let below = match (self.below, below) {
            (Some(tree), Some(dir)) if !hides => match tree.lookup(&dir, name.as_bytes())? {
                Some(entry) => entry.ino.map(|ino| tree.inode(ino)).transpose()?,
                None => None,
            },
            (_, _) => None,
        };
        // Only a directory can be looked into further.
        let directory = below.filter(|inode| inode.kind == FileKind::Directory);
        self.levels.push((name, above, directory));
        if let Some(id) = above {
            return Ok(match self.builder.content(id) {
                NewContent::Directory => Found::Directory,
                NewContent::Symlink(target) => Found::Symlink(target.clone()),
                NewContent::Regular { .. }
                | NewContent::Fifo
                | NewContent::Socket
                | NewContent::CharDevice(_)
                | NewContent::BlockDevice(_) => Found::Other,
            });
        }
        let (Some(tree), Some(inode)) = (self.below, below) else { return Ok(Found::Missing) };
        Ok(match inode.kind {
            FileKind::Directory => Found::Directory,
            FileKind::Symlink => Found::Symlink(tree.symlink_target(&inode)?.into()),
            FileKind::Regular
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => Found::Other,
        })
    }

    pub(super) fn up(&mut self) {
        self.levels.pop();
    }

    pub(super) fn restart(&mut self) {
        self.levels.clear();
    }

    /// Whether there is something at this position.
    pub(super) fn exists(&self) -> bool {
        self.levels.last().is_none_or(|(_, above, below)| above.is_some() || below.is_some())
    }

    /// Directories above this position.
    pub(super) fn depth(&self) -> usize {
        self.levels.len()
    }

    pub(super) fn path(&self) -> LayerPath {
        LayerPath::from_names(self.levels.iter().map(|(name, _, _)| name.clone()).collect())
    }
}

pub(super) fn target_steps(target: &[u8]) -> Result<Vec<Step>, PathError> {
    let mut steps = Vec::new();
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => steps.push(Step::Up),
            name => steps.push(Step::Down(
                FileName::new(name)
                    .map_err(|source| PathError::Name { path: printable(target), source })?,
            )),
        }
    }
    Ok(steps)
}
