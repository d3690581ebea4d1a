//! Going through everything beneath a directory, however deep it is nested.
//!
//! A tenant nests deeper than any path can say (`PATH_MAX`), and moves directories meanwhile. So
//! every step is by a single name below an open directory, no link is followed, and other file
//! systems are left out. Directories near the top stay open; those far below are found again by
//! `..` if that is still the one it was, else by their handle. Memory grows with the depth and
//! with the directories that are still to be entered.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::handle::FileHandle;

/// How a directory is opened.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Directories kept open at once.
const KEPT_OPEN: usize = 64;

/// Something that the walk came to.
pub struct Found<'a> {
    directory: BorrowedFd<'a>,
    name: &'a OsStr,
    /// Where it is, for people and for what is known to be near the top: it may be longer than
    /// what the kernel takes.
    pub path: &'a Path,
    /// What the host says of it.
    pub status: Stat,
}

impl Found<'_> {
    /// The device and the number of the inode.
    pub fn identity(&self) -> (u64, u64) {
        identity(&self.status)
    }

    /// Bytes of its blocks.
    pub fn disk_bytes(&self) -> u64 {
        u64::try_from(self.status.st_blocks).unwrap_or(0).saturating_mul(512)
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        is_directory(&self.status)
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        FileType::from_raw_mode(self.status.st_mode) == FileType::RegularFile
    }

    /// Whether it could be met a second time: by another name, or moved ahead of the walk.
    pub fn may_recur(&self) -> bool {
        self.is_directory() || self.status.st_nlink > 1
    }

    /// Opens it to be read; none if it went, or something else has its name by now.
    ///
    /// # Errors
    /// The host's errno.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(self.directory, self.name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A directory whose listing is known.
struct Level {
    kept: Option<Arc<OwnedFd>>,
    identity: (u64, u64),
    handle: Option<FileHandle>,
    /// The directories in it that are still to be entered.
    left: Vec<Box<OsStr>>,
}

/// Visits `top` and everything beneath it on its own file system, each directory before what is
/// in it. A directory of which `visit` says no is not entered. What goes meanwhile is left out.
///
/// # Errors
/// Those of `visit`; the host's errno if something cannot be looked at.
pub fn walk(top: &Path, visit: &mut dyn FnMut(&Found<'_>) -> io::Result<bool>) -> io::Result<()> {
    let Some(status) = gone(statat(CWD, top, AtFlags::SYMLINK_NOFOLLOW))? else { return Ok(()) };
    let device = status.st_dev;
    let entered = Found { directory: CWD, name: top.as_os_str(), path: top, status };
    if !visit(&entered)? || !is_directory(&status) {
        return Ok(());
    }
    let Some(opened) = gone(openat(CWD, top, DIRECTORY, Mode::empty()))? else { return Ok(()) };
    let mut at = Arc::new(opened);
    let mut path = top.to_owned();
    let mut levels = vec![list(&at, 0, device, &mut path, visit)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.left.pop() else {
            levels.pop();
            path.pop();
            let mount = levels.first().and_then(|top| top.kept.clone());
            if let Some(above) = levels.last_mut() {
                match above.find(&at, mount.as_deref()) {
                    Some(found) => at = found,
                    // Removed, or moved where no handle leads back from.
                    None => above.left.clear(),
                }
            }
            continue;
        };
        let Some(entered) = gone(openat(&*at, &*name, DIRECTORY, Mode::empty()))? else {
            continue;
        };
        if fstat(&entered)?.st_dev != device {
            continue;
        }
        path.push(&*name);
        at = Arc::new(entered);
        levels.push(list(&at, levels.len(), device, &mut path, visit)?);
    }
    Ok(())
}

impl Level {
    /// The directory again, from one that was in it.
    fn find(&self, below: &OwnedFd, mount: Option<&OwnedFd>) -> Option<Arc<OwnedFd>> {
        if let Some(kept) = &self.kept {
            return Some(Arc::clone(kept));
        }
        if let Ok(above) = openat(below, c"..", DIRECTORY, Mode::empty())
            && fstat(&above).is_ok_and(|status| identity(&status) == self.identity)
        {
            return Some(Arc::new(above));
        }
        let found = self.handle.as_ref()?.open(mount?).ok()?;
        openat(&found, c".", DIRECTORY, Mode::empty()).ok().map(Arc::new)
    }
}

/// Visits what is directly in an open directory, `depth` below the top.
fn list(
    directory: &Arc<OwnedFd>,
    depth: usize,
    device: u64,
    path: &mut PathBuf,
    visit: &mut dyn FnMut(&Found<'_>) -> io::Result<bool>,
) -> io::Result<Level> {
    let near = depth < KEPT_OPEN;
    let mut level = Level {
        kept: near.then(|| Arc::clone(directory)),
        identity: identity(&fstat(directory)?),
        handle: if near { None } else { FileHandle::of(directory).ok() },
        left: Vec::new(),
    };
    // Removed since it was opened: there is nothing in it.
    let Some(entries) = gone(Dir::read_from(directory))? else { return Ok(level) };
    for entry in entries {
        let Some(entry) = gone(entry)? else { break };
        let name: &CStr = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Some(status) = gone(statat(directory, name, AtFlags::SYMLINK_NOFOLLOW))? else {
            continue;
        };
        if status.st_dev != device {
            continue;
        }
        let name = OsStr::from_bytes(name.to_bytes());
        path.push(name);
        let enter = visit(&Found { directory: directory.as_fd(), name, path, status });
        path.pop();
        if enter? && is_directory(&status) {
            level.left.push(name.into());
        }
    }
    Ok(level)
}

fn identity(status: &Stat) -> (u64, u64) {
    (status.st_dev, status.st_ino)
}

fn is_directory(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::Directory
}

/// Nothing where a name went, or something else has it by now.
fn gone<T>(found: Result<T, Errno>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
