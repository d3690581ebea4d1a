//! The log of objects that a private layer refers to: written before each mark that does.
//!
//! Garbage collection keeps what it names. One line for each reference, 82 bytes: the digest, a
//! space, the inode number that the file shows in 16 hexadecimal digits, a line feed. It is
//! appended to, and now and then replaced by a shorter one (`tidy.rs`); a torn last line
//! belongs to a reference that was never made. Format: docs/FORMAT.md, "Private layer".

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::object::ObjectId;
use crate::sys::durable;

/// Its name in a private directory.
pub const NAME: &str = "refs";

const DIGEST_DIGITS: usize = 64;
pub(crate) const LINE_BYTES: usize = DIGEST_DIGITS + 1 + 16 + 1;

/// One reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The object.
    pub object: ObjectId,
    /// The inode number that the file shows. It was that of a private inode that is gone, so the
    /// host may give it to another.
    pub ino: u64,
}

/// Appends `entries` to the log `name` in `dir`, made if it is missing; durable on return.
///
/// # Errors
/// Those of the file system; then nothing may refer to these objects.
pub fn append(dir: impl AsFd, name: &str, entries: &[Reference]) -> io::Result<()> {
    let dir = dir.as_fd();
    let Some(Appended { log, fresh }) = append_undurably(dir, name, entries)? else {
        return Ok(());
    };
    log.sync_all()?;
    if fresh {
        rustix::fs::fsync(dir)?;
    }
    Ok(())
}

/// Lines that are in a log, and not yet on its disk.
pub struct Appended {
    log: File,
    /// The log was made for them.
    fresh: bool,
}

/// As [`append`], but for making it durable: who writes to many logs of one disk does that once for
/// all of them, by syncfs(2). None if there was nothing to append.
///
/// # Errors
/// Those of the file system; then nothing may refer to these objects.
pub fn append_undurably(
    dir: impl AsFd,
    name: &str,
    entries: &[Reference],
) -> io::Result<Option<Appended>> {
    if entries.is_empty() {
        return Ok(None);
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut log = locked(dir.as_fd(), name, flags)?;
    let end = log.seek(SeekFrom::End(0))?;
    let torn = end % LINE_BYTES as u64;
    let text: String = entries.iter().map(line).collect();
    log.write_all_at(text.as_bytes(), end - torn)?;
    Ok(Some(Appended { log, fresh: end == 0 }))
}

/// Opens a log and locks it: two may append to the same one, and another may put a shorter one in
/// its place. The lock goes with the descriptor.
fn locked(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<File> {
    loop {
        let log = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&log, FlockOperation::LockExclusive))?;
        let mine = rustix::fs::fstat(&log)?;
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino) => {
                return Ok(File::from(log));
            }
            // Replaced while we waited for the lock.
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Puts a log in the place of `name` that names each of its references once, and only those that
/// `keep` says yes to; returns how many lines went. Nothing is done, durably on return otherwise,
/// if that would not make it shorter by half: what is rewritten so takes no longer, over the life of
/// a log, than what was appended.
///
/// A cut leaves the one or the other, whole. Who appends meanwhile waits.
///
/// # Errors
/// `InvalidData` for a damaged log; those of the file system. The log is as it was then.
pub fn compact(dir: impl AsFd, name: &str, keep: &dyn Fn(&Reference) -> bool) -> io::Result<usize> {
    let dir = dir.as_fd();
    let mut log = match locked(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let all = parse_all(&mut log)?;
    let mut seen = HashSet::new();
    let left: Vec<Reference> = all
        .iter()
        .filter(|reference| keep(reference) && seen.insert(**reference))
        .copied()
        .collect();
    let gone = all.len() - left.len();
    if gone == 0 || gone < left.len() {
        return Ok(0);
    }
    let text: String = left.iter().map(line).collect();
    // Whole and durable before it has the name; the lock on the old one is held until then, and
    // who waited for it finds another file under the name.
    durable::write_file(dir, OsStr::new(name), text.as_bytes(), durable::Existing::Replace)?;
    Ok(gone)
}

/// Reads the log `name` in `dir`; nothing if there is none.
///
/// # Errors
/// `InvalidData` for a whole line that is no reference; those of the file system.
pub fn read(dir: impl AsFd, name: &str) -> io::Result<Vec<Reference>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut log = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(log) => File::from(log),
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    parse_all(&mut log)
}

fn parse_all(log: &mut File) -> io::Result<Vec<Reference>> {
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    let (lines, _torn) = bytes.as_chunks::<LINE_BYTES>();
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    lines.iter().map(|line| parse(line).ok_or_else(damaged)).collect()
}

fn line(reference: &Reference) -> String {
    format!("{} {:016x}\n", reference.object, reference.ino)
}

fn parse(line: &[u8; LINE_BYTES]) -> Option<Reference> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (object, ino) = text.split_once(' ')?;
    let lower = ino.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let ino = u64::from_str_radix(ino, 16).ok().filter(|_| lower)?;
    Some(Reference { object: object.parse().ok()?, ino })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &[u8], ino: u64) -> Reference {
        Reference { object: ObjectId::of(text), ino }
    }

    #[test]
    fn references_are_read_back_and_a_torn_line_is_written_over() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = File::open(scratch.path()).unwrap();
        assert_eq!(read(&dir, NAME).unwrap(), []);
        let (one, two, three) = (reference(b"1", 7), reference(b"2", u64::MAX), reference(b"3", 0));
        append(&dir, NAME, &[one, two]).unwrap();
        let log = File::options().append(true).open(scratch.path().join(NAME)).unwrap();
        io::Write::write_all(&mut &log, &line(&three).as_bytes()[..50]).unwrap();
        assert_eq!(read(&dir, NAME).unwrap(), [one, two]);
        append(&dir, NAME, &[three]).unwrap();
        assert_eq!(read(&dir, NAME).unwrap(), [one, two, three]);
    }

    #[test]
    fn a_whole_line_that_is_no_reference_is_an_error_and_never_passed_over() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = File::open(scratch.path()).unwrap();
        let good = line(&reference(b"1", 1));
        for at in [0, 30, 64, 70, 81] {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = b'!';
            std::fs::write(scratch.path().join(NAME), &bytes).unwrap();
            assert_eq!(read(&dir, NAME).unwrap_err().kind(), io::ErrorKind::InvalidData, "{at}");
        }
    }
}
