//! Disks in files: a file system of the wanted kind on a loop device.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::Succeed;
use super::patience::again_until;
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

    /// Unmounts it and waits until its file is free to be mounted again; fails the test if somebody
    /// keeps it.
    pub(crate) fn detach(self) {
        again_until("the disk is in use", || {
            match unmount(&self.mountpoint, UnmountFlags::empty()) {
                Ok(()) => true,
                Err(Errno::BUSY) => false,
                Err(error) => panic!("cannot unmount {}: {error}", self.mountpoint.display()),
            }
        });
        again_until("the loop device is in use", || !is_loop_backing(&self.image));
    }
}

/// Whether a loop device still has `image`.
fn is_loop_backing(image: &Path) -> bool {
    let image = image.canonicalize().expect("the image exists");
    let devices = fs::read_dir("/sys/block").expect("sysfs is mounted").flatten();
    devices.into_iter().any(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| Path::new(backing.trim_end()) == image)
    })
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
