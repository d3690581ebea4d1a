//! The disk that a directory's bytes are on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::CgroupError;

/// A whole block device, by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Disk {
    /// The driver's number.
    pub major: u32,
    /// Which of its disks.
    pub minor: u32,
}

impl Disk {
    /// The disk beneath the file system that holds `directory`.
    ///
    /// Limits are kept for whole disks, so a partition answers the disk it is a part of. `None`
    /// where no one disk is beneath: a tmpfs, a network file system, several disks of a btrfs.
    ///
    /// # Errors
    /// What stat(2) of `directory` answers, or reading the mount table.
    pub fn beneath(directory: &Path) -> Result<Option<Self>, CgroupError> {
        let device = fs::metadata(directory).map_err(CgroupError::system("look at", directory))?;
        let device = device.dev();
        let numbers = Self { major: rustix::fs::major(device), minor: rustix::fs::minor(device) };
        if let Some(disk) = numbers.whole() {
            return Ok(Some(disk));
        }
        // btrfs gives every subvolume a number of no device; the mount table names the real one.
        let table = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(table).map_err(CgroupError::system("read", table))?;
        let wanted = directory.canonicalize().map_err(CgroupError::system("find", directory))?;
        let source = text.lines().filter_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let mountpoint = Path::new(mount.split(' ').nth(4)?);
            let source = system.split(' ').nth(1)?;
            wanted.starts_with(mountpoint).then_some((mountpoint.components().count(), source))
        });
        let source = source.max_by_key(|(depth, _)| *depth).map(|(_, source)| source);
        let Some(device) = source.and_then(|source| fs::metadata(source).ok()) else {
            return Ok(None);
        };
        let device = device.rdev();
        let disk = Self { major: rustix::fs::major(device), minor: rustix::fs::minor(device) };
        Ok(disk.whole())
    }

    /// The disk that this is or is a partition of.
    fn whole(self) -> Option<Self> {
        let entry = Path::new("/sys/dev/block").join(format!("{}:{}", self.major, self.minor));
        let entry = entry.canonicalize().ok()?;
        if !entry.join("partition").exists() {
            return Some(self);
        }
        let numbers = fs::read_to_string(entry.parent()?.join("dev")).ok()?;
        let (major, minor) = numbers.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}
