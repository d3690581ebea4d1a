//! The init of application containers with `init=yes`: a program of its own, of a few KiB.
//!
//! `init -- COMMAND…` runs the command as its child, passes every signal on to it, reaps whatever
//! falls to it, and ends as the command does. It has to run in any root, with another C library or
//! none, and as process 1 for as long as the container lives: so it has no library, allocates nothing,
//! and `build.rs` compiles it for itself. No part of the crate's modules; `container/init.rs` holds
//! the bytes.
//!
//! The command gets a process group of its own, in front on the terminal if there is one: what is
//! typed there reaches it once.

#![no_std]
#![no_main]
// Loops stay loops: nobody is there who has a memcpy or strlen.
#![no_builtins]

use core::arch::{asm, global_asm};
use core::ptr::{null, null_mut};

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const GETPID: usize = 39;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SETPGID: usize = 109;
    pub const SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const WRITE: usize = 64;
    pub const SIGPROCMASK: usize = 135;
    pub const IOCTL: usize = 29;
    pub const GETPID: usize = 172;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
    pub const KILL: usize = 129;
    pub const SETPGID: usize = 154;
    pub const SIGTIMEDWAIT: usize = 137;
    pub const EXIT_GROUP: usize = 94;
}

const SIGCHLD: usize = 17;
/// Of a terminal that its user is not in front of: they are about the init's own reads and writes.
const OWN: [usize; 2] = [21, 22];
const SETMASK: usize = 2;
const TIOCSPGRP: usize = 0x5410;
const WNOHANG: usize = 1;
/// Bytes of a kernel's set of signals.
const SET: usize = 8;
const ENOENT: isize = -2;
const ENOTDIR: isize = -20;
const NOT_EXECUTABLE: usize = 126;
const NOT_FOUND: usize = 127;
const FAILED: usize = 125;

// The stack holds the count of words, the words, nothing, the environment, nothing.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    begin = sym begin,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x0, sp",
    "bl {begin}",
    "brk #1",
    begin = sym begin,
);

/// A system call; every pointer among its words must be good for it.
unsafe fn call(number: usize, words: [usize; 4]) -> isize {
    let [a, b, c, d] = words;
    let answer: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel keeps all other registers; the caller vouches for the pointers.
    unsafe {
        asm!(
            "syscall", inlateout("rax") number.cast_signed() => answer,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") 0_usize,
            lateout("rcx") _, lateout("r11") _, options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!(
            "svc 0", in("x8") number, inlateout("x0") a.cast_signed() => answer,
            in("x1") b, in("x2") c, in("x3") d, in("x4") 0_usize, options(nostack),
        );
    }
    answer
}

fn exit(status: usize) -> ! {
    loop {
        // SAFETY: no pointers.
        unsafe { call(number::EXIT_GROUP, [status, 0, 0, 0]) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(FAILED)
}

/// The length of a text that ends with a zero.
unsafe fn len(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller's text has an end.
    while unsafe { *text.add(len) } != 0 {
        len += 1;
    }
    len
}

unsafe fn say(text: *const u8, len: usize) {
    // SAFETY: the caller's text is so long.
    unsafe { call(number::WRITE, [2, text as usize, len, 0]) };
}

/// The directories of the environment's PATH; null: it has none.
unsafe fn path(environment: *const *const u8) -> *const u8 {
    let wanted = b"PATH=";
    let mut at = environment;
    // SAFETY: the environment ends with null, each of its texts with a zero.
    unsafe {
        while !(*at).is_null() {
            let mut same = 0;
            while same < wanted.len() && *(*at).add(same) == wanted[same] {
                same += 1;
            }
            if same == wanted.len() {
                return (*at).add(same);
            }
            at = at.add(1);
        }
    }
    null()
}

/// Becomes the command; answers why it cannot.
unsafe fn become_command(words: *const *const u8, environment: *const *const u8) -> isize {
    const LONGEST: usize = 4096;
    // SAFETY: words and environment are the kernel's own; the place is never left.
    unsafe {
        let word = *words;
        let execute = |program: *const u8| {
            call(number::EXECVE, [program as usize, words as usize, environment as usize, 0])
        };
        let word_len = len(word);
        let mut slash = false;
        let mut at = 0;
        while at < word_len {
            slash |= *word.add(at) == b'/';
            at += 1;
        }
        let directories = path(environment);
        if slash || directories.is_null() {
            return execute(word);
        }
        let mut place = core::mem::MaybeUninit::<[u8; LONGEST]>::uninit();
        let place = place.as_mut_ptr().cast::<u8>();
        let mut why = ENOENT;
        let mut from = directories;
        loop {
            let mut to = 0;
            while *from.add(to) != 0 && *from.add(to) != b':' {
                to += 1;
            }
            if to + word_len + 2 <= LONGEST {
                let mut at = 0;
                while at < to {
                    *place.add(at) = *from.add(at);
                    at += 1;
                }
                *place.add(at) = b'/';
                at += 1;
                let mut letter = 0;
                while letter <= word_len {
                    *place.add(at + letter) = *word.add(letter);
                    letter += 1;
                }
                let said = execute(place);
                if said != ENOENT && said != ENOTDIR {
                    why = said;
                }
            }
            if *from.add(to) == 0 {
                return why;
            }
            from = from.add(to + 1);
        }
    }
}

/// The child's part.
unsafe fn child(words: *const *const u8, environment: *const *const u8, mask: *const u64) -> ! {
    // SAFETY: every pointer is to this frame's or the caller's living values.
    unsafe {
        call(number::SETPGID, [0, 0, 0, 0]);
        let own = call(number::GETPID, [0, 0, 0, 0]).cast_unsigned();
        let group = [(own & 0xffff_ffff) as u32];
        // Without a terminal there is no front. SIGTTOU is still blocked here.
        call(number::IOCTL, [0, TIOCSPGRP, group.as_ptr() as usize, 0]);
        call(number::SIGPROCMASK, [SETMASK, mask as usize, 0, SET]);
        let why = become_command(words, environment);
        let said = b"mica: cannot run ";
        say(said.as_ptr(), said.len());
        say(*words, len(*words));
        let (end, status): (&[u8], usize) = match why {
            ENOENT | ENOTDIR => (b" in the container: it is not there\n", NOT_FOUND),
            _ => (b" in the container: it cannot be executed\n", NOT_EXECUTABLE),
        };
        say(end.as_ptr(), end.len());
        exit(status)
    }
}

unsafe extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: the kernel laid the stack out as said above; `init -- COMMAND` has three words.
    unsafe {
        let count = *stack;
        let words = stack.add(1).cast::<*const u8>();
        let environment = words.add(count + 1);
        if count < 3 {
            exit(FAILED);
        }
        let all = [u64::MAX];
        let mut mask = [0_u64];
        let (set, old) = (all.as_ptr() as usize, mask.as_mut_ptr() as usize);
        // Blocked, not ignored: what is sent to process 1 and has no handler would be lost.
        call(number::SIGPROCMASK, [SETMASK, set, old, SET]);
        let command = call(number::CLONE, [SIGCHLD, 0, 0, 0]);
        if command == 0 {
            child(words.add(2), environment, mask.as_ptr());
        }
        if command < 0 {
            exit(FAILED);
        }
        loop {
            let nothing = (null::<u8>() as usize, null_mut::<u8>() as usize);
            let signal = call(number::SIGTIMEDWAIT, [set, nothing.0, nothing.1, SET]);
            if signal <= 0 {
                continue;
            }
            let signal = signal.cast_unsigned();
            if signal == SIGCHLD {
                reap(command);
            } else if signal != OWN[0] && signal != OWN[1] {
                call(number::KILL, [command.cast_unsigned(), signal, 0, 0]);
            }
        }
    }
}

/// Reaps all that ended; ends with the command.
unsafe fn reap(command: isize) {
    loop {
        let mut status = [0_i32];
        // SAFETY: the kernel writes one status.
        let ended = unsafe {
            call(number::WAIT4, [usize::MAX, status.as_mut_ptr() as usize, WNOHANG, 0])
        };
        if ended <= 0 {
            return;
        }
        if ended == command {
            let signal = status[0] & 0x7f;
            let status = if signal == 0 { (status[0] >> 8) & 0xff } else { 128 + signal };
            exit(status.cast_unsigned() as usize);
        }
    }
}
