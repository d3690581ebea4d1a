//! A directory of the host as a world: every step is the system calls a program would make.
//!
//! Knows nothing of what is mounted there. Leaves nothing behind but what the steps made.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Statx,
    StatxFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::operation::{
    Access, AllocateHow, NodeKind, OpenHow, Operation, Place, RenameHow, SetHow, Step, Target,
    Time, Who,
};
use crate::raw::{self, Mapping};
use crate::world::{
    Answer, HANDLES, Identity, Kind, LISTINGS, Look, MAPS, Moment, Observation, Outcome, World,
};

/// A directory of the host.
pub(crate) struct HostTree {
    root: PathBuf,
    handles: [Option<Handle>; HANDLES],
    maps: [Option<Mapping>; MAPS],
    listings: [Option<Listing>; LISTINGS],
    epoch_secs: i64,
}

struct Handle {
    fd: OwnedFd,
    readable: bool,
}

struct Listing {
    fd: OwnedFd,
    /// Where the last entry read ends.
    cookie: u64,
    names: Vec<Vec<u8>>,
}

impl HostTree {
    /// The tree at `root`. Times from now on count as stamped by the file system.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        // The kernel's coarse clock may lag behind this one.
        Self::since(root, now_secs() - 1)
    }

    /// The tree at `root`. Times from `epoch_secs` on count as stamped by the file system.
    pub(crate) fn since(root: impl Into<PathBuf>, epoch_secs: i64) -> Self {
        raw::own_umask();
        Self {
            root: root.into(),
            handles: Default::default(),
            maps: Default::default(),
            listings: Default::default(),
            epoch_secs,
        }
    }

    /// The directory of the host.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the root of the tree this thread's working directory. The users of a history can
    /// then walk to every place, wherever the tree lies.
    fn enter(&self) {
        rustix::process::chdir(&self.root).expect("the root of the tree is there");
    }

    fn path(&self, place: &Place) -> PathBuf {
        if place.is_root() {
            PathBuf::from(".")
        } else {
            PathBuf::from(OsStr::from_bytes(place.as_bytes()))
        }
    }

    fn handle(&self, slot: usize) -> Result<&Handle, Errno> {
        self.handles[slot].as_ref().ok_or(Errno::BADF)
    }

    fn open(&self, place: &Place, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::open(self.path(place), flags, Mode::from_raw_mode(mode))
    }

    /// The descriptor a target means; a name is opened with `flags`.
    fn target(&self, target: &Target, flags: OFlags) -> Result<Opened<'_>, Errno> {
        match target {
            Target::Handle(slot) => Ok(Opened::Held(self.handle(*slot)?.fd.as_fd())),
            Target::Name(place) => Ok(Opened::Fresh(self.open(place, flags, 0)?)),
        }
    }

    fn moment(&self, secs: i64, nanos: u32) -> Moment {
        if secs >= self.epoch_secs { Moment::Now } else { Moment::Set(secs, nanos) }
    }

    fn stat(&self, stat: &Statx, generation: u64) -> (Observation, Identity) {
        let kind = kind_of(FileType::from_raw_mode(u32::from(stat.stx_mode)));
        let observation = Observation {
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            nlink: u64::from(stat.stx_nlink),
            size: (kind != Kind::Directory).then_some(stat.stx_size),
            device: matches!(kind, Kind::Character | Kind::Block)
                .then_some((stat.stx_rdev_major, stat.stx_rdev_minor)),
            mtime: self.moment(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            target: None,
            xattrs: None,
            content: None,
        };
        (observation, Identity { inode: stat.stx_ino, generation })
    }

    fn inspect(&self, slot: usize) -> Outcome {
        let handle = self.handle(slot)?;
        let stat = statx_fd(handle.fd.as_fd())?;
        let (mut seen, _) = self.stat(&stat, 0);
        seen.xattrs = Some(fd_xattrs(handle.fd.as_fd())?);
        if seen.kind == Kind::Regular && handle.readable {
            seen.content = Some(read_all(handle.fd.as_fd(), seen.size.unwrap_or_default())?);
        }
        Ok(Answer::Seen(Box::new(seen)))
    }

    fn write(&self, target: &Target, offset: u64, bytes: &[u8], how: OpenHow) -> Outcome {
        let opened = match target {
            Target::Handle(slot) => Opened::Held(self.handle(*slot)?.fd.as_fd()),
            Target::Name(place) => Opened::Fresh(self.open(
                place,
                OFlags::WRONLY | how_flags(how),
                how.create.unwrap_or(0),
            )?),
        };
        let n = rustix::io::pwrite(opened.fd(), bytes, offset)?;
        Ok(Answer::Count(n as u64))
    }

    fn map_write(&self, target: &Target, offset: u64, bytes: &[u8]) -> Outcome {
        let opened = self.target(target, OFlags::RDWR)?;
        let size = statx_fd(opened.fd())?.stx_size;
        let end = size.min(offset + bytes.len() as u64);
        // Also of an empty file: whether it may be written is not a matter of its size, which a
        // descriptor on old content sees otherwise.
        let map = Mapping::new(opened.fd(), usize::try_from(size.max(1)).unwrap(), true)?;
        if end <= offset {
            return Ok(Answer::Count(0));
        }
        let len = usize::try_from(end - offset).unwrap();
        map.poke(usize::try_from(offset).unwrap(), &bytes[..len])?;
        map.sync()?;
        Ok(Answer::Count(len as u64))
    }

    /// A walk over data and holes must end at the size and leave only zeros in holes. Where the
    /// holes lie is the host file system's affair.
    fn holes(&self, target: &Target) -> Outcome {
        let opened = self.target(target, OFlags::RDONLY)?;
        let fd = opened.fd();
        let stat = statx_fd(fd)?;
        if FileType::from_raw_mode(u32::from(stat.stx_mode)) != FileType::RegularFile {
            return Ok(Answer::Done);
        }
        let content = read_all(fd, stat.stx_size)?;
        let size = content.len() as u64;
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
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
            let hole = rustix::fs::seek(fd, SeekFrom::Hole(data))?;
            if hole <= data || hole > size {
                return Ok(Answer::Broken(format!("hole after {data} at {hole} of {size}")));
            }
            at = hole;
        }
        Ok(Answer::Done)
    }

    fn xattr_path(&self, target: &Target) -> Result<(PathBuf, bool), Errno> {
        match target {
            Target::Name(place) => Ok((self.path(place), false)),
            Target::Handle(slot) => {
                self.handle(*slot)?;
                Ok((PathBuf::new(), true))
            }
        }
    }

    fn list(&self, place: &Place) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Errno> {
        let fd = self.open(place, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let mut listing = Listing { fd, cookie: 0, names: Vec::new() };
        let mut names = BTreeMap::new();
        loop {
            let batch = listing.read_some(32768)?;
            if batch.is_empty() {
                return Ok(names);
            }
            for (name, kind, inode) in batch {
                // A name listed twice shows as one with an impossible kind in no world: say so.
                assert!(
                    names.insert(name.clone(), (kind, inode)).is_none(),
                    "\"{}\" is listed twice in {place:?} of {}",
                    name.escape_ascii(),
                    self.root.display()
                );
            }
        }
    }

    fn empty_while_listing(&self, place: &Place) -> Outcome {
        let fd = self.open(place, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let mut names = BTreeMap::new();
        let mut listing = Listing { fd, cookie: 0, names: Vec::new() };
        loop {
            let batch = listing.read_some(160)?;
            if batch.is_empty() {
                break;
            }
            for (name, kind, _) in batch {
                if names.insert(name.clone(), kind).is_some() {
                    let name = name.escape_ascii();
                    return Ok(Answer::Broken(format!("\"{name}\" was listed twice")));
                }
                let flags =
                    if kind == Kind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                match rustix::fs::unlinkat(&listing.fd, name.as_slice(), flags) {
                    Ok(()) | Err(Errno::NOTEMPTY | Errno::ACCESS | Errno::PERM) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(Answer::Names(names))
    }

    fn apply_as_root(&mut self, operation: &Operation) -> Outcome {
        use Operation as O;
        match operation {
            O::MakeDirectory { place, mode } => {
                rustix::fs::mkdir(self.path(place), Mode::from_raw_mode(*mode))?;
                Ok(Answer::Done)
            }
            O::Symlink { place, target } => {
                rustix::fs::symlink(target.0.as_slice(), self.path(place))?;
                Ok(Answer::Done)
            }
            O::MakeNode { place, kind, mode } => {
                let (file_type, device) = match *kind {
                    NodeKind::Regular => (FileType::RegularFile, 0),
                    NodeKind::Fifo => (FileType::Fifo, 0),
                    NodeKind::Socket => (FileType::Socket, 0),
                    NodeKind::Character(major, minor) => {
                        (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
                    }
                    NodeKind::Block(major, minor) => {
                        (FileType::BlockDevice, rustix::fs::makedev(major, minor))
                    }
                };
                let mode = Mode::from_raw_mode(*mode);
                rustix::fs::mknodat(rustix::fs::CWD, self.path(place), file_type, mode, device)?;
                Ok(Answer::Done)
            }
            O::Link { from, to, follow } => {
                let flags = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
                let cwd = rustix::fs::CWD;
                rustix::fs::linkat(cwd, self.path(from), cwd, self.path(to), flags)?;
                Ok(Answer::Done)
            }
            O::LinkHandle { slot, to } => {
                let from = proc_path(self.handle(*slot)?.fd.as_fd());
                let cwd = rustix::fs::CWD;
                rustix::fs::linkat(cwd, from, cwd, self.path(to), AtFlags::SYMLINK_FOLLOW)?;
                Ok(Answer::Done)
            }
            O::Unlink { place } => {
                rustix::fs::unlink(self.path(place))?;
                Ok(Answer::Done)
            }
            O::RemoveDirectory { place } => {
                rustix::fs::rmdir(self.path(place))?;
                Ok(Answer::Done)
            }
            O::Rename { from, to, how } => {
                let flags = match how {
                    RenameHow::Replace => RenameFlags::empty(),
                    RenameHow::NoReplace => RenameFlags::NOREPLACE,
                    RenameHow::Exchange => RenameFlags::EXCHANGE,
                    RenameHow::Whiteout => RenameFlags::WHITEOUT,
                };
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, self.path(from), cwd, self.path(to), flags)?;
                Ok(Answer::Done)
            }

            O::Write { target, offset, fill, how } => {
                self.write(target, *offset, &fill.bytes(), *how)
            }
            O::Read { target, offset, len } => {
                let opened = self.target(target, OFlags::RDONLY)?;
                let mut bytes = vec![0; *len];
                let n = rustix::io::pread(opened.fd(), &mut bytes, *offset)?;
                bytes.truncate(n);
                Ok(Answer::Bytes(bytes))
            }
            O::Truncate { target, len } => {
                match target {
                    Target::Handle(slot) => rustix::fs::ftruncate(&self.handle(*slot)?.fd, *len)?,
                    Target::Name(place) => raw::truncate(&self.path(place), *len)?,
                }
                Ok(Answer::Done)
            }
            O::Allocate { target, how, offset, len } => {
                let opened = self.target(target, OFlags::WRONLY)?;
                let flags = match how {
                    AllocateHow::Grow => FallocateFlags::empty(),
                    AllocateHow::KeepSize => FallocateFlags::KEEP_SIZE,
                    AllocateHow::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    AllocateHow::Zero => FallocateFlags::ZERO_RANGE,
                };
                rustix::fs::fallocate(opened.fd(), flags, *offset, *len)?;
                Ok(Answer::Done)
            }
            O::MapWrite { target, offset, fill } => self.map_write(target, *offset, &fill.bytes()),
            O::CopyRange { from, to, from_offset, to_offset, len } => {
                let from = self.target(from, OFlags::RDONLY)?;
                let to = self.target(to, OFlags::WRONLY)?;
                let (mut from_at, mut to_at) = (*from_offset, *to_offset);
                let mut done = 0;
                // One call may copy less than asked for; where it stops is not a promise. What
                // the copy itself adds to its own source is not read again.
                let size = statx_fd(from.fd())?.stx_size;
                let rest = usize::try_from(size.saturating_sub(*from_offset)).unwrap();
                let len = &rest.min(*len);
                loop {
                    let n = rustix::fs::copy_file_range(
                        from.fd(),
                        Some(&mut from_at),
                        to.fd(),
                        Some(&mut to_at),
                        *len - done,
                    )?;
                    done += n;
                    if n == 0 || done == *len {
                        break;
                    }
                }
                Ok(Answer::Count(done as u64))
            }
            O::Holes { target } => self.holes(target),

            O::Chmod { target, mode } => {
                let mode = Mode::from_raw_mode(*mode);
                match target {
                    Target::Handle(slot) => rustix::fs::fchmod(&self.handle(*slot)?.fd, mode)?,
                    Target::Name(place) => rustix::fs::chmod(self.path(place), mode)?,
                }
                Ok(Answer::Done)
            }
            O::Chown { target, uid, gid, follow } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                match target {
                    Target::Handle(slot) => rustix::fs::fchown(&self.handle(*slot)?.fd, uid, gid)?,
                    Target::Name(place) => {
                        let cwd = rustix::fs::CWD;
                        rustix::fs::chownat(cwd, self.path(place), uid, gid, no_follow(*follow))?;
                    }
                }
                Ok(Answer::Done)
            }
            O::SetTimes { target, access, modify, follow } => {
                let times = Timestamps {
                    last_access: timespec(*access),
                    last_modification: timespec(*modify),
                };
                match target {
                    Target::Handle(slot) => rustix::fs::futimens(&self.handle(*slot)?.fd, &times)?,
                    Target::Name(place) => {
                        let cwd = rustix::fs::CWD;
                        rustix::fs::utimensat(cwd, self.path(place), &times, no_follow(*follow))?;
                    }
                }
                Ok(Answer::Done)
            }
            O::SetXattr { target, name, value, how, follow } => {
                let flags = match how {
                    SetHow::Set => XattrFlags::empty(),
                    SetHow::Create => XattrFlags::CREATE,
                    SetHow::Replace => XattrFlags::REPLACE,
                };
                match (target, self.xattr_path(target)?) {
                    (Target::Handle(slot), _) => {
                        let fd = &self.handle(*slot)?.fd;
                        rustix::fs::fsetxattr(fd, name.0.as_slice(), &value.0, flags)?;
                    }
                    (Target::Name(_), (path, _)) if *follow => {
                        rustix::fs::setxattr(path, name.0.as_slice(), &value.0, flags)?;
                    }
                    (Target::Name(_), (path, _)) => {
                        rustix::fs::lsetxattr(path, name.0.as_slice(), &value.0, flags)?;
                    }
                }
                Ok(Answer::Done)
            }
            O::RemoveXattr { target, name, follow } => {
                match (target, self.xattr_path(target)?) {
                    (Target::Handle(slot), _) => {
                        rustix::fs::fremovexattr(&self.handle(*slot)?.fd, name.0.as_slice())?;
                    }
                    (Target::Name(_), (path, _)) if *follow => {
                        rustix::fs::removexattr(path, name.0.as_slice())?;
                    }
                    (Target::Name(_), (path, _)) => {
                        rustix::fs::lremovexattr(path, name.0.as_slice())?;
                    }
                }
                Ok(Answer::Done)
            }
            O::GetXattr { target, name, room } => {
                // A buffer of no bytes asks for the length alone.
                if *room == 0 {
                    let n = match (target, self.xattr_path(target)?) {
                        (Target::Handle(slot), _) => {
                            let fd = &self.handle(*slot)?.fd;
                            rustix::fs::fgetxattr_query(fd, name.0.as_slice())?
                        }
                        (Target::Name(_), (path, _)) => {
                            rustix::fs::lgetxattr_query(path, name.0.as_slice())?
                        }
                    };
                    return Ok(Answer::Count(n as u64));
                }
                let mut value = vec![0; *room];
                let n = match (target, self.xattr_path(target)?) {
                    (Target::Handle(slot), _) => {
                        let fd = &self.handle(*slot)?.fd;
                        rustix::fs::fgetxattr(fd, name.0.as_slice(), value.as_mut_slice())?
                    }
                    (Target::Name(_), (path, _)) => {
                        rustix::fs::lgetxattr(path, name.0.as_slice(), value.as_mut_slice())?
                    }
                };
                value.truncate(n);
                Ok(Answer::Bytes(value))
            }

            O::Open { slot, place, access, how } => {
                self.handles[*slot] = None;
                let flags = access_flags(*access) | how_flags(*how);
                let fd = self.open(place, flags, how.create.unwrap_or(0))?;
                self.handles[*slot] = Some(Handle { fd, readable: *access != Access::Write });
                Ok(Answer::Done)
            }
            O::Reopen { slot, from, access, truncate } => {
                let path = proc_path(self.handle(*from)?.fd.as_fd());
                let mut flags = access_flags(*access) | OFlags::CLOEXEC | OFlags::NONBLOCK;
                if *truncate {
                    flags |= OFlags::TRUNC;
                }
                let fd = rustix::fs::open(path, flags, Mode::empty())?;
                self.handles[*slot] = Some(Handle { fd, readable: *access != Access::Write });
                Ok(Answer::Done)
            }
            O::Close { slot } => {
                self.handles[*slot] = None;
                Ok(Answer::Done)
            }
            O::Inspect { slot } => self.inspect(*slot),
            O::Sync { slot, data_only } => {
                let fd = &self.handle(*slot)?.fd;
                if *data_only {
                    rustix::fs::fdatasync(fd)?
                } else {
                    rustix::fs::fsync(fd)?
                }
                Ok(Answer::Done)
            }

            O::Map { map, slot, len, write } => {
                self.maps[*map] = None;
                let mapping = Mapping::new(self.handle(*slot)?.fd.as_fd(), *len, *write)?;
                self.maps[*map] = Some(mapping);
                Ok(Answer::Done)
            }
            O::MapPoke { map, offset, fill, sync } => {
                let mapping = self.maps[*map].as_ref().ok_or(Errno::BADF)?;
                let bytes = fill.bytes();
                let len = bytes.len().min(mapping.len().saturating_sub(*offset));
                let poked = if len > 0 { mapping.poke(*offset, &bytes[..len]) } else { Ok(()) };
                // A store that runs past the end of the file has changed the pages before.
                if *sync {
                    mapping.sync()?;
                }
                poked.map(|()| Answer::Done)
            }
            O::MapPeek { map, offset, len } => {
                let mapping = self.maps[*map].as_ref().ok_or(Errno::BADF)?;
                let len = (*len).min(mapping.len().saturating_sub(*offset));
                if len == 0 {
                    return Ok(Answer::Bytes(Vec::new()));
                }
                let mut bytes = mapping.peek(*offset, len)?;
                // What was stored behind the end of the file lasts until its page is next written
                // back, whenever that is.
                let end = usize::try_from(statx_fd(mapping.file())?.stx_size).unwrap();
                bytes.iter_mut().skip(end.saturating_sub(*offset)).for_each(|byte| *byte = 0);
                Ok(Answer::Bytes(bytes))
            }
            O::Unmap { map } => {
                self.maps[*map] = None;
                Ok(Answer::Done)
            }

            O::List { place } => {
                let names = self.list(place)?;
                Ok(Answer::Names(names.into_iter().map(|(name, (kind, _))| (name, kind)).collect()))
            }
            O::OpenListing { slot, place } => {
                self.listings[*slot] = None;
                let fd = self.open(place, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
                self.listings[*slot] = Some(Listing { fd, cookie: 0, names: Vec::new() });
                Ok(Answer::Done)
            }
            O::ListSome { slot, seek } => {
                let listing = self.listings[*slot].as_mut().ok_or(Errno::BADF)?;
                if *seek {
                    // ext4 refuses to seek in a directory that was removed; the read tells.
                    let _sought = rustix::fs::seek(&listing.fd, SeekFrom::Start(listing.cookie));
                }
                let batch = listing.read_some(320)?;
                listing.names.extend(batch.into_iter().map(|(name, _, _)| name));
                Ok(Answer::Done)
            }
            O::ListRest { slot } => {
                let mut listing = self.listings[*slot].take().ok_or(Errno::BADF)?;
                loop {
                    let batch = listing.read_some(4096)?;
                    if batch.is_empty() {
                        return Ok(Answer::Listed(listing.names));
                    }
                    listing.names.extend(batch.into_iter().map(|(name, _, _)| name));
                }
            }
            O::EmptyWhileListing { place } => self.empty_while_listing(place),

            O::Forget => {
                let flags = rustix::mount::MountFlags::empty();
                // Drops the dentries of a mount; a plain directory answers EINVAL, which is fine.
                let _remounted = rustix::mount::mount_remount(&self.root, flags, "");
                Ok(Answer::Done)
            }
            O::Remount => {
                self.close_all();
                Ok(Answer::Done)
            }
        }
    }
}

impl World for HostTree {
    fn apply(&mut self, step: &Step) -> Outcome {
        self.enter();
        rustix::process::umask(Mode::from_raw_mode(step.umask));
        let identity = take_identity(step.who);
        let outcome = self.apply_as_root(&step.operation);
        drop(identity);
        outcome
    }

    fn observe(&mut self, place: &Place, look: Look) -> Result<(Observation, Identity), Errno> {
        self.enter();
        let path = self.path(place);
        let stat = statx_path(&path)?;
        let (mut seen, identity) = self.stat(&stat, generation(&path, false));
        if seen.kind == Kind::Symlink {
            seen.target = Some(rustix::fs::readlink(&path, Vec::new())?.into_bytes());
        }
        if look != Look::Stat {
            seen.xattrs = Some(path_xattrs(&path)?);
        }
        if look == Look::Content && seen.kind == Kind::Regular {
            let fd = self.open(place, OFlags::RDONLY | OFlags::NOFOLLOW, 0)?;
            seen.content = Some(read_all(fd.as_fd(), seen.size.unwrap_or_default())?);
        }
        Ok((seen, identity))
    }

    fn names(&mut self, place: &Place) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Errno> {
        self.enter();
        self.list(place)
    }

    fn identity(&mut self, slot: usize) -> Option<Identity> {
        let handle = self.handles[slot].as_ref()?;
        let stat = statx_fd(handle.fd.as_fd()).ok()?;
        let path = proc_path(handle.fd.as_fd());
        Some(self.stat(&stat, generation(&path, true)).1)
    }

    fn identity_at(&mut self, place: &Place) -> Option<Identity> {
        self.enter();
        let path = self.path(place);
        let stat = rustix::fs::stat(&path).ok()?;
        Some(Identity { inode: stat.st_ino, generation: generation(&path, true) })
    }

    fn close_all(&mut self) {
        self.handles = Default::default();
        self.maps = Default::default();
        self.listings = Default::default();
        rustix::process::chdir("/").expect("there is a root directory");
    }
}

impl Listing {
    /// One `getdents64` into a buffer of `room` bytes; empty at the end.
    fn read_some(&mut self, room: usize) -> Result<Vec<(Vec<u8>, Kind, u64)>, Errno> {
        // One entry of 255 bytes takes 280.
        let mut buffer = vec![MaybeUninit::uninit(); room.max(288)];
        let mut batch = Vec::new();
        loop {
            let mut dir = RawDir::new(&self.fd, &mut buffer);
            let mut any = false;
            while let Some(entry) = dir.next() {
                let entry = entry?;
                any = true;
                self.cookie = entry.next_entry_cookie();
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    batch.push((name.to_vec(), kind_of(entry.file_type()), entry.ino()));
                }
                if dir.is_buffer_empty() {
                    break;
                }
            }
            // A buffer may hold only `.` and `..`.
            if !any || !batch.is_empty() {
                return Ok(batch);
            }
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now_secs() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

enum Opened<'a> {
    Held(BorrowedFd<'a>),
    Fresh(OwnedFd),
}

impl Opened<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Opened::Held(fd) => *fd,
            Opened::Fresh(fd) => fd.as_fd(),
        }
    }
}

/// Acts as somebody until dropped. Only this thread changes.
pub(crate) struct Disguise(Who);

/// Takes on the identity of `who`; uid 0 stays in the real and saved ids, for the way back.
pub(crate) fn take_identity(who: Who) -> Disguise {
    let (uid, gid, groups): (u32, u32, &[u32]) = match who {
        Who::Root => return Disguise(who),
        Who::User => (1000, 1000, &[100]),
        Who::Nobody => (65534, 65534, &[]),
    };
    let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    rustix::thread::set_thread_groups(&groups).expect("root may set groups");
    rustix::thread::set_thread_res_gid(None, Gid::from_raw(gid), None).expect("root may setegid");
    rustix::thread::set_thread_res_uid(None, Uid::from_raw(uid), None).expect("root may seteuid");
    Disguise(who)
}

impl Drop for Disguise {
    fn drop(&mut self) {
        if self.0 != Who::Root {
            let back = "the saved ids are root's";
            rustix::thread::set_thread_res_uid(None, Uid::ROOT, None).expect(back);
            rustix::thread::set_thread_res_gid(None, Gid::ROOT, None).expect(back);
            rustix::thread::set_thread_groups(&[Gid::ROOT]).expect(back);
        }
    }
}

fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()))
}

fn no_follow(follow: bool) -> AtFlags {
    if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW }
}

fn access_flags(access: Access) -> OFlags {
    match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
        Access::ReadWrite => OFlags::RDWR,
    }
}

fn how_flags(how: OpenHow) -> OFlags {
    let mut flags = OFlags::empty();
    flags.set(OFlags::CREATE, how.create.is_some());
    flags.set(OFlags::EXCL, how.exclusive);
    flags.set(OFlags::TRUNC, how.truncate);
    flags.set(OFlags::APPEND, how.append);
    flags.set(OFlags::NOFOLLOW, how.no_follow);
    flags.set(OFlags::DIRECTORY, how.directory);
    flags
}

fn timespec(time: Time) -> Timespec {
    match time {
        Time::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Time::Keep => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Time::At(secs, nanos) => Timespec { tv_sec: secs, tv_nsec: nanos.into() },
    }
}

fn kind_of(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::Regular,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Character,
        FileType::BlockDevice => Kind::Block,
        FileType::Unknown => panic!("the kernel names every type here"),
    }
}

fn statx_path(path: &Path) -> Result<Statx, Errno> {
    let mask = StatxFlags::BASIC_STATS;
    rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, mask)
}

fn statx_fd(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    let mask = StatxFlags::BASIC_STATS;
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)
}

/// What tells a file from an earlier one of the same number: the rest of its file handle. A
/// birth time is too coarse for that. 0 where the file system gives no handles.
fn generation(path: &Path, follow: bool) -> u64 {
    match raw::name_to_handle(path, follow) {
        Ok(handle) => {
            let tail = handle.bytes.last_chunk::<4>();
            tail.map_or(0, |tail| u64::from(u32::from_le_bytes(*tail)))
        }
        Err(_) => 0,
    }
}

/// Reads to the end, which must be at `size`.
fn read_all(fd: BorrowedFd<'_>, size: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; usize::try_from(size).unwrap() + 1];
    let mut done = 0;
    loop {
        let n = rustix::io::pread(fd, &mut bytes[done..], done as u64)?;
        done += n;
        if n == 0 || done == bytes.len() {
            bytes.truncate(done);
            return Ok(bytes);
        }
    }
}

fn path_xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let mut list = Vec::with_capacity(4096);
    rustix::fs::llistxattr(path, spare_capacity(&mut list))?;
    let mut xattrs = BTreeMap::new();
    for name in list.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(4096);
        rustix::fs::lgetxattr(path, name, spare_capacity(&mut value))?;
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

fn fd_xattrs(fd: BorrowedFd<'_>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let mut list = Vec::with_capacity(4096);
    rustix::fs::flistxattr(fd, spare_capacity(&mut list))?;
    let mut xattrs = BTreeMap::new();
    for name in list.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(4096);
        rustix::fs::fgetxattr(fd, name, spare_capacity(&mut value))?;
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}
