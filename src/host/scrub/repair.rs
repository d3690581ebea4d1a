//! Putting back content that some container still has in a private file.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::host::error::HostError;
use crate::host::roots::Roots;
use crate::host::store::Store;
use crate::object::{ObjectId, Objects, Staging, identify};
use crate::sys::sparse::costs_too_much;

/// Looks for `wanted` (with their lengths in bytes, where known) among the private files of all roots and
/// publishes what is found; answers where each came from.
///
/// The digest is taken of what is put, so a file that changes meanwhile does no harm. What cannot
/// be read is passed over: another root may have it too.
pub(super) fn repair(
    store: &Store,
    objects: &Objects,
    wanted: HashMap<ObjectId, Option<u64>>,
) -> Result<HashMap<ObjectId, PathBuf>, HostError> {
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let staging = objects.begin()?;
    let mut search = Search { staging: &staging, wanted, back: HashMap::new() };
    for record in Roots::open(store)?.list()? {
        let Some(private) = record.private else { continue };
        if search.is_over() {
            break;
        }
        let upper = private.join("upper");
        if let Ok(dir) = open_dir(CWD, &upper) {
            search.directory(dir, &upper)?;
        }
    }
    let back = search.back;
    staging.publish()?;
    staging.finish()?;
    Ok(back)
}

struct Search<'a> {
    staging: &'a Staging,
    wanted: HashMap<ObjectId, Option<u64>>,
    back: HashMap<ObjectId, PathBuf>,
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        self.wanted.len() == self.back.len()
    }

    /// Looks through a directory and all below it, without following anything.
    fn directory(&mut self, dir: OwnedFd, path: &Path) -> Result<(), HostError> {
        // Not by recursion: a container chooses how deep its directories are.
        let mut todo = vec![path.to_owned()];
        let top = path.to_owned();
        let mut first = Some(dir);
        while let Some(path) = todo.pop() {
            let dir = match first.take() {
                Some(dir) => dir,
                None => match reach(&top, &path) {
                    Ok(dir) => dir,
                    // Gone since, or not to be read.
                    Err(_) => continue,
                },
            };
            let Ok(entries) = Dir::read_from(&dir) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                if name == c"." || name == c".." || self.is_over() {
                    continue;
                }
                let below = path.join(OsStr::from_bytes(name.to_bytes()));
                match entry.file_type() {
                    FileType::Directory => todo.push(below),
                    // Some file systems don't say; opening tells.
                    FileType::RegularFile | FileType::Unknown => {
                        if let Ok(file) = openat(&dir, name, READ, Mode::empty()) {
                            self.file(file, below)?;
                        }
                    }
                    FileType::Symlink
                    | FileType::Fifo
                    | FileType::Socket
                    | FileType::CharacterDevice
                    | FileType::BlockDevice => {}
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, file: OwnedFd, path: PathBuf) -> Result<(), HostError> {
        let Ok(stat) = fstat(&file) else { return Ok(()) };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let Ok(len_bytes) = u64::try_from(stat.st_size) else { return Ok(()) };
        let missed = self.wanted.iter().filter(|(id, _)| !self.back.contains_key(id));
        let mut lens = missed.map(|(_, len)| len.is_none_or(|len| len == len_bytes));
        let fits = lens.any(|fits| fits);
        if !fits {
            return Ok(());
        }
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        // Containers decide how long their files are, but pay for what is in them.
        if costs_too_much(len_bytes, allocated) {
            return Ok(());
        }
        let file = File::from(file);
        let Ok(id) = identify(&file) else { return Ok(()) };
        if !self.wanted.contains_key(&id) || self.back.contains_key(&id) {
            return Ok(());
        }
        let put = self.staging.put_file(file.as_fd(), len_bytes)?;
        if put.id == id {
            self.back.insert(id, path);
        }
        Ok(())
    }
}

const READ: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

fn open_dir(at: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    openat(at, path, READ.union(OFlags::DIRECTORY), Mode::empty())
}

/// Opens a directory below `top`, whatever a container has made of the names in between.
fn reach(top: &Path, path: &Path) -> Result<OwnedFd, Errno> {
    let below = path.strip_prefix(top).map_err(|_| Errno::INVAL)?;
    let top = open_dir(CWD, top)?;
    let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(&top, below, READ.union(OFlags::DIRECTORY), Mode::empty(), resolve)
}
