//! What directories and files take: blocks on the disk, pages in memory.

use std::collections::HashSet;
use std::io;
use std::ops::AddAssign;
use std::os::fd::AsFd;
use std::path::Path;

use crate::sys::cache;
use crate::sys::descent::{Found, walk};

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
pub(super) fn of_one(path: &Path, seen: &mut Seen) -> io::Result<Cost> {
    let mut sum = Cost::default();
    walk(path, &mut |found| {
        sum += of(found, seen)?.unwrap_or_default();
        Ok(false)
    })?;
    Ok(sum)
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
    walk(path, &mut |found| {
        let Some(cost) = of(found, seen)? else { return Ok(false) };
        sum += cost;
        each(found.path, cost);
        Ok(true)
    })?;
    Ok(sum)
}

/// What one inode takes; none if it was counted before.
fn of(found: &Found<'_>, seen: &mut Seen) -> io::Result<Option<Cost>> {
    if !seen.insert(found.identity()) {
        return Ok(None);
    }
    // Opening it changes nothing about it.
    let file = if found.is_file() { found.open()? } else { None };
    let resident = match file {
        Some(file) => cache::resident_bytes(file.as_fd())?,
        None => 0,
    };
    Ok(Some(Cost { disk: found.disk_bytes(), resident }))
}
