//! Both sides of a pseudo-terminal (pts(4)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Opens the other side of the terminal whose master this is, whatever its path means to whom. It
/// becomes nobody's controlling terminal by that.
///
/// # Errors
/// `ENOTTY` for what is no master.
pub fn peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument of this request is a number; no memory of ours is touched.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the other side of the terminal whose master this is be opened.
///
/// # Errors
/// `ENOTTY` for what is no master.
pub fn unlock(master: BorrowedFd<'_>) -> io::Result<()> {
    let open: libc::c_int = 0;
    // SAFETY: the request reads one int, which outlives the call.
    let answer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const open) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_written_on_one_side_is_read_on_the_other() {
        let master = std::fs::File::options().read(true).write(true).open("/dev/ptmx");
        let master = master.expect("a master");
        unlock(master.as_fd()).expect("unlocked");
        let slave = peer(master.as_fd()).expect("the other side");
        rustix::io::write(&slave, b"x").expect("written");
        assert_eq!(rustix::io::read(&master, &mut [0; 2]).expect("read"), 1);
        assert!(peer(slave.as_fd()).is_err());
    }
}
