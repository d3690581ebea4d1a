//! File handles: a name for an inode that survives closing every descriptor.
//!
//! A handle carries the inode's generation, so a reused inode number is noticed
//! (`ESTALE`) instead of being mistaken for the old file. name_to_handle_at(2).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// `MAX_HANDLE_SZ` of the kernel.
const CAPACITY_BYTES: usize = 128;
const CAPACITY: u32 = 128;

/// What name_to_handle_at(2) fills in.
#[repr(C)]
struct RawHandle {
    len_bytes: u32,
    kind: i32,
    bytes: [u8; CAPACITY_BYTES],
}

/// A host inode's handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

impl FileHandle {
    /// The handle of the inode `fd` is open on; `fd` may be `O_PATH`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the host file system has no handles.
    pub fn of(fd: impl AsFd) -> Result<Self, Errno> {
        let mut raw = RawHandle { len_bytes: CAPACITY, kind: 0, bytes: [0; CAPACITY_BYTES] };
        let mut mount_id: libc::c_int = 0;
        // SAFETY: `raw` has the layout of struct file_handle with room for
        // `len_bytes`; both pointers outlive the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                fd.as_fd().as_raw_fd(),
                c"".as_ptr(),
                &raw mut raw,
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if done != 0 {
            return Err(last_errno());
        }
        let len = usize::try_from(raw.len_bytes).map_err(|_| Errno::OVERFLOW)?;
        let bytes = raw.bytes.get(..len).ok_or(Errno::OVERFLOW)?;
        Ok(Self { kind: raw.kind, bytes: bytes.into() })
    }

    /// What tells the inode from every other that its file system ever had.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Opens the inode `O_PATH` on the file system that `mount` lies on.
    ///
    /// # Errors
    /// `ESTALE` when the inode is gone; `EPERM` without CAP_DAC_READ_SEARCH.
    pub fn open(&self, mount: impl AsFd) -> Result<OwnedFd, Errno> {
        let mut raw = RawHandle {
            len_bytes: u32::try_from(self.bytes.len()).map_err(|_| Errno::OVERFLOW)?,
            kind: self.kind,
            bytes: [0; CAPACITY_BYTES],
        };
        raw.bytes.get_mut(..self.bytes.len()).ok_or(Errno::OVERFLOW)?.copy_from_slice(&self.bytes);
        // SAFETY: `raw` is a valid struct file_handle for its whole length.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_fd().as_raw_fd(),
                &raw mut raw,
                libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC,
            )
        };
        let fd = i32::try_from(fd).map_err(|_| Errno::OVERFLOW)?;
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handle_finds_the_inode_again_and_notices_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        let dirfd =
            rustix::fs::open(dir.path(), rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())
                .unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let handle = FileHandle::of(&file).unwrap();
        let again = handle.open(&dirfd).unwrap();
        assert_eq!(
            rustix::fs::fstat(&again).unwrap().st_ino,
            rustix::fs::fstat(&file).unwrap().st_ino
        );
        drop((file, again));
        std::fs::remove_file(&path).unwrap();
        // A program that another test is just starting has our descriptors until it executes.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let ended = loop {
            match handle.open(&dirfd) {
                Ok(_) if std::time::Instant::now() < deadline => std::thread::yield_now(),
                opened => break opened,
            }
        };
        assert_eq!(ended.unwrap_err(), Errno::STALE);
    }
}
