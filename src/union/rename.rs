//! rename(2) with all its flags.
//!
//! One renameat2 on the host does the whole change: `RENAME_WHITEOUT` leaves the whiteout
//! that the old name needs in the same step. A directory of the tree moves without its
//! content: it is copied up empty, carries a redirect, and goes on merging with its origin.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::MappedMutexGuard;
use rustix::fs::{AtFlags, RenameFlags};

use super::copy_up::upper_kind;
use super::create::{Birth, NewEntry, newborn};
use super::node::Directory;
use super::place::Child;
use super::{Node, NodeId, Place, Removed, Union, UnionError};
use crate::layer::FileKind;
use crate::private::listing::UpperKind;
use crate::sys::inode;

/// A locked directory: its node, descriptor and names.
struct Locked<'a> {
    node: &'a Arc<Node>,
    fd: Arc<OwnedFd>,
}

impl Union {
    /// Moves `name` in `parent` to `new_name` in `new_parent`; returns what it replaced.
    ///
    /// `owner` is the user and group of the device 0:0 that `RENAME_WHITEOUT` leaves.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn rename(
        &self,
        (parent, name): (NodeId, &[u8]),
        (new_parent, new_name): (NodeId, &[u8]),
        flags: RenameFlags,
        owner: (u32, u32),
    ) -> Result<Option<Removed>, UnionError> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let source = self.own_child(parent, name)?;
        let target = match self.child(new_parent, new_name) {
            Ok(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(UnionError::Exists),
            Ok(Place::Private(node)) => {
                if Arc::ptr_eq(&node, &source) {
                    return Ok(None);
                }
                self.finish_names(&node)?;
                Some(node)
            }
            Ok(Place::Tree(_)) if exchange => Some(self.own_child(new_parent, new_name)?),
            Ok(Place::Tree(_)) => {
                self.own_if_linked(new_parent, new_name)?;
                None
            }
            Err(UnionError::NoEntry) if !exchange => None,
            Err(error) => return Err(error),
        };
        let from = self.own_directory(parent)?;
        let to = self.own_directory(new_parent)?;
        if to.is_unlinked() {
            return Err(UnionError::NoEntry);
        }
        self.redirect(&source)?;
        if let (true, Some(target)) = (exchange, &target) {
            self.redirect(target)?;
        }
        let _pairs = self.pairs.lock();
        let from = Locked { node: &from, fd: self.descriptor(&from)? };
        let to = Locked { node: &to, fd: self.descriptor(&to)? };
        let (mut first, mut second) = self.lock_both(&from, &to)?;
        if exchange {
            self.exchange((&from, name), (&to, new_name), &mut first, second.as_deref_mut())?;
            source.uncalled(parent, name);
            source.called(new_parent, new_name);
            if let Some(target) = target {
                target.uncalled(new_parent, new_name);
                target.called(parent, name);
            }
            return Ok(None);
        }
        source.uncalled(parent, name);
        source.called(new_parent, new_name);
        self.replace((&from, name), (&to, new_name), &source, (flags, owner), &mut first, second)
    }

    /// The private inode behind a name; a shared one is copied up without its data.
    fn own_child(&self, parent: NodeId, name: &[u8]) -> Result<Arc<Node>, UnionError> {
        self.own_place(self.child(parent, name)?)
    }

    /// Locks the names of both directories, in the order of their numbers; one if they are one.
    #[allow(clippy::type_complexity)]
    fn lock_both<'a>(
        &self,
        from: &Locked<'a>,
        to: &Locked<'a>,
    ) -> Result<(Names<'a>, Option<Names<'a>>), UnionError> {
        if Arc::ptr_eq(from.node, to.node) {
            return Ok((self.directory(from.node)?, None));
        }
        if from.node.host_ino() < to.node.host_ino() {
            let first = self.directory(from.node)?;
            return Ok((first, Some(self.directory(to.node)?)));
        }
        let second = self.directory(to.node)?;
        Ok((self.directory(from.node)?, Some(second)))
    }

    fn exchange(
        &self,
        (from, name): (&Locked<'_>, &[u8]),
        (to, new_name): (&Locked<'_>, &[u8]),
        first: &mut Directory,
        second: Option<&mut Directory>,
    ) -> Result<(), UnionError> {
        let one = upper(self.find(from.node, first, name)?)?;
        let other = match &second {
            Some(second) => upper(self.find(to.node, second, new_name)?)?,
            None => upper(self.find(to.node, first, new_name)?)?,
        };
        rustix::fs::renameat_with(&from.fd, name, &to.fd, new_name, RenameFlags::EXCHANGE)?;
        self.note(from.node, first, name, other.kind, other.host_ino)?;
        self.note(to.node, second.unwrap_or(first), new_name, one.kind, one.host_ino)
    }

    fn replace(
        &self,
        (from, name): (&Locked<'_>, &[u8]),
        (to, new_name): (&Locked<'_>, &[u8]),
        source: &Arc<Node>,
        (flags, owner): (RenameFlags, (u32, u32)),
        first: &mut Directory,
        mut second: Option<Names<'_>>,
    ) -> Result<Option<Removed>, UnionError> {
        let moved = upper(self.find(from.node, first, name)?)?;
        let target_names = second.as_deref_mut().unwrap_or(first);
        let directory = source.kind == FileKind::Directory;
        let in_the_way = target_names.get(new_name);
        let victim = match self.find(to.node, target_names, new_name)? {
            Child::Absent => None,
            Child::Tree(ino) => Some(Place::Tree(self.tree.inode(ino)?)),
            Child::Upper(upper) => {
                let found = self.found(to.node, new_name);
                Some(Place::Private(self.upper_node(to.node, upper, found)?))
            }
        };
        if matches!(victim, Some(Place::Private(_))) {
            self.room_for_nameless()?;
        }
        self.check_victim(victim.as_ref(), directory)?;
        let leaves_whiteout = self.below(from.node, name)?.is_some();
        let stands_in = flags.contains(RenameFlags::WHITEOUT);
        let victim_fd = match &victim {
            Some(Place::Private(node)) => Some((Arc::clone(node), self.descriptor(node)?)),
            Some(Place::Tree(_)) | None => None,
        };
        let over_whiteout = in_the_way.is_some_and(|way| way.kind == UpperKind::Whiteout);
        if directory && over_whiteout {
            rustix::fs::renameat_with(&from.fd, name, &to.fd, new_name, RenameFlags::EXCHANGE)?;
            if !leaves_whiteout && !stands_in {
                rustix::fs::unlinkat(&from.fd, name, AtFlags::empty())?;
            }
        } else {
            let host = if leaves_whiteout || stands_in {
                RenameFlags::WHITEOUT
            } else {
                RenameFlags::empty()
            };
            rustix::fs::renameat_with(&from.fd, name, &to.fd, new_name, host)?;
        }
        self.note(to.node, target_names, new_name, upper_kind(source.kind), moved.host_ino)?;
        source.parent.store(to.node.id().get(), std::sync::atomic::Ordering::Relaxed);
        if leaves_whiteout || stands_in {
            self.note(from.node, first, name, UpperKind::Whiteout, 0)?;
        } else {
            first.remove(name);
        }
        if stands_in {
            self.stand_in(from, name, first, owner)?;
        }
        drop(second);
        if let Some((node, _)) = &victim_fd {
            node.uncalled(to.node.id(), new_name);
        }
        self.replaced(victim, victim_fd)
    }

    fn check_victim(&self, victim: Option<&Place>, directory: bool) -> Result<(), UnionError> {
        let kind = match victim {
            None => return Ok(()),
            Some(Place::Tree(inode)) => inode.kind,
            Some(Place::Private(node)) => node.kind,
        };
        match (directory, kind == FileKind::Directory) {
            (false, false) => return Ok(()),
            (false, true) => return Err(UnionError::IsDirectory),
            (true, false) => return Err(UnionError::NotDirectory),
            (true, true) => {}
        }
        match victim {
            Some(Place::Tree(inode)) if self.tree.entry_count(inode) > 0 => {
                Err(UnionError::NotEmpty)
            }
            Some(Place::Private(node)) => self.empty_out(node),
            Some(Place::Tree(_)) | None => Ok(()),
        }
    }

    /// Notes that the replaced inode lost a name.
    fn replaced(
        &self,
        victim: Option<Place>,
        victim_fd: Option<(Arc<Node>, Arc<OwnedFd>)>,
    ) -> Result<Option<Removed>, UnionError> {
        if let Some((node, fd)) = victim_fd {
            if node.kind != FileKind::Directory {
                return self.lost_name(&node, fd).map(Some);
            }
            self.unlinked(&node, fd);
            if node.id().as_tree().is_some() {
                self.depart(&node);
            }
            return Ok(Some(Removed { id: node.id(), last: true }));
        }
        let Some(Place::Tree(inode)) = victim else { return Ok(None) };
        self.table.write().removed.insert(inode.ino);
        Ok(Some(Removed { id: NodeId::tree(inode.ino), last: true }))
    }

    /// Puts a character device 0:0 of the container's where the old name was.
    ///
    /// Not in the same step as the rename: a power cut between shows the name as gone.
    fn stand_in(
        &self,
        from: &Locked<'_>,
        name: &[u8],
        names: &mut Directory,
        (uid, gid): (u32, u32),
    ) -> Result<(), UnionError> {
        let birth = Birth { mode: 0, umask: 0, uid, gid };
        let new = newborn(&from.fd, NewEntry::CharDevice(0), birth)?;
        let staged = self.private()?.stage(&new)?;
        let status = inode::status(staged.fd())?;
        staged.commit(&from.fd, name, RenameFlags::empty())?;
        self.note(from.node, names, name, UpperKind::Other, status.ino)
    }
}

type Names<'a> = MappedMutexGuard<'a, Directory>;

fn upper(child: Child) -> Result<super::node::UpperName, UnionError> {
    match child {
        Child::Upper(upper) => Ok(upper),
        // The name changed hands since it was copied up.
        Child::Absent | Child::Tree(_) => Err(UnionError::NoEntry),
    }
}
