//! A user namespace to map a mount with, kept by a process that does nothing else.
//!
//! That process is this very program, called `mica user-namespace`: only a process without
//! threads may enter a user namespace.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::sys::process::enter_own_user_namespace;

/// Owners 0…65535 of the namespace are these of the host.
const MAP: &str = "0 100000 65536";

/// What the process says once it stands in its namespace.
const WORD: u8 = b'+';

/// A user namespace and the process that keeps it. Dropping it ends both.
pub(super) struct Namespace {
    process: Child,
    descriptor: File,
}

impl Namespace {
    pub(super) fn start(program: &Path) -> io::Result<Self> {
        let mut process = Command::new(program)
            .arg("user-namespace")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        match Self::describe(&mut process) {
            Ok(descriptor) => Ok(Self { process, descriptor }),
            Err(error) => {
                drop(process.stdin.take());
                // The first error is the one that matters.
                let _ended = process.wait();
                Err(error)
            }
        }
    }

    fn describe(process: &mut Child) -> io::Result<File> {
        let mut word = [0];
        process.stdout.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut word)?;
        let directory = format!("/proc/{}", process.id());
        fs::write(format!("{directory}/uid_map"), MAP)?;
        fs::write(format!("{directory}/gid_map"), MAP)?;
        File::open(format!("{directory}/ns/user"))
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Closing its standard input ends the process.
        drop(self.process.stdin.take());
        let _ended = self.process.wait();
    }
}

/// The life of that process: enters a user namespace, says so, and waits for the end of its
/// standard input.
///
/// # Errors
/// Where the host forbids user namespaces.
pub fn stand_in_own_namespace() -> io::Result<()> {
    enter_own_user_namespace()?;
    io::stdout().lock().write_all(&[WORD])?;
    io::stdout().lock().flush()?;
    io::copy(&mut io::stdin().lock(), &mut io::sink()).map(drop)
}
