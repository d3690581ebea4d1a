//! One method per request of the kernel's.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, XattrFlags};

use super::backing::{Acquired, Backings};
use super::convert::{
    FOREVER, attribute_ttl, decode_device, errno, file_type, lookup_ttl, named, negative, set_time,
    shown,
};
use crate::fs::{Caller, FileSystem, FsError, Handle, How, OpenRequest, Opened, Sought};
use crate::telemetry::RequestKind;
use crate::union::{Attributes, Change, ListedKind, NewEntry, NodeId, UnionError};

/// Largest request the kernel may send or ask for, in bytes.
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Requests the kernel may have waiting in the background.
const MAX_BACKGROUND: u16 = 64;
/// `FS_IOC_GETFLAGS` of linux/fs.h.
const GET_FLAGS: u32 = 0x8008_6601;
/// The kernel's mark of an open for execve(2): `__FMODE_EXEC` of linux/fs.h.
const FMODE_EXEC: i32 = 0x20;
/// Numbers are never reused for another file while the kernel knows them.
const GENERATION: Generation = Generation(0);

/// Without one of these a root would break POSIX; kernels since 5.12 have them.
const NEEDED: InitFlags = InitFlags::FUSE_ATOMIC_O_TRUNC
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2);

/// What makes a root fast, or lets it be used in more places.
const WANTED: [InitFlags; 8] = [
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ALLOW_IDMAP,
];

/// Serves a [`FileSystem`] to the kernel.
pub(super) struct Adapter {
    fs: Arc<FileSystem>,
    backings: Arc<Backings>,
    want_passthrough: bool,
}

/// What a request was about.
#[derive(Clone, Copy)]
enum At<'a> {
    Inode(NodeId),
    Name(NodeId, &'a [u8]),
}

impl From<INodeNo> for At<'_> {
    fn from(ino: INodeNo) -> Self {
        Self::Inode(node(ino))
    }
}

impl<'a> From<(NodeId, &'a [u8])> for At<'a> {
    fn from((dir, name): (NodeId, &'a [u8])) -> Self {
        Self::Name(dir, name)
    }
}

impl<'a> From<(INodeNo, &'a OsStr)> for At<'a> {
    fn from((dir, name): (INodeNo, &'a OsStr)) -> Self {
        Self::Name(node(dir), name.as_bytes())
    }
}

impl Adapter {
    pub(super) fn new(fs: Arc<FileSystem>, want_passthrough: bool) -> Self {
        let backings = Arc::new(Backings::new());
        let kept = Arc::clone(&backings);
        fs.when_objects_are_forgotten(move |objects| kept.forget(objects));
        Self { fs, backings, want_passthrough }
    }

    /// Runs one request. A panic answers EIO to it alone: the dropped reply does.
    fn serve(&self, kind: RequestKind, request: impl FnOnce()) {
        self.fs.counters().request(kind);
        if catch_unwind(AssertUnwindSafe(request)).is_err() {
            self.fs.counters().panics.hit();
            tracing::error!(request = kind.name(), "a request panicked and was answered with EIO");
        }
    }

    /// The errno of a failure; damage is told to the log with the file it befell.
    fn refuse(&self, at: At<'_>, error: &FsError) -> Errno {
        let number = error.errno();
        if number == rustix::io::Errno::IO {
            self.fs.counters().io_errors.hit();
            if matches!(error, FsError::Union(UnionError::Object(_))) {
                self.fs.counters().object_faults.hit();
            }
            let file = match at {
                At::Inode(id) => self.fs.describe(id),
                At::Name(dir, name) => self.fs.describe(dir).join(OsStr::from_bytes(name)),
            };
            tracing::error!(file = %file.display(), %error, "a request failed with EIO");
        }
        errno(number)
    }

    fn entry(&self, at: At<'_>, reply: ReplyEntry, found: Result<Attributes, FsError>) {
        match found {
            Ok(attributes) => {
                let ttl = lookup_ttl(&attributes);
                reply.entry_with_ttls(&ttl, &FOREVER, &named(&attributes), GENERATION);
            }
            Err(error) => reply.error(self.refuse(at, &error)),
        }
    }

    fn empty(&self, at: At<'_>, reply: ReplyEmpty, done: Result<(), FsError>) {
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.refuse(at, &error)),
        }
    }

    fn attributes(&self, at: At<'_>, reply: ReplyAttr, found: Result<Attributes, FsError>) {
        match found {
            Ok(attributes) => reply.attr(&attribute_ttl(&attributes), &shown(&attributes)),
            Err(error) => reply.error(self.refuse(at, &error)),
        }
    }

    /// Answers an xattr request: its size, its bytes, or ERANGE.
    fn sized(&self, at: At<'_>, reply: ReplyXattr, room: u32, value: Result<Vec<u8>, FsError>) {
        let value = match value {
            Ok(value) => value,
            Err(error) => return reply.error(self.refuse(at, &error)),
        };
        match u32::try_from(value.len()) {
            Ok(len) if room == 0 => reply.size(len),
            Ok(len) if len <= room => reply.data(&value),
            Ok(_) | Err(_) => reply.error(Errno::ERANGE),
        }
    }

    /// Registers the file of a passthrough open; the open is served from here if the kernel
    /// will not have it.
    fn register(
        &self,
        id: NodeId,
        opened: &mut Opened,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<Option<Arc<BackingId>>, FsError> {
        let How::Passthrough(backing) = opened.how else { return Ok(None) };
        let counters = self.fs.counters();
        let open = || self.fs.open_backing(backing);
        match self.backings.acquire(opened.handle, id, backing, counters, open, register)? {
            Acquired::Registered(registered) => Ok(Some(registered)),
            Acquired::Refused(error) => {
                if let Some(error) = error.filter(|_| counters.passthrough_refused.get() == 0) {
                    tracing::warn!(%error, "the kernel refuses passthrough: memory is not shared");
                }
                self.fs.demote(opened.handle)?;
                opened.how = How::Cached { keep_cache: false };
                Ok(None)
            }
        }
    }

    /// Closes a file that could not be answered for.
    fn abandon(&self, handle: Handle) {
        self.backings.release(handle);
        if let Err(error) = self.fs.close(handle) {
            tracing::debug!(%error, "an abandoned open was not open");
        }
    }

    fn list_plus(
        &self,
        dir: NodeId,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<(), FsError> {
        self.fs.list(dir, offset, &mut |entry| {
            let attributes = entry.attributes;
            let counted = !matches!(entry.kind, ListedKind::Itself);
            // Counted before the kernel can have it; taken back if there was no room.
            if counted {
                self.fs.remember(attributes.id);
            }
            let name = OsStr::from_bytes(entry.name);
            let ttl = lookup_ttl(&attributes);
            let ino = INodeNo(attributes.id.get());
            let full = reply.add(ino, entry.next, name, &ttl, &named(&attributes), GENERATION);
            if full && counted {
                self.fs.forget(attributes.id, 1);
            }
            full
        })
    }
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid(), umask }
}

fn node(ino: INodeNo) -> NodeId {
    NodeId::from_raw(ino.0)
}

fn open_request(flags: i32) -> OpenRequest {
    let write = OpenFlags(flags).acc_mode() != OpenAccMode::O_RDONLY;
    let (truncate, execute) = (flags & libc::O_TRUNC != 0, flags & FMODE_EXEC != 0);
    OpenRequest { write, truncate, execute, durable: flags & libc::O_DSYNC != 0 }
}

fn cached_flags(how: How) -> FopenFlags {
    match how {
        How::Cached { keep_cache: true } => {
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
        }
        How::Cached { keep_cache: false } | How::Passthrough(_) => FopenFlags::FOPEN_NOFLUSH,
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if let Err(missing) = config.add_capabilities(NEEDED) {
            tracing::error!(?missing, "this kernel's FUSE is too old: Mica needs Linux 5.12");
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        for wanted in WANTED {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::debug!(?missing, "the kernel does not have it");
            }
        }
        if let Err(nearest) = config.set_max_write(MAX_WRITE_BYTES) {
            tracing::debug!(nearest, "the kernel takes smaller writes");
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            tracing::debug!(nearest, "the kernel takes fewer waiting requests");
        }
        if !self.want_passthrough {
            return Ok(());
        }
        // Depth 1 leaves room for overlayfs on top: containers in containers.
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok()
        {
            self.fs.allow_passthrough();
        } else {
            tracing::warn!(
                "this kernel has no FUSE passthrough (Linux 6.9 and later have): \
                 memory is not shared between roots"
            );
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(RequestKind::Lookup, || match self.fs.lookup(node(parent), name.as_bytes()) {
            Ok(Some(attributes)) => self.entry((parent, name).into(), reply, Ok(attributes)),
            Ok(None) => reply.entry(&FOREVER, &negative(), GENERATION),
            Err(error) => reply.error(self.refuse((parent, name).into(), &error)),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.serve(RequestKind::Forget, || self.fs.forget(node(ino), nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(RequestKind::Getattr, || {
            self.attributes(ino.into(), reply, self.fs.attributes(node(ino)));
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.serve(RequestKind::Setattr, || {
            let id = node(ino);
            let change = Change {
                mode: mode.map(|mode| mode & 0o7777),
                uid,
                gid,
                atime: atime.map(set_time),
                mtime: mtime.map(set_time),
            };
            let change_all = || {
                if let Some(size) = size {
                    self.fs.set_size(id, size, caller(req, 0))?;
                }
                if change.uid.is_some() || change.gid.is_some() {
                    self.fs.change_owner(id, &change, caller(req, 0))?;
                } else if !change.is_empty() {
                    self.fs.change(id, &change)?;
                } else if size.is_none() {
                    // A request that sets nothing asks for the set-id bits to go.
                    self.fs.strip_privileges(id, caller(req, 0))?;
                }
                self.fs.attributes(id)
            };
            self.attributes(ino.into(), reply, change_all());
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(RequestKind::Readlink, || match self.fs.symlink_target(node(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.refuse(ino.into(), &error)),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.serve(RequestKind::Mknod, || {
            let rdev = decode_device(rdev);
            let entry = match mode & libc::S_IFMT {
                libc::S_IFREG | 0 => NewEntry::File,
                libc::S_IFIFO => NewEntry::Fifo,
                libc::S_IFSOCK => NewEntry::Socket,
                libc::S_IFCHR => NewEntry::CharDevice(rdev),
                libc::S_IFBLK => NewEntry::BlockDevice(rdev),
                _ => return reply.error(Errno::EINVAL),
            };
            let who = caller(req, umask);
            self.entry(
                (parent, name).into(),
                reply,
                self.fs.create(node(parent), name.as_bytes(), entry, mode, who),
            );
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.serve(RequestKind::Mkdir, || {
            let (parent, name, who) = (node(parent), name.as_bytes(), caller(req, umask));
            self.entry(
                (parent, name).into(),
                reply,
                self.fs.create(parent, name, NewEntry::Directory, mode, who),
            );
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(RequestKind::Unlink, || {
            self.empty((parent, name).into(), reply, self.fs.unlink(node(parent), name.as_bytes()));
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(RequestKind::Rmdir, || {
            self.empty((parent, name).into(), reply, self.fs.rmdir(node(parent), name.as_bytes()));
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.serve(RequestKind::Symlink, || {
            let entry = NewEntry::Symlink(target.as_os_str().as_bytes());
            let (parent, name, who) = (node(parent), link_name.as_bytes(), caller(req, 0));
            self.entry(
                (parent, name).into(),
                reply,
                self.fs.create(parent, name, entry, 0o777, who),
            );
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Rename, || {
            let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
            let from = (node(parent), name.as_bytes());
            let to = (node(newparent), newname.as_bytes());
            let renamed = self.fs.rename(from, to, flags, caller(req, 0));
            self.empty((parent, name).into(), reply, renamed);
        });
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.serve(RequestKind::Link, || {
            self.entry(
                (newparent, newname).into(),
                reply,
                self.fs.link(node(ino), node(newparent), newname.as_bytes()),
            );
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.serve(RequestKind::Open, || {
            let id = node(ino);
            let mut opened = match self.fs.open(id, open_request(flags.0), caller(req, 0)) {
                Ok(opened) => opened,
                Err(error) => return reply.error(self.refuse(ino.into(), &error)),
            };
            let registered = self.register(id, &mut opened, |fd| reply.open_backing(fd));
            let handle = FileHandle(opened.handle.0);
            match registered {
                Ok(Some(backing)) => {
                    reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
                }
                Ok(None) => reply.opened(handle, cached_flags(opened.how)),
                Err(error) => {
                    self.abandon(opened.handle);
                    return reply.error(self.refuse(ino.into(), &error));
                }
            }
            if let Some(after) = opened.after {
                self.fs.notify(after);
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.serve(RequestKind::Create, || {
            let (parent, name, who) = (node(parent), name.as_bytes(), caller(req, umask));
            let attributes = match self.fs.create(parent, name, NewEntry::File, mode, who) {
                Ok(attributes) => attributes,
                Err(error) => return reply.error(self.refuse((parent, name).into(), &error)),
            };
            let id = attributes.id;
            let request = OpenRequest { truncate: false, ..open_request(flags) };
            let opened = self.fs.open(id, request, who).and_then(|mut opened| {
                match self.register(id, &mut opened, |fd| reply.open_backing(fd)) {
                    Ok(registered) => Ok((opened, registered)),
                    Err(error) => {
                        self.abandon(opened.handle);
                        Err(error)
                    }
                }
            });
            let (opened, registered) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    self.fs.forget(id, 1);
                    return reply.error(self.refuse((parent, name).into(), &error));
                }
            };
            let handle = FileHandle(opened.handle.0);
            // fuser has one time-out for name and attributes here; that the attributes of an
            // open file may change unseen is told right after.
            let attr = named(&attributes);
            match registered {
                Some(backing) => {
                    let flags = FopenFlags::FOPEN_NOFLUSH;
                    reply.created_passthrough(&FOREVER, &attr, GENERATION, handle, flags, &backing);
                }
                None => {
                    let flags = cached_flags(opened.how);
                    reply.created(&FOREVER, &attr, GENERATION, handle, flags);
                }
            }
            if let Some(after) = opened.after {
                self.fs.notify(after);
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve(RequestKind::Read, || {
            let len = usize::try_from(size).unwrap_or(usize::MAX);
            match self.fs.read(node(ino), offset, len) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(self.refuse(ino.into(), &error)),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.serve(RequestKind::Write, || {
            let strip = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            let strip = strip.then(|| caller(req, 0));
            match self.fs.write(node(ino), offset, data, strip) {
                Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
                Err(error) => reply.error(self.refuse(ino.into(), &error)),
            }
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing waits here for a close; the kernel then asks no more.
        self.serve(RequestKind::Flush, || reply.error(Errno::ENOSYS));
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Release, || {
            let handle = Handle(fh.0);
            self.backings.release(handle);
            self.empty(ino.into(), reply, self.fs.close(handle));
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, data: bool, reply: ReplyEmpty) {
        self.serve(RequestKind::Fsync, || {
            self.empty(ino.into(), reply, self.fs.sync(node(ino), data))
        });
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Listings keep no state; the kernel then caches directories and asks no more.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.serve(RequestKind::Readdir, || {
            let listed = self.fs.list(node(ino), offset, &mut |entry| {
                let ino = INodeNo(entry.attributes.ino);
                let kind = file_type(entry.attributes.kind);
                reply.add(ino, entry.next, kind, OsStr::from_bytes(entry.name))
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(self.refuse(ino.into(), &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.serve(RequestKind::Readdirplus, || {
            match self.list_plus(node(ino), offset, &mut reply) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(self.refuse(ino.into(), &error)),
            }
        });
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Fsyncdir, || {
            self.empty(ino.into(), reply, self.fs.sync_directory(node(ino)));
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.serve(RequestKind::Statfs, || match self.fs.space() {
            Ok(space) => {
                let block = u32::try_from(space.block_bytes).unwrap_or(4096);
                let fragment = u32::try_from(space.fragment_bytes).unwrap_or(4096);
                let (blocks, free, available) = (space.blocks, space.free, space.available);
                let (files, spare) = (space.files, space.files_free);
                reply.statfs(blocks, free, available, files, spare, block, 255, fragment);
            }
            Err(error) => reply.error(self.refuse(INodeNo::ROOT.into(), &error)),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Setxattr, || {
            let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
            let who = caller(req, 0);
            self.empty(
                ino.into(),
                reply,
                self.fs.set_xattr(node(ino), name.as_bytes(), value, flags, who),
            );
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(RequestKind::Getxattr, || {
            self.sized(ino.into(), reply, size, self.fs.xattr(node(ino), name.as_bytes()));
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(RequestKind::Listxattr, || {
            self.sized(ino.into(), reply, size, self.fs.xattr_list(node(ino), caller(req, 0)));
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(RequestKind::Removexattr, || {
            self.empty(ino.into(), reply, self.fs.remove_xattr(node(ino), name.as_bytes()));
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.serve(RequestKind::Ioctl, || match (cmd, self.fs.attributes(node(ino))) {
            // No flag of a root's file is ever set: append-only and immutable are the host's.
            (GET_FLAGS, Ok(_)) => reply.ioctl(0, &0u32.to_ne_bytes()),
            (_, Ok(_)) => reply.error(Errno::ENOTTY),
            (_, Err(error)) => reply.error(self.refuse(ino.into(), &error)),
        });
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Fallocate, || {
            let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
            self.empty(ino.into(), reply, self.fs.allocate(node(ino), mode, offset, length));
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve(RequestKind::Lseek, || {
            let sought = match whence {
                libc::SEEK_DATA => Sought::Data,
                libc::SEEK_HOLE => Sought::Hole,
                _ => return reply.error(Errno::EINVAL),
            };
            let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
            match self.fs.seek(node(ino), offset, sought) {
                Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                Err(error) => reply.error(self.refuse(ino.into(), &error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.serve(RequestKind::CopyFileRange, || {
            // The answer is a 32-bit count.
            let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
            let (from, to) = ((node(ino_in), offset_in), (node(ino_out), offset_out));
            match self.fs.copy_range(from, to, len) {
                Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
                Err(error) => reply.error(self.refuse(ino_in.into(), &error)),
            }
        });
    }
}
