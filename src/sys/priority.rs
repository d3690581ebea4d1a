//! Letting everybody else go first.
#![allow(unsafe_code)]

use std::io;

/// `IOPRIO_WHO_PROCESS` of linux/ioprio.h: one thread.
const ONE_THREAD: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE`, in the place that the class has in a priority.
const IDLE: libc::c_int = 3 << 13;

/// Makes the calling thread's disk I/O wait for everybody else's.
///
/// Only schedulers that know priorities (bfq) heed it. ioprio_set(2).
///
/// # Errors
/// Those of the call; the thread goes on as before.
pub fn idle_io() -> io::Result<()> {
    // SAFETY: the call takes three integers and touches no memory of ours.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, ONE_THREAD, 0, IDLE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// As [`idle_io`], and computes only when the processor has little else to do (nice 19).
///
/// # Errors
/// Those of ioprio_set(2) and setpriority(2); the thread goes on as before.
pub fn give_way() -> io::Result<()> {
    idle_io()?;
    Ok(rustix::process::setpriority_process(None, 19)?)
}
