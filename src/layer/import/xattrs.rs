//! Reads the extended attributes of live files.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr};
use rustix::io::Errno;

use super::metadata::Xattrs;

/// What fits here is read without asking for its size first.
const FIRST_BYTES: usize = 1024;

/// A file whose attributes can be read.
pub(super) enum Subject<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// A name in an open directory, not followed: for what cannot be opened harmlessly. Goes
    /// through /proc, because there is no call for a name in a directory before Linux 6.13.
    Named(String, &'a [u8]),
}

impl<'a> Subject<'a> {
    pub(super) fn named(dir: BorrowedFd<'_>, name: &'a [u8]) -> Self {
        Self::Named(format!("/proc/self/fd/{}/", dir.as_raw_fd()), name)
    }

    fn list(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => flistxattr(fd.as_fd(), buffer),
            Self::Named(dir, name) => llistxattr([dir.as_bytes(), name].concat(), buffer),
        }
    }

    fn get(&self, attribute: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => fgetxattr(fd.as_fd(), attribute, buffer),
            Self::Named(dir, name) => lgetxattr([dir.as_bytes(), name].concat(), attribute, buffer),
        }
    }
}

/// The attributes of one file.
#[derive(Default)]
pub(super) struct Attributes {
    /// Sorted by name.
    pub(super) kept: Xattrs,
    /// Names of those that belong to the file system only (`btrfs.compression` and the like) and
    /// cannot be kept elsewhere.
    pub(super) foreign: Vec<Box<[u8]>>,
}

/// Reads all attributes of a file.
pub(super) fn read(subject: &Subject<'_>) -> Result<Attributes, Errno> {
    let mut found = Attributes::default();
    let names = match whole(|buffer| subject.list(buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(found),
        Err(errno) => return Err(errno),
    };
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let namespace = name.split(|byte| *byte == b'.').next().unwrap_or_default();
        if !matches!(namespace, b"user" | b"trusted" | b"security" | b"system") {
            found.foreign.push(name.into());
            continue;
        }
        match whole(|buffer| subject.get(name, buffer)) {
            Ok(value) => found.kept.push((name.into(), value.into())),
            // Removed since, or listed only for others.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.kept.sort_unstable();
    Ok(found)
}

/// Runs `call` with a buffer that is large enough.
fn whole(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; FIRST_BYTES];
    loop {
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => {
                let needed = call(&mut [])?;
                // It may have grown once more by the next call; then it is asked again.
                buffer.resize(needed.max(buffer.len() + 1), 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}
