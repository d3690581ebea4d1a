//! Calls that not every file system has: each answers exactly what docs/SEMANTICS.md says.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use rustix::fs::{
    AtFlags, IFlags, Mode, OFlags, StatxFlags, ioctl_ficlone, ioctl_getflags, ioctl_setflags, open,
    statvfs, statx, syncfs,
};
use rustix::io::Errno;

use crate::support::{Disk, DiskFormat, Succeed, again_until, while_nobody_starts};
use crate::{Desk, every_way, raw, read_write};

#[test]
fn an_unnamed_file_is_refused_so_that_programs_fall_back() {
    every_way("text", |path, way| {
        let directory = path.parent().unwrap();
        let made = open(directory, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
        assert_eq!(made.err(), Some(Errno::OPNOTSUPP), "{way:?}");
    });
}

#[test]
fn syncfs_returns_0() {
    every_way("text", |path, way| {
        assert_eq!(syncfs(read_write(path)), Ok(()), "{way:?}");
    });
}

#[test]
fn birth_time_is_absent() {
    every_way("text", |path, way| {
        let ask = || {
            let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
            statx(rustix::fs::CWD, path, AtFlags::empty(), flags).unwrap()
        };
        assert_eq!(ask().stx_mask & StatxFlags::BTIME.bits(), 0, "{way:?}");
        fs::write(path, "private").unwrap();
        let private = ask();
        assert_eq!(private.stx_mask & StatxFlags::BTIME.bits(), 0, "{way:?}");
        assert_eq!(private.stx_mask & StatxFlags::BASIC_STATS.bits(), 0x7ff, "{way:?}");
    });
}

#[test]
fn inode_flags_are_none_and_cannot_be_set() {
    every_way("text", |path, way| {
        let reader = File::open(path).unwrap();
        assert_eq!(ioctl_getflags(&reader), Ok(IFlags::empty()), "{way:?}, not copied up");
        drop(reader);
        let file = read_write(path);
        assert_eq!(ioctl_getflags(&file), Ok(IFlags::empty()), "{way:?}");
        assert_eq!(ioctl_setflags(&file, IFlags::IMMUTABLE), Err(Errno::NOTTY), "{way:?}");
        file.write_all_at(b"still", 0).unwrap();
    });
}

#[test]
fn ficlone_is_refused_so_that_cp_copies() {
    every_way("text", |path, way| {
        let target = File::create_new(path.with_file_name("clone")).unwrap();
        let shared = File::open(path).unwrap();
        assert_eq!(ioctl_ficlone(&target, &shared), Err(Errno::OPNOTSUPP), "{way:?}");
        drop(shared);
        let private = read_write(path);
        assert_eq!(ioctl_ficlone(&target, &private), Err(Errno::OPNOTSUPP), "{way:?}");
        assert_eq!(target.metadata().unwrap().len(), 0, "{way:?}");
    });
}

#[test]
fn statfs_is_that_of_the_file_system_under_the_private_layer() {
    let desk = Desk::new();
    let place = desk.scratch.mountpoint("disk");
    let image = desk.scratch.path().join("disk.img");
    let disk = Disk::create(&image, &place, DiskFormat::Ext4, 64 << 20);
    {
        let root = desk.root_over("root", &place.join("private"), true);
        let filled = root.path().join("srv/filled");
        for size in [1 << 20, 8 << 20] {
            fs::write(&filled, vec![1; size]).unwrap();
            File::open(&filled).unwrap().sync_all().unwrap();
            // Only the disk's own commits move the numbers of a disk that nobody else uses.
            syncfs(File::open(&place).unwrap()).unwrap();
            let (seen, host) = (statvfs(root.path()).unwrap(), statvfs(&place).unwrap());
            let numbers = |of: &rustix::fs::StatVfs| {
                let blocks = (of.f_frsize, of.f_blocks, of.f_bfree, of.f_bavail);
                (blocks, of.f_files, of.f_ffree, of.f_namemax)
            };
            assert_eq!(numbers(&seen), numbers(&host));
        }
        root.unmount();
    }
    disk.detach();
}

#[test]
fn a_file_handle_opens_a_shared_and_a_private_file() {
    every_way("text", |path, way| {
        let within = File::open(path.parent().unwrap()).unwrap();
        let shared = raw::handle_of(path).unwrap();
        let opened = raw::open_handle(&within, &shared, libc::O_RDONLY).unwrap();
        assert_eq!(opened.metadata().unwrap().ino(), fs::metadata(path).unwrap().ino(), "{way:?}");
        assert_eq!(std::io::read_to_string(opened).unwrap(), "old content\n", "{way:?}");
        let mine = path.with_file_name("mine");
        fs::write(&mine, "private\n").unwrap();
        let private = raw::handle_of(&mine).unwrap();
        let held = File::open(&mine).unwrap();
        let opened = raw::open_handle(&within, &private, libc::O_RDWR).unwrap();
        opened.write_all_at(b"P", 0).unwrap();
        assert_eq!(std::io::read_to_string(held).unwrap(), "Private\n", "{way:?}");
    });
}

#[test]
fn a_handle_of_a_private_file_that_the_kernel_forgot_is_stale() {
    every_way("mine", |path, way| {
        let within = File::open(path.parent().unwrap()).unwrap();
        fs::write(path, "private\n").unwrap();
        let handle = raw::handle_of(path).unwrap();
        again_until("the kernel forgets the file", || {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            let opened = raw::open_handle(&within, &handle, libc::O_RDONLY);
            opened.is_err_and(|error| {
                assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{way:?}");
                true
            })
        });
        assert_eq!(fs::read_to_string(path).unwrap(), "private\n", "{way:?}");
    });
}

#[test]
fn a_running_program_is_not_truncated_by_who_only_reads() {
    every_way("program", |path, way| {
        while_nobody_starts(|| fs::copy("/bin/sleep", path).unwrap());
        let mut running = Command::new(path).arg("60").start();
        let before = fs::read(path).unwrap();
        let flags = OFlags::RDONLY | OFlags::TRUNC;
        let truncated = open(path, flags, Mode::empty());
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(truncated.err(), Some(Errno::TXTBSY), "{way:?}");
        assert_eq!(fs::read(path).unwrap(), before, "{way:?}");
    });
}

#[test]
fn a_device_node_opens_as_on_the_host() {
    every_way("text", |path, way| {
        let make = |name: &str, major, minor| {
            let place = path.with_file_name(name);
            let device = rustix::fs::makedev(major, minor);
            let mode = Mode::RUSR | Mode::WUSR;
            let kind = rustix::fs::FileType::CharacterDevice;
            rustix::fs::mknodat(rustix::fs::CWD, &place, kind, mode, device).unwrap();
            place
        };
        let null = make("null", 1, 3);
        assert_eq!(fs::read(&null).unwrap(), b"", "{way:?}");
        fs::write(&null, "gone").unwrap();
        let zero = File::open(make("zero", 1, 5)).unwrap();
        let mut bytes = [1; 16];
        zero.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 16], "{way:?}");
        let nothing = make("nothing", 0, 0);
        assert_eq!(fs::metadata(&nothing).unwrap().rdev(), 0, "{way:?}");
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&nothing);
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::ENXIO), "{way:?}");
    });
}
