//! Which added and removed names are one file that moved, and names that only `index/` tells.

use std::collections::HashSet;

use super::{ChangeKind, Changes, Newcomer, Place, Walk};
use crate::inspect::InspectError;
use crate::inspect::changes::Side;
use crate::layer::{FileKind, FileName, LayerPath, TreeIno};
use crate::union::UnionError;

impl Walk<'_> {
    /// Puts together what the walk saw.
    pub(super) fn finish(mut self) -> Result<Changes, InspectError> {
        let fail = |source| InspectError::upper(&LayerPath::root(), source);
        let moved = self.find_moved().map_err(fail)?;
        self.add_unmade_names().map_err(fail)?;
        let mut changes = self.changes;
        let mut at = 0;
        changes.list.retain(|_| {
            at += 1;
            !moved.contains(&(at - 1))
        });
        Ok(changes)
    }

    /// Makes moves of new names whose file lost as many names in the tree; returns the removals
    /// that they explain.
    fn find_moved(&mut self) -> Result<HashSet<usize>, UnionError> {
        let mut explained = HashSet::new();
        for (origin, arrivals) in std::mem::take(&mut self.newcomers) {
            let mut lost = Vec::new();
            let mut kept = None;
            for (dir, name) in self.names(origin)? {
                if self.is_shown(dir, &name)? {
                    kept = kept.or(Some((dir, name)));
                } else {
                    lost.push((dir, name));
                }
            }
            let mut lost = lost.into_iter();
            for arrival in arrivals {
                match lost.next() {
                    Some((dir, name)) => {
                        let from = self.tree_path(dir, &name)?;
                        explained.extend(self.removals.get(&(dir, name)).copied());
                        self.make_moved(&arrival, origin, from)?;
                    }
                    None => {
                        let link = match &kept {
                            Some((dir, name)) => Some(self.tree_path(*dir, name)?),
                            None => None,
                        };
                        let change = &mut self.changes.list[arrival.at];
                        if change.kind == (ChangeKind::Added { link_to: None }) {
                            change.kind = ChangeKind::Added { link_to: link };
                        }
                    }
                }
            }
        }
        Ok(explained)
    }

    fn make_moved(
        &mut self,
        arrival: &Newcomer,
        origin: TreeIno,
        from: LayerPath,
    ) -> Result<(), UnionError> {
        let tree = self.tree();
        let old = tree.inode(origin)?;
        let change = &mut self.changes.list[arrival.at];
        if matches!(change.kind, ChangeKind::Damaged(_)) {
            return Ok(());
        }
        // Neither a symlink nor a device can change under its inode.
        let content = old.kind == FileKind::Regular && change.object != tree.object(&old)?;
        change.old = Some(Side::of_tree(tree, &old)?);
        change.differences = arrival.differences;
        change.kind = ChangeKind::Moved { from, content };
        Ok(())
    }

    /// Names of copied-up hard links that were not made in the upper directory yet, or that the
    /// host had no room for: `index/` answers for them.
    fn add_unmade_names(&mut self) -> Result<(), UnionError> {
        for ino in self.upper.index()? {
            let inode = self.tree().inode(ino)?;
            let entry = match self.upper.indexed(&inode) {
                Ok(Some(entry)) => entry,
                Ok(None) => continue,
                // Every name of it that the upper directory has is damaged too.
                Err(UnionError::Mark(_)) => continue,
                Err(error) => return Err(error),
            };
            for (dir, name) in self.names(ino)? {
                if self.covered.contains(&(dir, name.clone())) {
                    continue;
                }
                let Some(parent) = self.shown(dir)? else { continue };
                let mut at = self.place_of(&parent);
                at = self.place(at, &name);
                self.change_at_home(&entry, ino, at)?;
            }
        }
        Ok(())
    }

    /// Every name that a tree inode has in the tree.
    fn names(&self, ino: TreeIno) -> Result<Vec<(TreeIno, FileName)>, UnionError> {
        let links = self.tree().links(ino)?;
        Ok(links.filter_map(|(dir, name)| Some((dir, FileName::new(name).ok()?))).collect())
    }

    /// Whether the root shows a name of the tree with the file that the tree has there.
    fn is_shown(&self, dir: TreeIno, name: &FileName) -> Result<bool, UnionError> {
        let key = (dir, name.clone());
        if self.covered.contains(&key) {
            return Ok(self.in_place.contains(&key));
        }
        Ok(self.shown(dir)?.is_some())
    }

    /// Where the root shows a directory of the tree: a place of the walk, and names below it.
    fn shown(&self, dir: TreeIno) -> Result<Option<(usize, Vec<FileName>)>, UnionError> {
        let mut below = Vec::new();
        let mut at = dir;
        loop {
            if let Some(place) = self.merged.get(&at) {
                below.reverse();
                return Ok(Some((*place, below)));
            }
            let inode = self.tree().inode(at)?;
            let Ok(name) = FileName::new(self.tree().name(&inode)?) else { return Ok(None) };
            if inode.is_hidden() || self.covered.contains(&(inode.parent, name.clone())) {
                return Ok(None);
            }
            below.push(name);
            at = inode.parent;
        }
    }

    fn place_of(&mut self, (place, below): &(usize, Vec<FileName>)) -> usize {
        below.iter().fold(*place, |at, name| {
            self.changes.places.push(Place { parent: at, name: Some(name.clone()) });
            self.changes.places.len() - 1
        })
    }

    fn tree_path(&self, dir: TreeIno, name: &FileName) -> Result<LayerPath, UnionError> {
        let dir = self.tree().path(&self.tree().inode(dir)?)?;
        Ok(LayerPath::parse(&dir).unwrap_or_default().join(name.clone()))
    }
}
