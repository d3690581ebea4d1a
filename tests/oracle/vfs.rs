//! A world without a kernel: the part of Linux's VFS that stands above a file system.
//!
//! Walks paths, follows links, makes the checks that the kernel makes before it asks a file
//! system, and asks [`Inodes`] for the rest, in the shape of FUSE requests. The same code stands
//! on the in-memory model, where a plain directory of the host checks it, and on `mica::fs`.
//! Root is the only user here. The order of the checks is that of fs/namei.c and fs/open.c.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::operation::{
    Access, AllocateHow, NodeKind, OpenHow, Operation, Place, RenameHow, SetHow, Step, Target, Time,
};
use crate::world::{Answer, HANDLES, Identity, Kind, Look, Moment, Observation, Outcome, World};

/// An inode number.
pub(crate) type Ino = u64;

/// The root directory.
pub(crate) const ROOT: Ino = 1;

/// An open file of an [`Inodes`].
pub(crate) type FileHandle = u64;

/// What `getattr` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// What requests call the inode.
    pub(crate) ino: Ino,
    /// What stat(2) shows.
    pub(crate) st_ino: u64,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u64,
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) mtime: Moment,
}

/// What `setattr` changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// A chown, even one that names neither user nor group.
    pub(crate) chown: bool,
    pub(crate) size: Option<u64>,
    pub(crate) mtime: Option<Time>,
}

/// What is made under a name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum New<'a> {
    Directory,
    Symlink(&'a [u8]),
    Node(NodeKind),
}

/// A file system as the kernel asks it. Every successful `lookup`, `make`, `create` and `link`
/// counts one reference, which `forget` gives back.
pub(crate) trait Inodes {
    fn lookup(&mut self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno>;
    fn forget(&mut self, ino: Ino);
    fn attributes(&mut self, ino: Ino) -> Result<Attributes, Errno>;
    fn change(&mut self, ino: Ino, handle: Option<FileHandle>, change: Change)
    -> Result<(), Errno>;
    fn target(&mut self, ino: Ino) -> Result<Vec<u8>, Errno>;
    fn make(
        &mut self,
        parent: Ino,
        name: &[u8],
        new: New<'_>,
        mode: u32,
        umask: u32,
    ) -> Result<Attributes, Errno>;
    fn create(
        &mut self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        access: Access,
    ) -> Result<(Attributes, FileHandle), Errno>;
    fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<(), Errno>;
    fn unlink(&mut self, parent: Ino, name: &[u8]) -> Result<(), Errno>;
    fn remove_directory(&mut self, parent: Ino, name: &[u8]) -> Result<(), Errno>;
    fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), how: RenameHow)
    -> Result<(), Errno>;
    fn open(&mut self, ino: Ino, access: Access, truncate: bool) -> Result<FileHandle, Errno>;
    fn release(&mut self, ino: Ino, handle: FileHandle);
    fn read(
        &mut self,
        ino: Ino,
        handle: FileHandle,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Errno>;
    fn write(
        &mut self,
        ino: Ino,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, Errno>;
    fn allocate(
        &mut self,
        ino: Ino,
        handle: FileHandle,
        how: AllocateHow,
        offset: u64,
        len: u64,
    ) -> Result<(), Errno>;
    fn copy_range(
        &mut self,
        from: (Ino, FileHandle, u64),
        to: (Ino, FileHandle, u64),
        len: usize,
    ) -> Result<usize, Errno>;
    /// `SEEK_DATA` or, with `hole`, `SEEK_HOLE`.
    fn seek(&mut self, ino: Ino, handle: FileHandle, offset: u64, hole: bool)
    -> Result<u64, Errno>;
    fn sync(&mut self, ino: Ino, handle: FileHandle, data_only: bool) -> Result<(), Errno>;
    /// Names with their kinds and d_ino.
    fn names(&mut self, ino: Ino) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Errno>;
    fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8], how: SetHow) -> Result<(), Errno>;
    fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<(), Errno>;
    fn xattr(&mut self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno>;
    fn xattr_names(&mut self, ino: Ino) -> Result<Vec<Vec<u8>>, Errno>;
}

/// A world over an [`Inodes`].
pub(crate) struct Vfs<I: Inodes> {
    inodes: I,
    handles: [Option<OpenFile>; HANDLES],
    umask: u32,
    /// References of the step in hand.
    held: Vec<Ino>,
}

#[derive(Clone, Copy)]
struct OpenFile {
    ino: Ino,
    kind: Kind,
    access: Access,
    append: bool,
    /// `None` for what the file system itself is never asked about: directories and devices.
    handle: Option<FileHandle>,
}

/// Where a walk ended.
struct Found {
    parent: Ino,
    name: Vec<u8>,
    /// `None`: nothing has this name.
    attributes: Option<Attributes>,
}

impl<I: Inodes> Vfs<I> {
    /// A world of `inodes`.
    pub(crate) fn new(inodes: I) -> Self {
        Self { inodes, handles: Default::default(), umask: 0, held: Vec::new() }
    }

    fn lookup(&mut self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        match self.inodes.lookup(parent, name) {
            Ok(attributes) => {
                self.held.push(attributes.ino);
                Ok(Some(attributes))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Walks to a place; a final symbolic link is followed when told to.
    fn walk(&mut self, place: &Place, follow: bool) -> Result<Found, Errno> {
        let mut budget = 40;
        self.walk_from(ROOT, place.as_bytes(), (follow, true), &mut budget)
    }

    /// Walks `path`, at whose end a link is followed or not, and which ends the whole path or not.
    fn walk_from(
        &mut self,
        start: Ino,
        path: &[u8],
        (follow, trailing): (bool, bool),
        budget: &mut u32,
    ) -> Result<Found, Errno> {
        let components: Vec<&[u8]> =
            path.split(|&b| b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
        let mut found = Found {
            parent: start,
            name: Vec::new(),
            attributes: Some(self.inodes.attributes(start)?),
        };
        for (index, component) in components.iter().enumerate() {
            let last = index + 1 == components.len();
            let directory = found.attributes.ok_or(Errno::NOENT)?;
            if directory.kind != Kind::Directory {
                return Err(Errno::NOTDIR);
            }
            let attributes = self.lookup(directory.ino, component)?;
            found = Found { parent: directory.ino, name: component.to_vec(), attributes };
            if let Some(link) = attributes
                && link.kind == Kind::Symlink
                && (!last || follow)
            {
                *budget = budget.checked_sub(1).ok_or(Errno::LOOP)?;
                let trailing = last && trailing;
                if trailing && !may_follow(&directory, &link) {
                    return Err(Errno::ACCESS);
                }
                let target = self.inodes.target(link.ino)?;
                // A path of 4096 bytes with its NUL is the longest there is.
                if target.len() >= 4096 {
                    return Err(Errno::NAMETOOLONG);
                }
                found = self.walk_from(directory.ino, &target, (true, trailing), budget)?;
            }
        }
        Ok(found)
    }

    /// Walks to something that must exist.
    fn existing(&mut self, place: &Place, follow: bool) -> Result<Attributes, Errno> {
        self.walk(place, follow)?.attributes.ok_or(Errno::NOENT)
    }

    /// Walks to a name that must be free (filename_create).
    fn free(&mut self, place: &Place) -> Result<Found, Errno> {
        if place.is_root() {
            return Err(Errno::EXIST);
        }
        let found = self.walk(place, false)?;
        if found.attributes.is_some() { Err(Errno::EXIST) } else { Ok(found) }
    }

    fn open(&mut self, place: &Place, access: Access, how: OpenHow) -> Result<OpenFile, Errno> {
        if how.create.is_some() && how.directory {
            return Err(Errno::INVAL);
        }
        let exclusive = how.create.is_some() && how.exclusive;
        let found = self.walk(place, !how.no_follow && !exclusive)?;
        let Some(attributes) = found.attributes else {
            let mode = how.create.ok_or(Errno::NOENT)?;
            let (attributes, handle) =
                self.inodes.create(found.parent, &found.name, mode & 0o7777, self.umask, access)?;
            return Ok(OpenFile {
                ino: attributes.ino,
                kind: Kind::Regular,
                access,
                append: how.append,
                handle: Some(handle),
            });
        };
        let writes = access != Access::Read || how.truncate;
        if exclusive {
            return Err(Errno::EXIST);
        }
        if how.create.is_some() && attributes.kind == Kind::Directory {
            return Err(Errno::ISDIR);
        }
        if how.create.is_some() && !self.may_create_over(found.parent, &attributes)? {
            return Err(Errno::ACCESS);
        }
        if how.directory && attributes.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        let handle = match attributes.kind {
            Kind::Symlink => return Err(Errno::LOOP),
            Kind::Directory if writes => return Err(Errno::ISDIR),
            Kind::Socket | Kind::Character | Kind::Block => return Err(Errno::NXIO),
            // Every open here is a non-blocking one, which wants somebody who reads (fifo(7)).
            Kind::Fifo if access == Access::Write && !self.has_reader(attributes.ino) => {
                return Err(Errno::NXIO);
            }
            Kind::Directory | Kind::Fifo => None,
            Kind::Regular => Some(self.inodes.open(attributes.ino, access, how.truncate)?),
        };
        // The open file takes over a reference of the walk. The root needs none.
        if let Some(index) = self.held.iter().rposition(|&ino| ino == attributes.ino) {
            self.held.swap_remove(index);
        }
        Ok(OpenFile {
            ino: attributes.ino,
            kind: attributes.kind,
            access,
            append: how.append,
            handle,
        })
    }

    /// Whether a fifo is open for reading.
    fn has_reader(&self, ino: Ino) -> bool {
        let reads = |file: &OpenFile| file.ino == ino && file.access != Access::Write;
        self.handles.iter().flatten().any(reads)
    }

    /// may_create_in_sticky: `O_CREAT` on what somebody else put into a directory like /tmp.
    fn may_create_over(&mut self, parent: Ino, existing: &Attributes) -> Result<bool, Errno> {
        // 1: directories that everybody may write; 2: those of a group, too. What is neither a file
        // nor a fifo is held back in the former always.
        let level = match existing.kind {
            Kind::Symlink => 0,
            Kind::Regular => sysctl("protected_regular"),
            Kind::Fifo => sysctl("protected_fifos"),
            _ => 1,
        };
        let directory = self.inodes.attributes(parent)?;
        let own = existing.uid == directory.uid || existing.uid == 0;
        let sticky = directory.mode & 0o1000 != 0;
        let everybody = directory.mode & 0o002 != 0 && level >= 1;
        let group = directory.mode & 0o020 != 0 && level >= 2;
        Ok(own || !sticky || !(everybody || group))
    }

    fn close(&mut self, file: OpenFile) {
        if let Some(handle) = file.handle {
            self.inodes.release(file.ino, handle);
        }
        if file.ino != ROOT {
            self.inodes.forget(file.ino);
        }
    }

    fn close_slot(&mut self, slot: usize) {
        if let Some(file) = self.handles[slot].take() {
            self.close(file);
        }
    }

    fn handle(&self, slot: usize) -> Result<OpenFile, Errno> {
        self.handles[slot].ok_or(Errno::BADF)
    }

    /// Does something with an open file: the handle's, or one opened for it.
    fn with_file<T>(
        &mut self,
        target: &Target,
        access: Access,
        how: OpenHow,
        act: impl FnOnce(&mut Self, OpenFile) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match target {
            Target::Handle(slot) => {
                let file = self.handle(*slot)?;
                act(self, file)
            }
            Target::Name(place) => {
                let file = self.open(place, access, how)?;
                let result = act(self, file);
                self.close(file);
                result
            }
        }
    }

    fn write(&mut self, file: OpenFile, offset: u64, bytes: &[u8]) -> Outcome {
        if file.kind == Kind::Fifo {
            return Err(Errno::SPIPE);
        }
        if file.access == Access::Read {
            return Err(Errno::BADF);
        }
        if bytes.is_empty() {
            return Ok(Answer::Count(0));
        }
        let offset = if file.append { self.inodes.attributes(file.ino)?.size } else { offset };
        let n = self.inodes.write(file.ino, regular(file)?, offset, bytes)?;
        Ok(Answer::Count(n as u64))
    }

    fn read(&mut self, file: OpenFile, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        match (file.kind, file.access) {
            (Kind::Fifo, _) => Err(Errno::SPIPE),
            (_, Access::Write) => Err(Errno::BADF),
            (Kind::Directory, _) => Err(Errno::ISDIR),
            _ => self.inodes.read(file.ino, regular(file)?, offset, len),
        }
    }

    /// As the host's: how far data reaches is free, but holes hold zeros.
    fn holes(&mut self, file: OpenFile) -> Outcome {
        if file.kind != Kind::Regular {
            return Ok(Answer::Done);
        }
        let size = self.inodes.attributes(file.ino)?.size;
        let content = self.read(file, 0, usize::try_from(size).unwrap())?;
        let handle = regular(file)?;
        let mut at = 0;
        while at < size {
            let data = match self.inodes.seek(file.ino, handle, at, false) {
                Ok(data) => data,
                Err(Errno::NXIO) => size,
                Err(errno) => return Err(errno),
            };
            let hole_range = usize::try_from(at).unwrap()..usize::try_from(data).unwrap();
            if data < at || data > size || content[hole_range].iter().any(|&b| b != 0) {
                return Ok(Answer::Broken(format!("data in the hole {at}..{data} of {size}")));
            }
            if data == size {
                break;
            }
            let hole = self.inodes.seek(file.ino, handle, data, true)?;
            if hole <= data || hole > size {
                return Ok(Answer::Broken(format!("hole after {data} at {hole} of {size}")));
            }
            at = hole;
        }
        Ok(Answer::Done)
    }

    fn copy_range(
        &mut self,
        from: OpenFile,
        to: OpenFile,
        offsets: (u64, u64),
        len: usize,
    ) -> Outcome {
        let (from_offset, to_offset) = offsets;
        for file in [from, to] {
            if file.kind == Kind::Directory {
                return Err(Errno::ISDIR);
            }
        }
        if from.kind != Kind::Regular || to.kind != Kind::Regular {
            return Err(Errno::INVAL);
        }
        if from.access == Access::Write || to.access == Access::Read || to.append {
            return Err(Errno::BADF);
        }
        if len == 0 {
            return Ok(Answer::Count(0));
        }
        let size = self.inodes.attributes(from.ino)?.size;
        let len = len.min(usize::try_from(size.saturating_sub(from_offset)).unwrap());
        let end = |offset: u64| offset + len as u64;
        if from.ino == to.ino && end(to_offset) > from_offset && to_offset < end(from_offset) {
            return Err(Errno::INVAL);
        }
        let mut done = 0;
        while done < len {
            let n = self.inodes.copy_range(
                (from.ino, regular(from)?, from_offset + done as u64),
                (to.ino, regular(to)?, to_offset + done as u64),
                len - done,
            )?;
            if n == 0 {
                break;
            }
            done += n;
        }
        Ok(Answer::Count(done as u64))
    }

    fn rename(&mut self, from: &Place, to: &Place, how: RenameHow) -> Outcome {
        // Both parents are walked before either name is looked at.
        let (source, destination) = (self.parent(from)?, self.parent(to)?);
        if from.is_root() {
            return Err(Errno::BUSY);
        }
        if to.is_root() {
            return Err(if how == RenameHow::NoReplace { Errno::EXIST } else { Errno::BUSY });
        }
        let old = self.lookup(source, from.name())?.ok_or(Errno::NOENT)?;
        let new = self.lookup(destination, to.name())?;
        match (how, new) {
            (RenameHow::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameHow::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if old.kind == Kind::Directory && self.is_under(destination, old.ino)? {
            return Err(Errno::INVAL);
        }
        if let Some(new) = new {
            if new.kind == Kind::Directory && self.is_under(source, new.ino)? {
                let exchange = how == RenameHow::Exchange;
                return Err(if exchange { Errno::INVAL } else { Errno::NOTEMPTY });
            }
            if new.ino == old.ino {
                return Ok(Answer::Done);
            }
            let directories = (old.kind == Kind::Directory, new.kind == Kind::Directory);
            match directories {
                _ if how == RenameHow::Exchange => {}
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        self.inodes.rename((source, from.name()), (destination, to.name()), how)?;
        Ok(Answer::Done)
    }

    /// The directory that the last component of a place lies in.
    fn parent(&mut self, place: &Place) -> Result<Ino, Errno> {
        // In the middle of the path, where no link is held back (may_follow_link).
        let (path, mut budget) = (place.parent(), 40);
        let found = self.walk_from(ROOT, path.as_bytes(), (true, false), &mut budget)?;
        let parent = found.attributes.ok_or(Errno::NOENT)?;
        if parent.kind == Kind::Directory { Ok(parent.ino) } else { Err(Errno::NOTDIR) }
    }

    /// Whether a directory is `top` or lies below it. The kernel knows this from its dentries.
    fn is_under(&mut self, directory: Ino, top: Ino) -> Result<bool, Errno> {
        if directory == top {
            return Ok(true);
        }
        let mut pending = vec![top];
        while let Some(parent) = pending.pop() {
            for (name, (kind, _)) in self.inodes.names(parent)? {
                if kind != Kind::Directory {
                    continue;
                }
                let Some(child) = self.lookup(parent, &name)? else { continue };
                if child.ino == directory {
                    return Ok(true);
                }
                pending.push(child.ino);
            }
        }
        Ok(false)
    }

    fn inode_of(&mut self, target: &Target, follow: bool) -> Result<Attributes, Errno> {
        match target {
            Target::Name(place) => self.existing(place, follow),
            Target::Handle(slot) => {
                let file = self.handle(*slot)?;
                self.inodes.attributes(file.ino)
            }
        }
    }

    /// The checks of fs/xattr.c before a file system is asked.
    fn xattr_allowed(name: &[u8], kind: Kind, write: bool) -> Result<(), Errno> {
        let known: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];
        let on_data = matches!(kind, Kind::Regular | Kind::Directory);
        if name.starts_with(b"user.") && !on_data {
            return Err(if write { Errno::PERM } else { Errno::NODATA });
        }
        if known.contains(&name) {
            return Err(Errno::INVAL);
        }
        if !known.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(Errno::OPNOTSUPP);
        }
        let acl = name.starts_with(b"system.posix_acl_");
        if acl && kind == Kind::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(())
    }

    fn perform(&mut self, operation: &Operation) -> Outcome {
        use Operation as O;
        match operation {
            O::MakeDirectory { place, mode } => {
                let found = self.free(place)?;
                self.make(&found, New::Directory, mode & 0o1777)
            }
            O::Symlink { place, target } => {
                let found = self.free(place)?;
                self.make(&found, New::Symlink(&target.0), 0o777)
            }
            O::MakeNode { place, kind, mode } => {
                let found = self.free(place)?;
                self.make(&found, New::Node(*kind), mode & 0o7777)
            }
            O::Link { from, to, follow } => {
                let old = self.existing(from, *follow)?;
                let found = self.free(to)?;
                self.link(old, &found)
            }
            O::LinkHandle { slot, to } => {
                let file = self.handle(*slot)?;
                let found = self.free(to)?;
                let old = self.inodes.attributes(file.ino)?;
                self.link(old, &found)
            }
            O::Unlink { place } => {
                if place.is_root() {
                    return Err(Errno::ISDIR);
                }
                let found = self.walk(place, false)?;
                match found.attributes.ok_or(Errno::NOENT)?.kind {
                    Kind::Directory => Err(Errno::ISDIR),
                    _ => self.inodes.unlink(found.parent, &found.name).map(|()| Answer::Done),
                }
            }
            O::RemoveDirectory { place } => {
                if place.is_root() {
                    return Err(Errno::INVAL);
                }
                let found = self.walk(place, false)?;
                match found.attributes.ok_or(Errno::NOENT)?.kind {
                    Kind::Directory => {
                        self.inodes.remove_directory(found.parent, &found.name)?;
                        Ok(Answer::Done)
                    }
                    _ => Err(Errno::NOTDIR),
                }
            }
            O::Rename { from, to, how } => self.rename(from, to, *how),

            O::Write { target, offset, fill, how } => {
                let bytes = fill.bytes();
                self.with_file(target, Access::Write, *how, |vfs, file| {
                    vfs.write(file, *offset, &bytes)
                })
            }
            O::Read { target, offset, len } => {
                self.with_file(target, Access::Read, OpenHow::default(), |vfs, file| {
                    vfs.read(file, *offset, *len).map(Answer::Bytes)
                })
            }
            O::Truncate { target, len } => self.truncate(target, *len),
            O::Allocate { target, how, offset, len } => {
                self.with_file(target, Access::Write, OpenHow::default(), |vfs, file| {
                    if file.access == Access::Read {
                        return Err(Errno::BADF);
                    }
                    if file.kind == Kind::Fifo {
                        return Err(Errno::SPIPE);
                    }
                    vfs.inodes.allocate(file.ino, regular(file)?, *how, *offset, *len)?;
                    Ok(Answer::Done)
                })
            }
            O::CopyRange { from, to, from_offset, to_offset, len } => {
                let how = OpenHow::default();
                self.with_file(from, Access::Read, how, |vfs, from| {
                    vfs.with_file(to, Access::Write, how, |vfs, to| {
                        vfs.copy_range(from, to, (*from_offset, *to_offset), *len)
                    })
                })
            }
            O::Holes { target } => {
                self.with_file(target, Access::Read, OpenHow::default(), |vfs, file| {
                    if file.kind == Kind::Regular && file.access == Access::Write {
                        return Err(Errno::BADF);
                    }
                    vfs.holes(file)
                })
            }

            O::Chmod { target, mode } => {
                let found = self.inode_of(target, true)?;
                let change = Change { mode: Some(mode & 0o7777), ..Change::default() };
                self.inodes.change(found.ino, None, change)?;
                Ok(Answer::Done)
            }
            O::Chown { target, uid, gid, follow } => {
                let found = self.inode_of(target, *follow)?;
                let change = Change { uid: *uid, gid: *gid, chown: true, ..Change::default() };
                self.inodes.change(found.ino, None, change)?;
                Ok(Answer::Done)
            }
            O::SetTimes { target, access, modify, follow } => {
                if let (Time::Keep, Time::Keep, Target::Name(_)) = (access, modify, target) {
                    return Ok(Answer::Done);
                }
                let found = self.inode_of(target, *follow)?;
                let mtime = (*modify != Time::Keep).then_some(*modify);
                if mtime.is_some() {
                    self.inodes.change(found.ino, None, Change { mtime, ..Change::default() })?;
                }
                Ok(Answer::Done)
            }
            O::SetXattr { target, name, value, how, follow } => {
                let found = self.inode_of(target, *follow)?;
                Self::xattr_allowed(&name.0, found.kind, true)?;
                let default = name.0 == b"system.posix_acl_default";
                if default && found.kind != Kind::Directory {
                    return Err(Errno::ACCESS);
                }
                self.inodes.set_xattr(found.ino, &name.0, &value.0, *how)?;
                Ok(Answer::Done)
            }
            O::RemoveXattr { target, name, follow } => {
                let found = self.inode_of(target, *follow)?;
                Self::xattr_allowed(&name.0, found.kind, true)?;
                match self.inodes.remove_xattr(found.ino, &name.0) {
                    // An access control list that is not there is removed all the same.
                    Err(Errno::NODATA) if name.0.starts_with(b"system.posix_acl_") => {}
                    other => other?,
                }
                Ok(Answer::Done)
            }
            O::GetXattr { target, name, room } => {
                let found = self.inode_of(target, false)?;
                Self::xattr_allowed(&name.0, found.kind, false)?;
                let value = self.inodes.xattr(found.ino, &name.0)?;
                match *room {
                    0 => Ok(Answer::Count(value.len() as u64)),
                    room if room < value.len() => Err(Errno::RANGE),
                    _ => Ok(Answer::Bytes(value)),
                }
            }

            O::Open { slot, place, access, how } => {
                self.close_slot(*slot);
                let file = self.open(place, *access, *how)?;
                self.handles[*slot] = Some(file);
                Ok(Answer::Done)
            }
            O::Close { slot } => {
                self.close_slot(*slot);
                Ok(Answer::Done)
            }
            O::Inspect { slot } => {
                let file = self.handle(*slot)?;
                let attributes = self.inodes.attributes(file.ino)?;
                let mut seen = observation(&attributes);
                seen.xattrs = Some(self.xattrs(&attributes)?);
                if file.kind == Kind::Regular && file.access != Access::Write {
                    let len = usize::try_from(attributes.size).unwrap() + 1;
                    seen.content = Some(self.read(file, 0, len)?);
                }
                Ok(Answer::Seen(Box::new(seen)))
            }
            O::Sync { slot, data_only } => {
                let file = self.handle(*slot)?;
                match (file.kind, file.handle) {
                    (_, Some(handle)) => self.inodes.sync(file.ino, handle, *data_only)?,
                    (Kind::Fifo, None) => return Err(Errno::INVAL),
                    (_, None) => {}
                }
                Ok(Answer::Done)
            }
            O::List { place } => {
                let names = self.list(place)?;
                Ok(Answer::Names(names.into_iter().map(|(name, (kind, _))| (name, kind)).collect()))
            }
            O::MapWrite { .. }
            | O::Reopen { .. }
            | O::Map { .. }
            | O::MapPoke { .. }
            | O::MapPeek { .. }
            | O::Unmap { .. }
            | O::OpenListing { .. }
            | O::ListSome { .. }
            | O::ListRest { .. }
            | O::EmptyWhileListing { .. }
            | O::Forget
            | O::Remount => Err(Errno::NOSYS),
        }
    }

    fn make(&mut self, found: &Found, new: New<'_>, mode: u32) -> Outcome {
        let made = self.inodes.make(found.parent, &found.name, new, mode, self.umask)?;
        self.held.push(made.ino);
        Ok(Answer::Done)
    }

    fn link(&mut self, old: Attributes, found: &Found) -> Outcome {
        if old.kind == Kind::Directory {
            return Err(Errno::PERM);
        }
        if old.nlink == 0 {
            return Err(Errno::NOENT);
        }
        self.inodes.link(old.ino, found.parent, &found.name)?;
        self.held.push(old.ino);
        Ok(Answer::Done)
    }

    fn truncate(&mut self, target: &Target, len: u64) -> Outcome {
        let change = Change { size: Some(len), ..Change::default() };
        match target {
            Target::Name(place) => {
                let found = self.existing(place, true)?;
                match found.kind {
                    Kind::Directory => return Err(Errno::ISDIR),
                    Kind::Regular => self.inodes.change(found.ino, None, change)?,
                    _ => return Err(Errno::INVAL),
                }
            }
            Target::Handle(slot) => {
                let file = self.handle(*slot)?;
                if file.kind != Kind::Regular || file.access == Access::Read {
                    return Err(Errno::INVAL);
                }
                self.inodes.change(file.ino, file.handle, change)?;
            }
        }
        Ok(Answer::Done)
    }

    fn xattrs(&mut self, of: &Attributes) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
        let names = self.inodes.xattr_names(of.ino)?;
        names
            .into_iter()
            .map(|name| Ok((name.clone(), self.inodes.xattr(of.ino, &name)?)))
            .collect()
    }

    fn list(&mut self, place: &Place) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Errno> {
        let found = self.existing(place, true)?;
        if found.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        self.inodes.names(found.ino)
    }

    fn release_held(&mut self) {
        for ino in std::mem::take(&mut self.held) {
            self.inodes.forget(ino);
        }
    }

    fn look(&mut self, place: &Place, look: Look) -> Result<(Observation, Identity), Errno> {
        let attributes = self.existing(place, false)?;
        let mut seen = observation(&attributes);
        if seen.kind == Kind::Symlink {
            seen.target = Some(self.inodes.target(attributes.ino)?);
        }
        if look != Look::Stat {
            seen.xattrs = Some(self.xattrs(&attributes)?);
        }
        if look == Look::Content && seen.kind == Kind::Regular {
            let handle = self.inodes.open(attributes.ino, Access::Read, false)?;
            let len = usize::try_from(attributes.size).unwrap() + 1;
            let content = self.inodes.read(attributes.ino, handle, 0, len);
            self.inodes.release(attributes.ino, handle);
            seen.content = Some(content?);
        }
        Ok((seen, Identity { inode: attributes.st_ino, generation: 0 }))
    }
}

impl<I: Inodes> World for Vfs<I> {
    fn apply(&mut self, step: &Step) -> Outcome {
        self.umask = step.umask;
        let mut outcome = self.perform(&step.operation);
        self.release_held();
        // Paths are walked once more when a number turns out stale (retry_estale).
        if outcome == Err(Errno::STALE) {
            outcome = self.perform(&step.operation);
            self.release_held();
        }
        outcome
    }

    fn observe(&mut self, place: &Place, look: Look) -> Result<(Observation, Identity), Errno> {
        let seen = self.look(place, look);
        self.release_held();
        seen
    }

    fn names(&mut self, place: &Place) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Errno> {
        let names = self.list(place);
        self.release_held();
        names
    }

    fn identity(&mut self, slot: usize) -> Option<Identity> {
        let file = self.handles[slot]?;
        let attributes = self.inodes.attributes(file.ino).ok()?;
        Some(Identity { inode: attributes.st_ino, generation: 0 })
    }

    fn identity_at(&mut self, place: &Place) -> Option<Identity> {
        let found = self.existing(place, true);
        self.release_held();
        Some(Identity { inode: found.ok()?.st_ino, generation: 0 })
    }

    fn close_all(&mut self) {
        for slot in 0..HANDLES {
            self.close_slot(slot);
        }
    }
}

/// may_follow_link: the last link of a path, which somebody else put into a directory like /tmp.
fn may_follow(directory: &Attributes, link: &Attributes) -> bool {
    let shared = directory.mode & 0o1002 == 0o1002;
    !shared || sysctl("protected_symlinks") == 0 || [0, directory.uid].contains(&link.uid)
}

/// How far a protection of `/proc/sys/fs` goes; not at all if the kernel does not have it.
fn sysctl(name: &str) -> u32 {
    let text = std::fs::read_to_string(format!("/proc/sys/fs/{name}"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn regular(file: OpenFile) -> Result<FileHandle, Errno> {
    file.handle.ok_or(Errno::INVAL)
}

fn observation(attributes: &Attributes) -> Observation {
    let kind = attributes.kind;
    Observation {
        kind,
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        nlink: attributes.nlink,
        size: (kind != Kind::Directory).then_some(attributes.size),
        device: matches!(kind, Kind::Character | Kind::Block).then_some(attributes.device),
        mtime: attributes.mtime,
        target: None,
        xattrs: None,
        content: None,
    }
}
