//! The mount table of this mount namespace, as far as Mica's own mounts are concerned.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The file system type under which the kernel lists Mica's mounts.
pub const FS_TYPE: &str = "fuse.mica";

/// One line of /proc/self/mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The device number that stat(2) reports inside, `major:minor`.
    pub device: String,
    /// The file system's type.
    pub fs_type: String,
    /// What is mounted, as the file system names it.
    pub source: OsString,
}

impl MountEntry {
    /// Whether it is one of Mica's.
    #[must_use]
    pub fn is_mica(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// Reads the table, first mounted first.
///
/// # Errors
/// When /proc is not there.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(std::fs::read("/proc/self/mountinfo")?
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// What is mounted on top at exactly `mountpoint`, a canonical path.
///
/// # Errors
/// As [`read`].
pub fn at(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?.into_iter().rev().find(|entry| entry.mountpoint == mountpoint))
}

/// The absolute form of `path` without following what is mounted on it: a dead mount
/// answers ENOTCONN to anything that looks inside.
///
/// # Errors
/// When the parent does not exist or cannot be walked.
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {}
        done => return done,
    }
    let absolute = std::path::absolute(path)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        // "/" itself, or a path that ends in "..".
        _ => absolute.canonicalize(),
    }
}

/// One line, by proc_pid_mountinfo(5): fields up to `-`, then type, source, options.
fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let mountpoint = fields.nth(1)?;
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = after.next()?;
    let source = after.next()?;
    Some(MountEntry {
        mountpoint: PathBuf::from(OsString::from_vec(unescaped(mountpoint))),
        device: String::from_utf8_lossy(device).into_owned(),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        source: OsString::from_vec(unescaped(source)),
    })
}

/// Undoes the `\ooo` for blanks, tabs, newlines and backslashes of mountinfo and fstab.
#[must_use]
pub fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = match code {
            Some(_) => tail.get(3..).unwrap_or_default(),
            None => tail,
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields_are_read() {
        let shared =
            b"36 35 0:98 / /mnt/a\\040b\\134 rw,noatime shared:1 master:2 - fuse.mica debian:12 rw";
        let entry = parse(shared).expect("a whole line");
        assert_eq!(entry.mountpoint, PathBuf::from("/mnt/a b\\"));
        assert_eq!((entry.device.as_str(), entry.is_mica()), ("0:98", true));
        assert_eq!(entry.source, "debian:12");
        let plain = b"21 1 254:0 / / rw,relatime - ext4 /dev/vda rw";
        assert_eq!(parse(plain).expect("a whole line").fs_type, "ext4");
        assert_eq!(parse(b"21 1 254:0"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_root_of_this_namespace_is_found() {
        assert!(at(Path::new("/")).expect("proc is mounted").is_some());
        assert_eq!(canonical(Path::new("/proc/../tmp/")).expect("exists"), Path::new("/tmp"));
    }
}
