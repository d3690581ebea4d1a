//! This program, as it is given to what a tenant may get hold of.
//!
//! A process that enters a container can be looked into from there, with `/proc/PID/exe` among what there
//! is to see; where a container has the host's users, its root could write to that file once it no longer
//! runs (CVE-2019-5736). So such processes run it from a read-only mount that nobody else has.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::sys::mount::detached_readonly;

/// The program's file, on a mount of its own.
pub(super) struct OwnProgram {
    path: PathBuf,
    file: OwnedFd,
}

impl OwnProgram {
    /// # Errors
    /// What opening it answers, and cloning the mount it is on (CAP_SYS_ADMIN, Linux 5.12).
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let named = path.parent().zip(path.file_name());
        let (directory, name) = named.ok_or(io::ErrorKind::InvalidInput)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let directory = openat(CWD, directory, flags | OFlags::DIRECTORY, Mode::empty())?;
        let clone = detached_readonly(directory.as_fd())?;
        let file = openat(&clone, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// A command that runs it; spawn it before this goes.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        command.arg0(&self.path);
        command
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Needs root.
    #[test]
    fn what_runs_from_it_cannot_be_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("program");
        fs::copy("/bin/sh", &place).unwrap();
        let own = OwnProgram::open(&place).unwrap();
        let mut command = own.command();
        // Once it has ended, the file is busy no more.
        command.args(["-c", "exec 3</proc/self/exe; exec /bin/sh -c 'echo x >/proc/self/fd/3'"]);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("Read-only file system"), "{said}");
        assert_eq!(fs::read(&place).unwrap(), fs::read("/bin/sh").unwrap());
    }
}
