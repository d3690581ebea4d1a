//! Reading an upper directory.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;

use crate::sys::inode;

/// What one name of an upper directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpperKind {
    /// The name is gone from the merged view.
    Whiteout,
    /// A directory, merged or not.
    Directory,
    /// Anything else.
    Other,
}

/// One name of an upper directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpperEntry {
    /// The name.
    pub name: Box<[u8]>,
    /// What it is.
    pub kind: UpperKind,
    /// Host inode number.
    pub host_ino: u64,
}

/// Reads all names of the directory `fd` (which may be `O_PATH`), in the host's order.
pub fn read_upper(fd: impl AsFd) -> Result<Vec<UpperEntry>, Errno> {
    let fd = fd.as_fd();
    let mut stream = Dir::new(inode::reopen(fd, OFlags::RDONLY | OFlags::DIRECTORY)?)?;
    let mut entries = Vec::new();
    while let Some(entry) = stream.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Directory => UpperKind::Directory,
            FileType::CharacterDevice | FileType::Unknown => classify(fd, name)?,
            FileType::RegularFile
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::BlockDevice => UpperKind::Other,
        };
        entries.push(UpperEntry { name: name.into(), kind, host_ino: entry.ino() });
    }
    Ok(entries)
}

fn classify(dir: impl AsFd, name: &[u8]) -> Result<UpperKind, Errno> {
    let found = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(match found.st_mode & libc::S_IFMT {
        libc::S_IFDIR => UpperKind::Directory,
        libc::S_IFCHR if found.st_rdev == 0 => UpperKind::Whiteout,
        _ => UpperKind::Other,
    })
}
