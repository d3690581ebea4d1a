//! Where a run makes what it measures: fresh names, what they take on the disk, and taking
//! them away again.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::statvfs;
use rustix::mount::{UnmountFlags, unmount};

use super::error::{BenchError, Result};
use super::run::{run, tool};
use crate::host::mount_table;
use crate::sys::flags::set_immutable;

/// A directory of its own, where everything gets a name that nothing had before. Dropping it
/// unmounts whatever is mounted in it and removes it.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    next: std::cell::Cell<u32>,
}

impl Place {
    /// Makes `base`/`name`, which must not exist.
    pub(super) fn new(base: &Path, name: &str) -> Result<Self> {
        let path = base.join(name);
        fs::create_dir(&path).map_err(BenchError::at("make", &path))?;
        Ok(Self { path, next: std::cell::Cell::new(0) })
    }

    pub(super) fn top(&self) -> &Path {
        &self.path
    }

    /// A path that nothing has yet.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.next.set(self.next.get() + 1);
        self.path.join(format!("{name}{}", self.next.get()))
    }

    /// A new directory.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path).map_err(BenchError::at("make", &path))?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        unmount_beneath(&self.path);
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(%error, "something of the benchmark stays");
        }
    }
}

/// Detaches everything mounted at or beneath `top`, last mounted first.
pub(super) fn unmount_beneath(top: &Path) {
    let Ok(all) = mount_table::read() else { return };
    for entry in all.iter().rev().filter(|entry| entry.mountpoint.starts_with(top)) {
        if let Err(error) = unmount(&entry.mountpoint, UnmountFlags::DETACH) {
            tracing::warn!(%error, mountpoint = ?entry.mountpoint, "cannot unmount");
        }
    }
}

/// Threads that remove files at once. Where each removal waits for the disk (ext4 without a journal
/// and with `discard` does, a millisecond each), one alone takes longer than the measurement.
const REMOVERS: usize = 8;

/// Removes a directory with everything in it, objects of stores too, which are immutable.
///
/// # Errors
/// What the system said, about the first name that stays.
pub(super) fn remove_tree(top: &Path) -> Result<()> {
    let mut directories = vec![top.to_owned()];
    let mut at = 0;
    while let Some(directory) = directories.get(at).cloned() {
        at += 1;
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(BenchError::at("list", &directory))?,
        };
        for entry in entries {
            let entry = entry.map_err(BenchError::at("list", &directory))?;
            if entry.file_type().map_err(BenchError::at("look at", entry.path()))?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..REMOVERS {
            scope.spawn(|| {
                while let Some(directory) = directories.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = remove_files(directory) {
                        failed.lock().get_or_insert(error);
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Some(error) => Err(error),
        None => match fs::remove_dir_all(top) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(BenchError::at("remove", top)),
        },
    }
}

/// Removes what lies in a directory and is none itself.
fn remove_files(directory: &Path) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(BenchError::at("list", directory))?,
    };
    for entry in entries {
        let entry = entry.map_err(BenchError::at("list", directory))?;
        let path = entry.path();
        if entry.file_type().map_err(BenchError::at("look at", &path))?.is_dir() {
            continue;
        }
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let file = File::open(&path).map_err(BenchError::at("open", &path))?;
                set_immutable(file.as_fd(), false).map_err(BenchError::at("unlock", &path))?;
                fs::remove_file(&path)
            }
            removed => removed,
        };
        removed.map_err(BenchError::at("remove", path))?;
    }
    Ok(())
}

/// What something takes on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Bytes of all blocks.
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, more: Self) {
        self.bytes += more.bytes;
        self.inodes += more.inodes;
    }
}

/// What everything at and beneath `top` takes, each inode once, by `st_blocks`; on its own
/// file system only.
pub(super) fn taken(top: &Path) -> Result<Taken> {
    let mut seen = HashSet::new();
    let mut sum = Taken::default();
    walk(top, &mut |_, metadata| {
        if metadata.nlink() < 2 || metadata.is_dir() || seen.insert(metadata.ino()) {
            sum += Taken { bytes: metadata.blocks() * 512, inodes: 1 };
        }
        Ok(())
    })?;
    Ok(sum)
}

/// Bytes of the blocks that every distinct content beneath the trees takes once.
pub(super) fn distinct_bytes(trees: &[&Path]) -> Result<u64> {
    let mut contents: HashMap<blake3::Hash, u64> = HashMap::new();
    for tree in trees {
        let mut seen = HashSet::new();
        walk(tree, &mut |path, metadata| {
            if metadata.is_file() && metadata.len() > 0 && seen.insert(metadata.ino()) {
                let mut hasher = blake3::Hasher::new();
                hasher.update_reader(File::open(path)?)?;
                contents.entry(hasher.finalize()).or_insert(metadata.blocks() * 512);
            }
            Ok(())
        })?;
    }
    Ok(contents.values().sum())
}

/// Visits `top` and everything beneath it, on its own file system only.
pub(super) fn walk(
    top: &Path,
    visit: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<()>,
) -> Result<()> {
    let look = |path: &Path| fs::symlink_metadata(path).map_err(BenchError::at("look at", path));
    let device = look(top)?.dev();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = look(&path)?;
        if metadata.dev() != device {
            continue;
        }
        visit(&path, &metadata)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).map_err(BenchError::at("list", &path))? {
                todo.push(entry.map_err(BenchError::at("list", &path))?.path());
            }
        }
    }
    Ok(())
}

/// What a file system has left for root, and what it has in use (statvfs(3)).
pub(super) fn room(path: &Path) -> Result<(Taken, Taken)> {
    let room = statvfs(path).map_err(BenchError::at("ask for the room of", path))?;
    let free = Taken { bytes: room.f_bfree * room.f_frsize, inodes: room.f_ffree };
    let all = Taken { bytes: room.f_blocks * room.f_frsize, inodes: room.f_files };
    let used = Taken {
        bytes: all.bytes.saturating_sub(free.bytes),
        inodes: all.inodes.saturating_sub(free.inodes),
    };
    // File systems that make inodes as they need them count none.
    let inodes = if room.f_files == 0 { u64::MAX } else { room.f_favail };
    Ok((Taken { bytes: room.f_bavail * room.f_frsize, inodes }, used))
}

/// Makes dirty pages of the file system of `path` clean, so that nobody's figures pay for them.
pub(super) fn settle(path: &Path) -> Result<()> {
    let dir = File::open(path).map_err(BenchError::at("open", path))?;
    Ok(rustix::fs::syncfs(dir)?)
}

/// What the file system under `path` is called.
pub(super) fn file_system(path: &Path) -> String {
    let kind = mount_table::read().ok().and_then(|entries| {
        let path = path.canonicalize().ok()?;
        let over = entries.into_iter().filter(|entry| path.starts_with(&entry.mountpoint));
        over.max_by_key(|entry| entry.mountpoint.as_os_str().len()).map(|entry| entry.fs_type)
    });
    kind.unwrap_or_else(|| "unknown".to_owned())
}

/// An xfs with reflinks in a file of this size, mounted until dropped.
#[derive(Debug)]
pub(super) struct ReflinkDisk {
    mountpoint: PathBuf,
}

impl ReflinkDisk {
    /// # Errors
    /// [`BenchError::Program`] where xfs, mkfs.xfs or loop devices are missing.
    pub(super) fn new(place: &Place, bytes: u64) -> Result<Self> {
        let image = place.path("xfs.img");
        let file = File::create_new(&image).map_err(BenchError::at("make", &image))?;
        // The least that mkfs.xfs takes.
        file.set_len(bytes.max(512 << 20)).map_err(BenchError::at("make", &image))?;
        run(tool("mkfs.xfs").args(["-q", "-K"]).arg(&image))?;
        let mountpoint = place.directory("xfs")?;
        run(tool("mount").args(["-o", "loop"]).arg(&image).arg(&mountpoint))?;
        Ok(Self { mountpoint })
    }

    pub(super) fn path(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for ReflinkDisk {
    fn drop(&mut self) {
        unmount_beneath(&self.mountpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_goes_with_all_that_is_in_it() {
        let base = tempfile::tempdir_in("/var/tmp").expect("a scratch directory");
        let place = Place::new(base.path(), "place").expect("made");
        let path = place.path("file");
        fs::write(&path, b"text").expect("written");
        for number in 0..50 {
            let directory = place.directory("inner").expect("made").join("deep/deeper");
            fs::create_dir_all(&directory).expect("made");
            fs::write(directory.join(number.to_string()), b"text").expect("written");
            std::os::unix::fs::symlink("/", directory.join("link")).expect("linked");
        }
        let file = File::open(&path).expect("opened");
        set_immutable(file.as_fd(), true).expect("flagged");
        drop((place, file));
        assert_eq!(fs::read_dir(base.path()).expect("listed").count(), 0);
    }

    #[test]
    fn distinct_contents_count_once() {
        let base = tempfile::tempdir_in("/var/tmp").expect("a scratch directory");
        for (name, letter) in [("one", 1), ("two", 1), ("three", 3)] {
            fs::write(base.path().join(name), vec![letter; 8192]).expect("written");
        }
        assert_eq!(distinct_bytes(&[base.path()]).expect("read"), 2 * 8192);
        let sum = taken(base.path()).expect("looked at");
        assert_eq!(sum.inodes, 4);
        assert!(sum.bytes >= 3 * 8192);
    }
}
