//! The log of objects that a private layer refers to: written before each mark that does.
//!
//! Garbage collection keeps what it names. One line for each reference, 82 bytes: the digest, a
//! space, the inode number that the file shows in 16 hexadecimal digits, a line feed. It is only
//! appended to; a torn last line belongs to a reference that was never made. Format:
//! docs/FORMAT.md, "Private layer".

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::object::ObjectId;

/// Its name in a private directory.
pub const NAME: &str = "refs";

const DIGEST_DIGITS: usize = 64;
const LINE_BYTES: usize = DIGEST_DIGITS + 1 + 16 + 1;

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
    if entries.is_empty() {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = dir.as_fd();
    let mut log = File::from(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
    // Two may append to the same one; the lock goes with the descriptor.
    rustix::io::retry_on_intr(|| rustix::fs::flock(&log, FlockOperation::LockExclusive))?;
    let end = log.seek(SeekFrom::End(0))?;
    let torn = end % LINE_BYTES as u64;
    let text: String = entries.iter().map(line).collect();
    log.write_all_at(text.as_bytes(), end - torn)?;
    log.sync_all()?;
    if end == 0 {
        rustix::fs::fsync(dir)?;
    }
    Ok(())
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
