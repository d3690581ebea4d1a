//! The model: a POSIX file system in memory, as plain as it can be.
//!
//! What a server of the kernel has to do and no more: metadata, inheritance of groups and access
//! control lists, removal of privileges. `model_is_a_plain_directory` in tests/model.rs checks it
//! against ext4.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::operation::{
    Access, AllocateHow, NodeKind, Place, RenameHow, SetHow, Time, acl_tag, encode_acl,
};
use crate::vfs::{Attributes, Change, FileHandle, Ino, Inodes, New, ROOT};
use crate::world::{Identity, Kind, Look, Moment, World};

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;

/// A file system in memory.
#[derive(Debug)]
pub(crate) struct Memory {
    inodes: BTreeMap<Ino, Inode>,
    next: Ino,
}

#[derive(Clone, Debug)]
struct Inode {
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u64,
    device: (u32, u32),
    mtime: Moment,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    target: Vec<u8>,
    content: Vec<u8>,
    names: BTreeMap<Vec<u8>, Ino>,
    references: u64,
    open: u64,
}

impl Inode {
    fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            device: (0, 0),
            mtime: Moment::Now,
            xattrs: BTreeMap::new(),
            target: Vec::new(),
            content: Vec::new(),
            names: BTreeMap::new(),
            references: 0,
            open: 0,
        }
    }

    /// What every change of data does: stamps the file and takes its capabilities.
    fn touch_data(&mut self) {
        self.mtime = Moment::Now;
        self.xattrs.remove(CAPABILITY);
    }
}

impl Memory {
    /// The same tree as another world shows.
    pub(crate) fn copy_of(world: &mut dyn World) -> Self {
        let mut memory = Self { inodes: BTreeMap::new(), next: ROOT };
        let mut known: BTreeMap<Identity, Ino> = BTreeMap::new();
        memory.copy(world, &Place::root(), &mut known);
        memory
    }

    fn copy(
        &mut self,
        world: &mut dyn World,
        place: &Place,
        known: &mut BTreeMap<Identity, Ino>,
    ) -> Ino {
        let (seen, identity) = world.observe(place, Look::Content).expect("the place is there");
        if let Some(ino) = known.get(&identity) {
            return *ino;
        }
        let ino = self.next;
        self.next += 1;
        known.insert(identity, ino);
        let mut inode = Inode::new(seen.kind, seen.mode);
        inode.uid = seen.uid;
        inode.gid = seen.gid;
        inode.nlink = seen.nlink;
        inode.device = seen.device.unwrap_or_default();
        inode.mtime = seen.mtime;
        inode.xattrs = seen.xattrs.unwrap_or_default();
        inode.target = seen.target.unwrap_or_default();
        inode.content = seen.content.unwrap_or_default();
        if seen.kind == Kind::Directory {
            let names = world.names(place).expect("a directory can be listed");
            for name in names.into_keys() {
                let child = self.copy(world, &place.join(&name), known);
                inode.names.insert(name, child);
            }
        }
        self.inodes.insert(ino, inode);
        ino
    }

    fn get(&self, ino: Ino) -> Result<&Inode, Errno> {
        self.inodes.get(&ino).ok_or(Errno::STALE)
    }

    fn get_mut(&mut self, ino: Ino) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).ok_or(Errno::STALE)
    }

    fn child(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>, Errno> {
        if name.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        Ok(self.get(parent)?.names.get(name).copied())
    }

    fn describe(&self, ino: Ino) -> Result<Attributes, Errno> {
        let inode = self.get(ino)?;
        let size = match inode.kind {
            Kind::Regular => inode.content.len(),
            Kind::Symlink => inode.target.len(),
            _ => 0,
        };
        Ok(Attributes {
            ino,
            st_ino: ino,
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            nlink: inode.nlink,
            size: size as u64,
            device: inode.device,
            mtime: inode.mtime,
        })
    }

    /// Makes an inode as a child of `parent` would be, without naming it.
    fn born(
        &mut self,
        parent: Ino,
        kind: Kind,
        mode: u32,
        umask: u32,
    ) -> Result<(Ino, Inode), Errno> {
        let directory = self.get(parent)?;
        let mut inode = Inode::new(kind, mode);
        if directory.mode & SETGID != 0 {
            inode.gid = directory.gid;
            if kind == Kind::Directory {
                inode.mode |= SETGID;
            }
        }
        if kind != Kind::Symlink {
            match directory.xattrs.get(DEFAULT_ACL) {
                None => inode.mode &= !umask,
                Some(default) => {
                    let mut entries = decode_acl(default);
                    let extended = inherit(&mut entries, &mut inode.mode);
                    if extended {
                        inode.xattrs.insert(ACCESS_ACL.to_vec(), encode_acl(&entries));
                    }
                    if kind == Kind::Directory {
                        inode.xattrs.insert(DEFAULT_ACL.to_vec(), default.clone());
                    }
                }
            }
        }
        let ino = self.next;
        self.next += 1;
        Ok((ino, inode))
    }

    fn put(&mut self, parent: Ino, name: &[u8], ino: Ino, inode: Inode) -> Result<(), Errno> {
        let directory = self.get_mut(parent)?;
        if inode.kind == Kind::Directory {
            directory.nlink += 1;
        }
        directory.names.insert(name.to_vec(), ino);
        directory.mtime = Moment::Now;
        self.inodes.insert(ino, inode);
        Ok(())
    }

    /// Takes a name away from a directory and a link from its file.
    fn take(&mut self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        let directory = self.get_mut(parent)?;
        let ino = directory.names.remove(name).ok_or(Errno::NOENT)?;
        directory.mtime = Moment::Now;
        let child = self.get_mut(ino)?;
        if child.kind == Kind::Directory {
            child.nlink = 0;
            self.get_mut(parent)?.nlink -= 1;
        } else {
            child.nlink -= 1;
        }
        self.drop_if_gone(ino);
        Ok(())
    }

    fn drop_if_gone(&mut self, ino: Ino) {
        let gone = |inode: &Inode| inode.nlink == 0 && inode.references == 0 && inode.open == 0;
        if self.inodes.get(&ino).is_some_and(gone) {
            self.inodes.remove(&ino);
        }
    }
}

impl Inodes for Memory {
    fn lookup(&mut self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        let ino = self.child(parent, name)?.ok_or(Errno::NOENT)?;
        self.get_mut(ino)?.references += 1;
        self.describe(ino)
    }

    fn forget(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.references -= 1;
        }
        self.drop_if_gone(ino);
    }

    fn attributes(&mut self, ino: Ino) -> Result<Attributes, Errno> {
        self.describe(ino)
    }

    fn change(
        &mut self,
        ino: Ino,
        _handle: Option<FileHandle>,
        change: Change,
    ) -> Result<(), Errno> {
        let inode = self.get_mut(ino)?;
        if let Some(mode) = change.mode {
            inode.mode = mode;
            if let Some(acl) = inode.xattrs.get_mut(ACCESS_ACL) {
                let mut entries = decode_acl(acl);
                chmod_acl(&mut entries, mode);
                *acl = encode_acl(&entries);
            }
        }
        if change.chown {
            inode.uid = change.uid.unwrap_or(inode.uid);
            inode.gid = change.gid.unwrap_or(inode.gid);
            if inode.kind != Kind::Directory {
                let drop_group = inode.mode & (SETGID | 0o010) == SETGID | 0o010;
                inode.mode &= !(SETUID | if drop_group { SETGID } else { 0 });
                inode.xattrs.remove(CAPABILITY);
            }
        }
        if let Some(size) = change.size {
            inode.content.resize(usize::try_from(size).unwrap(), 0);
            inode.touch_data();
        }
        if let Some(mtime) = change.mtime {
            inode.mtime = match mtime {
                Time::At(secs, nanos) => Moment::Set(secs, nanos),
                Time::Now => Moment::Now,
                Time::Keep => inode.mtime,
            };
        }
        Ok(())
    }

    fn target(&mut self, ino: Ino) -> Result<Vec<u8>, Errno> {
        Ok(self.get(ino)?.target.clone())
    }

    fn make(
        &mut self,
        parent: Ino,
        name: &[u8],
        new: New<'_>,
        mode: u32,
        umask: u32,
    ) -> Result<Attributes, Errno> {
        let (kind, device) = match new {
            New::Directory => (Kind::Directory, (0, 0)),
            New::Symlink(_) => (Kind::Symlink, (0, 0)),
            New::Node(NodeKind::Regular) => (Kind::Regular, (0, 0)),
            New::Node(NodeKind::Fifo) => (Kind::Fifo, (0, 0)),
            New::Node(NodeKind::Socket) => (Kind::Socket, (0, 0)),
            New::Node(NodeKind::Character(major, minor)) => (Kind::Character, (major, minor)),
            New::Node(NodeKind::Block(major, minor)) => (Kind::Block, (major, minor)),
        };
        let (ino, mut inode) = self.born(parent, kind, mode, umask)?;
        inode.device = device;
        inode.references = 1;
        if let New::Symlink(target) = new {
            inode.target = target.to_vec();
        }
        self.put(parent, name, ino, inode)?;
        self.describe(ino)
    }

    fn create(
        &mut self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        _access: Access,
    ) -> Result<(Attributes, FileHandle), Errno> {
        let (ino, mut inode) = self.born(parent, Kind::Regular, mode, umask)?;
        inode.references = 1;
        inode.open = 1;
        self.put(parent, name, ino, inode)?;
        Ok((self.describe(ino)?, ino))
    }

    fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        let inode = self.get_mut(ino)?;
        inode.nlink += 1;
        inode.references += 1;
        let directory = self.get_mut(parent)?;
        directory.names.insert(name.to_vec(), ino);
        directory.mtime = Moment::Now;
        Ok(())
    }

    fn unlink(&mut self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.take(parent, name)
    }

    fn remove_directory(&mut self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        let ino = self.child(parent, name)?.ok_or(Errno::NOENT)?;
        if !self.get(ino)?.names.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.take(parent, name)
    }

    fn rename(
        &mut self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        how: RenameHow,
    ) -> Result<(), Errno> {
        let (source, source_name) = from;
        let (destination, destination_name) = to;
        let ino = self.child(source, source_name)?.ok_or(Errno::NOENT)?;
        let replaced = self.child(destination, destination_name)?;
        let directory = self.get(ino)?.kind == Kind::Directory;
        if how == RenameHow::Exchange {
            let other = replaced.ok_or(Errno::NOENT)?;
            let other_directory = self.get(other)?.kind == Kind::Directory;
            self.get_mut(source)?.names.insert(source_name.to_vec(), other);
            self.get_mut(destination)?.names.insert(destination_name.to_vec(), ino);
            self.get_mut(source)?.mtime = Moment::Now;
            self.get_mut(destination)?.mtime = Moment::Now;
            if directory && !other_directory {
                self.get_mut(source)?.nlink -= 1;
                self.get_mut(destination)?.nlink += 1;
            }
            if other_directory && !directory {
                self.get_mut(source)?.nlink += 1;
                self.get_mut(destination)?.nlink -= 1;
            }
            return Ok(());
        }
        if let Some(replaced) = replaced {
            if !self.get(replaced)?.names.is_empty() {
                return Err(Errno::NOTEMPTY);
            }
            self.take(destination, destination_name)?;
        }
        let old = self.get_mut(source)?;
        old.names.remove(source_name);
        old.mtime = Moment::Now;
        if directory {
            old.nlink -= 1;
        }
        let new = self.get_mut(destination)?;
        new.names.insert(destination_name.to_vec(), ino);
        new.mtime = Moment::Now;
        if directory {
            new.nlink += 1;
        }
        if how == RenameHow::Whiteout {
            let (ino, inode) = self.born(source, Kind::Character, 0, 0)?;
            self.put(source, source_name, ino, inode)?;
        }
        Ok(())
    }

    fn open(&mut self, ino: Ino, _access: Access, truncate: bool) -> Result<FileHandle, Errno> {
        let inode = self.get_mut(ino)?;
        inode.open += 1;
        if truncate {
            inode.content.clear();
            inode.touch_data();
        }
        Ok(ino)
    }

    fn release(&mut self, ino: Ino, _handle: FileHandle) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.open -= 1;
        }
        self.drop_if_gone(ino);
    }

    fn read(
        &mut self,
        ino: Ino,
        _handle: FileHandle,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Errno> {
        let content = &self.get(ino)?.content;
        let start = usize::try_from(offset).unwrap().min(content.len());
        let end = start.saturating_add(len).min(content.len());
        Ok(content[start..end].to_vec())
    }

    fn write(
        &mut self,
        ino: Ino,
        _handle: FileHandle,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        let inode = self.get_mut(ino)?;
        let start = usize::try_from(offset).unwrap();
        let end = start + bytes.len();
        if inode.content.len() < end {
            inode.content.resize(end, 0);
        }
        inode.content[start..end].copy_from_slice(bytes);
        inode.touch_data();
        Ok(bytes.len())
    }

    fn allocate(
        &mut self,
        ino: Ino,
        _handle: FileHandle,
        how: AllocateHow,
        offset: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let inode = self.get_mut(ino)?;
        let start = usize::try_from(offset).unwrap();
        let end = usize::try_from(offset + len).unwrap();
        if matches!(how, AllocateHow::Grow | AllocateHow::Zero) && inode.content.len() < end {
            inode.content.resize(end, 0);
        }
        if matches!(how, AllocateHow::Punch | AllocateHow::Zero) {
            let (start, end) = (start.min(inode.content.len()), end.min(inode.content.len()));
            inode.content[start..end].fill(0);
        }
        inode.touch_data();
        Ok(())
    }

    fn copy_range(
        &mut self,
        from: (Ino, FileHandle, u64),
        to: (Ino, FileHandle, u64),
        len: usize,
    ) -> Result<usize, Errno> {
        let bytes = self.read(from.0, from.1, from.2, len)?;
        self.write(to.0, to.1, to.2, &bytes)
    }

    fn seek(
        &mut self,
        ino: Ino,
        _handle: FileHandle,
        offset: u64,
        hole: bool,
    ) -> Result<u64, Errno> {
        let size = self.get(ino)?.content.len() as u64;
        match (offset < size, hole) {
            (false, _) => Err(Errno::NXIO),
            (true, true) => Ok(size),
            (true, false) => Ok(offset),
        }
    }

    fn sync(&mut self, _ino: Ino, _handle: FileHandle, _data_only: bool) -> Result<(), Errno> {
        Ok(())
    }

    fn names(&mut self, ino: Ino) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Errno> {
        let names = &self.get(ino)?.names;
        names.iter().map(|(name, ino)| Ok((name.clone(), (self.get(*ino)?.kind, *ino)))).collect()
    }

    fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8], how: SetHow) -> Result<(), Errno> {
        let inode = self.get_mut(ino)?;
        if name == ACCESS_ACL {
            let entries = decode_acl(value);
            let (permissions, extended) = mode_of_acl(&entries);
            inode.mode = (inode.mode & !0o777) | permissions;
            if extended {
                inode.xattrs.insert(name.to_vec(), value.to_vec());
            } else {
                inode.xattrs.remove(name);
            }
            return Ok(());
        }
        match (how, inode.xattrs.contains_key(name)) {
            (SetHow::Create, true) => return Err(Errno::EXIST),
            (SetHow::Replace, false) => return Err(Errno::NODATA),
            _ => {}
        }
        inode.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        match self.get_mut(ino)?.xattrs.remove(name) {
            Some(_) => Ok(()),
            None => Err(Errno::NODATA),
        }
    }

    fn xattr(&mut self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.get(ino)?.xattrs.get(name).cloned().ok_or(Errno::NODATA)
    }

    fn xattr_names(&mut self, ino: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        Ok(self.get(ino)?.xattrs.keys().cloned().collect())
    }
}

type AclEntry = (u16, u16, u32);

fn decode_acl(value: &[u8]) -> Vec<AclEntry> {
    let number = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    value[4..]
        .chunks_exact(8)
        .map(|entry| {
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            (number(&entry[..2]), number(&entry[2..4]), id)
        })
        .collect()
}

/// Permission bits that an ACL means, and whether it says more than they do
/// (posix_acl_equiv_mode).
fn mode_of_acl(entries: &[AclEntry]) -> (u32, bool) {
    let (mut mode, mut mask, mut extended) = (0, None, false);
    for (tag, permissions, _) in entries {
        let permissions = u32::from(*permissions);
        match *tag {
            acl_tag::USER_OBJ => mode |= permissions << 6,
            acl_tag::GROUP_OBJ => mode |= permissions << 3,
            acl_tag::OTHER => mode |= permissions,
            acl_tag::MASK => mask = Some(permissions),
            _ => extended = true,
        }
    }
    if let Some(mask) = mask {
        mode = (mode & !0o070) | mask << 3;
        extended = true;
    }
    (mode, extended)
}

/// Restricts an inherited ACL and the mode asked for by each other (posix_acl_create_masq).
/// Answers whether the ACL says more than the mode then does.
fn inherit(entries: &mut [AclEntry], mode: &mut u32) -> bool {
    let has_mask = entries.iter().any(|(tag, _, _)| *tag == acl_tag::MASK);
    let mut extended = false;
    for (tag, permissions, _) in entries.iter_mut() {
        let shift = match *tag {
            acl_tag::USER_OBJ => 6,
            acl_tag::GROUP_OBJ if !has_mask => 3,
            acl_tag::MASK => 3,
            acl_tag::OTHER => 0,
            _ => {
                extended |= matches!(*tag, acl_tag::USER | acl_tag::GROUP);
                continue;
            }
        };
        extended |= *tag == acl_tag::MASK;
        let asked = u16::try_from(*mode >> shift & 7).unwrap();
        *permissions &= asked;
        *mode &= !(7 << shift) | u32::from(*permissions) << shift;
    }
    extended
}

/// chmod on a file with an ACL (posix_acl_chmod_masq).
fn chmod_acl(entries: &mut [AclEntry], mode: u32) {
    let has_mask = entries.iter().any(|(tag, _, _)| *tag == acl_tag::MASK);
    for (tag, permissions, _) in entries.iter_mut() {
        let shift = match *tag {
            acl_tag::USER_OBJ => 6,
            acl_tag::GROUP_OBJ if !has_mask => 3,
            acl_tag::MASK => 3,
            acl_tag::OTHER => 0,
            _ => continue,
        };
        *permissions = u16::try_from(mode >> shift & 7).unwrap();
    }
}
