//! Power cuts: a file system that stops in the middle, and a process whose syncs do nothing.

// The two things here have no safe wrapper: an ioctl that rustix does not name, and what a child
// does between fork and exec.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// What becomes of the journal's records that are still in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFlush {
    /// They reach the disk (data that was not synced does not).
    Flushed = 1,
    /// They are lost, as at a power cut.
    Lost = 2,
}

/// `_IOR('X', 125, __u32)`: FS_IOC_SHUTDOWN, EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;

/// Stops the ext4 or xfs mounted at `mountpoint`: from here on nothing reaches its disk.
pub(crate) fn shut_down(mountpoint: &Path, log: LogFlush) -> io::Result<()> {
    let top = File::open(mountpoint)?;
    let flags = log as u32;
    // SAFETY: the request reads four bytes from `flags`, which outlives the call.
    let answer = unsafe { libc::ioctl(top.as_raw_fd(), SHUTDOWN, &raw const flags) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// System calls that make something durable.
const SYNCS: [libc::c_long; 5] = [
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_sync,
    libc::SYS_sync_file_range,
];

/// Makes every sync of the process that `command` starts, and of its children, answer success
/// without doing anything (seccomp(2); needs root).
///
/// For the tests that show that a missing sync would be noticed.
pub(crate) fn ignore_syncs(command: &mut Command) -> &mut Command {
    let program = filter();
    // SAFETY: the closure makes one system call on memory prepared before the fork; it allocates
    // nothing and takes no lock.
    unsafe { command.pre_exec(move || install(&program)) }
}

/// The filter: load the number of the call, compare, answer errno 0 or allow.
fn filter() -> Vec<libc::sock_filter> {
    let step = |code: u32, jt: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("BPF codes have 16 bits"),
        jt,
        jf: 0,
        k,
    };
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (at, call) in SYNCS.iter().enumerate() {
        let number = u32::try_from(*call).expect("call numbers are small");
        // Over the comparisons left and the instruction that allows.
        let jump = u8::try_from(SYNCS.len() - at).expect("a handful of calls");
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jump, number));
    }
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO));
    program
}

fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` and the program it points to outlive the call, which only reads them.
    let answer =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
