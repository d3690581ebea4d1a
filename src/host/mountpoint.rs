//! The place a root is mounted at: making it fit, and leaving it again.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::mount::UnmountFlags;

use super::error::HostError;
use super::mount_table::{self, MountEntry};

/// More dead mounts on one place than this are no accident.
const STACKED_LIMIT: usize = 64;

/// A directory that is fit to be mounted on, kept from other mounts of Mica's until dropped.
#[derive(Debug)]
pub struct Prepared {
    /// Its absolute path.
    pub path: PathBuf,
    _lock: OwnedFd,
}

/// Makes `path` a directory that can be mounted on.
///
/// A missing directory is made. Dead mounts of Mica's on it are detached: their process is
/// gone and all they answer is ENOTCONN. Waits for whoever prepared the same place before.
///
/// # Errors
/// [`HostError::MountpointTaken`], [`HostError::MountpointNotEmpty`],
/// [`HostError::MountpointDead`] when the dead mount is not Mica's.
pub fn prepare(path: &Path) -> Result<Prepared, HostError> {
    let system = HostError::system::<io::Error>;
    // This process has no umask: modes come from requests.
    match fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
        Ok(()) => {}
        // It exists, as something that may be a dead mount.
        Err(error) if is_dead(&error) || error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(system("make the mountpoint", path)(error)),
    }
    let path = mount_table::canonical(path).map_err(system("find the mountpoint", path))?;
    for _ in 0..STACKED_LIMIT {
        clear_dead(&path)?;
        let lock = match lock(&path) {
            // It died just now.
            Err(error) if is_dead(&error) => continue,
            lock => lock.map_err(system("lock the mountpoint", &path))?,
        };
        // Somebody mounted there while the lock was waited for: look at that.
        let Some(lock) = lock else { continue };
        let there = mount_table::at(&path).map_err(system("look up", &path))?;
        if let Some(entry) = there.filter(MountEntry::is_mica) {
            return Err(HostError::MountpointTaken { path, template: entry.source });
        }
        let mut names = fs::read_dir(&path).map_err(system("list the mountpoint", &path))?;
        if names.next().is_some() {
            return Err(HostError::MountpointNotEmpty { path });
        }
        return Ok(Prepared { path, _lock: lock });
    }
    Err(HostError::MountpointDead { path, fs_type: mount_table::FS_TYPE.to_owned() })
}

/// Locks the directory at `path`; `None` if it is not there any more once it is locked.
fn lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let directory = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK)
        .open(path)?;
    rustix::io::retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive))?;
    let (locked, now) = (directory.metadata()?, fs::metadata(path)?);
    let same = (locked.dev(), locked.ino()) == (now.dev(), now.ino());
    Ok(same.then(|| directory.into()))
}

/// Detaches the topmost mount at `path` if it is Mica's.
fn detach_dead(path: &Path) -> Result<(), HostError> {
    let there = mount_table::at(path).map_err(HostError::system("look up", path))?;
    match there {
        Some(entry) if entry.is_mica() => {
            rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(HostError::system("detach the dead mount at", path))
        }
        Some(entry) => {
            Err(HostError::MountpointDead { path: path.to_owned(), fs_type: entry.fs_type })
        }
        // Gone meanwhile.
        None => Ok(()),
    }
}

/// Whether something at `path` answers as a file system does whose server died.
///
/// Asks for the free space, which nobody caches: attributes and names of a dead root may
/// still be answered from the kernel's memory.
#[must_use]
pub fn is_dead_mount(path: &Path) -> bool {
    rustix::fs::statfs(path).is_err_and(|errno| errno == rustix::io::Errno::NOTCONN)
}

/// Detaches every dead mount of Mica's at `path`.
///
/// # Errors
/// [`HostError::MountpointDead`] when a dead mount is not Mica's, or there is no end of them.
pub fn clear_dead(path: &Path) -> Result<(), HostError> {
    for _ in 0..STACKED_LIMIT {
        if !is_dead_mount(path) {
            return Ok(());
        }
        detach_dead(path)?;
    }
    let fs_type = mount_table::FS_TYPE.to_owned();
    Err(HostError::MountpointDead { path: path.to_owned(), fs_type })
}

/// Unmounts what Mica mounted at `path`, if it is on top there.
///
/// `device` is that of the mount meant (`major:minor`); `None` takes any of Mica's.
///
/// # Errors
/// [`HostError::MountpointBusy`] naming the processes that use it,
/// [`HostError::MountpointCovered`], [`HostError::NotMounted`].
pub fn unmount(path: &Path, device: Option<&str>, detach: bool) -> Result<(), HostError> {
    let there = mount_table::at(path).map_err(HostError::system("look up", path))?;
    match there {
        Some(entry) if entry.is_mica() && device.is_none_or(|device| device == entry.device) => {}
        Some(entry) => {
            return Err(HostError::MountpointCovered {
                path: path.to_owned(),
                fs_type: entry.fs_type,
            });
        }
        None => return Err(HostError::NotMounted { wanted: path.display().to_string() }),
    }
    let mut flags = UnmountFlags::NOFOLLOW;
    if detach {
        flags |= UnmountFlags::DETACH;
    }
    rustix::mount::unmount(path, flags).map_err(|errno| match errno {
        rustix::io::Errno::BUSY => {
            HostError::MountpointBusy { path: path.to_owned(), users: users(path) }
        }
        errno => HostError::system("unmount", path)(errno),
    })
}

/// The processes, as `name (pid)`, that stand in `mountpoint` or have files of it open; at
/// most five. What is mounted beneath counts too.
fn users(mountpoint: &Path) -> Vec<String> {
    const ENOUGH: usize = 5;
    let mut users = Vec::new();
    if let Ok(entries) = mount_table::read() {
        let beneath = |entry: &&MountEntry| {
            entry.mountpoint != mountpoint && entry.mountpoint.starts_with(mountpoint)
        };
        let mounts = entries.iter().filter(beneath);
        users.extend(mounts.map(|entry| format!("mount at {}", entry.mountpoint.display())));
    }
    let Ok(processes) = fs::read_dir("/proc") else { return users };
    for process in processes.flatten() {
        if users.len() >= ENOUGH {
            break;
        }
        let pid = process.file_name();
        let is_process = pid.to_str().is_some_and(|pid| pid.bytes().all(|b| b.is_ascii_digit()));
        if is_process && uses(&process.path(), mountpoint) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            users.push(format!("{} ({})", name.trim(), pid.to_string_lossy()));
        }
    }
    users.truncate(ENOUGH);
    users
}

/// Whether a process (its directory in /proc) refers to anything under `mountpoint`. Only
/// reads links, so a hanging file system cannot hang this.
fn uses(process: &Path, mountpoint: &Path) -> bool {
    let refers = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(mountpoint));
    let fds = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let maps = fs::read_dir(process.join("map_files")).into_iter().flatten().flatten();
    ["cwd", "root", "exe"].iter().any(|name| refers(process.join(name)))
        || fds.chain(maps).any(|entry| refers(entry.path()))
}

fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTCONN)
}

/// The absolute form of a path whose last parts need not exist.
///
/// # Errors
/// When what exists of it cannot be walked.
pub fn future_path(path: &Path) -> Result<PathBuf, HostError> {
    let absolute = std::path::absolute(path).map_err(HostError::system("resolve", path))?;
    let mut missing: Vec<OsString> = Vec::new();
    let mut at = absolute.as_path();
    loop {
        match mount_table::canonical(at) {
            Ok(found) => {
                return Ok(missing.iter().rev().fold(found, |path, part| path.join(part)));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(HostError::system("resolve", path)(error)),
        }
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
            let error = io::Error::from(io::ErrorKind::NotFound);
            return Err(HostError::system("resolve", path)(error));
        };
        missing.push(name.to_owned());
        at = parent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_mountpoint_is_made_and_a_used_one_refused() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let path = scratch.path().join("mnt/web1");
        assert_eq!(prepare(&path).expect("made").path, path.canonicalize().expect("exists"));
        prepare(&path).expect("still empty");
        fs::write(path.join("letter"), b"dear").expect("written");
        assert!(matches!(prepare(&path), Err(HostError::MountpointNotEmpty { .. })));
        assert!(matches!(prepare(&path.join("letter")), Err(HostError::System { .. })));
        assert!(matches!(unmount(&path, None, false), Err(HostError::NotMounted { .. })));
    }

    #[test]
    fn a_path_that_does_not_exist_yet_is_resolved_as_far_as_it_does() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let real = scratch.path().canonicalize().expect("exists");
        std::os::unix::fs::symlink(&real, real.join("link")).expect("linked");
        let future = future_path(&real.join("link/a/b")).expect("resolved");
        assert_eq!(future, real.join("a/b"));
        assert_eq!(future_path(&real).expect("resolved"), real);
    }

    #[test]
    fn a_process_is_found_by_where_it_stands() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let real = scratch.path().canonicalize().expect("exists");
        let mut child = std::process::Command::new("cat")
            .current_dir(&real)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("cat runs");
        // It has its own name once it does its work.
        let mut stdin = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut stdin, b"x").expect("it reads");
        let mut byte = [0];
        let mut stdout = child.stdout.take().expect("piped");
        std::io::Read::read_exact(&mut stdout, &mut byte).expect("it writes");
        let found = users(&real);
        drop(stdin);
        child.wait().expect("cat ends");
        assert!(found.iter().any(|user| *user == format!("cat ({})", child.id())), "{found:?}");
        assert!(users(&real).is_empty());
    }
}
