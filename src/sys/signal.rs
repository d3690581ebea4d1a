//! Signals that ask a process to end: as a flag for work that can stop early, or as
//! something to wait for in a process that serves a mount.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What a person or a supervisor sends to end a process.
const TERMINATING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

extern "C" fn note_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Returns a flag that the first SIGINT, SIGTERM or SIGHUP from now on raises.
///
/// A second signal of the same kind has its default effect: it ends the process, for
/// those who cannot wait for it to tidy up.
///
/// # Errors
/// Whatever sigaction(2) answers; it has no reason to fail.
pub fn interrupt_flag() -> io::Result<&'static AtomicBool> {
    for signal in TERMINATING {
        // SAFETY: all-zero bytes are a valid sigaction: no flags, an empty mask, SIG_DFL.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = note_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // Without SA_RESTART a blocked read of a pipe returns and the caller sees the flag.
        action.sa_flags = libc::SA_RESETHAND;
        // SAFETY: `action` is a whole sigaction whose handler only stores to an atomic,
        // which is async-signal-safe; the old action is not asked for.
        let answer = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(&INTERRUPTED)
}

/// The terminating signals, held back from the threads of this process.
///
/// Made before the process starts threads, so that every one of them inherits the mask
/// and only [`Termination::wait`] ever receives these signals.
#[derive(Debug)]
pub struct Termination {
    set: libc::sigset_t,
}

impl Termination {
    /// Blocks SIGINT, SIGTERM and SIGHUP in this thread and those it starts from now on.
    ///
    /// # Errors
    /// Whatever pthread_sigmask(3) answers; it has no reason to fail.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set it is given and cannot fail on one.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the line above.
        let mut set = unsafe { set.assume_init() };
        for signal in TERMINATING {
            // SAFETY: `set` is initialised and `signal` a valid signal number.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is initialised; the old mask is not asked for.
        let answer =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if answer != 0 {
            return Err(io::Error::from_raw_os_error(answer));
        }
        Ok(Self { set })
    }

    /// Waits until one of the blocked signals arrives; returns its number.
    ///
    /// # Errors
    /// Whatever sigwait(3) answers; it has no reason to fail.
    pub fn wait(&self) -> io::Result<i32> {
        let mut signal: libc::c_int = 0;
        // SAFETY: the set is initialised and `signal` is a place for the answer.
        let answer = unsafe { libc::sigwait(&raw const self.set, &raw mut signal) };
        if answer != 0 {
            return Err(io::Error::from_raw_os_error(answer));
        }
        Ok(signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_raises_the_flag_and_ends_nothing() {
        let flag = interrupt_flag().expect("handlers install");
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
            .expect("a process may signal itself");
        // kill(2) to oneself delivers before it returns only when no other thread takes
        // the signal, so look until it was handled.
        while !flag.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    }
}
