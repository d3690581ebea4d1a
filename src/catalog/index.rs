//! The database of the index: sled, opened, asked and closed.
//!
//! ```text
//! index/      its flock (exclusive) says: the database is in use
//! index/db/   sled 0.34: "format" → FORMAT; tree `private`, see `private.rs`;
//!             "live" → bytes of all rows when it was last made anew; "written" → bytes written since
//! index/db.new/   a database being made anew, or the one before
//! ```
//! Whoever opens a database of sled's writes zeros over every part of its file that nothing lies in
//! any more, and syncs them: a question that changes nothing would write what all changes before it
//! left behind. So it is made anew, with next to no such parts, once as much was written as it holds.
//! sled 0.34 panics where it meets some kinds of damage, and locks the database for itself; so
//! all calls run under `catch_unwind`, and our own lock comes first. Whatever goes wrong, the
//! database is deleted, and what it knew is found out again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, openat, stat};
use rustix::io::Errno;

/// Version of the keys and values.
const FORMAT: &[u8] = b"mica-index-2";

/// Where the database is made anew.
const ANEW: &str = "db.new";

/// Memory that sled may use for what it reads, in bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// What may always be written before the database is made anew, in bytes.
const SLACK_BYTES: u64 = 1 << 20;

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
    /// Bytes of the rows that this session wrote.
    written: AtomicU64,
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
                    return Some(Self {
                        path: path.to_owned(),
                        db: Some(db),
                        broken: AtomicBool::new(false),
                        written: AtomicU64::new(0),
                        _lock: lock,
                    });
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

    /// Counts what was written.
    pub(super) fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
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

impl Session {
    /// Makes another database beside one that is worn, and says whether it did.
    ///
    /// Unwind safe: the old one is only read. sled panics where it cannot write, as on a full disk.
    fn make_anew(&self, db: Option<&(sled::Db, sled::Tree)>) -> Result<bool, IndexError> {
        let written = self.written.load(Ordering::Relaxed);
        let whole = written > 0 && !self.broken.load(Ordering::Relaxed);
        let Some((db, rows)) = db.filter(|_| whole) else { return Ok(false) };
        let made = catch_unwind(AssertUnwindSafe(|| {
            let worn = is_worn(db, written)?;
            if worn {
                copy(db, rows, &self.path)?;
            }
            Ok(worn)
        }));
        made.unwrap_or(Err(IndexError::Panicked))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closing writes, which can fail where the disk is damaged like anything else.
        let db = self.db.take();
        let made = self.make_anew(db.as_ref());
        let closed = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(test)]
            tests::panic_at(tests::Panics::Closing);
            drop(db);
        }));
        let placed = made.and_then(|made| match (made, &closed) {
            (true, Ok(())) => Ok(replace(&self.path).map_err(sled::Error::from)?),
            (true, Err(_)) => Err(IndexError::Panicked),
            (false, _) => Ok(()),
        });
        if let Err(error) = placed {
            // It goes on as it is.
            tracing::info!(path = %self.path.display(), %error, "the index is not made anew");
            // Nor does half of another one help anybody; the next attempt removes it, too.
            let _gone = remove(&self.path.join(ANEW));
        }
        if (closed.is_err() || self.broken.load(Ordering::Relaxed))
            && let Err(error) = delete(&self.path)
        {
            tracing::info!(path = %self.path.display(), %error, "a broken index stays");
        }
    }
}

/// Counts what was written; whether that is as much as the database holds.
fn is_worn(db: &sled::Db, written: u64) -> Result<bool, sled::Error> {
    let number = |key: &str| {
        let value = db.get(key)?;
        let bytes = value.as_deref().and_then(|value| value.try_into().ok());
        Ok::<_, sled::Error>(bytes.map_or(0, u64::from_le_bytes))
    };
    let written = number("written")?.saturating_add(written);
    db.insert("written", &written.to_le_bytes())?;
    Ok(written > number("live")?.max(SLACK_BYTES))
}

/// Copies all rows to a new database beside the old one.
fn copy(db: &sled::Db, rows: &sled::Tree, path: &Path) -> Result<(), sled::Error> {
    let place = path.join(ANEW);
    remove(&place)?;
    let anew = configured(&place)?;
    let copied = anew.open_tree("private")?;
    let mut live = 0_u64;
    #[cfg(test)]
    tests::panic_at(tests::Panics::Copying);
    // From the last to the first: a page that was split is not written to again.
    for row in rows.iter().rev() {
        let (key, value) = row?;
        live += (key.len() + value.len()) as u64;
        copied.insert(key, value)?;
    }
    if let Some(format) = db.get("format")? {
        anew.insert("format", format)?;
    }
    anew.insert("live", &live.to_le_bytes())?;
    anew.flush()?;
    Ok(())
}

/// Puts the new database in the place of the old one.
fn replace(path: &Path) -> io::Result<()> {
    let (old, anew) = (database(path), path.join(ANEW));
    rustix::fs::renameat_with(CWD, &anew, CWD, &old, RenameFlags::EXCHANGE)?;
    remove(&anew)
}

fn configured(database: &Path) -> Result<sled::Db, sled::Error> {
    sled::Config::new()
        .path(database)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        // No thread that flushes: closing does.
        .flush_every_ms(None)
        .open()
}

fn open(path: &Path) -> Result<(sled::Db, sled::Tree), IndexError> {
    let db = configured(&database(path))?;
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
    remove(&database(path))
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Where sled is made to panic, as it does where it cannot write.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(super) enum Panics {
        Nowhere,
        Copying,
        Closing,
    }

    thread_local! {
        static PANICS: Cell<Panics> = const { Cell::new(Panics::Nowhere) };
    }

    pub(super) fn panic_at(place: Panics) {
        assert!(PANICS.get() != place, "sled panics, as the test wants");
    }

    /// Writes so much that the database is worn when it is closed.
    fn wear(path: &Path, number: u32) {
        let session = Session::open(path, Duration::from_secs(5)).expect("an index");
        let row = vec![7; 1 << 20];
        let written = session.run(|rows| {
            rows.insert("row", row.as_slice())?;
            rows.insert("number", &number.to_le_bytes())?;
            Ok(())
        });
        written.expect("written");
        session.wrote(8 << 20);
    }

    fn number(path: &Path) -> Option<u32> {
        let session = Session::open(path, Duration::from_secs(5)).expect("an index");
        let number = session.run(|rows| Ok(rows.get("number")?)).expect("read")?;
        Some(u32::from_le_bytes(number.as_ref().try_into().expect("four bytes")))
    }

    #[test]
    fn a_panic_while_it_is_made_anew_leaves_the_index_and_nothing_beside_it() {
        for (place, known) in [
            (Panics::Nowhere, Some(2)),
            (Panics::Copying, Some(2)),
            // What was being written then may be anything: it is found out again.
            (Panics::Closing, None),
        ] {
            let scratch = tempfile::tempdir().expect("scratch");
            let path = scratch.path().join("index");
            wear(&path, 1);
            PANICS.set(place);
            wear(&path, 2);
            PANICS.set(Panics::Nowhere);
            assert!(!path.join(ANEW).exists(), "half a database stayed");
            assert_eq!(number(&path), known);
        }
    }

    #[test]
    fn an_index_that_cannot_be_replaced_stays_and_so_does_the_error() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join("index");
        wear(&path, 1);
        fs::create_dir(path.join(ANEW)).expect("made");
        fs::write(path.join(ANEW).join("made"), "").expect("written");
        let db = scratch.path().join("elsewhere");
        fs::rename(database(&path), &db).expect("moved");
        assert_eq!(replace(&path).expect_err("nothing to replace").kind(), io::ErrorKind::NotFound);
        assert!(path.join(ANEW).join("made").exists(), "what was made is gone");
    }
}
