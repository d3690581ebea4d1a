//! The most that a root's private files may take on the disk, held by this process.
//!
//! Where the host has a quota of its own it is the better one. Here, while a limit is set, private
//! files are opened without passthrough, so that every byte comes by: what an operation may
//! allocate is set aside before it, and what it did allocate is counted after. The count never
//! falls short of the disk, and may exceed it, since what is freed is not followed; so before
//! anything is refused, and now and then, the private layer is counted again.
//!
//! A file that a descriptor or a mapping from before the limit may still write goes on passing
//! through until those are gone: the kernel allows no second way beside it.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{FileSystem, FsError};
use crate::private::Allocated;
use crate::union::{NodeId, Space};

/// What a file grows by, at least, wherever it is written.
pub(super) const UNIT_BYTES: u64 = 4096;

/// The count is taken anew once it is so old; sooner while files are written past this process.
const TRUSTED: Duration = Duration::from_secs(10);
const TRUSTED_BESIDE_OTHERS: Duration = Duration::from_secs(1);

/// Counting takes no more than this part of the time, unless something was freed.
const PART: u32 = 20;

/// What a name makes a directory grow by, at most: blocks of names are half full at least.
pub(super) fn name_bytes(name: &[u8]) -> u64 {
    2 * (u64::try_from(name.len()).unwrap_or(0) + 16)
}

const UNLIMITED: u64 = u64::MAX;

/// So many files are allowed under any limit.
const LEAST_FILES: u64 = 4096;

/// The limit and what counts against it.
#[derive(Debug)]
pub(super) struct Quota {
    limit: AtomicU64,
    used: AtomicU64,
    /// Inodes, those under way among them: the host's file system may have so many and no more.
    files: AtomicU64,
    /// Set aside for operations under way.
    reserved: AtomicU64,
    /// Something may have been freed since the last count: counted up whenever it was.
    freed: AtomicU64,
    counted: Mutex<Option<Counted>>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Instant,
    took: Duration,
    freed: u64,
    unseen: bool,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            limit: AtomicU64::new(UNLIMITED),
            used: AtomicU64::new(0),
            files: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            counted: Mutex::new(None),
        }
    }
}

/// What a root's private files take, and may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// The most, in bytes; none: no limit.
    pub limit_bytes: Option<u64>,
    /// What they have allocated, in bytes.
    pub used_bytes: u64,
    /// Files that were open for writing before the limit came: what is written to them counts,
    /// and is not refused, until they are closed and unmapped.
    pub unheld_files: usize,
}

/// Room that an operation may use up. Dropped unsettled, it is given back.
#[must_use]
pub(super) struct Room<'a> {
    quota: &'a Quota,
    bytes: u64,
}

impl Room<'_> {
    /// The operation left what had `before` bytes with `after`.
    pub(super) fn settle(self, before: u64, after: u64) {
        if after >= before {
            self.quota.used.fetch_add(after - before, Ordering::AcqRel);
        } else {
            self.quota.was_freed();
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.quota.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// An inode about to be made. Dropped without [`NewFile::made`], there is none.
#[must_use]
pub(super) struct NewFile<'a>(Option<&'a Quota>);

impl NewFile<'_> {
    /// It is there.
    pub(super) fn made(mut self) {
        self.0 = None;
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(quota) = self.0 {
            quota.fewer_files(1);
        }
    }
}

impl Quota {
    /// A count meanwhile may have left out one that is just being made: never below none.
    fn fewer_files(&self, count: u64) {
        let less = |files: u64| Some(files.saturating_sub(count));
        let _before = self.files.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    fn try_file(&self, most: u64) -> Option<NewFile<'_>> {
        let before = self.files.fetch_add(1, Ordering::AcqRel);
        let file = NewFile(Some(self));
        (before < most).then_some(file)
    }

    pub(super) fn is_set(&self) -> bool {
        self.limit() != UNLIMITED
    }

    /// Something was given back to the disk, or may have been.
    pub(super) fn was_freed(&self) {
        self.freed.fetch_add(1, Ordering::AcqRel);
    }

    fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    fn try_reserve(&self, bytes: u64) -> Option<Room<'_>> {
        let others = self.reserved.fetch_add(bytes, Ordering::AcqRel);
        let room = Room { quota: self, bytes };
        let wanted = self.used.load(Ordering::Acquire).saturating_add(others).saturating_add(bytes);
        (wanted <= self.limit()).then_some(room)
    }

    /// Whole units that are free.
    fn free_units(&self) -> u64 {
        let taken = self.used.load(Ordering::Acquire) + self.reserved.load(Ordering::Acquire);
        self.limit().saturating_sub(taken) / UNIT_BYTES
    }
}

impl FileSystem {
    /// Limits what the private files may take on the disk; none takes the limit off. In force on
    /// return for everything but [`DiskUse::unheld_files`]. A limit below what is used already
    /// takes nothing away: nothing more is allocated.
    ///
    /// # Errors
    /// The host's errno when the private layer cannot be counted; nothing is changed then.
    pub fn set_disk_limit(&self, limit_bytes: Option<u64>) -> Result<DiskUse, FsError> {
        let limit = limit_bytes.unwrap_or(UNLIMITED);
        if !self.quota.is_set() {
            // Nothing was counted while there was no limit.
            *self.quota.counted.lock() = None;
        }
        // Opens from here on are held; only then is it settled who was before.
        let before = self.quota.limit.swap(limit, Ordering::AcqRel);
        if let Err(error) = self.count() {
            self.quota.limit.store(before, Ordering::Release);
            return Err(error);
        }
        Ok(self.known_use())
    }

    /// What the private files take now, and may take.
    ///
    /// # Errors
    /// The host's errno.
    pub fn disk_use(&self) -> Result<DiskUse, FsError> {
        self.count()?;
        Ok(self.known_use())
    }

    fn known_use(&self) -> DiskUse {
        DiskUse {
            limit_bytes: Some(self.quota.limit()).filter(|limit| *limit != UNLIMITED),
            used_bytes: self.quota.used.load(Ordering::Acquire),
            unheld_files: if self.quota.is_set() { self.union.written_unseen() } else { 0 },
        }
    }

    /// Whether there is a limit.
    pub(super) fn limits_disk(&self) -> bool {
        self.quota.is_set()
    }

    /// Sets room for `bytes` aside. Without a limit there is always room.
    ///
    /// # Errors
    /// `EDQUOT`.
    pub(super) fn reserve(&self, bytes: u64) -> Result<Room<'_>, FsError> {
        if !self.quota.is_set() {
            return Ok(Room { quota: &self.quota, bytes: 0 });
        }
        if self.is_stale() {
            self.count()?;
        }
        if let Some(room) = self.quota.try_reserve(bytes) {
            return Ok(room);
        }
        if self.may_be_less() {
            self.count()?;
            if let Some(room) = self.quota.try_reserve(bytes) {
                return Ok(room);
            }
        }
        Err(FsError::Host(Errno::DQUOT))
    }

    /// Lets an inode be made. Under a limit there are as many as the host's file system has for that
    /// part of its disk: otherwise empty files would use up what all share.
    ///
    /// # Errors
    /// `EDQUOT`.
    pub(super) fn new_file(&self) -> Result<NewFile<'_>, FsError> {
        if !self.quota.is_set() {
            return Ok(NewFile(None));
        }
        if self.is_stale() {
            self.count()?;
        }
        let Some(most) = self.most_files(self.union.space()?) else { return Ok(NewFile(None)) };
        if let Some(file) = self.quota.try_file(most) {
            return Ok(file);
        }
        if self.may_be_less() {
            self.count()?;
            if let Some(file) = self.quota.try_file(most) {
                return Ok(file);
            }
        }
        Err(FsError::Host(Errno::DQUOT))
    }

    /// How many inodes the limit gives; none where the host makes them as they are needed.
    fn most_files(&self, space: Space) -> Option<u64> {
        let bytes = u128::from(space.blocks) * u128::from(space.fragment_bytes);
        if bytes == 0 || space.files == 0 {
            return None;
        }
        let part = u128::from(self.quota.limit()) * u128::from(space.files) / bytes;
        Some(u64::try_from(part).unwrap_or(u64::MAX).max(LEAST_FILES))
    }

    /// Room for writing `len` bytes at `offset` of `file`, and how many of them there is room for.
    /// Blocks that the file has are written over without any.
    ///
    /// # Errors
    /// `EDQUOT` when there is room for none.
    pub(super) fn room_to_write(
        &self,
        file: impl AsFd,
        offset: u64,
        len: usize,
    ) -> Result<(Room<'_>, usize), FsError> {
        let nothing = || Room { quota: &self.quota, bytes: 0 };
        if len == 0 || !self.quota.is_set() {
            return Ok((nothing(), len));
        }
        let len_bytes = u64::try_from(len).map_err(|_| FsError::Range)?;
        let end = offset.checked_add(len_bytes).ok_or(FsError::Range)?;
        let first = offset - offset % UNIT_BYTES;
        let whole = end.next_multiple_of(UNIT_BYTES) - first;
        match self.reserve(whole) {
            Ok(room) => return Ok((room, len)),
            Err(FsError::Host(Errno::DQUOT)) => {}
            Err(error) => return Err(error),
        }
        // How far the file is there already: to the next hole, or the end of its last unit.
        let there = match rustix::fs::seek(file, SeekFrom::Hole(offset)) {
            Ok(hole) => hole.next_multiple_of(UNIT_BYTES).max(offset),
            Err(Errno::NXIO) => offset.next_multiple_of(UNIT_BYTES),
            Err(errno) => return Err(errno.into()),
        };
        let there = if there == first { offset } else { there };
        if there >= end {
            return Ok((nothing(), len));
        }
        let units = self.quota.free_units().saturating_mul(UNIT_BYTES);
        let fits = there.next_multiple_of(UNIT_BYTES).saturating_add(units).min(end);
        let room = self.quota.try_reserve(units).unwrap_or_else(nothing);
        let fits = if room.bytes == units { fits } else { there };
        match usize::try_from(fits.saturating_sub(offset)) {
            Ok(count) if count > 0 => Ok((room, count.min(len))),
            Ok(_) | Err(_) => Err(FsError::Host(Errno::DQUOT)),
        }
    }

    /// Bytes that an open private file has allocated; nobody wants to know without a limit.
    pub(super) fn allocated(&self, file: impl AsFd) -> Result<u64, FsError> {
        if !self.quota.is_set() {
            return Ok(0);
        }
        let stat = rustix::fs::fstat(file)?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512))
    }

    /// Whether files of `id` are to be opened so that every byte comes by.
    pub(super) fn holds(&self, id: NodeId) -> bool {
        // Whoever may still write it in the kernel does so beside nobody.
        self.quota.is_set()
            && self.union.node(id).is_none_or(|node| self.union.prove_unwritten(&node))
    }

    /// What statfs(2) shows under the limit.
    pub(super) fn limited_space(&self, space: Space) -> Result<Space, FsError> {
        if !self.quota.is_set() || space.fragment_bytes == 0 {
            return Ok(space);
        }
        if self.may_be_less() {
            self.count()?;
        }
        let used = self.quota.used.load(Ordering::Acquire);
        let units = |bytes: u64| bytes / space.fragment_bytes;
        let blocks = units(self.quota.limit()).min(space.blocks);
        let free = units(self.quota.limit().saturating_sub(used));
        let most = self.most_files(space).unwrap_or(space.files).min(space.files);
        let left = most.saturating_sub(self.quota.files.load(Ordering::Acquire));
        Ok(Space {
            files: most,
            files_free: left.min(space.files_free),
            blocks,
            free: free.min(space.free),
            available: free.min(space.available),
            ..space
        })
    }

    /// Whether counting anew may find less than is counted.
    fn may_be_less(&self) -> bool {
        let freed = self.quota.freed.load(Ordering::Acquire);
        self.quota.counted.lock().is_none_or(|last| {
            last.freed != freed || last.at.elapsed() > last.took.saturating_mul(PART)
        })
    }

    /// Whether so much time has passed that counting anew may find more.
    fn is_stale(&self) -> bool {
        self.quota.counted.lock().is_none_or(|last| {
            let trusted = if last.unseen { TRUSTED_BESIDE_OTHERS } else { TRUSTED };
            last.at.elapsed() > trusted.max(last.took.saturating_mul(PART))
        })
    }

    /// Counts the private layer. What is allocated meanwhile is counted too, once or twice.
    fn count(&self) -> Result<(), FsError> {
        let mut counted = self.quota.counted.lock();
        let begun = Instant::now();
        let freed = self.quota.freed.load(Ordering::Acquire);
        let before = self.quota.used.load(Ordering::Acquire);
        let files = self.quota.files.load(Ordering::Acquire);
        let Allocated { bytes, files: found } = self.union.allocated()?;
        if bytes >= before {
            self.quota.used.fetch_add(bytes - before, Ordering::AcqRel);
        } else {
            self.quota.used.fetch_sub(before - bytes, Ordering::AcqRel);
        }
        if found >= files {
            self.quota.files.fetch_add(found - files, Ordering::AcqRel);
        } else {
            self.quota.fewer_files(files - found);
        }
        let unseen = self.union.written_unseen() > 0;
        *counted = Some(Counted { at: Instant::now(), took: begun.elapsed(), freed, unseen });
        Ok(())
    }
}
