//! Between the kernel's encodings and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::layer::FileKind;
use crate::union::{Attributes, SetTime};

/// "For ever": names and attributes change only through this mount.
pub(super) const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long the kernel may believe attributes that come from a lookup.
///
/// fuser takes the number it names an inode by for its st_ino too; where those differ the
/// kernel must ask once more.
pub(super) fn lookup_ttl(attributes: &Attributes) -> Duration {
    if attributes.volatile || attributes.id.get() != attributes.ino {
        Duration::ZERO
    } else {
        FOREVER
    }
}

/// How long the kernel may believe attributes that it asked for.
pub(super) fn attribute_ttl(attributes: &Attributes) -> Duration {
    if attributes.volatile { Duration::ZERO } else { FOREVER }
}

/// Attributes for an answer that names the inode: `ino` is the kernel's number.
pub(super) fn named(attributes: &Attributes) -> FileAttr {
    convert(attributes, attributes.id.get())
}

/// Attributes for an answer that does not: `ino` is what stat(2) shows.
pub(super) fn shown(attributes: &Attributes) -> FileAttr {
    convert(attributes, attributes.ino)
}

fn convert(attributes: &Attributes, ino: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: system_time(attributes.atime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attributes.kind),
        perm: u16::try_from(attributes.mode & 0o7777).unwrap_or_default(),
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: encode_device(attributes.rdev),
        blksize: attributes.block_bytes,
        flags: 0,
    }
}

/// The answer that lets the kernel remember that a name does not exist.
pub(super) fn negative() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

fn system_time((seconds, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base =
        if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(nanos))))
        .unwrap_or(UNIX_EPOCH)
}

/// What the kernel sent: fuser 0.18 counts its nanoseconds away from 1970, also before it.
fn seconds_and_nanos(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            (-seconds, before.subsec_nanos())
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(seconds_and_nanos(time)),
    }
}

/// The kernel's 32-bit device number (`new_encode_dev`) from libc's.
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// libc's device number from the kernel's (`new_decode_dev`).
pub(super) fn decode_device(device: u32) -> u64 {
    let major = (device & 0xf_ff00) >> 8;
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    rustix::fs::makedev(major, minor)
}

pub(super) fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive() {
        for (time, sent) in
            [((-1, 0), (1, 0)), ((-1, 999_999_999), (1, 999_999_999)), ((-5, 1), (5, 1))]
        {
            let (seconds, nanos) = sent;
            assert_eq!(seconds_and_nanos(UNIX_EPOCH - Duration::new(seconds, nanos)), time);
        }
        for time in [(0, 0), (7, 500)] {
            assert_eq!(seconds_and_nanos(system_time(time)), time);
        }
        let answered = system_time((-5, 1));
        assert_eq!(UNIX_EPOCH.duration_since(answered).unwrap(), Duration::new(4, 999_999_999));
    }

    #[test]
    fn device_numbers_survive() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 70_000)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(decode_device(encode_device(device)), device);
        }
    }
}
