//! How one name comes back from the tree.
//!
//! On a mounted root as a metadata-only copy, for the kernel may know what goes under the
//! number of what comes; at rest by taking away what stood in the way, unless something still
//! has that number.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, RenameFlags};

use super::copy_up::{keeping_times, upper_kind};
use super::place::Found;
use super::revert::Hidden;
use super::{Node, NodeId, Removed, Union, UnionError};
use crate::layer::{FileKind, Inode, TreeIno};
use crate::private::listing::UpperKind;
use crate::sys::inode;

/// What has to be done for the files in a directory that comes back.
#[derive(Default)]
struct InTheWay {
    /// Directories that the kernel knows as removed: those it would show empty for ever.
    dead: Vec<Inode>,
    /// Their numbers are those of removed files that are open, or have other names.
    taken: Vec<Inode>,
    /// The copies that stand for all names of files that have several.
    linked: Vec<Arc<Node>>,
}

impl Union {
    /// Replaces a private file by the template's.
    pub(super) fn put_back(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        inode: &Inode,
        old: &Arc<Node>,
        live: bool,
    ) -> Result<Removed, UnionError> {
        self.room_for_nameless()?;
        let private = self.private()?;
        let parent_fd = self.descriptor(parent)?;
        let old_fd = self.descriptor(old)?;
        // At its other names the private file keeps the number.
        if live || inode::status(&old_fd)?.nlink > 1 {
            let staged = private.stage(&self.metadata_copy(inode)?)?;
            let status = inode::status(staged.fd())?;
            let mut directory = self.directory(parent)?;
            if directory.get(name).map(|upper| upper.host_ino) != Some(old.host_ino()) {
                return Err(UnionError::Stale);
            }
            let fd = keeping_times(&parent_fd, || {
                Ok(staged.commit(&parent_fd, name, RenameFlags::empty())?)
            })?;
            self.note(parent, &mut directory, name, upper_kind(inode.kind), status.ino)?;
            self.enter_copy(fd, &status, inode, self.found(parent, name))?;
        } else {
            let mut directory = self.directory(parent)?;
            keeping_times(&parent_fd, || {
                Ok(rustix::fs::unlinkat(&parent_fd, name, AtFlags::empty())?)
            })?;
            directory.remove(name);
        }
        self.lost_name(old, old_fd)
    }

    /// Brings back what a whiteout hides. Returns the names below it of which the kernel may
    /// remember something else.
    pub(super) fn revive(
        &self,
        hidden: &Hidden,
        live: bool,
    ) -> Result<Vec<(NodeId, Vec<u8>)>, UnionError> {
        let Hidden { parent, name, inode } = hidden;
        let directory = inode.kind == FileKind::Directory;
        // Under the number of a directory that was removed the kernel shows an empty one as long as
        // anybody stands in it, or has something open in it (`S_DEAD`).
        let way = if directory { self.clear_the_way(inode, live)? } else { InTheWay::default() };
        let mut changed = Vec::new();
        if live || !way.taken.is_empty() || (!directory && self.is_taken(inode.ino)) {
            let staged = self.private()?.stage(&self.metadata_copy(inode)?)?;
            let made = self.furnish(staged.fd(), inode, &way)?;
            let status = inode::status(staged.fd())?;
            let parent_fd = self.descriptor(parent)?;
            let mut names = self.directory(parent)?;
            if names.get(name).map(|upper| upper.kind) != Some(UpperKind::Whiteout) {
                return Err(UnionError::Stale);
            }
            let flags = if directory { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
            let fd = keeping_times(&parent_fd, || Ok(staged.commit(&parent_fd, name, flags)?))?;
            self.note(parent, &mut names, name, upper_kind(inode.kind), status.ino)?;
            self.unremove(inode)?;
            self.enter_copy(fd, &status, inode, self.found(parent, name))?;
            for (dir, name, fd) in made {
                let id = self.number_of(dir);
                let (parent_origin, in_shared_set) = (Some(dir), false);
                self.adopt(fd, Found { parent: id, parent_origin, in_shared_set, name: &name })?;
                changed.push((id, name));
            }
        } else {
            self.drop_whiteout(parent, name)?;
            self.unremove(inode)?;
        }
        for node in &way.linked {
            self.name_again(node)?;
        }
        Ok(changed)
    }

    /// Makes metadata-only copies of what is in the `way` below the staged directory `top`, which
    /// stands for `dir`, with the directories that lead there. Returns what was made: directory,
    /// name and inode.
    ///
    /// Under the numbers that the tree has for them something else would answer.
    fn furnish(
        &self,
        top: BorrowedFd<'_>,
        dir: &Inode,
        way: &InTheWay,
    ) -> Result<Vec<(TreeIno, Vec<u8>, OwnedFd)>, UnionError> {
        let private = self.private()?;
        let mut made: Vec<(TreeIno, Vec<u8>, OwnedFd)> = Vec::new();
        let mut places: HashMap<TreeIno, usize> = HashMap::new();
        let mut put = |inode: &Inode, places: &HashMap<TreeIno, usize>| {
            let name = self.tree.name(inode)?.to_vec();
            let staged = private.stage(&self.metadata_copy(inode)?)?;
            let above = places.get(&inode.parent).and_then(|at| made.get(*at));
            let above = match above {
                Some((_, _, fd)) => inode::open_path(fd, b".")?,
                None => inode::open_path(top, b".")?,
            };
            let flags = RenameFlags::NOREPLACE;
            let fd = keeping_times(&above, || Ok(staged.commit(&above, &name, flags)?))?;
            made.push((inode.parent, name, fd));
            Ok::<usize, UnionError>(made.len() - 1)
        };
        // Parents have lower numbers than what is in them.
        for one in way.dead.iter().chain(&way.taken) {
            if one.ino == dir.ino || places.contains_key(&one.ino) {
                continue;
            }
            let mut missing = Vec::new();
            let mut at = one.parent;
            while at != dir.ino && !places.contains_key(&at) {
                let above = self.tree.inode(at)?;
                at = above.parent;
                missing.push(above);
            }
            while let Some(above) = missing.pop() {
                let place = put(&above, &places)?;
                places.insert(above.ino, place);
            }
            let place = put(one, &places)?;
            if one.kind == FileKind::Directory {
                places.insert(one.ino, place);
            }
        }
        Ok(made)
    }

    pub(super) fn drop_whiteout(&self, parent: &Arc<Node>, name: &[u8]) -> Result<(), UnionError> {
        let parent_fd = self.descriptor(parent)?;
        let mut directory = self.directory(parent)?;
        if directory.get(name).is_some_and(|upper| upper.kind == UpperKind::Whiteout) {
            keeping_times(&parent_fd, || {
                Ok(rustix::fs::unlinkat(&parent_fd, name, AtFlags::empty())?)
            })?;
            directory.remove(name);
        }
        Ok(())
    }

    /// Forgets that an inode of the tree and those in it were removed.
    pub(super) fn unremove(&self, inode: &Inode) -> Result<(), UnionError> {
        let mut table = self.table.write();
        let mut back = Vec::new();
        for removed in &table.removed {
            if self.is_in(*removed, inode.ino)? {
                back.push(*removed);
            }
        }
        for ino in back {
            table.removed.remove(&ino);
        }
        Ok(())
    }

    /// Whether something else than the tree's untouched inode answers to its number.
    pub(super) fn is_taken(&self, ino: TreeIno) -> bool {
        let (id, table) = (NodeId::tree(ino), self.table.read());
        table.superseded.contains_key(&id)
            || table.nodes.get(&id).is_some_and(|node| !node.is_unlinked())
    }

    /// Finds out what has the numbers of what comes back with directory `dir`, and lets go of
    /// removed inodes for which nobody has a use any more.
    fn clear_the_way(&self, dir: &Inode, live: bool) -> Result<InTheWay, UnionError> {
        let mut way = InTheWay::default();
        let (mut gone, mut taken, mut dead) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        let mut table = self.table.write();
        for node in table.nodes.values() {
            let Some(ino) = node.id().as_tree() else { continue };
            if !self.is_in(ino, dir.ino)? {
                continue;
            }
            let inode = self.tree.inode(ino)?;
            if node.kind != FileKind::Directory && inode.nlink > 1 {
                continue;
            }
            let open = live && node.kind == FileKind::Regular && node.last_status.lock().is_none();
            if node.is_unlinked() && live && node.kind == FileKind::Directory {
                dead.insert(ino);
            } else if node.is_unlinked() && !open {
                gone.push(Arc::clone(node));
            } else if node.kind == FileKind::Directory {
                let path = self.tree.path(&inode)?;
                return Err(UnionError::StillThere(path.escape_ascii().to_string()));
            } else {
                taken.insert(ino);
            }
        }
        for id in table.superseded.keys() {
            if let Some(ino) = id.as_tree()
                && self.is_in(ino, dir.ino)?
                && self.tree.inode(ino)?.nlink < 2
            {
                taken.insert(ino);
            }
        }
        if live {
            for ino in table.removed.iter().chain(&table.outnumbered) {
                if self.tree.inode(*ino)?.kind == FileKind::Directory
                    && self.is_in(*ino, dir.ino)?
                {
                    dead.insert(*ino);
                }
            }
            dead.insert(dir.ino);
        }
        table.outnumbered.extend(&dead);
        for node in &gone {
            table.nodes.remove(&node.id());
        }
        drop(table);
        self.departed.lock().retain(|node| !gone.iter().any(|gone| Arc::ptr_eq(gone, node)));
        way.dead = dead.into_iter().map(|ino| self.tree.inode(ino)).collect::<Result<_, _>>()?;
        way.taken = taken.into_iter().map(|ino| self.tree.inode(ino)).collect::<Result<_, _>>()?;
        way.linked = self.linked_below(dir)?;
        Ok(way)
    }

    /// Whether a tree inode is directory `dir` or has a name below it.
    pub(super) fn is_in(&self, ino: TreeIno, dir: TreeIno) -> Result<bool, UnionError> {
        if ino == dir {
            return Ok(true);
        }
        for (parent, _) in self.tree.links(ino)? {
            let mut at = parent;
            loop {
                if at == dir {
                    return Ok(true);
                }
                if at == TreeIno::ROOT {
                    break;
                }
                at = self.tree.inode(at)?.parent;
            }
        }
        Ok(false)
    }
}
