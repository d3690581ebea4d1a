//! Reading files that nobody writes: a lease first, then every byte, asking all the while whether
//! it still holds.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Advice, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::candidates::Candidate;
use crate::catalog::Identity;
use crate::host::pace::{Go, Pace};
use crate::object::{Digest, ObjectId, ReadSparse, Reading};
use crate::sys::cache::resident_bytes;
use crate::sys::inode;
use crate::sys::lease::ReadLease;
use crate::sys::sparse::{Piece, Pieces, read_full};
use crate::union::upper::Upper;

/// Bytes read at a time: what stays in a processor's cache until it is hashed, and of the longest
/// files as many as are worth hashing on all processors.
const PIECE_BYTES: usize = 256 << 10;
const LARGE_PIECE_BYTES: usize = 4 << 20;
/// From here on a file is long.
const LARGE_BYTES: u64 = 64 << 20;
/// Bytes of the beginning and of the end that tell most files apart.
const SAMPLE_BYTES: usize = 4096;

/// A private file under a lease.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) file: Candidate,
    pub(super) lease: Arc<ReadLease>,
    /// Bytes of it that were in memory before it was read.
    pub(super) resident_bytes: u64,
}

/// Why a file is not under a lease, or was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GaveUp {
    /// It is another by now, or gone.
    Changed,
    /// Somebody writes to it, or wants to.
    InUse,
    /// Everything is to stop.
    Held,
    /// It cannot be read.
    Failed,
}

/// Opens a candidate for reading. Follows no symlink, and never leaves the upper directory.
fn open(upper: &Upper, file: &Candidate) -> Result<OwnedFd, Errno> {
    let flags =
        OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let mode = rustix::fs::Mode::empty();
    rustix::fs::openat2(upper.view().upper(), &*file.path, flags, mode, resolve)
}

/// Opens `file` and proves that nobody writes to it.
pub(super) fn lease(upper: &Upper, file: Candidate) -> Result<Leased, GaveUp> {
    let fd = open(upper, &file).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => GaveUp::Changed,
        _ => GaveUp::Failed,
    })?;
    let lease = match ReadLease::take(fd) {
        Ok(lease) => lease,
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Err(GaveUp::InUse),
        Err(error) => {
            tracing::debug!(%error, "no lease on a private file");
            return Err(GaveUp::Failed);
        }
    };
    if identity_of(&lease) != Some(file.identity) {
        return Err(GaveUp::Changed);
    }
    let resident_bytes = resident_bytes(lease.as_fd()).unwrap_or(0);
    Ok(Leased { file, lease: Arc::new(lease), resident_bytes })
}

fn identity_of(lease: &ReadLease) -> Option<Identity> {
    let dev = rustix::fs::fstat(lease).ok()?.st_dev;
    let inode::Status { ino, size, mtime, ctime, .. } = inode::status(lease).ok()?;
    Some(Identity { dev, ino, size, mtime, ctime })
}

/// Reads and hashes a leased file: its name as an object, and its 512-byte units of data.
pub(super) fn hash(
    leased: &Leased,
    buffer: &mut Vec<u8>,
    pace: &Pace,
) -> Result<(ObjectId, u64), GaveUp> {
    let long = !pace.is_limited() && leased.file.identity.size >= LARGE_BYTES;
    buffer.resize(if long { LARGE_PIECE_BYTES } else { PIECE_BYTES }, 0);
    let mut reading = Reading::default();
    let mut pieces = Pieces::of(leased.lease.as_fd(), u64::MAX).map_err(|_| GaveUp::Failed)?;
    loop {
        loop {
            if !leased.lease.holds() {
                return Err(GaveUp::InUse);
            }
            match pace.next() {
                Go::On => break,
                Go::Soon => {}
                Go::No => return Err(GaveUp::Held),
            }
        }
        let next = pieces.next(leased.lease.as_fd(), buffer);
        let Some(piece) = next.map_err(|_| GaveUp::Failed)? else { break };
        reading.take_piece(piece, buffer).map_err(|_| GaveUp::Failed)?;
        if let Piece::Data(filled) = piece {
            pace.spend(u64::try_from(filled).unwrap_or(u64::MAX));
        }
    }
    if leased.resident_bytes == 0 {
        // Read for us alone: what others have in memory is worth more.
        let _dropped = rustix::fs::fadvise(&*leased.lease, 0, None, Advice::DontNeed);
    }
    if reading.len_bytes() != leased.file.identity.size || !leased.lease.holds() {
        return Err(GaveUp::Changed);
    }
    Ok(reading.finish())
}

/// The digest of the first and the last bytes of a file: most files that differ, differ there.
pub(super) fn sample(fd: impl AsFd, size: u64) -> io::Result<Digest> {
    let mut sampled = vec![0; 2 * SAMPLE_BYTES];
    let (head, tail) = sampled.split_at_mut(SAMPLE_BYTES);
    read_full(fd.as_fd(), head, 0)?;
    let last = u64::try_from(SAMPLE_BYTES).unwrap_or(u64::MAX);
    read_full(fd.as_fd(), tail, size.saturating_sub(last))?;
    Ok(Digest::of(&sampled))
}

/// The sample of a candidate, without a lease: it only tells whether reading all is worth it.
pub(super) fn sample_of(upper: &Upper, file: &Candidate) -> io::Result<Digest> {
    sample(open(upper, file)?, file.identity.size)
}

/// A leased file as a stream that ends with an error once the lease is wanted back.
pub(super) struct Watched<'a> {
    leased: &'a Leased,
    pieces: Pieces,
}

impl<'a> Watched<'a> {
    pub(super) fn new(leased: &'a Leased) -> io::Result<Self> {
        let pieces = Pieces::of(leased.lease.as_fd(), leased.file.identity.size)?;
        Ok(Self { leased, pieces })
    }
}

impl io::Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.leased.lease.holds() {
            return Err(io::Error::from(io::ErrorKind::ResourceBusy));
        }
        let len = buffer.len().min(LARGE_PIECE_BYTES);
        self.pieces.read(self.leased.lease.as_fd(), buffer.get_mut(..len).unwrap_or_default())
    }
}

impl ReadSparse for Watched<'_> {
    fn hole(&mut self) -> io::Result<u64> {
        if !self.leased.lease.holds() {
            return Err(io::Error::from(io::ErrorKind::ResourceBusy));
        }
        self.pieces.pass_hole(self.leased.lease.as_fd())
    }
}
