//! Walks a live directory, depth first, names in byte order.
//!
//! Every step is relative to an open directory, so paths may be longer than `PATH_MAX` and a
//! directory that is renamed meanwhile cannot lead the walk elsewhere. Only the deepest
//! directories are kept open; a higher one is found again by name and compared.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Statx, StatxFlags, openat, statx};
use rustix::io::Errno;

use super::assemble::MAX_DEPTH;
use super::exclude::Excludes;
use super::metadata::printable;
use super::progress::Note;
use super::{ImportError, Session};
use crate::layer::{FileName, LayerPath};

/// Directories open at once, besides the root.
const MAX_OPEN: usize = 64;

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

struct Level {
    /// Closed while the walk is far below.
    dir: Option<Arc<OwnedFd>>,
    identity: (u64, u64),
    name: Option<FileName>,
    /// Names not visited yet, last first.
    names: Vec<FileName>,
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
    let root = Arc::new(root);
    let stat = status(&root, b"").map_err(ImportError::file("stat", root_name.as_bytes()))?;
    let home = (device(&stat), stat.stx_mnt_id);
    let names = list(&root).map_err(ImportError::file("read", root_name.as_bytes()))?;
    let identity = (device(&stat), stat.stx_ino);
    visit(Visit {
        path: LayerPath::root(),
        dir: Arc::clone(&root),
        name: None,
        stat,
        opened: Some(Arc::clone(&root)),
    })?;
    let mut levels = vec![Level { dir: Some(root), identity, name: None, names }];
    loop {
        session.cancel.check()?;
        let Some(level) = levels.last_mut() else { return Ok(()) };
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let path = path_of(&levels, &name);
        let bytes = if excludes.is_empty() { Vec::new() } else { path.to_bytes() };
        if excludes.matches(&bytes) {
            continue;
        }
        let dir = reopen(&mut levels).map_err(|errno| {
            ImportError::file("return to", &path.parent().unwrap_or_default().to_bytes())(errno)
        })?;
        let fail = |action| ImportError::file(action, &path.to_bytes());
        let stat = match status(&dir, name.as_bytes()) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                session.progress.note(&Note::Vanished(printable(&path.to_bytes())));
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
        if levels.len() > MAX_DEPTH {
            return Err(ImportError::TooDeep(path.to_bytes().into()));
        }
        let opened = match open_directory(&dir, name.as_bytes()) {
            Ok(opened) => Arc::new(opened),
            Err(Errno::NOENT) => {
                session.progress.note(&Note::Vanished(printable(&path.to_bytes())));
                continue;
            }
            Err(errno) => return Err(fail("open")(errno)),
        };
        let stat = status(&opened, b"").map_err(fail("stat"))?;
        let names = list(&opened).map_err(fail("read"))?;
        let identity = (device(&stat), stat.stx_ino);
        let level_name = Some(name.clone());
        visit(Visit { path, dir, name: Some(name), stat, opened: Some(Arc::clone(&opened)) })?;
        levels.push(Level { dir: Some(opened), identity, name: level_name, names });
        if let Some(far) = (levels.len() - 1).checked_sub(MAX_OPEN).filter(|far| *far > 0) {
            levels[far].dir = None;
        }
    }
}

fn path_of(levels: &[Level], name: &FileName) -> LayerPath {
    let names = levels.iter().filter_map(|level| level.name.clone());
    LayerPath::from_names(names.chain([name.clone()]).collect())
}

/// The deepest directory, opened again if it was closed.
fn reopen(levels: &mut [Level]) -> Result<Arc<OwnedFd>, Errno> {
    let open = levels.iter().rposition(|level| level.dir.is_some()).ok_or(Errno::BADF)?;
    for at in open + 1..levels.len() {
        let above = levels[at - 1].dir.clone().ok_or(Errno::BADF)?;
        let name = levels[at].name.as_ref().ok_or(Errno::BADF)?;
        let dir = open_directory(&above, name.as_bytes())?;
        let stat = status(&dir, b"")?;
        // Moved away meanwhile, with something else in its place.
        if (device(&stat), stat.stx_ino) != levels[at].identity {
            return Err(Errno::STALE);
        }
        levels[at].dir = Some(Arc::new(dir));
        // The root, at 0, stays open.
        if let Some(far) = at.checked_sub(MAX_OPEN).filter(|far| *far > 0) {
            levels[far].dir = None;
        }
    }
    levels.last().and_then(|level| level.dir.clone()).ok_or(Errno::BADF)
}

fn open_directory(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, OsStr::from_bytes(name), flags, Mode::empty())
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
