//! One container's own changes, in the kernel overlayfs upper format.
//!
//! Owns `DIR/{upper,work,index,mica.json}`: staging, whiteouts, marks, the lock that
//! decides "in use", and the record of the stack the changes lie on. Knows nothing of
//! FUSE or of the merged view. After a crash every name in `upper/` and `index/` is whole;
//! what was being made lies in `work/` and is removed by the next mount.
//! Format: docs/FORMAT.md, "Private layer".

mod allocated;
pub mod listing;
mod look;
pub mod marks;
mod record;
pub mod refs;
mod stage;
mod tidy;
mod whiteout;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use allocated::Allocated;
pub use look::PrivateView;
pub use record::PrivateRecord;
pub use stage::{NewInode, Staged};
pub(crate) use tidy::LEAST_LINES;

use crate::layer::Stack;
use crate::sys::{acl, durable, inode};

/// Names of the parts of a private directory.
const UPPER: &str = "upper";
const WORK: &str = "work";
const INDEX: &str = "index";
/// What a fresh ext4 disk holds.
const LOST_AND_FOUND: &str = "lost+found";

/// Why a private directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// Another root, or another program, holds its lock.
    #[error("private directory {0:?} is in use by another root; unmount that one first")]
    InUse(PathBuf),
    /// It holds things that Mica did not put there.
    #[error(
        "{0:?} is not empty and is not a private directory of Mica's; \
         name an empty or a new directory"
    )]
    Foreign(PathBuf),
    /// It was to be looked at, and is not a private directory.
    #[error("{0:?} is not a private directory of Mica's: it has no mica.json")]
    NotPrivate(PathBuf),
    /// Its changes were made on another stack.
    #[error(
        "private directory {0:?} holds changes to another template; \
         mount it on the template it was made on, or name a new directory"
    )]
    OtherStack(PathBuf),
    /// It is a copy without the extended attributes that say what its entries are.
    #[error(
        "private directory {0:?} has lost its extended attributes (trusted.*); copy it again with \
         them, as root (cp -a, rsync -aHX, tar --xattrs --xattrs-include='*')"
    )]
    LostMarks(PathBuf),
    /// Its record cannot be read.
    #[error("record {path:?} of the private directory is damaged: {reason}")]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The host file system lacks something a private layer needs.
    #[error("the file system of {dir:?} cannot hold a private layer: no {what} ({errno})")]
    Unsupported {
        /// The private directory.
        dir: PathBuf,
        /// What is missing.
        what: &'static str,
        /// The refusal.
        errno: Errno,
    },
    /// The host refused an operation.
    #[error("cannot {what} in private directory {dir:?}: {errno}")]
    Host {
        /// The private directory.
        dir: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The refusal.
        errno: Errno,
    },
}

/// An open, locked private layer.
pub struct PrivateLayer {
    dir: OwnedFd,
    upper: OwnedFd,
    work: OwnedFd,
    index: OwnedFd,
    record: PrivateRecord,
    path: PathBuf,
    next_temporary: AtomicU64,
    /// Inode numbers that files show whose own inode is gone.
    lent: Mutex<HashSet<u64>>,
}

impl PrivateLayer {
    /// The stack that the changes in `path` were made on; `None` if it is not a private
    /// directory (yet). Takes no lock and changes nothing.
    ///
    /// # Errors
    /// [`PrivateError::Record`].
    pub fn recorded_stack(path: &Path) -> Result<Option<Stack>, PrivateError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => Ok(PrivateRecord::read(&dir, path)?.map(|record| record.stack)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => {
                Err(PrivateError::Host { dir: path.to_owned(), what: "look into it", errno })
            }
        }
    }

    /// Opens `path` for a root on `stack`, making it if it is missing or empty.
    ///
    /// The lock is held until the value is dropped. An existing layer opens on the stack it
    /// was made on or an extension of that. Leftovers of a crash are removed.
    ///
    /// # Errors
    /// Every variant of [`PrivateError`]; nothing foreign is changed.
    pub fn open(path: &Path, stack: &Stack) -> Result<Self, PrivateError> {
        let host = |what| move |errno| PrivateError::Host { dir: path.to_owned(), what, errno };
        std::fs::create_dir_all(path).map_err(|e| {
            host("make the directory")(Errno::from_io_error(&e).unwrap_or(Errno::IO))
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |dir: BorrowedFd<'_>, name: &str| {
            rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW, Mode::empty())
        };
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(host("open it"))?;
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(PrivateError::InUse(path.to_owned())),
            Err(errno) => return Err(host("lock it")(errno)),
        }
        let record = match PrivateRecord::read(&dir, path)? {
            Some(record) => record.on(stack, &dir, path)?,
            None => {
                if !is_unused(&dir).map_err(host("list it"))? {
                    return Err(PrivateError::Foreign(path.to_owned()));
                }
                // A container's set-id programs are not for the users of this host.
                inode::set_mode(&dir, 0o700).map_err(host("close it to others"))?;
                let adopted = holds_something(&dir, UPPER).map_err(host("list upper"))?;
                for part in [UPPER, WORK, INDEX] {
                    // What is taken over keeps the metadata that the root shows.
                    if !(adopted && part == UPPER) {
                        make_part(&dir, part).map_err(host("make its parts"))?;
                    }
                }
                PrivateRecord::new(stack, adopted).write(&dir, path)?
            }
        };
        let layer = Self {
            upper: open(dir.as_fd(), UPPER).map_err(host("open upper"))?,
            work: open(dir.as_fd(), WORK).map_err(host("open work"))?,
            index: open(dir.as_fd(), INDEX).map_err(host("open index"))?,
            dir,
            record,
            path: path.to_owned(),
            next_temporary: AtomicU64::new(0),
            lent: Mutex::default(),
        };
        layer.read_references()?;
        layer.check_marks()?;
        layer.remove_leftovers().map_err(host("remove what a crash left in it"))?;
        layer.probe()?;
        Ok(layer)
    }

    /// The directory of changes, in overlayfs upper format.
    pub fn upper(&self) -> BorrowedFd<'_> {
        self.upper.as_fd()
    }

    /// Where inodes are made before they get their names.
    pub fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// Copied-up files that have several names in the tree, by tree number.
    pub fn index(&self) -> BorrowedFd<'_> {
        self.index.as_fd()
    }

    /// The private directory itself.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Where it lies, as it was named when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn record(&self) -> &PrivateRecord {
        &self.record
    }

    /// Notes that entries are about to refer to these objects; durable on return.
    ///
    /// # Errors
    /// The host's errno; then no entry may.
    pub fn refer(&self, references: &[refs::Reference]) -> Result<(), Errno> {
        refs::append(&self.dir, refs::NAME, references)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        self.lent.lock().extend(references.iter().map(|reference| reference.ino));
        Ok(())
    }

    /// Whether a file may show this inode number without being that inode any more.
    pub fn is_lent(&self, ino: u64) -> bool {
        self.lent.lock().contains(&ino)
    }

    fn read_references(&self) -> Result<(), PrivateError> {
        let found = refs::read(&self.dir, refs::NAME).map_err(|error| {
            let damaged = error.kind() == std::io::ErrorKind::InvalidData;
            let reason = if damaged {
                "it holds lines that are no reference to an object".to_owned()
            } else {
                error.to_string()
            };
            PrivateError::Record { path: self.path.join(refs::NAME), reason }
        })?;
        self.lent.lock().extend(found.iter().map(|reference| reference.ino));
        Ok(())
    }

    /// A name in `work/` that nothing else has: the lock makes this process its only user.
    fn temporary_name(&self) -> Vec<u8> {
        format!("#{:x}", self.next_temporary.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Removes what a crash left.
    fn remove_leftovers(&self) -> Result<(), Errno> {
        for entry in listing::read_upper(&self.dir)? {
            if durable::is_staged(OsStr::from_bytes(&entry.name)) {
                rustix::fs::unlinkat(&self.dir, &*entry.name, AtFlags::empty())?;
            }
        }
        empty_but(&self.work, whiteout::SHARED)
    }

    /// Notices a copy that left the marks behind: then content that lies in the tree would be
    /// taken for zeros. Mica marks the upper directory itself before anything is in it.
    fn check_marks(&self) -> Result<(), PrivateError> {
        check_marks(&self.upper, &self.record, &self.path)
    }

    /// Tries what the format needs of the host file system: whiteouts and trusted xattrs.
    fn probe(&self) -> Result<(), PrivateError> {
        let unsupported =
            |what| move |errno| PrivateError::Unsupported { dir: self.path.clone(), what, errno };
        marks::set(&self.work, marks::RDEV, b"probe")
            .and_then(|()| marks::clear(&self.work, marks::RDEV))
            .map_err(unsupported("trusted extended attributes"))?;
        let name = self.temporary_name();
        self.whiteout(&self.work, &name)
            .and_then(|()| rustix::fs::unlinkat(&self.work, name.as_slice(), AtFlags::empty()))
            .map_err(unsupported("whiteouts (character device 0:0)"))
    }
}

fn check_marks(upper: impl AsFd, record: &PrivateRecord, path: &Path) -> Result<(), PrivateError> {
    let host = |errno| PrivateError::Host { dir: path.to_owned(), what: "read upper", errno };
    if record.adopted || inode::xattr(&upper, marks::ORIGIN).map_err(host)?.is_some() {
        return Ok(());
    }
    if listing::read_upper(&upper).map_err(host)?.is_empty() {
        return Ok(());
    }
    Err(PrivateError::LostMarks(path.to_owned()))
}

/// True if there is nothing in `dir` but what a crash leaves between making the parts and
/// writing the record, or an upper directory that is to be taken over.
fn is_unused(dir: impl AsFd) -> Result<bool, Errno> {
    for entry in listing::read_upper(&dir)? {
        let named = |name: &str| name.as_bytes() == &*entry.name;
        if named(UPPER) {
            continue;
        }
        if let Some(part) = [WORK, INDEX].into_iter().find(|part| named(part)) {
            // Ours are emptied; those of another overlay may be in use.
            if holds_something(&dir, part)? {
                return Ok(false);
            }
        } else if !named(LOST_AND_FOUND) && !durable::is_staged(OsStr::from_bytes(&entry.name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether there is an entry in the directory `name`, or `name` is no directory.
fn holds_something(dir: impl AsFd, name: &str) -> Result<bool, Errno> {
    let part = match inode::open_path(dir, name.as_bytes()) {
        Err(Errno::NOENT) => return Ok(false),
        part => part?,
    };
    match listing::read_upper(&part) {
        Err(Errno::NOTDIR) => Ok(true),
        names => Ok(!names?.is_empty()),
    }
}

/// Makes a part of the private directory, free of what the host hands down to new entries: the
/// group of a set-group-id directory, a default ACL. Everything is made in these parts.
fn make_part(dir: impl AsFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let part = inode::open_path(&dir, name.as_bytes())?;
    inode::set_owner(&part, Some(0), Some(0))?;
    for acl in [acl::ACCESS, acl::DEFAULT] {
        match inode::remove_xattr(&part, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    inode::set_mode(&part, 0o700)
}

/// Empties a directory that is no longer part of the merged view.
///
/// Such a directory holds whiteouts and, after a crash, at most staged leftovers.
pub fn empty(dir: impl AsFd) -> Result<(), Errno> {
    empty_but(dir, b"")
}

fn empty_but(dir: impl AsFd, kept: &[u8]) -> Result<(), Errno> {
    for entry in listing::read_upper(&dir)?.iter().filter(|entry| &*entry.name != kept) {
        if entry.kind == listing::UpperKind::Directory {
            empty(inode::open_path(&dir, &entry.name)?)?;
            rustix::fs::unlinkat(&dir, &*entry.name, AtFlags::REMOVEDIR)?;
        } else {
            rustix::fs::unlinkat(&dir, &*entry.name, AtFlags::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::LayerId;
    use crate::object::Digest;

    fn stack(names: &[&str]) -> Stack {
        names.iter().fold(Stack::default(), |stack, name| {
            stack.extended(LayerId::new(Digest::of(name.as_bytes())))
        })
    }

    /// Opens what nobody has open any more. A program that another test is just starting may still
    /// have the lock of whoever closed it: it has every descriptor until it executes.
    fn open(path: &Path, stack: &Stack) -> Result<PrivateLayer, PrivateError> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            match PrivateLayer::open(path, stack) {
                Err(PrivateError::InUse(_)) if std::time::Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                opened => return opened,
            }
        }
    }

    #[test]
    fn a_second_opener_is_refused_while_the_first_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let first = open(&path, &stack(&["a"])).unwrap();
        assert!(matches!(PrivateLayer::open(&path, &stack(&["a"])), Err(PrivateError::InUse(_))));
        drop(first);
        open(&path, &stack(&["a"])).unwrap();
    }

    #[test]
    fn only_its_own_stack_or_an_extension_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        drop(open(&path, &stack(&["a"])).unwrap());
        assert!(matches!(open(&path, &stack(&["b"])), Err(PrivateError::OtherStack(_))));
        drop(open(&path, &stack(&["a", "b"])).unwrap());
        assert!(matches!(open(&path, &stack(&["a"])), Err(PrivateError::OtherStack(_))));
    }

    #[test]
    fn a_foreign_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("letter"), b"dear").unwrap();
        assert!(matches!(open(dir.path(), &stack(&["a"])), Err(PrivateError::Foreign(_))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn parts_that_hold_something_are_foreign_too() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("work/work/file");
        std::fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        std::fs::create_dir(dir.path().join("upper")).unwrap();
        std::fs::write(&theirs, b"dear").unwrap();
        assert!(matches!(open(dir.path(), &stack(&["a"])), Err(PrivateError::Foreign(_))));
        assert_eq!(std::fs::read(theirs).unwrap(), b"dear");
    }

    #[test]
    fn a_crash_before_the_record_leaves_a_directory_that_opens() {
        let dir = tempfile::tempdir().unwrap();
        for part in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
        }
        std::fs::write(dir.path().join(".mica.json.1-2-3.staged"), b"{").unwrap();
        drop(open(dir.path(), &stack(&["a"])).unwrap());
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["index", "mica.json", "upper", "work"]);
    }

    #[test]
    fn users_of_the_host_are_kept_out() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        drop(open(&path, &stack(&["a"])).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn leftovers_of_a_crash_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), &stack(&["a"])).unwrap());
        let left = dir.path().join("work/#7/deep");
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("f"), b"x").unwrap();
        drop(open(dir.path(), &stack(&["a"])).unwrap());
        let names: Vec<_> = std::fs::read_dir(dir.path().join("work"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["whiteout"]);
    }
}
