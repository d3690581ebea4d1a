//! What a process does about itself before it starts another one.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;

/// Marks every descriptor from 3 on close-on-exec, so that a program started next
/// inherits only its standard streams.
///
/// A mount process lives for weeks; a descriptor that leaked into it from the caller's
/// shell would keep a pipe, a lock or a whole file system busy for that long.
///
/// # Errors
/// What close_range(2) answers: `ENOSYS` before Linux 5.11.
pub fn inherit_only_standard_streams() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: with CLOSE_RANGE_CLOEXEC the call closes nothing; it sets a flag on
    // descriptors, whoever owns them, that takes effect only at exec.
    let answer = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Descriptors this process may have open at once, divided by `part`: at least 8, at most `most`.
///
/// What keeps descriptors keeps no more than such a part, so that requests always find some.
pub fn share_of_descriptors(part: u64, most: NonZeroUsize) -> NonZeroUsize {
    const LEAST: u64 = 8;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = limit.map_or(u64::MAX, |limit| (limit / part).max(LEAST));
    usize::try_from(share).ok().and_then(NonZeroUsize::new).map_or(most, |share| share.min(most))
}

/// The largest resident size, in bytes, of any child that this process has waited for; of a
/// child's own children only those that it waited for.
#[must_use]
pub fn largest_child_bytes() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes a whole rusage to where it is told, which has room for one.
    let answer = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    debug_assert_eq!(answer, 0, "the arguments are valid");
    // SAFETY: zeroes are a valid rusage, whether or not the call wrote another.
    let usage = unsafe { usage.assume_init() };
    // In KiB (getrusage(2)).
    u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024
}

/// Lets this process have as many descriptors as its hard limit gives.
pub fn allow_descriptors() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// Moves this process into a user namespace of its own, which maps nobody yet.
///
/// # Errors
/// `EINVAL` in a process that has threads, `EPERM` or `ENOSPC` where the host forbids it.
pub fn enter_own_user_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWUSER does not touch the descriptor table, which is all that makes
    // unshare(2) unsafe.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER) }?)
}

/// Moves this thread alone into a network namespace of its own.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOSPC` at the host's limit of namespaces.
pub fn enter_own_network_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET does not touch the descriptor table, which is all that makes
    // unshare(2) unsafe.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    #[test]
    fn the_largest_child_is_as_large_as_what_it_held() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "x=$(head -c 20000000 /dev/zero | tr '\\0' x)"]);
        assert!(shell.status().expect("sh runs").success());
        assert!(largest_child_bytes() > 20_000_000, "{}", largest_child_bytes());
    }

    #[test]
    fn a_started_program_sees_only_its_standard_streams() {
        let leaky = std::fs::File::open("/dev/null").expect("/dev/null opens");
        rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty()).expect("a flag is set");
        inherit_only_standard_streams().expect("Linux 5.11 or newer");
        let seen = Command::new("ls").args(["-1", "/proc/self/fd"]).output().expect("ls runs");
        let number = leaky.as_raw_fd().to_string();
        let listed = String::from_utf8(seen.stdout).expect("numbers");
        // ls opens the directory itself as one more descriptor, under the lowest free number.
        assert!(listed.lines().count() <= 4, "{listed}");
        assert!(number == "3" || !listed.lines().any(|line| line == number), "{listed}");
    }
}
