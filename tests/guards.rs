//! The guards of the test support keep their word: what a test made is gone when it ends.

mod support;

use std::fs;
use std::process::Command;

use support::{Disk, DiskFormat, Scratch, Succeed, is_mountpoint, require_root};

#[test]
fn scratch_removes_mounts_disks_and_immutable_files() {
    require_root();
    let scratch = Scratch::new("guards");
    let (path, mountpoint) = (scratch.path().to_owned(), scratch.mountpoint("a disk\\"));
    let disk =
        Disk::create(&path.join("disk.img"), &mountpoint, DiskFormat::Ext4, 16 * 1024 * 1024);
    fs::write(disk.path().join("file"), b"content").unwrap();
    fs::write(path.join("fixed"), b"content").unwrap();
    Command::new("chattr").arg("+i").arg(path.join("fixed")).succeed();
    // Forgotten as by an abort: only the scratch directory is left to clean up.
    std::mem::forget(disk);
    drop(scratch);
    assert!(!is_mountpoint(&mountpoint));
    assert!(!path.exists() && !mountpoint.exists());
    let loops = Command::new("losetup").args(["--list", "--noheadings"]).succeed();
    assert!(!loops.contains(&*path.to_string_lossy()), "{loops}");
}

#[test]
fn disks_of_every_format_mount_and_detach() {
    require_root();
    let scratch = Scratch::new("guards");
    for format in [DiskFormat::Ext4, DiskFormat::Xfs, DiskFormat::Btrfs] {
        let image = scratch.path().join(format!("{format:?}.img"));
        let mountpoint = scratch.mountpoint(&format!("{format:?}"));
        let disk = Disk::create(&image, &mountpoint, format, 320 * 1024 * 1024);
        fs::write(disk.path().join("file"), b"content").unwrap();
        disk.detach();
        let again = Disk::attach(&image, &mountpoint);
        assert_eq!(fs::read(again.path().join("file")).unwrap(), b"content");
    }
}
