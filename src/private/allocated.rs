//! What a private layer takes on the disk.

use std::collections::HashSet;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::PrivateLayer;

/// What stat(2) counts blocks in.
const BLOCK_BYTES: u64 = 512;

/// What a private directory takes of its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocated {
    /// Bytes of blocks.
    pub bytes: u64,
    /// Inodes.
    pub files: u64,
}

impl PrivateLayer {
    /// What everything in the private directory has allocated, each inode once, as du(1)
    /// counts. What comes and goes meanwhile may be counted or not.
    ///
    /// # Errors
    /// The host's errno.
    pub fn allocated(&self) -> Result<Allocated, Errno> {
        let mut count = Count::default();
        for part in [self.upper(), self.work(), self.index()] {
            count.inode(part, c"")?;
            count.directory(open(part, c".")?)?;
        }
        Ok(Allocated { bytes: count.blocks.saturating_mul(BLOCK_BYTES), files: count.files })
    }
}

#[derive(Default)]
struct Count {
    blocks: u64,
    files: u64,
    /// Inodes with several names that were counted.
    linked: HashSet<(u64, u64)>,
}

impl Count {
    fn inode(&mut self, dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<(), Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        let stat = match rustix::fs::statat(dir, name, flags) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat?,
        };
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if directory || stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            self.files = self.files.saturating_add(1);
            self.blocks = self.blocks.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0));
        }
        Ok(())
    }

    /// Everything beneath: a list of directories yet to be read instead of recursion, since a
    /// container may nest them as deep as it likes, and one descriptor open for each level.
    fn directory(&mut self, top: OwnedFd) -> Result<(), Errno> {
        let mut open_dirs = vec![Dir::new(top)?];
        while let Some(dir) = open_dirs.last_mut() {
            let Some(entry) = dir.read() else {
                open_dirs.pop();
                continue;
            };
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = entry.file_type();
            let below = dir.fd().and_then(|fd| {
                self.inode(fd, name)?;
                match kind {
                    FileType::Directory => open(fd, name).map(Some),
                    FileType::Unknown => match open(fd, name) {
                        Err(Errno::NOTDIR | Errno::LOOP) => Ok(None),
                        opened => opened.map(Some),
                    },
                    FileType::RegularFile
                    | FileType::Symlink
                    | FileType::Fifo
                    | FileType::Socket
                    | FileType::CharacterDevice
                    | FileType::BlockDevice => Ok(None),
                }
            });
            match below {
                Ok(Some(below)) => open_dirs.push(Dir::new(below)?),
                Ok(None) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

fn open(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}
