//! Namespaces, and the processes that live in them.
#![allow(unsafe_code)]

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Which of the two processes this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The one that called, and the other's number.
    Parent(Pid),
    /// The new one. It ends with [`leave`].
    Child,
}

/// That this process has one thread. Whoever holds it starts no other.
#[derive(Debug)]
pub struct Alone(());

impl Alone {
    /// Looks; before other namespaces are entered, in which /proc may not show this process.
    ///
    /// # Errors
    /// `EDEADLK` in a process with threads: nobody would ever open their locks in a copy of it.
    pub fn claim() -> io::Result<Self> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            _ => Err(io::Error::from_raw_os_error(libc::EDEADLK)),
        }
    }
}

/// Makes a copy of this process.
///
/// # Errors
/// `EAGAIN` where no more processes are allowed.
pub fn fork(_: &Alone) -> io::Result<Forked> {
    // SAFETY: this is the only thread, so the copy is as whole as the original.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => match Pid::from_raw(pid) {
            Some(pid) => Ok(Forked::Parent(pid)),
            None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        },
    }
}

/// Ends this process at once: nothing that it shares with its original is run or written out.
pub fn leave(status: i32) -> ! {
    // SAFETY: _exit has no requirements and does not return.
    unsafe { libc::_exit(status) }
}

/// Makes a user namespace whose users from 0 on are the host's from `first` on.
///
/// # Errors
/// Those of [`fork`], unshare(2), and of writing its maps.
pub fn user_namespace(alone: &Alone, first: u32, count: u32) -> io::Result<OwnedFd> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC;
    let (made_reader, made_writer) = rustix::pipe::pipe_with(flags)?;
    let (done_reader, done_writer) = rustix::pipe::pipe_with(flags)?;
    let child = match fork(alone)? {
        Forked::Child => {
            drop((made_reader, done_writer));
            let made = super::process::enter_own_user_namespace();
            let code = made.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or_default();
            let told = fs::File::from(made_writer).write_all(&code.to_ne_bytes());
            if made.is_ok() && told.is_ok() {
                // Lives until the other has opened what it needs; then this reads its end.
                let _ended = fs::File::from(done_reader).read(&mut [0]);
            }
            leave(0)
        }
        Forked::Parent(pid) => pid,
    };
    drop((made_writer, done_reader));
    let made = || {
        let mut code = [0; 4];
        fs::File::from(made_reader).read_exact(&mut code)?;
        match i32::from_ne_bytes(code) {
            0 => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
        let process = format!("/proc/{}", child.as_raw_nonzero());
        let map = format!("0 {first} {count}\n");
        fs::write(format!("{process}/uid_map"), &map)?;
        fs::write(format!("{process}/gid_map"), &map)?;
        Ok(OwnedFd::from(fs::File::open(format!("{process}/ns/user"))?))
    };
    let made = made();
    drop(done_writer);
    waitpid(Some(child), WaitOptions::empty())?;
    made
}

/// Moves this process into a mount namespace of its own, in which the host's mounts come and go,
/// and from which nothing gets back to the host.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn enter_own_mount_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS gives this process its own view of mounts and its own working
    // directory; the descriptor table, which is what makes unshare(2) unsafe, is untouched.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(mount_change("/", slave)?)
}

/// A process that cannot be mistaken for a later one with its number.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    /// Opens the process `pid` if it is the one that started at `start_ticks` (see [`start_ticks`]).
    ///
    /// # Errors
    /// `ESRCH` when that one is gone.
    pub fn open(pid: u32, start_ticks: u64) -> io::Result<Self> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let raw = i32::try_from(pid).map_err(|_| gone())?;
        let pid = Pid::from_raw(raw).ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        // Checked after opening: the number cannot change hands any more.
        if self::start_ticks(raw)? == start_ticks { Ok(Self { pid, pidfd }) } else { Err(gone()) }
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends it signal number `signal`, real-time ones included.
    ///
    /// # Errors
    /// `ESRCH` when it has ended, `EINVAL` for no signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: a descriptor of ours, a number, no information and no flags: nothing is read.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether it has ended, be it reaped or not.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn has_ended(&self) -> io::Result<bool> {
        let mut fds = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        Ok(rustix::event::poll(&mut fds, Some(&rustix::time::Timespec::default()))? > 0)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// When a process started, in clock ticks since the host did: the 22nd field of proc(5)'s stat.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| gone())?;
    // The second field is a name in parentheses that may itself hold any.
    let after = text.rsplit_once(')').map(|(_, after)| after).ok_or_else(gone)?;
    after.split_whitespace().nth(19).and_then(|field| field.parse().ok()).ok_or_else(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let own = std::process::id();
        let ticks = start_ticks(i32::try_from(own).expect("a pid")).expect("alive");
        let process = Process::open(own, ticks).expect("alive");
        assert!(!process.has_ended().expect("polled"));
        process.signal(0).expect("may be asked for");
        let other = Process::open(own, ticks + 1).expect_err("another one");
        assert_eq!(other.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_process_with_threads_is_not_copied() {
        // The test harness runs every test on a thread of its own.
        let told = Alone::claim().expect_err("threads");
        assert_eq!(told.raw_os_error(), Some(libc::EDEADLK));
    }
}
