//! Places for mounts that a root lacks.
//!
//! A runtime makes them in the root, where they would pass for something the container did. Made here
//! before it comes, each has a mark, and its directory keeps its time. Who compares roots with their
//! templates knows the mark; nothing else does.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags,
    fsetxattr, fstat, futimens, mkdirat, openat, openat2, statat,
};
use rustix::io::Errno;

/// The attribute of a place: `y`. In a user namespace nobody can set it.
pub const MARK: &str = "trusted.mica.placed";

/// Where every container has file systems of the kernel's.
pub(super) const KERNELS: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];

/// Makes what is missing of `places` in `root`: the directories among them are those of which
/// `is_directory` is true. What cannot be made is left to the runtime, which says why.
pub(super) fn make(root: &Path, places: &[(PathBuf, bool)]) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags, Mode::empty())?;
    for (place, is_directory) in places {
        match make_one(&root, place, *is_directory) {
            // Its directory is missing too, or is none; or its root cannot be changed.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ROFS) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn make_one(root: &OwnedFd, place: &Path, is_directory: bool) -> Result<(), Errno> {
    let relative = place.strip_prefix("/").unwrap_or(place);
    let Some(name) = relative.file_name() else { return Ok(()) };
    let above = relative.parent().filter(|above| *above != Path::new(""));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Links in it are the container's, and lead nowhere outside.
    let above = above.unwrap_or(Path::new("."));
    let above = openat2(root, above, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    match statat(&above, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        there => return there.map(drop),
    }
    let before = fstat(&above)?;
    let made = create(&above, name, is_directory)?;
    fsetxattr(&made, MARK, b"y", XattrFlags::empty())?;
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let nanos = i64::try_from(before.st_mtime_nsec).unwrap_or_default();
    futimens(
        &above,
        &Timestamps {
            last_access: time(0, UTIME_OMIT),
            last_modification: time(before.st_mtime, nanos),
        },
    )
}

fn create(above: impl AsFd, name: &OsStr, is_directory: bool) -> Result<OwnedFd, Errno> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if is_directory {
        mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
        return openat(&above, name, flags | OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
    }
    let flags = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    openat(&above, name, flags, Mode::from_raw_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_and_links_lead_nowhere_outside() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let (root, outside) = (scratch.path().join("root"), scratch.path().join("outside"));
        std::fs::create_dir_all(root.join("etc")).expect("made");
        std::fs::create_dir(&outside).expect("made");
        std::fs::write(root.join("etc/there"), "text").expect("written");
        std::os::unix::fs::symlink(&outside, root.join("away")).expect("linked");
        std::os::unix::fs::symlink("../../outside", root.join("up")).expect("linked");
        let places = ["/etc/there", "/away/file", "/up/file", "/none/file", "/"];
        let places: Vec<_> = places.iter().map(|place| (PathBuf::from(place), false)).collect();
        make(&root, &places).expect("nothing to do");
        assert_eq!(std::fs::read_to_string(root.join("etc/there")).expect("read"), "text");
        assert_eq!(std::fs::read_dir(&outside).expect("listed").count(), 0);
        assert_eq!(std::fs::read_dir(&root).expect("listed").count(), 3);
    }
}
