//! `mica::fs` as the inodes of a [`Vfs`](crate::vfs::Vfs): a root without a kernel.
//!
//! Does what the kernel would do with the answers, above all with passthrough: it opens the
//! backing file again with the flags of the opener, and reads and writes that.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use mica::fs::{Backing, Caller, FileSystem, FsError, Handle, How, OpenRequest, Sought};
use mica::layer::{FileKind, Layers, Stack, default_shared_paths};
use mica::object::ObjectReader;
use mica::private::{PrivateError, PrivateLayer};
use mica::union::{self, ListedKind, NewEntry, NodeId, SetTime, SharedSet, Union};
use rustix::fs::{FallocateFlags, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::operation::{Access, AllocateHow, NodeKind, RenameHow, SetHow, Time};
use crate::support::again_until;
use crate::vfs::{Attributes, Change, FileHandle, Ino, Inodes, New};
use crate::world::{Kind, Moment};

/// Entries that one listing request has room for: few, so that listings go on often.
const LISTED_AT_ONCE: usize = 5;

/// A root that is not mounted.
pub(crate) struct Unmounted {
    fs: Arc<FileSystem>,
    /// The files behind passthrough opens, open as the kernel would have them.
    backings: HashMap<FileHandle, OwnedFd>,
    epoch_secs: i64,
}

impl Unmounted {
    /// Opens the root of `stack` with the private directory `private`. Times from `epoch_secs` on
    /// count as stamped by the file system.
    pub(crate) fn open(
        store: &Path,
        stack: &Stack,
        private: &Path,
        passthrough: bool,
        epoch_secs: i64,
    ) -> Self {
        let tree = Layers::open(store).unwrap().tree(stack).unwrap();
        let shared = SharedSet::resolve(&tree, &default_shared_paths()).unwrap();
        let objects = ObjectReader::open(store).unwrap();
        let mut layer = None;
        again_until("the private directory is locked", || {
            layer = match PrivateLayer::open(private, stack) {
                Err(PrivateError::InUse(_)) => None,
                opened => Some(opened.unwrap()),
            };
            layer.is_some()
        });
        let union = Union::new(tree, objects, layer, shared).unwrap();
        let fs = FileSystem::new(union);
        if passthrough {
            fs.allow_passthrough();
        }
        Self { fs, backings: HashMap::new(), epoch_secs }
    }

    fn attributes_of(&self, found: &union::Attributes) -> Attributes {
        let (secs, nanos) = found.mtime;
        let rdev = found.rdev;
        Attributes {
            ino: found.id.get(),
            st_ino: found.ino,
            kind: kind(found.kind),
            mode: found.mode,
            uid: found.uid,
            gid: found.gid,
            nlink: found.nlink.into(),
            size: found.size,
            device: (rustix::fs::major(rdev), rustix::fs::minor(rdev)),
            mtime: if secs >= self.epoch_secs { Moment::Now } else { Moment::Set(secs, nanos) },
        }
    }

    /// Opens as the kernel does with the answer.
    fn answer(&mut self, ino: Ino, access: Access, truncate: bool) -> Result<FileHandle, Errno> {
        let write = access != Access::Read;
        let request = OpenRequest { write, truncate, execute: false, durable: false };
        let opened = self.fs.open(NodeId::from_raw(ino), request, root(0)).map_err(errno)?;
        if let How::Passthrough(backing) = opened.how {
            assert!(
                !matches!(backing, Backing::Object(_)) || !(write || truncate),
                "an open for writing was answered with an object"
            );
            let file = self.fs.open_backing(backing).map_err(errno)?;
            let flags = match access {
                Access::Read => OFlags::RDONLY,
                Access::Write => OFlags::WRONLY,
                Access::ReadWrite => OFlags::RDWR,
            };
            let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
            let file = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
            self.backings.insert(opened.handle.0, file);
        }
        if let Some(notice) = opened.after {
            self.fs.notify(notice);
        }
        // The kernel has no caches here that would have to be told.
        self.fs.notices().try_iter().for_each(drop);
        Ok(opened.handle.0)
    }
}

fn root(umask: u32) -> Caller {
    Caller { uid: 0, gid: 0, pid: std::process::id(), umask }
}

fn node(ino: Ino) -> NodeId {
    NodeId::from_raw(ino)
}

fn errno(error: FsError) -> Errno {
    error.errno()
}

fn kind(kind: FileKind) -> Kind {
    match kind {
        FileKind::Regular => Kind::Regular,
        FileKind::Directory => Kind::Directory,
        FileKind::Symlink => Kind::Symlink,
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
        FileKind::CharDevice => Kind::Character,
        FileKind::BlockDevice => Kind::Block,
    }
}

impl Inodes for Unmounted {
    fn lookup(&mut self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        match self.fs.lookup(node(parent), name).map_err(errno)? {
            Some(found) => Ok(self.attributes_of(&found)),
            None => Err(Errno::NOENT),
        }
    }

    fn forget(&mut self, ino: Ino) {
        self.fs.forget(node(ino), 1);
    }

    fn attributes(&mut self, ino: Ino) -> Result<Attributes, Errno> {
        let found = self.fs.attributes(node(ino)).map_err(errno)?;
        Ok(self.attributes_of(&found))
    }

    fn change(
        &mut self,
        ino: Ino,
        _handle: Option<FileHandle>,
        change: Change,
    ) -> Result<(), Errno> {
        let id = node(ino);
        if let Some(size) = change.size {
            self.fs.set_size(id, size, root(0)).map_err(errno)?;
        }
        if change.chown && change.uid.is_none() && change.gid.is_none() {
            // What is left of such a chown when it gets here.
            return self.fs.strip_privileges(id, root(0)).map_err(errno);
        }
        let mtime = match change.mtime {
            Some(Time::At(secs, nanos)) => Some(SetTime::At((secs, nanos))),
            Some(Time::Now) => Some(SetTime::Now),
            Some(Time::Keep) | None => None,
        };
        let change = union::Change {
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            atime: None,
            mtime,
        };
        if change.is_empty() { Ok(()) } else { self.fs.change(id, &change).map_err(errno) }
    }

    fn target(&mut self, ino: Ino) -> Result<Vec<u8>, Errno> {
        self.fs.symlink_target(node(ino)).map_err(errno)
    }

    fn make(
        &mut self,
        parent: Ino,
        name: &[u8],
        new: New<'_>,
        mode: u32,
        umask: u32,
    ) -> Result<Attributes, Errno> {
        let entry = match new {
            New::Directory => NewEntry::Directory,
            New::Symlink(target) => NewEntry::Symlink(target),
            New::Node(NodeKind::Regular) => NewEntry::File,
            New::Node(NodeKind::Fifo) => NewEntry::Fifo,
            New::Node(NodeKind::Socket) => NewEntry::Socket,
            New::Node(NodeKind::Character(major, minor)) => {
                NewEntry::CharDevice(rustix::fs::makedev(major, minor))
            }
            New::Node(NodeKind::Block(major, minor)) => {
                NewEntry::BlockDevice(rustix::fs::makedev(major, minor))
            }
        };
        let made = self.fs.create(node(parent), name, entry, mode, root(umask)).map_err(errno)?;
        Ok(self.attributes_of(&made))
    }

    fn create(
        &mut self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        access: Access,
    ) -> Result<(Attributes, FileHandle), Errno> {
        let made = self.make(parent, name, New::Node(NodeKind::Regular), mode, umask)?;
        let handle = self.answer(made.ino, access, false)?;
        Ok((made, handle))
    }

    fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.fs.link(node(ino), node(parent), name).map(drop).map_err(errno)
    }

    fn unlink(&mut self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.fs.unlink(node(parent), name).map_err(errno)
    }

    fn remove_directory(&mut self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.fs.rmdir(node(parent), name).map_err(errno)
    }

    fn rename(
        &mut self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        how: RenameHow,
    ) -> Result<(), Errno> {
        let flags = match how {
            RenameHow::Replace => RenameFlags::empty(),
            RenameHow::NoReplace => RenameFlags::NOREPLACE,
            RenameHow::Exchange => RenameFlags::EXCHANGE,
            RenameHow::Whiteout => RenameFlags::WHITEOUT,
        };
        let (from, to) = ((node(from.0), from.1), (node(to.0), to.1));
        self.fs.rename(from, to, flags, root(0)).map_err(errno)
    }

    fn open(&mut self, ino: Ino, access: Access, truncate: bool) -> Result<FileHandle, Errno> {
        self.answer(ino, access, truncate)
    }

    fn release(&mut self, _ino: Ino, handle: FileHandle) {
        // The kernel closes the backing file with the last user of the open file.
        self.backings.remove(&handle);
        self.fs.close(Handle(handle)).expect("the file was open");
    }

    fn read(
        &mut self,
        ino: Ino,
        handle: FileHandle,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Errno> {
        match self.backings.get(&handle) {
            None => self.fs.read(node(ino), offset, len).map_err(errno),
            Some(file) => {
                let mut bytes = vec![0; len];
                let n = rustix::io::pread(file, &mut bytes, offset)?;
                bytes.truncate(n);
                Ok(bytes)
            }
        }
    }

    fn write(
        &mut self,
        ino: Ino,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        match self.backings.get(&handle) {
            None => self.fs.write(node(ino), offset, bytes, None).map_err(errno),
            Some(file) => rustix::io::pwrite(file, bytes, offset),
        }
    }

    fn allocate(
        &mut self,
        ino: Ino,
        _handle: FileHandle,
        how: AllocateHow,
        offset: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let flags = match how {
            AllocateHow::Grow => FallocateFlags::empty(),
            AllocateHow::KeepSize => FallocateFlags::KEEP_SIZE,
            AllocateHow::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            AllocateHow::Zero => FallocateFlags::ZERO_RANGE,
        };
        self.fs.allocate(node(ino), flags, offset, len).map_err(errno)
    }

    fn copy_range(
        &mut self,
        from: (Ino, FileHandle, u64),
        to: (Ino, FileHandle, u64),
        len: usize,
    ) -> Result<usize, Errno> {
        self.fs.copy_range((node(from.0), from.2), (node(to.0), to.2), len).map_err(errno)
    }

    fn seek(
        &mut self,
        ino: Ino,
        _handle: FileHandle,
        offset: u64,
        hole: bool,
    ) -> Result<u64, Errno> {
        let sought = if hole { Sought::Hole } else { Sought::Data };
        self.fs.seek(node(ino), offset, sought).map_err(errno)
    }

    fn sync(&mut self, ino: Ino, _handle: FileHandle, data_only: bool) -> Result<(), Errno> {
        self.fs.sync(node(ino), data_only).map_err(errno)
    }

    fn names(&mut self, ino: Ino) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Errno> {
        let mut names = BTreeMap::new();
        let mut offset = 0;
        loop {
            let (mut count, from) = (0, offset);
            let emit = &mut |entry: union::Listed<'_>| {
                if count == LISTED_AT_ONCE {
                    return true;
                }
                count += 1;
                offset = entry.next;
                if !matches!(entry.kind, ListedKind::Itself) {
                    let shown = (kind(entry.attributes.kind), entry.attributes.ino);
                    let twice = names.insert(entry.name.to_vec(), shown);
                    assert!(twice.is_none(), "{} listed twice", entry.name.escape_ascii());
                }
                false
            };
            self.fs.list(node(ino), from, emit).map_err(errno)?;
            if count == 0 {
                return Ok(names);
            }
        }
    }

    fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8], how: SetHow) -> Result<(), Errno> {
        let flags = match how {
            SetHow::Set => XattrFlags::empty(),
            SetHow::Create => XattrFlags::CREATE,
            SetHow::Replace => XattrFlags::REPLACE,
        };
        self.fs.set_xattr(node(ino), name, value, flags, root(0)).map_err(errno)
    }

    fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        self.fs.remove_xattr(node(ino), name).map_err(errno)
    }

    fn xattr(&mut self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.fs.xattr(node(ino), name).map_err(errno)
    }

    fn xattr_names(&mut self, ino: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        let list = self.fs.xattr_list(node(ino), root(0)).map_err(errno)?;
        Ok(list.split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }
}
