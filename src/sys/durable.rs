//! The one way a small file comes into being, whole or not at all; and data before metadata.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

/// What becomes of a file that already has the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and the call fails with `EEXIST`.
    Keep,
    /// The new file takes its place in one step.
    Replace,
}

/// Writes `content` as the file `name` in `dir`, mode 0600.
///
/// Stage, write, fsync, rename, fsync of the directory, in that order: a bare rename of
/// unsynced data is a whole name with zero bytes after a power cut. On return the file is
/// durable; after a crash before that, `dir` has the old file or the new one, and
/// perhaps a staged one that [`is_staged`] knows.
///
/// # Errors
/// `EEXIST` under [`Existing::Keep`]; else whatever the file system answers. Nothing staged
/// is left behind by an error.
pub fn write_file(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    content: &[u8],
    existing: Existing,
) -> io::Result<()> {
    let staged = staged_name(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, &staged, flags, Mode::RUSR | Mode::WUSR)?;
    let write = || {
        let mut file = File::from(file);
        file.write_all(content)?;
        file.sync_all()?;
        let flags = match existing {
            Existing::Keep => RenameFlags::NOREPLACE,
            Existing::Replace => RenameFlags::empty(),
        };
        rustix::fs::renameat_with(dir, &staged, dir, name, flags)?;
        Ok::<(), io::Error>(())
    };
    if let Err(error) = write() {
        // The first error is the one that matters; a leftover is recognised later.
        let _unstaged = rustix::fs::unlinkat(dir, &staged, AtFlags::empty());
        return Err(error);
    }
    Ok(rustix::fs::fsync(dir)?)
}

/// Writes the data of `file` to its disk and waits for it; metadata may stay in memory.
///
/// For what must be on the disk before a change of metadata says that it is there: a journal
/// commits that change after this data, and flushes the disk's own cache in between. Only a
/// later fsync(2) makes either durable.
///
/// # Errors
/// Those of writing: the data may not be there.
pub fn write_out(file: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes integers and an open descriptor, and touches no memory of ours.
    let answer = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes back all that the file system of a directory holds in memory, and waits for it.
///
/// # Errors
/// Those of opening it; those of writing, of anything on that file system.
pub fn sync_file_system(directory: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    Ok(rustix::fs::syncfs(directory)?)
}

/// Whether a directory entry is what an interrupted [`write_file`] left behind.
#[must_use]
pub fn is_staged(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(b".") && bytes.ends_with(b".staged")
}

/// Unique among the live processes of this host: threads get numbers, processes pids.
fn staged_name(name: &OsStr) -> OsString {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // The time tells this process from a dead one that had its pid and left its file.
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let mut staged = OsString::from(".");
    staged.push(name);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    staged.push(format!(".{}-{since:x}-{number}.staged", std::process::id()));
    staged
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_is_replaced_only_when_asked_and_nothing_staged_remains() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = File::open(scratch.path()).expect("opens");
        let name = OsStr::new("meta.json");
        write_file(dir.as_fd(), name, b"one", Existing::Keep).expect("fresh");
        let kept = write_file(dir.as_fd(), name, b"two", Existing::Keep).expect_err("exists");
        assert_eq!(kept.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(scratch.path().join(name)).expect("whole"), b"one");
        write_file(dir.as_fd(), name, b"three", Existing::Replace).expect("replaced");
        assert_eq!(std::fs::read(scratch.path().join(name)).expect("whole"), b"three");
        assert_eq!(std::fs::read_dir(scratch.path()).expect("listed").count(), 1);
        assert!(is_staged(&staged_name(name)) && !is_staged(name));
    }
}
