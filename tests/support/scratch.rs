//! A directory on a real disk for one test, gone with it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};

/// A directory for one test, on the disk file system that `MICA_TEST_SCRATCH` names, or under
/// cargo's target directory. Dropping it unmounts whatever is mounted beneath, clears immutable
/// flags and removes it.
///
/// Mountpoints lie elsewhere, under `/tmp`, so that users other than root can walk to them
/// wherever the checkout lies.
pub(crate) struct Scratch {
    directory: PathBuf,
    mounts: PathBuf,
}

impl Scratch {
    /// Makes a fresh directory; `name` shows in its path.
    pub(crate) fn new(name: &str) -> Self {
        let base = std::env::var_os("MICA_TEST_SCRATCH")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        Self { directory: fresh(&base, name, 0o755), mounts: fresh(Path::new("/tmp"), name, 0o755) }
    }

    /// Where the test keeps its files: a real disk, never tmpfs.
    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory `name` within, with its parents, and returns its path.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).expect("a scratch directory can be made");
        path
    }

    /// Makes an empty directory to mount on that every user can walk to.
    pub(crate) fn mountpoint(&self, name: &str) -> PathBuf {
        let path = self.mounts.join(name);
        fs::create_dir_all(&path).expect("a mountpoint can be made");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        unmount_beneath(&self.mounts);
        unmount_beneath(&self.directory);
        remove(&self.directory);
        remove(&self.mounts);
    }
}

fn fresh(base: &Path, name: &str, mode: u32) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(base).expect("the scratch base can be made");
    let directory = tempfile::Builder::new()
        .prefix(&format!("mica-{name}-"))
        .tempdir_in(base)
        .expect("a scratch directory can be made")
        .keep();
    fs::set_permissions(&directory, fs::Permissions::from_mode(mode))
        .expect("the owner may set the mode");
    directory
}

/// Says whether something is mounted exactly at `path`.
pub(crate) fn is_mountpoint(path: &Path) -> bool {
    mountpoints().is_ok_and(|all| all.iter().any(|mounted| mounted == path))
}

/// Detaches everything mounted at or beneath `top`, last mounted first.
///
/// A detached mount cannot refuse: even one whose server is dead goes. Loop devices that `mount`
/// made go with their mount.
pub(crate) fn unmount_beneath(top: &Path) {
    let Ok(all) = mountpoints() else { return };
    for mounted in all.iter().rev().filter(|mounted| mounted.starts_with(top)) {
        if let Err(error) = unmount(mounted, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", mounted.display());
        }
    }
}

/// Every mountpoint of this mount namespace, first mounted first.
fn mountpoints() -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let field = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(unescape);
    Ok(table.split(|byte| *byte == b'\n').filter_map(field).collect())
}

/// Undoes the octal escapes of mountinfo (proc(5)).
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn remove(directory: &Path) {
    if fs::remove_dir_all(directory).is_ok() {
        return;
    }
    // Objects are immutable where the file system has the flag; nothing else keeps root out.
    let cleared = Command::new("chattr").args(["-R", "-f", "-i"]).arg(directory).status();
    if let Err(error) = cleared.and_then(|_| fs::remove_dir_all(directory)) {
        eprintln!("cannot remove {}: {error}", directory.display());
    }
}
