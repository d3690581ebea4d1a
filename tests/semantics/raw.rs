//! System calls that neither std nor rustix has.
#![allow(unsafe_code)]

use std::ffi::{CString, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use memmap2::{Mmap, MmapMut, MmapOptions};

/// Maps a file shared and read-only.
pub(crate) fn map(file: &File) -> Mmap {
    // SAFETY: the tests never shorten a file below what they read of a mapping.
    unsafe { Mmap::map(file) }.unwrap()
}

/// Maps a file shared and writable.
pub(crate) fn map_mut(file: &File) -> MmapMut {
    // SAFETY: the tests never shorten a file below what they touch of a mapping.
    unsafe { MmapOptions::new().map_mut(file) }.unwrap()
}

/// Locks all of `file` exclusively for its open file description; `Ok(false)` if another has it.
pub(crate) fn lock_description(file: &File) -> io::Result<bool> {
    lock(file, libc::F_WRLCK)
}

/// The same, but together with other readers.
pub(crate) fn lock_for_reading(file: &File) -> io::Result<bool> {
    lock(file, libc::F_RDLCK)
}

fn lock(file: &File, kind: c_int) -> io::Result<bool> {
    let lock = libc::flock {
        l_type: i16::try_from(kind).unwrap(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads one `struct flock`, which outlives the call.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    match (status, io::Error::last_os_error().kind()) {
        (0, _) => Ok(true),
        (_, io::ErrorKind::WouldBlock) => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

const HANDLE_BYTES: u32 = 128;

/// The kernel's `struct file_handle` with room for every handle.
#[repr(C)]
pub(crate) struct Handle {
    bytes: u32,
    kind: c_int,
    handle: [u8; HANDLE_BYTES as usize],
}

/// A handle to what `path` names.
pub(crate) fn handle_of(path: &Path) -> io::Result<Handle> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut handle = Handle { bytes: HANDLE_BYTES, kind: 0, handle: [0; HANDLE_BYTES as usize] };
    let mut mount: c_int = 0;
    // SAFETY: `handle` has the kernel's layout and the room it states; `path` ends with NUL.
    let status = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    if status == 0 { Ok(handle) } else { Err(io::Error::last_os_error()) }
}

/// Opens what `handle` names, in the file system that `within` is part of.
pub(crate) fn open_handle(within: &File, handle: &Handle, flags: c_int) -> io::Result<File> {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: `handle` came from the kernel and outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            within.as_raw_fd(),
            std::ptr::from_ref(handle),
            flags,
        )
    };
    let fd = c_int::try_from(fd).unwrap();
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { File::from_raw_fd(fd) })
}
