//! Walks a live directory, depth first, names in byte order.
//!
//! Stays on one file system and names every directory by a descriptor ([`Trail`]).

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Statx, StatxFlags, statx};
use rustix::io::Errno;

use super::assemble::MAX_DEPTH;
use super::exclude::Excludes;
use super::metadata::printable;
use super::progress::Note;
use super::{ImportError, Session};
use crate::layer::trail::{Trail, open_directory};
use crate::layer::{FileName, LayerPath};

/// A file system object the walk came by.
pub(super) struct Visit {
    pub(super) path: LayerPath,
    /// The directory it is in; for the root, the root itself.
    pub(super) dir: Arc<OwnedFd>,
    /// The last name of `path`; none for the root.
    pub(super) name: Option<FileName>,
    pub(super) stat: Statx,
    /// The opened directory, if it is one that the walk goes into.
    pub(super) opened: Option<Arc<OwnedFd>>,
}

/// Calls `visit` for the directory `root` and for everything in it, parents first.
///
/// Stays on the file system of `root`: of a mount point only the directory is visited. Vanished
/// names are noted and left out.
pub(super) fn walk(
    session: &Session<'_>,
    root: OwnedFd,
    root_name: &str,
    excludes: &Excludes,
    mut visit: impl FnMut(Visit) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let stat = status(&root, b"").map_err(ImportError::file("stat", root_name.as_bytes()))?;
    let home = (device(&stat), stat.stx_mnt_id);
    let mut names = vec![list(&root).map_err(ImportError::file("read", root_name.as_bytes()))?];
    let mut trail = Trail::new(root);
    let root = trail.dir().map_err(ImportError::file("open", root_name.as_bytes()))?;
    visit(Visit {
        path: LayerPath::root(),
        dir: Arc::clone(&root),
        name: None,
        stat,
        opened: Some(root),
    })?;
    loop {
        session.cancel.check()?;
        let Some(level) = names.last_mut() else { return Ok(()) };
        let Some(name) = level.pop() else {
            names.pop();
            trail.leave();
            continue;
        };
        let path = trail.path_of(&name);
        if !excludes.is_empty() && excludes.matches(&path.to_bytes()) {
            continue;
        }
        let fail = |action| ImportError::file(action, &path.to_bytes());
        let dir = trail.dir().map_err(fail("find again the directory of"))?;
        let vanished = || session.progress.note(&Note::Vanished(printable(&path.to_bytes())));
        let stat = match status(&dir, name.as_bytes()) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                vanished();
                continue;
            }
            Err(errno) => return Err(fail("stat")(errno)),
        };
        let is_directory = kind(&stat) == FileType::Directory;
        let mounted = stat.stx_mnt_id != home.1;
        if mounted && !is_directory {
            session.progress.note(&Note::MountedFile(printable(&path.to_bytes())));
            continue;
        }
        if !is_directory {
            visit(Visit { path, dir, name: Some(name), stat, opened: None })?;
            continue;
        }
        // A subvolume is another file system without being a mount.
        if mounted || device(&stat) != home.0 {
            session.progress.note(&Note::OtherFileSystem(printable(&path.to_bytes())));
            visit(Visit { path, dir, name: Some(name), stat, opened: None })?;
            continue;
        }
        if trail.depth() >= MAX_DEPTH {
            return Err(ImportError::TooDeep(path.to_bytes().into()));
        }
        let opened = match open_directory(&dir, name.as_bytes()) {
            Ok(opened) => Arc::new(opened),
            Err(Errno::NOENT) => {
                vanished();
                continue;
            }
            Err(errno) => return Err(fail("open")(errno)),
        };
        let stat = status(&opened, b"").map_err(fail("stat"))?;
        names.push(list(&opened).map_err(fail("read"))?);
        trail.enter(name.clone(), Arc::clone(&opened)).map_err(fail("stat"))?;
        visit(Visit { path, dir, name: Some(name), stat, opened: Some(opened) })?;
    }
}

/// Status of a name, or of the directory itself for an empty one.
pub(super) fn status(dir: &OwnedFd, name: &[u8]) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    statx(dir.as_fd(), OsStr::from_bytes(name), flags, wanted)
}

pub(super) fn device(stat: &Statx) -> u64 {
    rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

pub(super) fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

/// The names in a directory, in descending order.
fn list(dir: &OwnedFd) -> Result<Vec<FileName>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        // The kernel's names are names, but for `.` and `..`.
        if let Ok(name) = FileName::new(entry.file_name().to_bytes()) {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}
