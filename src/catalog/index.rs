//! The database of the index: sled, opened, asked and closed.
//!
//! ```text
//! index/      its flock (exclusive) says: the database is in use
//! index/db/   sled 0.34: "format" → FORMAT; tree `private`, see `private.rs`
//! ```
//! sled 0.34 panics where it meets some kinds of damage, and locks the database for itself; so
//! all calls run under `catch_unwind`, and our own lock comes first. Whatever goes wrong, the
//! database is deleted, and what it knew is found out again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat, stat};
use rustix::io::Errno;

/// Version of the keys and values.
const FORMAT: &[u8] = b"mica-index-2";

/// Memory that sled may use for what it reads, in bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// How often a lock that is taken is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// What can go wrong while the database is open. It is deleted then, when it is closed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// sled says so.
    #[error("the index is broken")]
    Broken(#[from] sled::Error),
    /// Written by another version.
    #[error("the index has another format")]
    Format,
    /// A key or value is not what was written.
    #[error("the index has a key or value of the wrong length")]
    Malformed,
    /// sled met damage that it did not expect.
    #[error("the index made sled panic")]
    Panicked,
}

/// The database, open and locked until dropped.
pub struct Session {
    path: PathBuf,
    db: Option<(sled::Db, sled::Tree)>,
    broken: AtomicBool,
    _lock: OwnedFd,
}

impl Session {
    /// Opens the database of the index at `path`, made anew if it is missing or broken; `None`
    /// if another process has it for longer than `patience`, or it cannot be made.
    pub(super) fn open(path: &Path, patience: Duration) -> Option<Self> {
        let deadline = Instant::now() + patience;
        let lock = match lock(path, deadline) {
            Ok(lock) => lock?,
            Err(error) => {
                tracing::info!(path = %path.display(), %error, "no index");
                return None;
            }
        };
        let mut rebuilt = false;
        loop {
            // Unwind safe: nothing is left of what is being opened if it panics.
            let opened = catch_unwind(AssertUnwindSafe(|| open(path)));
            let error = match opened.unwrap_or(Err(IndexError::Panicked)) {
                Ok(db) => {
                    let broken = AtomicBool::new(false);
                    return Some(Self { path: path.to_owned(), db: Some(db), broken, _lock: lock });
                }
                Err(error) => error,
            };
            if in_use(&error) && Instant::now() < deadline {
                // sled lets go of its own lock a moment after it was closed.
                std::thread::sleep(RETRY);
                continue;
            }
            if rebuilt || in_use(&error) {
                tracing::info!(path = %path.display(), %error, "no index");
                return None;
            }
            tracing::info!(path = %path.display(), %error, "the index is made again");
            if let Err(error) = delete(path) {
                tracing::info!(path = %path.display(), %error, "the index cannot be deleted");
                return None;
            }
            rebuilt = true;
        }
    }

    /// Has the database deleted when this is dropped.
    pub fn give_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Works on the rows.
    pub(super) fn run<T>(
        &self,
        work: impl FnOnce(&sled::Tree) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        let Some((_, rows)) = self.db.as_ref().filter(|_| !self.broken.load(Ordering::Relaxed))
        else {
            return Err(IndexError::Panicked);
        };
        // Unwind safe: the database is deleted if it panics.
        let done = catch_unwind(AssertUnwindSafe(|| work(rows)));
        let done = done.unwrap_or(Err(IndexError::Panicked));
        if let Err(error) = &done {
            tracing::info!(path = %self.path.display(), %error, "the index is given up");
            self.broken.store(true, Ordering::Relaxed);
        }
        done
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closing writes, which can fail where the disk is damaged like anything else.
        let db = self.db.take();
        let closed = catch_unwind(AssertUnwindSafe(|| drop(db)));
        if (closed.is_err() || self.broken.load(Ordering::Relaxed))
            && let Err(error) = delete(&self.path)
        {
            tracing::info!(path = %self.path.display(), %error, "a broken index stays");
        }
    }
}

fn open(path: &Path) -> Result<(sled::Db, sled::Tree), IndexError> {
    let db = sled::Config::new()
        .path(database(path))
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        // No thread that flushes: closing does.
        .flush_every_ms(None)
        .open()?;
    match db.get("format")? {
        Some(format) if format == FORMAT => {}
        None if !db.was_recovered() => {
            db.insert("format", FORMAT)?;
        }
        None | Some(_) => return Err(IndexError::Format),
    }
    let rows = db.open_tree("private")?;
    Ok((db, rows))
}

/// sled says that its file is locked with an error of no kind of its own.
fn in_use(error: &IndexError) -> bool {
    matches!(error, IndexError::Broken(sled::Error::Io(error))
        if error.to_string().contains("could not acquire lock"))
}

/// Locks `index/`, making it if it is missing; `None` if it is in use until `deadline`.
fn lock(path: &Path, deadline: Instant) -> io::Result<Option<OwnedFd>> {
    loop {
        match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match openat(CWD, path, flags, Mode::empty()) {
            Ok(dir) => dir,
            // Deleted since; a link that leads nowhere will never be there.
            Err(Errno::NOENT) if Instant::now() < deadline => continue,
            Err(error) => return Err(error.into()),
        };
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(RETRY);
                continue;
            }
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Deleted and made again while we waited: then this lock locks nothing.
        let (ours, there) = (fstat(&dir)?, stat(path));
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)) {
            return Ok(Some(dir));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

fn database(path: &Path) -> PathBuf {
    path.join("db")
}

fn delete(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(database(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
