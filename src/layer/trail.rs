//! The way down from a directory to the one in hand, kept with few open descriptors.
//!
//! Walking relative to open directories makes paths of any length work and keeps a directory
//! that is renamed meanwhile from leading elsewhere. Only the deepest directories stay open; a
//! higher one is opened again by its names and compared with what it was.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::name::FileName;
use super::path::LayerPath;

/// Directories open at once, besides the root.
const MAX_OPEN: usize = 64;

/// A stack of directories, from a root that is always open to the one in hand.
pub(super) struct Trail {
    root: Arc<OwnedFd>,
    levels: Vec<Level>,
}

struct Level {
    name: FileName,
    /// Closed while the walk is far below.
    dir: Option<Arc<OwnedFd>>,
    /// Device and inode.
    identity: (u64, u64),
}

impl Trail {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root: Arc::new(root), levels: Vec::new() }
    }

    /// Directories below the root.
    pub(super) fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Path of `name` in the directory in hand.
    pub(super) fn path_of(&self, name: &FileName) -> LayerPath {
        let names = self.levels.iter().map(|level| level.name.clone());
        LayerPath::from_names(names.chain([name.clone()]).collect())
    }

    /// Path of the directory in hand.
    pub(super) fn path(&self) -> LayerPath {
        LayerPath::from_names(self.levels.iter().map(|level| level.name.clone()).collect())
    }

    /// The directory in hand.
    ///
    /// # Errors
    /// `ESTALE` if another one has taken its place meanwhile, and those of openat(2).
    pub(super) fn dir(&mut self) -> Result<Arc<OwnedFd>, Errno> {
        let open = self.levels.iter().rposition(|level| level.dir.is_some());
        let (mut dir, next) = match open {
            Some(at) => (self.levels[at].dir.clone(), at + 1),
            None => (None, 0),
        };
        for at in next..self.levels.len() {
            let level = &self.levels[at];
            let above = dir.as_ref().unwrap_or(&self.root);
            let opened = open_directory(above, level.name.as_bytes())?;
            if identity(&opened)? != level.identity {
                return Err(Errno::STALE);
            }
            let opened = Arc::new(opened);
            self.levels[at].dir = Some(Arc::clone(&opened));
            self.close_far(at);
            dir = Some(opened);
        }
        Ok(dir.unwrap_or_else(|| Arc::clone(&self.root)))
    }

    /// Goes down into `dir`, which is called `name` in the directory in hand.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub(super) fn enter(&mut self, name: FileName, dir: Arc<OwnedFd>) -> Result<(), Errno> {
        let identity = identity(&dir)?;
        self.levels.push(Level { name, dir: Some(dir), identity });
        self.close_far(self.levels.len() - 1);
        Ok(())
    }

    /// Goes up by one directory and returns the name of the one left.
    pub(super) fn leave(&mut self) -> Option<FileName> {
        self.levels.pop().map(|level| level.name)
    }

    fn close_far(&mut self, at: usize) {
        if let Some(far) = at.checked_sub(MAX_OPEN) {
            self.levels[far].dir = None;
        }
    }
}

/// Opens a directory in a directory; follows nothing.
pub(super) fn open_directory(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, OsStr::from_bytes(name), flags, Mode::empty())
}

fn identity(dir: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn name(text: &str) -> FileName {
        FileName::new(text.as_bytes()).unwrap()
    }

    fn open(path: &std::path::Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn directories_beyond_the_open_ones_are_found_again() {
        let scratch = tempfile::tempdir().unwrap();
        let mut trail = Trail::new(open(scratch.path()));
        let depth = MAX_OPEN * 3;
        for _ in 0..depth {
            let dir = trail.dir().unwrap();
            rustix::fs::mkdirat(&dir, "d", Mode::from_raw_mode(0o755)).unwrap();
            let below = open_directory(&dir, b"d").unwrap();
            trail.enter(name("d"), Arc::new(below)).unwrap();
        }
        let identities = |trail: &mut Trail| {
            let mut all = Vec::new();
            loop {
                all.push(identity(&trail.dir().unwrap()).unwrap());
                let open = trail.levels.iter().filter(|level| level.dir.is_some()).count();
                assert!(open <= MAX_OPEN + 1, "{open}");
                if trail.leave().is_none() {
                    return all;
                }
            }
        };
        let mut found = identities(&mut trail);
        assert_eq!(found.len(), depth + 1);
        found.dedup();
        assert_eq!(found.len(), depth + 1);
    }

    #[test]
    fn a_directory_put_in_the_place_of_another_is_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("a")).unwrap();
        let mut trail = Trail::new(open(scratch.path()));
        let dir = trail.dir().unwrap();
        trail.enter(name("a"), Arc::new(open_directory(&dir, b"a").unwrap())).unwrap();
        trail.levels[0].dir = None;
        fs::rename(scratch.path().join("a"), scratch.path().join("b")).unwrap();
        fs::create_dir(scratch.path().join("a")).unwrap();
        assert_eq!(trail.dir().unwrap_err(), Errno::STALE);
    }
}
