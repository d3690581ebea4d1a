//! The few system calls that tests need and rustix has no safe form of.
//!
//! The only file of these tests with unsafe code; one operation in each block.
#![allow(unsafe_code)]

use std::ffi::{CString, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

/// A mapping of a file. It is never dereferenced: bytes go in and out through system calls, so
/// that a page that cannot be had answers `EFAULT` where a load or store would raise `SIGBUS`.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: *mut c_void,
    len: usize,
    courier: OwnedFd,
    file: OwnedFd,
}

// SAFETY: the address is only ever handed to the kernel, which takes it from any thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from its start, shared.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, write: bool) -> Result<Self, Errno> {
        Self::with_flags(fd, len, write, MapFlags::SHARED)
    }

    /// Maps `len` bytes of `fd` from its start with the flags given.
    pub(crate) fn with_flags(
        fd: BorrowedFd<'_>,
        len: usize,
        write: bool,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        let courier = rustix::fs::memfd_create(c"courier", rustix::fs::MemfdFlags::CLOEXEC)?;
        let protection = if write { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a null hint without MAP_FIXED never replaces a mapping of this process.
        let address = unsafe { rustix::mm::mmap(ptr::null_mut(), len, protection, flags, fd, 0) }?;
        let file = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        Ok(Self { address, len, courier, file })
    }

    /// What is mapped: open as long as the mapping is, with or without this descriptor.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The mapped length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes `bytes` at `offset` through the mapping, as a program's store would.
    pub(crate) fn poke(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        assert!(offset + bytes.len() <= self.len, "poke outside of the mapping");
        rustix::io::pwrite(&self.courier, bytes, 0)?;
        let mut done = 0;
        while done < bytes.len() {
            let at = self.address.wrapping_byte_add(offset + done);
            let file_offset = i64::try_from(done).unwrap();
            // SAFETY: the range lies inside the mapping (asserted above); the kernel writes it.
            let n = unsafe {
                libc::pread(self.courier.as_raw_fd(), at, bytes.len() - done, file_offset)
            };
            match usize::try_from(n) {
                Ok(0) => return Err(Errno::FAULT),
                Ok(n) => done += n,
                Err(_) => return Err(last_errno()),
            }
        }
        Ok(())
    }

    /// Reads `len` bytes at `offset` through the mapping, as a program's load would.
    pub(crate) fn peek(&self, offset: usize, len: usize) -> Result<Vec<u8>, Errno> {
        assert!(offset + len <= self.len, "peek outside of the mapping");
        let mut done = 0;
        while done < len {
            let at = self.address.wrapping_byte_add(offset + done);
            let file_offset = i64::try_from(done).unwrap();
            // SAFETY: the range lies inside the mapping (asserted above); the kernel reads it.
            let n = unsafe { libc::pwrite(self.courier.as_raw_fd(), at, len - done, file_offset) };
            match usize::try_from(n) {
                Ok(0) => return Err(Errno::FAULT),
                Ok(n) => done += n,
                Err(_) => return Err(last_errno()),
            }
        }
        let mut bytes = vec![0; len];
        rustix::io::pread(&self.courier, &mut bytes, 0)?;
        Ok(bytes)
    }

    /// `msync(MS_SYNC)` of the whole mapping.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        // SAFETY: the range is exactly this mapping.
        unsafe { rustix::mm::msync(self.address, self.len, MsyncFlags::SYNC) }
    }

    /// Which pages of the mapping are in the page cache (`mincore`).
    pub(crate) fn resident_pages(&self) -> Result<usize, Errno> {
        let mut pages = vec![0_u8; self.len.div_ceil(4096)];
        // SAFETY: the range is exactly this mapping and `pages` has a byte for each of its pages.
        let status = unsafe { libc::mincore(self.address, self.len, pages.as_mut_ptr()) };
        if status != 0 {
            return Err(last_errno());
        }
        Ok(pages.iter().filter(|&&page| page & 1 == 1).count())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly this mapping, and nothing can use it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.address, self.len) };
        unmapped.expect("a mapping of this process can be unmapped");
    }
}

/// `truncate(path)`: the one call that truncates without an open.
pub(crate) fn truncate(path: &Path, len: u64) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let len = i64::try_from(len).map_err(|_| Errno::INVAL)?;
    // SAFETY: `path` is NUL-terminated; the kernel keeps no pointer.
    let status = unsafe { libc::truncate(path.as_ptr(), len) };
    if status == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Gives this thread its own umask and working directory.
pub(crate) fn own_umask() {
    // SAFETY: CLONE_FS only separates umask, root and working directory of this thread.
    let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) };
    unshared.expect("CLONE_FS needs no privilege");
}

/// A file handle as `name_to_handle_at` gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileHandle {
    /// The file system's own type number.
    pub(crate) kind: i32,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; 128],
}

/// `name_to_handle_at(path)`, following a final symbolic link when told to.
pub(crate) fn name_to_handle(path: &Path, follow: bool) -> Result<FileHandle, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let flags = if follow { libc::AT_SYMLINK_FOLLOW } else { 0 };
    let mut handle = RawHandle { len: 128, kind: 0, bytes: [0; 128] };
    let mut mount_id = 0_i32;
    // SAFETY: `handle` has room for the 128 bytes it announces; the kernel keeps no pointer.
    let status = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            ptr::from_mut(&mut handle),
            ptr::from_mut(&mut mount_id),
            flags,
        )
    };
    if status != 0 {
        return Err(last_errno());
    }
    let len = usize::try_from(handle.len).unwrap();
    Ok(FileHandle { kind: handle.kind, bytes: handle.bytes[..len].to_vec() })
}

/// `open_by_handle_at(mount, handle, flags)`.
pub(crate) fn open_by_handle(
    mount: BorrowedFd<'_>,
    handle: &FileHandle,
    flags: i32,
) -> Result<OwnedFd, Errno> {
    let mut raw = RawHandle {
        len: u32::try_from(handle.bytes.len()).unwrap(),
        kind: handle.kind,
        bytes: [0; 128],
    };
    raw.bytes[..handle.bytes.len()].copy_from_slice(&handle.bytes);
    // SAFETY: `raw` holds the bytes it announces; the kernel keeps no pointer.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            ptr::from_mut(&mut raw),
            flags | libc::O_CLOEXEC,
        )
    };
    let fd = i32::try_from(fd).unwrap();
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).expect("a failed call sets errno")
}
