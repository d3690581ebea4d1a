//! Read leases: the kernel's own proof that nobody can write a file.
//!
//! `F_SETLEASE(F_RDLCK)` is refused while any writable descriptor or writable shared
//! mapping of the inode exists. fcntl(2), "Leases".
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// True if no writable descriptor or mapping of `file` exists anywhere.
///
/// `file` itself must be open `O_RDONLY`. The lease is dropped at once; a process that
/// calls this ignores SIGIO (see [`ignore_lease_breaks`]).
pub fn nobody_can_write(file: impl AsFd) -> bool {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETLEASE takes an integer argument and touches no memory of ours.
    let taken = unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) } == 0;
    if taken {
        // SAFETY: as above. Failing to unlock is impossible for the holder.
        unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
    }
    taken
}

/// A read lease on an open file: while [`ReadLease::holds`], nobody has written it since it was
/// taken. Dropping it gives it back.
///
/// Who opens the file for writing waits meanwhile, for up to `/proc/sys/fs/lease-break-time`;
/// so the holder asks often and lets go at once. The lease belongs to the open file description:
/// another process that is handed the descriptor holds it too.
#[derive(Debug)]
pub struct ReadLease(OwnedFd);

impl ReadLease {
    /// Takes a lease on `file`, which must be open `O_RDONLY`.
    ///
    /// # Errors
    /// `EAGAIN` while a writable descriptor or mapping exists; `EINVAL` where the file system
    /// has no leases.
    pub fn take(file: OwnedFd) -> io::Result<Self> {
        set(file.as_fd(), libc::F_RDLCK)?;
        Ok(Self(file))
    }

    /// Takes over a lease that came with a descriptor; `None` if there is none, or not any more.
    #[must_use]
    pub fn received(file: OwnedFd) -> Option<Self> {
        let lease = Self(file);
        lease.holds().then_some(lease)
    }

    /// True if nobody has asked to write since the lease was taken.
    #[must_use]
    pub fn holds(&self) -> bool {
        // SAFETY: F_GETLEASE takes no argument and touches no memory of ours.
        unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_GETLEASE) != libc::F_UNLCK }
    }

    /// Gives the lease back if somebody waits for it, whoever else is about to use it: from then on
    /// it does not hold. Returns whether it did.
    pub fn give_back_if_wanted(&self) -> bool {
        let wanted = !self.holds();
        if wanted {
            self.give_back();
        }
        wanted
    }

    /// Gives the lease back; from then on it does not hold.
    pub fn give_back(&self) {
        // Broken by force already: then there is nothing to give back.
        let _given_back = set(self.0.as_fd(), libc::F_UNLCK);
    }

    /// True if nobody else has the file open or mapped, for reading either; from here on who opens
    /// it waits. A write lease is refused otherwise (fcntl(2), "Leases").
    ///
    /// False for a lease that does not hold: the kernel would give a fresh one, which proves
    /// nothing of the time before. The caller keeps writers out between the two questions.
    #[must_use]
    pub fn is_sole_user(&self) -> bool {
        self.holds() && set(self.0.as_fd(), libc::F_WRLCK).is_ok()
    }
}

impl AsFd for ReadLease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn set(file: BorrowedFd<'_>, lease: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETLEASE takes an integer argument and touches no memory of ours.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, lease) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

static WANTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_wanted(_signal: libc::c_int) {
    WANTED.store(true, Ordering::Relaxed);
}

/// Notes from now on that some lease of this process is wanted, for [`a_lease_was_wanted`], where
/// SIGIO would end the process otherwise.
pub fn notice_lease_breaks() {
    // SAFETY: all-zero bytes are a valid sigaction: no flags, an empty mask, SIG_DFL.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = note_wanted as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is a whole sigaction whose handler only stores to an atomic, which is
    // async-signal-safe; the old action is not asked for.
    let answer = unsafe { libc::sigaction(libc::SIGIO, &raw const action, std::ptr::null_mut()) };
    debug_assert_eq!(answer, 0, "SIGIO may be handled");
}

/// True if the kernel has asked for a lease of this process back since the last call. That it has
/// not is no proof: whoever ignores the signal meanwhile hides it.
pub fn a_lease_was_wanted() -> bool {
    WANTED.swap(false, Ordering::Relaxed)
}

/// Ignores SIGIO, which the kernel sends to a lease holder and whose default ends the process.
pub fn ignore_lease_breaks() {
    // SAFETY: SIG_IGN is a valid disposition and installs no handler.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writable_descriptor_is_noticed() {
        ignore_lease_breaks();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let writer = std::fs::File::create(&path).unwrap();
        let reader = std::fs::File::open(&path).unwrap();
        assert!(!nobody_can_write(&reader));
        drop(writer);
        assert!(nobody_can_write(&reader));
    }

    #[test]
    fn another_thread_gives_a_lease_back_that_a_writer_waits_for() {
        use std::os::unix::fs::OpenOptionsExt;
        ignore_lease_breaks();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        let lease = ReadLease::take(OwnedFd::from(std::fs::File::open(&path).unwrap())).unwrap();
        assert!(!lease.give_back_if_wanted() && lease.holds());
        let open = || {
            let mut options = std::fs::File::options();
            options.write(true).custom_flags(libc::O_NONBLOCK).open(&path)
        };
        open().unwrap_err();
        std::thread::scope(|scope| {
            assert!(scope.spawn(|| lease.give_back_if_wanted()).join().unwrap());
        });
        drop(open().unwrap());
        assert!(!lease.holds(), "what was given back never holds again");
        assert!(!lease.is_sole_user() && !lease.holds(), "nor by asking for more");
    }

    #[test]
    fn a_lease_holds_until_somebody_wants_to_write_and_goes_with_its_descriptor() {
        ignore_lease_breaks();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        let open = || OwnedFd::from(std::fs::File::open(&path).unwrap());
        let lease = ReadLease::take(open()).unwrap();
        assert!(lease.holds());
        // Another process that is handed the descriptor has the same open file description.
        let copy = ReadLease::received(lease.0.try_clone().unwrap()).unwrap();
        assert!(copy.is_sole_user());
        let reader = open();
        // A reader broke the write lease; what is left is no proof any more.
        drop(copy);
        assert!(!lease.holds());
        drop((lease, reader));

        let lease = ReadLease::take(open()).unwrap();
        let reader = open();
        assert!(lease.holds() && !lease.is_sole_user() && lease.holds());
        let writing = std::fs::File::options();
        let mut writing = writing;
        use std::os::unix::fs::OpenOptionsExt;
        let refused = writing.write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EWOULDBLOCK));
        assert!(!lease.holds(), "asked to give it back");
        drop((lease, reader));
        assert!(ReadLease::received(open()).is_none());
        let writer = std::fs::File::options().write(true).open(&path).unwrap();
        assert!(ReadLease::take(open()).is_err());
        drop(writer);
    }
}
