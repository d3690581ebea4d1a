#![allow(unsafe_code)]
//! Programs that the kernel asks for a group of processes. bpf(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction of the kernel's machine. Documentation/bpf/standardization/instruction-set.rst.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Instruction {
    /// Operation, and whether its operand is a register.
    pub code: u8,
    /// Destination in the low four bits, source in the high ones.
    pub registers: u8,
    /// Of a jump or an address.
    pub offset: i16,
    /// The operand.
    pub immediate: i32,
}

/// `BPF_PROG_LOAD` of `union bpf_attr`, as far as it is used.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `BPF_PROG_ATTACH` of it.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// Has the kernel ask `program` whenever a process of the cgroup2 group at `group`, or of one beneath,
/// makes or opens a device; programs that are there already, or come later, are asked too, and each may refuse.
/// It stays until the group is removed.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOSYS` or `EINVAL` where the kernel was built without it, or does
/// not take the program.
pub fn filter_devices(group: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let number = |fd: i32| u32::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput);
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr().addr() as u64,
        // It calls nothing of the kernel's, so that its licence may be ours.
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `load` is valid for its stated size, its pointers for their counts and up to their NUL; the
    // kernel keeps none of them.
    let loaded =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    let loaded = i32::try_from(loaded).ok().filter(|fd| *fd >= 0);
    let Some(loaded) = loaded else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has just opened it for this call alone.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded) };
    let attach = Attach {
        target: number(group.as_raw_fd())?,
        program: number(loaded.as_raw_fd())?,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: `attach` is valid for its stated size and holds no pointers.
    let status = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>())
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
