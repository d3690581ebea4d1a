//! Operations on an inode through an `O_PATH` descriptor.
//!
//! An `O_PATH` descriptor names an inode without opening it: no side effect on devices
//! and fifos, no open mode that could count as a writer. `/proc/self/fd/N` reaches the
//! inode itself, a symlink too, because a magic link is followed exactly once.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Largest xattr value and largest xattr list the kernel passes. xattr(7).
const XATTR_LIMIT_BYTES: usize = 65_536;

/// What stat(2) tells of a host inode, in fixed-width types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Host inode number.
    pub ino: u64,
    /// File type and permission bits.
    pub mode: u32,
    /// Host link count.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, libc encoding.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte units.
    pub blocks: u64,
    /// Last access: seconds, nanoseconds.
    pub atime: (i64, u32),
    /// Last modification: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Last change: seconds, nanoseconds.
    pub ctime: (i64, u32),
}

impl From<rustix::fs::Statx> for Status {
    fn from(raw: rustix::fs::Statx) -> Self {
        let time = |t: rustix::fs::StatxTimestamp| (t.tv_sec, t.tv_nsec);
        Self {
            ino: raw.stx_ino,
            mode: u32::from(raw.stx_mode),
            nlink: raw.stx_nlink,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            rdev: rustix::fs::makedev(raw.stx_rdev_major, raw.stx_rdev_minor),
            size: raw.stx_size,
            blocks: raw.stx_blocks,
            atime: time(raw.stx_atime),
            mtime: time(raw.stx_mtime),
            ctime: time(raw.stx_ctime),
        }
    }
}

/// stat(2) of the inode `fd` names.
pub fn status(fd: impl AsFd) -> Result<Status, Errno> {
    let raw = rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
        rustix::fs::StatxFlags::BASIC_STATS,
    )?;
    Ok(raw.into())
}

/// When the inode was made, where the file system keeps that: seconds, nanoseconds.
pub fn birth(fd: impl AsFd) -> Result<Option<(i64, u32)>, Errno> {
    let wanted = rustix::fs::StatxFlags::BTIME;
    let raw = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, wanted)?;
    let kept = raw.stx_mask & wanted.bits() != 0;
    Ok(kept.then_some((raw.stx_btime.tv_sec, raw.stx_btime.tv_nsec)))
}

/// Opens `name` in `dir` as `O_PATH`, never following a symlink.
pub fn open_path(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens the inode behind an `O_PATH` descriptor with real access.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(proc_path(fd.as_fd()), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Sets permission bits, set-id bits and the sticky bit.
pub fn set_mode(fd: impl AsFd, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmod(proc_path(fd.as_fd()), Mode::from_raw_mode(mode & 0o7777))
}

/// Sets owner and group; `None` leaves one alone. The host strips set-id bits and file
/// capabilities as chown(2) says.
pub fn set_owner(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    rustix::fs::chownat(
        fd,
        c"",
        uid.map(Uid::from_raw),
        gid.map(Gid::from_raw),
        AtFlags::EMPTY_PATH,
    )
}

/// A time to set: seconds and nanoseconds.
pub fn timespec(time: (i64, u32)) -> Timespec {
    Timespec { tv_sec: time.0, tv_nsec: i64::from(time.1) }
}

/// Leaves a time as it is. utimensat(2).
pub const OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
/// Sets a time to the host's present. utimensat(2).
pub const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };

/// Sets access and modification time.
pub fn set_times(fd: impl AsFd, atime: Timespec, mtime: Timespec) -> Result<(), Errno> {
    let times = Timestamps { last_access: atime, last_modification: mtime };
    rustix::fs::utimensat(rustix::fs::CWD, proc_path(fd.as_fd()), &times, AtFlags::empty())
}

/// Reads one xattr; `None` when the inode has no such attribute.
pub fn xattr(fd: impl AsFd, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let path = proc_path(fd.as_fd());
    let mut value = vec![0; 256];
    loop {
        match rustix::fs::getxattr(path.as_str(), name, value.as_mut_slice()) {
            Ok(len) => {
                value.truncate(len);
                return Ok(Some(value));
            }
            Err(Errno::NODATA) => return Ok(None),
            Err(Errno::RANGE) if value.len() < XATTR_LIMIT_BYTES => {
                value.resize(XATTR_LIMIT_BYTES, 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// Writes one xattr.
pub fn set_xattr(fd: impl AsFd, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<(), Errno> {
    rustix::fs::setxattr(proc_path(fd.as_fd()), name, value, flags)
}

/// Removes one xattr; `ENODATA` when there is none.
pub fn remove_xattr(fd: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::removexattr(proc_path(fd.as_fd()), name)
}

/// The names of all xattrs.
pub fn xattr_names(fd: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let path = proc_path(fd.as_fd());
    let mut list = vec![0; 1024];
    let len = loop {
        match rustix::fs::listxattr(path.as_str(), list.as_mut_slice()) {
            Ok(len) => break len,
            Err(Errno::RANGE) if list.len() < XATTR_LIMIT_BYTES => {
                list.resize(XATTR_LIMIT_BYTES, 0);
            }
            // A file system without xattrs has none to list.
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
    };
    list.truncate(len);
    Ok(list.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Gives the inode one more name. linkat(2) with `AT_EMPTY_PATH`.
pub fn link(fd: impl AsFd, dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::linkat(fd, c"", dir, name, AtFlags::EMPTY_PATH)
}

/// The target of a symlink.
pub fn symlink_target(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    rustix::fs::readlinkat(fd, c"", Vec::new()).map(std::ffi::CString::into_bytes)
}

/// Where the host says the inode is now, for a person to read; an inode that was found by its
/// handle, or has no name, may have a useless one.
pub fn place(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    let path = proc_path(fd.as_fd());
    rustix::fs::readlink(path, Vec::new()).map(std::ffi::CString::into_bytes)
}

/// True if the mode says directory.
pub fn is_directory(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFDIR
}
