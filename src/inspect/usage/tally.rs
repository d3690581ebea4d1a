//! What directories and files take: blocks on the disk, pages in memory.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::ops::AddAssign;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::sys::cache;

/// What something takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Bytes of its blocks.
    pub(super) disk: u64,
    /// Bytes in the page cache.
    pub(super) resident: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.disk += other.disk;
        self.resident += other.resident;
    }
}

/// Inodes that were counted already: a file with several names counts where it is met first.
pub(super) type Seen = HashSet<(u64, u64)>;

/// What the file or directory itself takes, without what is in it; nothing if it is gone.
pub(super) fn of_one(path: &Path, seen: &mut Seen) -> io::Result<(Cost, Option<Metadata>)> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((Cost::default(), None));
        }
        Err(error) => return Err(error),
    };
    if !seen.insert((metadata.dev(), metadata.ino())) {
        return Ok((Cost::default(), None));
    }
    let resident = if metadata.is_file() { resident(path)? } else { 0 };
    Ok((Cost { disk: metadata.blocks() * 512, resident }, Some(metadata)))
}

/// What `path` and everything beneath it takes, on its own file system only.
///
/// `each` is told what every inode takes. What was counted before or goes meanwhile counts
/// nothing; what lies beneath a directory that was counted before is left out with it.
pub(super) fn of_all(
    path: &Path,
    seen: &mut Seen,
    each: &mut dyn FnMut(&Path, Cost),
) -> io::Result<Cost> {
    let mut sum = Cost::default();
    let mut device = None;
    let mut todo: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let (cost, metadata) = of_one(&path, seen)?;
        let Some(metadata) = metadata else { continue };
        if *device.get_or_insert(metadata.dev()) != metadata.dev() {
            continue;
        }
        sum += cost;
        each(&path, cost);
        if metadata.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => {
                    for entry in entries {
                        todo.push(entry?.path());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(sum)
}

/// Bytes of a regular file that are in the page cache. Opening it changes nothing about it.
fn resident(path: &Path) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => cache::resident_bytes(file.as_fd()),
        // It went, or something else has its name by now.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}
