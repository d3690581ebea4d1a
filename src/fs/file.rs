//! Bytes of regular files, for requests that do not pass through.

use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::{Caller, FileSystem, FsError};
use crate::union::{Node, NodeId};

/// SEEK_DATA or SEEK_HOLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought {
    /// The next byte that is data.
    Data,
    /// The next byte that is a hole, the end of the file included.
    Hole,
}

impl FileSystem {
    /// Reads up to `len` bytes at `offset` of the inode's present content.
    ///
    /// # Errors
    /// `EIO` when the object is missing or damaged.
    pub fn read(&self, id: NodeId, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
        let source = self.source(id)?;
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let at = offset + u64::try_from(filled).map_err(|_| FsError::Range)?;
            match rustix::io::pread(source.as_fd(), rest, at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Writes `bytes` at `offset`; a caller in `strip` has the set-id bits cleared.
    ///
    /// # Errors
    /// `ENOSPC` and its like with nothing counted as written.
    pub fn write(
        &self,
        id: NodeId,
        offset: u64,
        bytes: &[u8],
        strip: Option<Caller>,
    ) -> Result<usize, FsError> {
        let _changing = self.changing();
        let sink = self.sink(id)?;
        if let Some(caller) = strip {
            self.strip_set_id(id, caller)?;
        }
        let (room, fits) = self.room_to_write(&*sink, offset, bytes.len())?;
        let bytes = bytes.get(..fits).unwrap_or(bytes);
        let before = self.allocated(&*sink)?;
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let at = offset + u64::try_from(written).map_err(|_| FsError::Range)?;
            match rustix::io::pwrite(&sink, rest, at) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(errno) if written == 0 => return Err(errno.into()),
                // A short write; the next one reports the error.
                Err(_) => break,
            }
        }
        room.settle(before, self.allocated(&*sink)?);
        Ok(written)
    }

    /// Makes a file durable. Content that is an object is durable already.
    ///
    /// # Errors
    /// The host's errno: what was written may be lost.
    pub fn sync(&self, id: NodeId, data_only: bool) -> Result<(), FsError> {
        // Content and metadata of an untouched inode are the tree's: durable already.
        let Some(node) = self.union.node(id) else { return Ok(()) };
        Ok(self.union.sync(&node, data_only)?)
    }

    /// Makes the names of a directory durable.
    ///
    /// # Errors
    /// The host's errno.
    pub fn sync_directory(&self, id: NodeId) -> Result<(), FsError> {
        self.sync(id, false)
    }

    /// fallocate(2) in all modes of the host file system.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a mode that the host does not have.
    pub fn allocate(
        &self,
        id: NodeId,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<(), FsError> {
        let _changing = self.changing();
        let sink = self.sink(id)?;
        let gives_back = FallocateFlags::PUNCH_HOLE | FallocateFlags::COLLAPSE_RANGE;
        let room = self.reserve(if mode.intersects(gives_back) { 0 } else { len })?;
        let before = self.allocated(&*sink)?;
        rustix::fs::fallocate(&*sink, mode, offset, len)?;
        room.settle(before, self.allocated(&*sink)?);
        Ok(())
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    ///
    /// # Errors
    /// [`FsError::PastEnd`] (`ENXIO`).
    pub fn seek(&self, id: NodeId, offset: u64, sought: Sought) -> Result<u64, FsError> {
        let source = self.source(id)?;
        let position = match sought {
            Sought::Data => SeekFrom::Data(offset),
            Sought::Hole => SeekFrom::Hole(offset),
        };
        match rustix::fs::seek(source.as_fd(), position) {
            Ok(found) => Ok(found),
            Err(Errno::NXIO) => Err(FsError::PastEnd),
            Err(errno) => Err(errno.into()),
        }
    }

    /// copy_file_range(2): the host shares extents where it can.
    ///
    /// # Errors
    /// [`FsError::BadHandle`] if the target was not opened for writing.
    pub fn copy_range(
        &self,
        (from, mut from_offset): (NodeId, u64),
        (to, mut to_offset): (NodeId, u64),
        len: usize,
    ) -> Result<usize, FsError> {
        let _changing = self.changing();
        let source = self.source(from)?;
        let sink = self.sink(to)?;
        let (room, fits) = self.room_to_write(&*sink, to_offset, len)?;
        let before = self.allocated(&*sink)?;
        let copied = rustix::fs::copy_file_range(
            source.as_fd(),
            Some(&mut from_offset),
            &*sink,
            Some(&mut to_offset),
            fits,
        )?;
        room.settle(before, self.allocated(&*sink)?);
        Ok(copied)
    }

    pub(super) fn truncate_private(
        &self,
        node: &Node,
        size: u64,
        caller: Caller,
    ) -> Result<(), FsError> {
        // Opened for the moment: nothing that could count as a writer stays.
        let file = self.union.open_private(node, OFlags::WRONLY)?;
        rustix::fs::ftruncate(file, size)?;
        self.quota.was_freed();
        // The host has taken the capabilities of the file itself.
        self.strip_set_id(node.id(), caller)
    }
}
