//! What directories cost: bytes on the disk, and bytes of their files in the page cache.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::Advice;

use crate::sys::cache;
use crate::sys::descent::walk;

/// Bytes of memory that this process holds alone: `RssAnon` of proc(5); 0 where that cannot be read.
#[must_use]
pub fn own_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Whether files under `path` live in memory only, so that a page cache figure says nothing.
///
/// # Errors
/// When `path` cannot be looked at.
pub fn is_memory_file_system(path: &Path) -> io::Result<bool> {
    /// The magic numbers of statfs(2).
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(path)?.f_type;
    // The field's type differs between architectures; the magic numbers fit all of them.
    Ok(u64::try_from(kind).is_ok_and(|kind| kind == TMPFS || kind == RAMFS))
}

/// Bytes that the blocks of everything under `path` take on the disk, each inode once.
///
/// # Errors
/// When something cannot be looked at.
pub fn disk_bytes(path: &Path) -> io::Result<u64> {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    walk(path, &mut |found| {
        let first = !found.may_recur() || seen.insert(found.identity());
        if first {
            bytes += found.disk_bytes();
        }
        Ok(first)
    })?;
    Ok(bytes)
}

/// Bytes of the regular files under `path` that the page cache holds, each inode once.
///
/// On a mounted root this counts what the root's own cache holds; what passes through to
/// objects is counted under the store, once for all roots.
///
/// # Errors
/// When something cannot be opened.
pub fn resident_bytes(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for_each_file(path, &mut |file| {
        bytes += cache::resident_bytes(file.as_fd())?;
        Ok(())
    })?;
    Ok(bytes)
}

/// Reads every regular file under `path` from end to end.
///
/// # Errors
/// When something cannot be read.
pub fn read_all(path: &Path) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    for_each_file(path, &mut |file| {
        while file.read(&mut buffer)? > 0 {}
        Ok(())
    })
}

/// Asks the kernel to drop the regular files under `path` from the page cache.
///
/// What is dirty or mapped stays, so `path` is synced first.
///
/// # Errors
/// When something cannot be opened.
pub fn drop_cached(path: &Path) -> io::Result<()> {
    rustix::fs::syncfs(File::open(path)?)?;
    for_each_file(path, &mut |file| {
        Ok(rustix::fs::fadvise(file.as_fd(), 0, None, Advice::DontNeed)?)
    })
}

/// Opens each regular file under `path` once, whatever its number of names.
fn for_each_file(path: &Path, act: &mut dyn FnMut(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut seen = HashSet::new();
    walk(path, &mut |found| {
        let first = !found.may_recur() || seen.insert(found.identity());
        if first
            && found.is_file()
            && let Some(file) = found.open()?
        {
            act(&mut File::from(file))?;
        }
        Ok(first)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_with_two_names_counts_once() {
        let scratch = tempfile::tempdir_in("/var/tmp").expect("a scratch directory");
        let empty = disk_bytes(scratch.path()).expect("looked at");
        fs::write(scratch.path().join("one"), vec![7; 1 << 20]).expect("written");
        fs::hard_link(scratch.path().join("one"), scratch.path().join("two")).expect("linked");
        let grown = disk_bytes(scratch.path()).expect("looked at") - empty;
        assert!((1 << 20..1 << 21).contains(&grown), "{grown}");
    }

    #[test]
    fn what_lies_deeper_than_any_path_counts() {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        let scratch = tempfile::tempdir_in("/var/tmp").expect("a scratch directory");
        let empty = disk_bytes(scratch.path()).expect("looked at");
        let mut dir = rustix::fs::open(scratch.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..2500 {
            for name in [c"a", c"b"] {
                mkdirat(&dir, name, Mode::RWXU).unwrap();
            }
            // What is found in listing order before the way down, and after it.
            for name in [c"1", c"2"] {
                let side = openat(&dir, name, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
                rustix::io::write(side.unwrap(), &[7; 4096]).unwrap();
            }
            dir = openat(&dir, c"a", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let bottom = openat(&dir, c"file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        File::from(bottom).write_all(&[7; 1 << 20]).unwrap();
        drop_cached(scratch.path()).expect("written");
        let grown = disk_bytes(scratch.path()).expect("looked at") - empty;
        let least = (1 << 20) + 2500 * 2 * 4096;
        // A directory takes a block, or none of its own.
        assert!((least..least + (1 << 20) + 5000 * 4096 * 2).contains(&grown), "{grown}");
        // remove_dir_all of the standard library goes by descriptors, one a level.
        assert!(
            std::process::Command::new("rm")
                .arg("-rf")
                .arg(scratch.path())
                .status()
                .unwrap()
                .success()
        );
    }

    #[test]
    fn the_page_cache_is_counted_and_dropped() {
        let scratch = tempfile::tempdir_in("/var/tmp").expect("a scratch directory");
        fs::write(scratch.path().join("file"), vec![7; 1 << 20]).expect("written");
        assert!(!is_memory_file_system(scratch.path()).expect("looked at"));
        drop_cached(scratch.path()).expect("dropped");
        assert_eq!(resident_bytes(scratch.path()).expect("counted"), 0);
        read_all(scratch.path()).expect("read");
        assert_eq!(resident_bytes(scratch.path()).expect("counted"), 1 << 20);
    }
}
