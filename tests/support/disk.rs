//! Disks in files: a file system of the wanted kind on a loop device.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::Succeed;
use super::scratch::is_mountpoint;

/// The host file systems that the tests meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskFormat {
    /// Has journal and immutable flag, lacks reflink.
    Ext4,
    /// Has reflink.
    Xfs,
    /// Has reflink, checksums and copy-on-write throughout.
    Btrfs,
}

/// A mounted disk whose blocks lie in a file. Dropping it unmounts; its file stays.
pub(crate) struct Disk {
    image: PathBuf,
    mountpoint: PathBuf,
}

impl Disk {
    /// Formats the new sparse file `image` of `size_bytes` and mounts it on `mountpoint`.
    pub(crate) fn create(
        image: &Path,
        mountpoint: &Path,
        format: DiskFormat,
        size_bytes: u64,
    ) -> Self {
        let file = File::create_new(image).expect("a disk image can be made");
        file.set_len(size_bytes).expect("a disk image can be sparse");
        let mut mkfs = match format {
            DiskFormat::Ext4 => with(Command::new("mkfs.ext4"), &["-q", "-F", "-E", "nodiscard"]),
            DiskFormat::Xfs => with(Command::new("mkfs.xfs"), &["-q", "-f", "-K"]),
            DiskFormat::Btrfs => with(Command::new("mkfs.btrfs"), &["-q", "-f", "-K"]),
        };
        mkfs.arg(image).succeed();
        Self::attach(image, mountpoint)
    }

    /// Mounts the existing `image` on `mountpoint`, replaying its journal if it needs that.
    pub(crate) fn attach(image: &Path, mountpoint: &Path) -> Self {
        // Two copies of one xfs or btrfs image carry one identity; only ext4 copies are attached.
        Command::new("mount").args(["-o", "loop"]).arg(image).arg(mountpoint).succeed();
        Self { image: image.to_owned(), mountpoint: mountpoint.to_owned() }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The file its blocks lie in.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// Unmounts it, and fails the test if somebody still uses it.
    ///
    /// A program that another thread of this test is just starting has every descriptor until it
    /// executes, and nothing tells when that is over: so a busy disk is tried again for a while.
    pub(crate) fn detach(self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match unmount(&self.mountpoint, UnmountFlags::empty()) {
                Ok(()) => return,
                Err(Errno::BUSY) if Instant::now() < deadline => std::thread::yield_now(),
                Err(error) => panic!("cannot unmount {}: {error}", self.mountpoint.display()),
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !is_mountpoint(&self.mountpoint) {
            return;
        }
        // Detaching always works; the loop device goes with the last user of the mount.
        if let Err(error) = unmount(&self.mountpoint, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.mountpoint.display());
        }
    }
}

fn with(mut command: Command, arguments: &[&str]) -> Command {
    command.args(arguments);
    command
}
