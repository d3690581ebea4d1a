//! Scratch stores and the roots mounted from them, driven through the `mica` program.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::statfs;
use rustix::mount::{UnmountFlags, unmount};

use super::patience::{PATIENCE, again_until};
use super::scratch::is_mountpoint;
use super::{Succeed, mica};

/// A store of one test.
pub(crate) struct Store {
    path: PathBuf,
}

impl Store {
    /// Names a store at `path`; the first import makes it.
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `mica`, working on this store.
    pub(crate) fn mica<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = mica();
        command.env("MICA_STORE", &self.path).args(arguments);
        command
    }

    /// Imports the directory, archive or image `source` as `template`.
    pub(crate) fn import(&self, template: &str, source: &Path) {
        self.mica(["template", "import", template]).arg(source).succeed();
    }

    /// Mounts `template` on `mountpoint`.
    pub(crate) fn mount(
        &self,
        template: &str,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Mounted {
        self.mount_command(template, mountpoint, options).succeed();
        assert!(is_mountpoint(mountpoint), "mica mount returned before {mountpoint:?} was mounted");
        Mounted { mountpoint: mountpoint.to_owned(), server: None, store: self.path.clone() }
    }

    /// Mounts `template` on `mountpoint` from a process of this test, which a test may kill.
    pub(crate) fn serve(
        &self,
        template: &str,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Mounted {
        let mut command = self.mount_command(template, mountpoint, options);
        self.serve_with(command.arg("--foreground"), mountpoint)
    }

    /// As [`Store::serve`], of a prepared `command`.
    pub(crate) fn serve_with(&self, command: &mut Command, mountpoint: &Path) -> Mounted {
        let server = command.stdin(Stdio::null()).start();
        let mut mounted = Mounted {
            mountpoint: mountpoint.to_owned(),
            server: Some(server),
            store: self.path.clone(),
        };
        mounted.await_table(|mounted| {
            if let Some(status) = mounted.exited() {
                panic!("mica mount --foreground ended with {status} before it was mounted");
            }
            // A dead mount that is to be replaced is one too, but has nobody to answer the first
            // question; in this order, since it may go between the two.
            statfs(&mounted.mountpoint).is_ok() && is_mountpoint(&mounted.mountpoint)
        });
        mounted
    }

    /// The command that mounts `template` on `mountpoint`, to be added to.
    pub(crate) fn mount_command(
        &self,
        template: &str,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Command {
        let mut command = self.mica(["mount", "--quiet", template]);
        command.arg(mountpoint);
        if let Some(private) = &options.private {
            command.arg("--private").arg(private);
        }
        if !options.passthrough {
            command.arg("--no-passthrough");
        }
        command.args(&options.more);
        command
    }
}

/// How a test wants a root mounted.
#[derive(Clone, Debug)]
pub(crate) struct MountOptions {
    /// The private directory; none mounts read-only.
    pub(crate) private: Option<PathBuf>,
    /// Whether the kernel may read and write backing files itself.
    pub(crate) passthrough: bool,
    /// Further arguments.
    pub(crate) more: Vec<String>,
}

impl MountOptions {
    /// A root with the private layer `private`, opened with passthrough where the kernel can.
    pub(crate) fn private(private: &Path) -> Self {
        Self { private: Some(private.to_owned()), passthrough: true, more: Vec::new() }
    }

    /// A read-only root.
    pub(crate) fn read_only() -> Self {
        Self { private: None, passthrough: true, more: Vec::new() }
    }

    /// The same, with or without passthrough.
    pub(crate) fn passthrough(mut self, passthrough: bool) -> Self {
        self.passthrough = passthrough;
        self
    }

    /// The same, with one more argument.
    pub(crate) fn with(mut self, argument: &str) -> Self {
        self.more.push(argument.to_owned());
        self
    }
}

/// A mounted root. Dropping it unmounts, by force if it must, and ends its process.
pub(crate) struct Mounted {
    mountpoint: PathBuf,
    server: Option<Child>,
    store: PathBuf,
}

impl Mounted {
    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Unmounts it with `mica umount`, which returns when its process has ended.
    pub(crate) fn unmount(mut self) {
        again_until("the root is in use", || {
            let mut umount = mica();
            let output =
                umount.env("MICA_STORE", &self.store).arg("umount").arg(&self.mountpoint).capture();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() || told.contains("is in use"), "mica umount: {told}");
            output.status.success()
        });
        assert!(!is_mountpoint(&self.mountpoint), "mica umount left {:?}", self.mountpoint);
        if let Some(mut server) = self.server.take() {
            let status = server.wait().expect("the mount process can be waited for");
            assert!(status.success(), "the mount process ended with {status}");
        }
    }

    /// Ends the mount process with SIGKILL, as a crash would, and leaves the dead mount behind: to
    /// the next mount there, or to the scratch directory.
    ///
    /// Only for a root from [`Store::serve`].
    pub(crate) fn kill(mut self) {
        let mut server = self.server.take().expect("only a served root can be killed");
        server.kill().expect("a child can be killed");
        server.wait().expect("a child can be waited for");
        std::mem::forget(self);
    }

    fn exited(&mut self) -> Option<std::process::ExitStatus> {
        self.server.as_mut().and_then(|server| server.try_wait().ok().flatten())
    }

    /// Waits until `done`, asking again at each change of the mount table (proc(5)).
    fn await_table(&mut self, done: impl Fn(&mut Self) -> bool) {
        let table = fs::File::open("/proc/self/mountinfo").expect("proc is mounted");
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{:?} was not mounted", self.mountpoint);
            // The time limit is only there to notice a process that ended without mounting.
            let limit = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            let mut changed = [PollFd::from_borrowed_fd(table.as_fd(), PollFlags::PRI)];
            poll(&mut changed, Some(&limit)).expect("the mount table can be polled");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mountpoint(&self.mountpoint)
            && let Err(error) = unmount(&self.mountpoint, UnmountFlags::DETACH)
        {
            eprintln!("cannot unmount {}: {error}", self.mountpoint.display());
        }
        if let Some(mut server) = self.server.take() {
            // Unmounting ends it; killing it as well only matters when it hangs, and both answers
            // then say nothing that this test could still use.
            let _killed = server.kill();
            let _ended = server.wait();
        }
    }
}
