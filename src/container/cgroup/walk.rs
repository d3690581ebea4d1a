//! Going through all groups beneath one, as deep as a tenant has nested them.
//!
//! A tenant who owns its part of a tree nests deeper than any path can say (`PATH_MAX`). So one
//! descriptor goes down by single names and up by `..`, which of a group is always the group above
//! it: the kernel moves none to another. However deep it goes, two descriptors are open.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::error::CgroupError;

/// How a directory is opened: what lies there is a group, or nothing of ours.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Longest path that is told whole, in bytes.
const TOLD_BYTES: usize = 300;

/// Which group is visited first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Each before those beneath it.
    TopDown,
    /// Each after those beneath it.
    BottomUp,
}

impl Order {
    pub(super) fn reversed(self) -> Self {
        match self {
            Self::TopDown => Self::BottomUp,
            Self::BottomUp => Self::TopDown,
        }
    }
}

/// One group, open.
pub(super) struct Group<'a> {
    directory: &'a OwnedFd,
    path: &'a Path,
}

impl Group<'_> {
    /// Where its file `name` is, for people: too long a path ends in `…`.
    pub(super) fn told(&self, name: &str) -> PathBuf {
        told(self.path).join(name)
    }

    /// The number that no other group of the hierarchy has as long as this one is there.
    pub(super) fn number(&self) -> Result<u64, CgroupError> {
        let found = rustix::fs::fstat(self.directory);
        Ok(found
            .map_err(|errno| CgroupError::system("look at", &told(self.path))(errno.into()))?
            .st_ino)
    }

    /// Reads a file of the kernel; none when it, or the group, is not there.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>, CgroupError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let read = || {
            let file = openat(self.directory, name, flags, Mode::empty())?;
            let mut text = String::new();
            File::from(file).read_to_string(&mut text)?;
            Ok(text)
        };
        match read() {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(CgroupError::system("read", &self.told(name))(error)),
        }
    }

    /// Writes a file of the kernel.
    pub(super) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(self.directory, name, flags, Mode::empty())?;
        File::from(file).write_all(text.as_bytes())
    }
}

/// The [`Group::number`] of the group at `path`; none if it is gone.
pub(super) fn number_of(path: &Path) -> Result<Option<u64>, CgroupError> {
    match rustix::fs::stat(path) {
        Ok(found) => Ok(Some(found.st_ino)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(CgroupError::system("look at", path)(errno.into())),
    }
}

/// Whether a file is not there, or its group was removed between opening and reading.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Visits the group at `top` and every one beneath it; none if it is gone.
pub(super) fn each(
    top: &Path,
    order: Order,
    mut visit: impl FnMut(&Group<'_>) -> Result<(), CgroupError>,
) -> Result<(), CgroupError> {
    walk(top, |at| match at {
        At::Entered(group) if order == Order::TopDown => visit(group),
        At::Leaving(group) if order == Order::BottomUp => visit(group),
        At::Entered(_) | At::Leaving(_) | At::Left { .. } => Ok(()),
    })
}

/// Removes every group beneath the one at `top`.
pub(super) fn remove_beneath(top: &Path) -> Result<(), CgroupError> {
    walk(top, |at| {
        let At::Left { above, name } = at else { return Ok(()) };
        match unlinkat(above.directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => {
                let path = above.told(&name.to_string_lossy());
                Err(CgroupError::system("remove the group", &path)(errno.into()))
            }
        }
    })
}

/// Where a walk is.
enum At<'a> {
    /// In a group, and was in none beneath it.
    Entered(&'a Group<'a>),
    /// In a group, and was in all beneath it.
    Leaving(&'a Group<'a>),
    /// Back in the group above the one called `name`.
    Left { above: &'a Group<'a>, name: &'a CStr },
}

/// The groups of one level that are still to be entered; the last one is the one it is in, once it
/// went down.
type Level = Vec<CString>;

fn walk(
    top: &Path,
    mut visit: impl FnMut(At<'_>) -> Result<(), CgroupError>,
) -> Result<(), CgroupError> {
    let mut directory = match rustix::fs::open(top, DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(CgroupError::system("open", top)(errno.into())),
    };
    // For people alone: nothing is opened by it.
    let mut path = top.to_owned();
    let mut levels: Vec<Level> = Vec::new();
    visit(At::Entered(&Group { directory: &directory, path: &path }))?;
    levels.push(beneath(&directory, &path)?);
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.last() else {
            visit(At::Leaving(&Group { directory: &directory, path: &path }))?;
            levels.pop();
            // Back from the one that was entered last; from the top there is nowhere to go.
            let Some(name) = levels.last_mut().and_then(Level::pop) else { break };
            let above = openat(&directory, c"..", DIRECTORY, Mode::empty());
            path.pop();
            directory =
                above.map_err(|errno| CgroupError::system("open", &told(&path))(errno.into()))?;
            visit(At::Left { above: &Group { directory: &directory, path: &path }, name: &name })?;
            continue;
        };
        match openat(&directory, name, DIRECTORY, Mode::empty()) {
            Ok(entered) => {
                path.push(name.to_string_lossy().as_ref());
                directory = entered;
            }
            // Gone meanwhile, or no group.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                level.pop();
                continue;
            }
            Err(errno) => {
                let path = told(&path).join(name.to_string_lossy().as_ref());
                return Err(CgroupError::system("open", &path)(errno.into()));
            }
        }
        visit(At::Entered(&Group { directory: &directory, path: &path }))?;
        levels.push(beneath(&directory, &path)?);
    }
    Ok(())
}

/// The names of the groups directly beneath an open one.
fn beneath(directory: &OwnedFd, path: &Path) -> Result<Level, CgroupError> {
    let failed = |errno: Errno| CgroupError::system("list", &told(path))(errno.into());
    let entries = match Dir::read_from(directory) {
        Ok(entries) => entries,
        Err(Errno::NOENT) => return Ok(Level::new()),
        Err(errno) => return Err(failed(errno)),
    };
    let mut names = Level::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::NOENT) => break,
            Err(errno) => return Err(failed(errno)),
        };
        let name = entry.file_name();
        let group = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if group && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// `path`, or what a person can read of it.
fn told(path: &Path) -> PathBuf {
    if path.as_os_str().len() <= TOLD_BYTES {
        return path.to_owned();
    }
    let mut told = PathBuf::new();
    for part in path.components() {
        if told.as_os_str().len() + part.as_os_str().len() > TOLD_BYTES {
            break;
        }
        told.push(part);
    }
    told.join("…")
}
