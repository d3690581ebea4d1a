//! The read-only side: all of the store that a mount process ever sees.
//!
//! The kernel reopens the backing file of a passthrough file with the flags of whoever opened
//! that, so a descriptor opened read-only does not protect an object: what protects it is that
//! its mount is read-only. The clone has no path and no namespace, so nobody can remount it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, StatVfs, StatxAttributes, StatxFlags, fstat,
    fstatvfs, ftruncate, ioctl_ficlone, openat2, statx,
};
use rustix::io::{Errno, retry_on_intr};

use super::content::{Digester, write_run};
use super::store::{OBJECTS, open_dir};
use super::{Locks, ObjectError, ObjectId, Reading};
use crate::sys::copy::cannot_share;
use crate::sys::mount::detached_readonly;
use crate::sys::sparse::{Pieces, read_full};

/// What is read of an object at a time.
const PIECE_BYTES: usize = 128 * 1024;

/// Opens objects for reading, and cannot do anything else.
pub struct ObjectReader {
    objects: OwnedFd,
    path: PathBuf,
    locks: Locks,
}

impl ObjectReader {
    /// Opens `objects/` of a store through a detached read-only clone of its mount.
    ///
    /// Without CAP_SYS_ADMIN, or before Linux 5.12, through a plain descriptor: see
    /// [`ObjectReader::locks`].
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn open(store: &Path) -> Result<Self, ObjectError> {
        Self::open_with_locks(store, Locks::ALL)
    }

    /// As [`ObjectReader::open`], with a lock left off, for the tests of the others.
    #[doc(hidden)]
    pub fn open_with_locks(store: &Path, wanted: Locks) -> Result<Self, ObjectError> {
        let path = store.join(OBJECTS);
        let plain = open_dir(CWD, &path).map_err(ObjectError::sys("open", &path))?;
        let clone = if wanted.readonly_mount {
            match detached_readonly(plain.as_fd()) {
                Ok(clone) => Some(clone),
                Err(error) if refused(&error) => {
                    tracing::debug!(%error, "no read-only mount of the objects");
                    None
                }
                Err(error) => return Err(ObjectError::io("clone the mount of", &path)(error)),
            }
        } else {
            None
        };
        let stat = statx(&plain, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)
            .map_err(ObjectError::sys("inspect", &path))?;
        let locks = Locks {
            readonly_mount: clone.is_some(),
            immutable: wanted.immutable
                && stat.stx_attributes_mask.contains(StatxAttributes::IMMUTABLE),
        };
        Ok(Self { objects: clone.unwrap_or(plain), path, locks })
    }

    /// Which locks beside the types are in force here.
    pub fn locks(&self) -> Locks {
        self.locks
    }

    /// `objects/`, for looking at its files.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.objects.as_fd()
    }

    /// Where that is, for errors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Room on the file system that holds the objects.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn space(&self) -> Result<StatVfs, ObjectError> {
        fstatvfs(&self.objects).map_err(ObjectError::sys("inspect", &self.path))
    }

    /// Opens an object.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`ObjectError::Damaged`], [`ObjectError::Io`].
    pub fn open_object(&self, id: &ObjectId) -> Result<ObjectFile, ObjectError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = id.path();
        match retry_on_intr(|| openat2(&self.objects, &*path, flags, Mode::empty(), resolve)) {
            Ok(file) => Ok(ObjectFile(file)),
            Err(Errno::NOENT) => Err(ObjectError::Missing(*id)),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(ObjectError::Damaged(*id)),
            Err(error) => Err(ObjectError::sys("open", self.path.join(path))(error)),
        }
    }
}

impl ObjectReader {
    /// Hands the whole content of an object to `take`, piece by piece, and compares all of it with
    /// its name: of a damaged one the last word is an error.
    ///
    /// # Errors
    /// As [`ObjectReader::open_object`]; [`ObjectError::Altered`]; what `take` says.
    pub fn read_whole<E: From<ObjectError>>(
        &self,
        id: &ObjectId,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let file = self.open_object(id)?;
        let failed = |source| ObjectError::io("read", self.path.join(id.path()))(source);
        let (mut buffer, mut reading) = (vec![0; PIECE_BYTES], Reading::default());
        loop {
            let read = file.read_at(&mut buffer, reading.len_bytes()).map_err(failed)?;
            let piece = buffer.get(..read).unwrap_or_default();
            reading.take(piece).map_err(failed)?;
            take(piece)?;
            if read < buffer.len() {
                return if reading.finish().0 == *id {
                    Ok(())
                } else {
                    Err(ObjectError::Altered(*id).into())
                };
            }
        }
    }

    /// Makes an empty file hold the content of an object, as a reflink where the host can, holes
    /// kept; compares all of it with its name on the way, so that it is read once.
    ///
    /// # Errors
    /// [`CopyOut`]; what is in the file then is no content.
    pub fn copy_out(&self, id: &ObjectId, to: BorrowedFd<'_>) -> Result<(), CopyOut> {
        let object = self.open_object(id)?;
        let cloned = match ioctl_ficlone(to, object.as_fd()) {
            Ok(()) => true,
            Err(error) if cannot_share(error) => false,
            Err(error) => return Err(CopyOut::Write(error.into())),
        };
        let failed = |source| ObjectError::io("read", self.path.join(id.path()))(source);
        let (mut buffer, mut digester) = (vec![0; PIECE_BYTES], Digester::default());
        let mut pieces = Pieces::of(object.as_fd(), u64::MAX).map_err(failed)?;
        while let Some(piece) = pieces.next(object.as_fd(), &mut buffer).map_err(failed)? {
            let base = digester.position();
            let write =
                |range, run| if cloned { Ok(()) } else { write_run(to, &buffer, base, range, run) };
            digester.piece(piece, &buffer, write).map_err(CopyOut::Write)?;
        }
        let summary = digester.finish();
        if summary.id != *id {
            return Err(ObjectError::Altered(*id).into());
        }
        // What ends in a hole was written too short.
        ftruncate(to, summary.len_bytes).map_err(|error| CopyOut::Write(error.into()))
    }

    /// The objects whose digests begin with these digits, at least two of them, in order.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn beginning_with(&self, digits: &str) -> Result<Vec<ObjectId>, ObjectError> {
        let fan_out = digits.get(..2).unwrap_or(digits);
        let path = || self.path.join(fan_out);
        let dir = match open_dir(self.objects.as_fd(), fan_out) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(ObjectError::sys("open", path())(error)),
        };
        let mut ids = Vec::new();
        for entry in Dir::new(dir).map_err(ObjectError::sys("list", path()))? {
            let entry = entry.map_err(ObjectError::sys("list", path()))?;
            let Ok(rest) = entry.file_name().to_str() else { continue };
            let name = format!("{fan_out}{rest}");
            if name.starts_with(digits) {
                ids.extend(name.parse::<ObjectId>().ok());
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

/// Why the content of an object was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyOut {
    /// The object cannot be read, or is not what its name says.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The file cannot be written.
    #[error(transparent)]
    Write(io::Error),
}

/// The errors by which a host says that it has no detached mounts for this process.
fn refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::EINVAL))
}

/// An object, open for reading. There is no way from here to a writable descriptor.
#[derive(Debug)]
pub struct ObjectFile(OwnedFd);

impl ObjectFile {
    /// Length of the content in bytes.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn len(&self) -> io::Result<u64> {
        u64::try_from(fstat(&self.0)?.st_size).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Whether this is the empty object.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Reads up to `buffer.len()` bytes at `offset`; fewer mean the end.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_full(self.0.as_fd(), buffer, offset)
    }
}

impl AsFd for ObjectFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
