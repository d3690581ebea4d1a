//! One container's own changes, in the kernel overlayfs upper format.
//!
//! Owns `DIR/{upper,work,index,mica.json}`: staging, whiteouts, marks, the lock that
//! decides "in use", and the record of the stack the changes lie on. Knows nothing of
//! FUSE or of the merged view. After a crash every name in `upper/` and `index/` is whole;
//! what was being made lies in `work/` and is removed by the next mount.
//! Format: docs/FORMAT.md, "Private layer".

pub mod listing;
pub mod marks;
mod record;
mod stage;
mod whiteout;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use record::PrivateRecord;
pub use stage::{NewInode, Staged};

use crate::layer::Stack;
use crate::sys::inode;

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
                let names = listing::read_upper(&dir).map_err(host("list it"))?;
                // A crash between making the parts and writing the record leaves this much.
                let ours = [UPPER, WORK, INDEX, record::TEMPORARY, LOST_AND_FOUND];
                if names.iter().any(|e| !ours.iter().any(|o| o.as_bytes() == &*e.name)) {
                    return Err(PrivateError::Foreign(path.to_owned()));
                }
                for part in [UPPER, WORK, INDEX] {
                    match rustix::fs::mkdirat(&dir, part, Mode::RWXU) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(host("make its parts")(errno)),
                    }
                }
                let upper = open(dir.as_fd(), UPPER).map_err(host("open upper"))?;
                let adopted = !listing::read_upper(&upper).map_err(host("list upper"))?.is_empty();
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
        };
        layer.check_marks()?;
        layer.clean_work().map_err(host("clean work"))?;
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

    /// A name in `work/` that nothing else has: the lock makes this process its only user.
    fn temporary_name(&self) -> Vec<u8> {
        format!("#{:x}", self.next_temporary.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Removes what a crash left in `work/`.
    fn clean_work(&self) -> Result<(), Errno> {
        for entry in listing::read_upper(&self.work)? {
            if &*entry.name == whiteout::SHARED {
                continue;
            }
            if entry.kind == listing::UpperKind::Directory {
                let leftover = inode::open_path(&self.work, &entry.name)?;
                empty(&leftover)?;
                rustix::fs::unlinkat(&self.work, &*entry.name, AtFlags::REMOVEDIR)?;
            } else {
                rustix::fs::unlinkat(&self.work, &*entry.name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Notices a copy that left the marks behind: then content that lies in the tree would be
    /// taken for zeros. Mica marks the upper directory itself before anything is in it.
    fn check_marks(&self) -> Result<(), PrivateError> {
        let host = |errno| PrivateError::Host { dir: self.path.clone(), what: "read upper", errno };
        if self.record.adopted || inode::xattr(&self.upper, marks::ORIGIN).map_err(host)?.is_some()
        {
            return Ok(());
        }
        if listing::read_upper(&self.upper).map_err(host)?.is_empty() {
            return Ok(());
        }
        Err(PrivateError::LostMarks(self.path.clone()))
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

/// Empties a directory that is no longer part of the merged view.
///
/// Such a directory holds whiteouts and, after a crash, at most staged leftovers.
pub fn empty(dir: impl AsFd) -> Result<(), Errno> {
    for entry in listing::read_upper(&dir)? {
        if entry.kind == listing::UpperKind::Directory {
            let child = inode::open_path(&dir, &entry.name)?;
            empty(&child)?;
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

    #[test]
    fn a_second_opener_is_refused_while_the_first_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let first = PrivateLayer::open(&path, &stack(&["a"])).unwrap();
        assert!(matches!(PrivateLayer::open(&path, &stack(&["a"])), Err(PrivateError::InUse(_))));
        drop(first);
        PrivateLayer::open(&path, &stack(&["a"])).unwrap();
    }

    #[test]
    fn only_its_own_stack_or_an_extension_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        drop(PrivateLayer::open(&path, &stack(&["a"])).unwrap());
        assert!(matches!(
            PrivateLayer::open(&path, &stack(&["b"])),
            Err(PrivateError::OtherStack(_))
        ));
        drop(PrivateLayer::open(&path, &stack(&["a", "b"])).unwrap());
        assert!(matches!(
            PrivateLayer::open(&path, &stack(&["a"])),
            Err(PrivateError::OtherStack(_))
        ));
    }

    #[test]
    fn a_foreign_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("letter"), b"dear").unwrap();
        assert!(matches!(
            PrivateLayer::open(dir.path(), &stack(&["a"])),
            Err(PrivateError::Foreign(_))
        ));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_crash_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        drop(PrivateLayer::open(dir.path(), &stack(&["a"])).unwrap());
        let left = dir.path().join("work/#7/deep");
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("f"), b"x").unwrap();
        drop(PrivateLayer::open(dir.path(), &stack(&["a"])).unwrap());
        let names: Vec<_> = std::fs::read_dir(dir.path().join("work"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["whiteout"]);
    }
}
