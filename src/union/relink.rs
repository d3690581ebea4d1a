//! Reverting names of files that have several in the tree.
//!
//! One fresh metadata-only copy takes the place in `index/` and the names that are reverted,
//! one after the other; names that are not go on showing the changed file. When all are
//! reverted, they are links of one file again. A cut leaves some names with the one and some
//! with the other, each whole; the next mount and a second run know them apart by `index/`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::copy_up::keeping_times;
use super::links::index_name;
use super::upper::{Bytes, Entry, compare};
use super::{Content, Node, NodeId, Place, Reverted, Union, UnionError};
use crate::layer::{FileKind, Inode, TreeIno};
use crate::private::listing::{UpperKind, read_upper};
use crate::private::marks::{self, Marks};
use crate::sys::inode;

impl Union {
    /// Gives `name` back to `inode`, which has several names in the tree.
    pub(super) fn relink(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        inode: &Inode,
        live: bool,
        told: &mut dyn FnMut(Reverted),
    ) -> Result<(), UnionError> {
        let copy = self.template_copy(inode)?;
        let (copy_fd, parent_fd) = (self.descriptor(&copy)?, self.descriptor(parent)?);
        self.room_for_nameless()?;
        let mut directory = self.directory(parent)?;
        let upper = directory.get(name);
        let old = match upper {
            Some(upper) if upper.kind == UpperKind::Other => {
                let old = self.upper_node(parent, upper, self.found(parent, name))?;
                Some((self.descriptor(&old)?, old))
            }
            Some(_) | None => None,
        };
        let mut reverted = Reverted::default();
        if upper.map(|upper| upper.host_ino) != Some(copy.host_ino()) {
            keeping_times(&parent_fd, || {
                Ok(self.private()?.link_over(&copy_fd, &parent_fd, name)?)
            })?;
            self.note(parent, &mut directory, name, UpperKind::Other, copy.host_ino())?;
            drop(directory);
            if let Some((fd, old)) = old {
                old.uncalled(parent.id(), name);
                reverted.removed.push(self.lost_name(&old, fd)?);
            }
        } else {
            drop(directory);
        }
        self.finish_names(&copy)?;
        reverted.names.push((parent.id(), name.to_vec()));
        reverted.attributes.push(copy.id());
        told(reverted);
        if !live {
            self.dissolve(&copy, inode)?;
        }
        Ok(())
    }

    /// The copy in `index/` that is as the template has `inode`; a fresh one in place of one that
    /// was changed, which stays under the names that it has.
    fn template_copy(&self, inode: &Inode) -> Result<Arc<Node>, UnionError> {
        if let Some(old) = self.indexed_node(inode)? {
            self.finish_names(&old)?;
        }
        let _linking = self.linking.lock();
        let old = self.indexed_node(inode)?;
        if let Some(node) = &old
            && self.is_as_in_template(node, inode)?
        {
            return Ok(Arc::clone(node));
        }
        let private = self.private()?;
        let staged = private.stage(&self.metadata_copy(inode)?)?;
        let fd = staged.commit(private.index(), &index_name(inode.ino), RenameFlags::empty())?;
        if let Some(old) = old {
            old.indexed.store(false, Ordering::Release);
        }
        let id = NodeId::tree(inode.ino);
        {
            let mut table = self.table.write();
            if table.nodes.contains_key(&id) || table.superseded.contains_key(&id) {
                table.outnumbered.insert(inode.ino);
            }
        }
        self.counters.metadata_copy_ups.hit();
        self.enter_index(fd, inode)
    }

    /// The private inode that `index/` has for a file with several names.
    pub(super) fn indexed_node(&self, inode: &Inode) -> Result<Option<Arc<Node>>, UnionError> {
        let id = NodeId::tree(inode.ino);
        {
            let table = self.table.read();
            if !table.outnumbered.contains(&inode.ino) {
                let superseded = table.superseded.get(&id).map(|old| &old.node);
                let node = superseded.or(table.nodes.get(&id));
                let indexed =
                    |node: &&Arc<Node>| node.indexed.load(Ordering::Acquire) && !node.is_unlinked();
                return Ok(node.filter(indexed).cloned());
            }
        }
        match inode::open_path(self.private()?.index(), &index_name(inode.ino)) {
            Ok(fd) => self.enter_index(fd, inode).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn is_as_in_template(&self, node: &Node, inode: &Inode) -> Result<bool, UnionError> {
        let bytes = match node.content() {
            Content::Object(object) => {
                Bytes::Object { id: object.id, size: object.size, data_blocks: object.blocks }
            }
            Content::Private => Bytes::Private,
        };
        let fd = rustix::io::fcntl_dupfd_cloexec(&*self.descriptor(node)?, 0)?;
        let (status, marks) = (inode::status(&fd)?, Marks::read(&fd)?);
        let entry = Entry { fd, status, kind: node.kind, marks, origin: node.origin() };
        Ok(compare::same_content(&self.tree, inode, &entry, &bytes)?
            && compare::differences(&self.tree, inode, &entry)?.is_empty())
    }

    /// The copies of the files that have names below `dir` and others elsewhere, each as in the
    /// template, where there is one or has to be: `dir` is about to come back.
    pub(super) fn linked_below(&self, dir: &Inode) -> Result<Vec<Arc<Node>>, UnionError> {
        let mut copies = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut left = vec![*dir];
        while let Some(above) = left.pop() {
            for index in 0..self.tree.entry_count(&above) {
                let Some(ino) = self.tree.entry(&above, index)?.and_then(|entry| entry.ino) else {
                    continue;
                };
                let inode = self.tree.inode(ino)?;
                if inode.kind == FileKind::Directory {
                    left.push(inode);
                } else if inode.nlink > 1 && seen.insert(ino) && self.needs_copy(&inode, dir)? {
                    let copy = self.template_copy(&inode)?;
                    copy.names_pending.store(true, Ordering::Release);
                    copies.push(copy);
                }
            }
        }
        Ok(copies)
    }

    /// Whether a file with several names, some of them in `dir`, is not the tree's alone.
    fn needs_copy(&self, inode: &Inode, dir: &Inode) -> Result<bool, UnionError> {
        let id = NodeId::tree(inode.ino);
        let known = {
            let table = self.table.read();
            table.nodes.contains_key(&id)
                || table.superseded.contains_key(&id)
                || table.outnumbered.contains(&inode.ino)
        };
        if known {
            return Ok(true);
        }
        let names: Vec<(TreeIno, Vec<u8>)> =
            self.tree.links(inode.ino)?.map(|(dir, name)| (dir, name.to_vec())).collect();
        for (parent, name) in names {
            if self.is_in(parent, dir.ino)? {
                continue;
            }
            let shown = match self.present(parent)? {
                Some(parent) => match self.child(parent, &name) {
                    Ok(Place::Tree(found)) => found.ino == inode.ino,
                    Ok(Place::Private(_)) | Err(UnionError::NoEntry) => false,
                    Err(error) => return Err(error),
                },
                None => false,
            };
            if !shown {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes the names of a copy that came back with their directory.
    pub(super) fn name_again(&self, copy: &Arc<Node>) -> Result<(), UnionError> {
        marks::clear(&*self.descriptor(copy)?, marks::NAMES_COMPLETE)?;
        copy.names_pending.store(true, Ordering::Release);
        self.finish_names(copy)
    }

    /// Takes a copy away again if every name that the tree has for the file shows it and nobody
    /// can tell it from the tree's own.
    fn dissolve(&self, copy: &Arc<Node>, inode: &Inode) -> Result<(), UnionError> {
        let mut places = Vec::new();
        let links: Vec<(TreeIno, Vec<u8>)> =
            self.tree.links(inode.ino)?.map(|(dir, name)| (dir, name.to_vec())).collect();
        for (dir, name) in links {
            let Some(id) = self.present(dir)? else { return Ok(()) };
            let Place::Private(dir) = self.place(id)? else { return Ok(()) };
            let shows = self.directory(&dir)?.get(&name).map(|upper| upper.host_ino);
            if dir.origin().is_none() || shows != Some(copy.host_ino()) {
                return Ok(());
            }
            places.push((dir, name));
        }
        let links = usize::try_from(inode::status(&*self.descriptor(copy)?)?.nlink);
        if links != Ok(places.len() + 1) || self.table.read().outnumbered.contains(&inode.ino) {
            return Ok(());
        }
        for (dir, name) in places {
            let fd = self.descriptor(&dir)?;
            let mut directory = self.directory(&dir)?;
            keeping_times(&fd, || {
                Ok(rustix::fs::unlinkat(&fd, name.as_slice(), AtFlags::empty())?)
            })?;
            directory.remove(&name);
        }
        self.drop_index(copy)?;
        self.table.write().drop_node(copy);
        Ok(())
    }

    /// Enters every private file that was copied up from the tree, so that it is known whose
    /// numbers are taken.
    pub(super) fn find_copies(&self) -> Result<(), UnionError> {
        let upper = self.private()?.upper();
        let mut left = vec![super::links::Unsearched::of(inode::open_path(upper, b".")?)];
        while let Some(dir) = left.pop() {
            let dir = dir.open(upper)?;
            for entry in read_upper(&dir)? {
                match entry.kind {
                    UpperKind::Whiteout => {}
                    UpperKind::Directory => {
                        let fd = inode::open_path(&dir, &entry.name)?;
                        left.push(super::links::Unsearched::of(fd));
                    }
                    UpperKind::Other => {
                        let fd = inode::open_path(&dir, &entry.name)?;
                        if !Marks::read(&fd).is_ok_and(|marks| marks.origin.is_some()) {
                            continue;
                        }
                        self.adopt_if_sound(fd, &entry.name)?;
                    }
                }
            }
        }
        Ok(())
    }
}
