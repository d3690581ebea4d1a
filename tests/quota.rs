//! The most that a root's private files may take, where the mount itself holds it.
//!
//! du(1) of the private directory is the judge. Needs root and /dev/fuse.

// What goes wrong in the harness itself fails the test.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use mica::control::Client;
use mica::host::disk_limit::{HeldBy, Tree};
use mica::host::{Access, Roots, disk_image, disk_limit};
use rustix::fs::{FallocateFlags, XattrFlags};
use support::{
    Disk, DiskFormat, MountOptions, Mounted, Scratch, Store, Succeed, again_until, require_root,
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

struct Root {
    mounted: Mounted,
    private: PathBuf,
    store: Store,
    _scratch: Scratch,
}

impl Root {
    fn new(options: &[&str]) -> Self {
        require_root();
        let scratch = Scratch::new("quota");
        let tree = scratch.directory("tree");
        for directory in ["usr", "etc"] {
            fs::create_dir(tree.join(directory)).unwrap();
            fs::write(tree.join(directory).join("large"), vec![7; 3 << 20]).unwrap();
            fs::write(tree.join(directory).join("small"), b"text").unwrap();
        }
        let store = Store::at(&scratch.path().join("store"));
        store.import("t:1", &tree);
        let private = scratch.path().join("private");
        let mut wanted = MountOptions::private(&private);
        wanted.more = options.iter().map(|option| (*option).to_owned()).collect();
        let mounted = store.mount("t:1", &scratch.mountpoint("root"), &wanted);
        Self { mounted, private, store, _scratch: scratch }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.mounted.path().join(path)
    }

    fn du(&self) -> u64 {
        let said = Command::new("du").args(["-s", "-B1"]).arg(self.private.join("upper")).succeed();
        said.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn control(&self) -> Client {
        let store = mica::host::Store::open(self.store.path(), Access::Read).unwrap();
        let records = Roots::open(&store).unwrap().list().unwrap();
        records[0].living().expect("the mount process answers")
    }
}

fn is_over_quota(done: io::Result<impl Sized>) -> bool {
    let errno = done.err().and_then(|error| error.raw_os_error());
    errno == Some(libc::EDQUOT)
}

/// Writes until it is refused; how many bytes went in.
fn fill(path: &Path) -> u64 {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let block = vec![9; 100_000];
    let mut written = 0;
    loop {
        match file.write(&block) {
            Ok(count) => written += count as u64,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EDQUOT), "{error}");
                return written;
            }
        }
    }
}

#[test]
fn what_a_revert_took_from_the_disk_is_not_counted_though_the_kernel_knows_it_yet() {
    let root = Root::new(&["-o", "size=8M"]);
    fs::write(root.path("usr/new"), vec![1; 100_000]).unwrap();
    fs::create_dir(root.path("usr/made")).unwrap();
    fs::write(root.path("usr/made/inside"), b"x").unwrap();
    fs::remove_file(root.path("usr/small")).unwrap();
    OpenOptions::new().append(true).open(root.path("usr/large")).unwrap().write_all(b"y").unwrap();
    let before = root.du();
    root.store.mica(["revert"]).arg(root.mounted.path()).arg("/usr").succeed();
    let told = root.control().limit_disk(Some(4 * MIB)).unwrap();
    assert!(told.used_bytes < before - 3 * MIB, "{told:?} of {before}");
    fill(&root.path("etc/filler"));
    assert!(root.du() <= 4 * MIB);
}

#[test]
fn a_root_is_filled_to_its_limit_and_no_further() {
    let root = Root::new(&["-o", "size=8M"]);
    let written = fill(&root.path("etc/filler"));
    let du = root.du();
    assert!(du <= 8 * MIB && du > 8 * MIB - 64 * KIB, "{du}");
    assert!(written > 8 * MIB - 64 * KIB, "{written}");
    let statfs = rustix::fs::statvfs(root.mounted.path()).unwrap();
    assert_eq!(statfs.f_blocks * statfs.f_frsize, 8 * MIB);
    assert!(statfs.f_bavail * statfs.f_frsize < 64 * KIB);

    // What is there is written over; the rest is refused.
    let file = OpenOptions::new().write(true).open(root.path("etc/filler")).unwrap();
    file.write_all_at(&[1; 50_000], 12_345).unwrap();
    assert!(is_over_quota(fs::write(root.path("etc/more"), vec![0; 100_000])));
    assert!(is_over_quota((0..100).try_for_each(|n| fs::create_dir(root.path(&format!("d{n}"))))));
    let whole = rustix::fs::fallocate(&file, FallocateFlags::empty(), 100 * MIB, MIB);
    assert_eq!(whole, Err(rustix::io::Errno::DQUOT));
    let copied = rustix::fs::copy_file_range(
        File::open(root.path("usr/large")).unwrap(),
        Some(&mut 0),
        &file,
        Some(&mut (50 * MIB)),
        1 << 20,
    );
    assert_eq!(copied, Err(rustix::io::Errno::DQUOT));

    // A copy-up that does not fit leaves the file shared and whole.
    for path in ["usr/large", "etc/large"] {
        assert!(is_over_quota(OpenOptions::new().append(true).open(root.path(path))), "{path}");
        assert_eq!(fs::metadata(root.path(path)).unwrap().len(), 3 * MIB);
        assert!(fs::read(root.path(path)).unwrap().iter().all(|byte| *byte == 7));
    }
    assert!(root.du() <= 8 * MIB);
    // It needs no room when nothing of it is kept, and metadata needs none.
    drop(File::create(root.path("usr/large")).unwrap());
    rustix::fs::chmod(root.path("etc/large"), rustix::fs::Mode::RWXU).unwrap();

    // Room comes back at once: by removing, by cutting, and not before the last descriptor.
    file.set_len(4 * MIB).unwrap();
    drop(OpenOptions::new().append(true).open(root.path("etc/large")).unwrap());
    assert_eq!(fs::metadata(root.path("etc/large")).unwrap().blocks() * 512, 3 * MIB);
    fs::remove_file(root.path("etc/filler")).unwrap();
    assert!(is_over_quota(fs::write(root.path("etc/more"), vec![0; 4 << 20])), "it is open");
    drop(file);
    again_until("the kernel lets the file go", || {
        fs::write(root.path("etc/more"), vec![0; 4 << 20]).is_ok()
    });
    assert!(root.du() <= 8 * MIB);
}

#[test]
fn nothing_small_adds_up_unseen() {
    let root = Root::new(&["-o", "size=2M"]);
    let mut made = 0;
    let refused = loop {
        let path = root.path(&format!("etc/file{made}"));
        let written = fs::write(&path, b"x").and_then(|()| {
            let value = [b'v'; 3000];
            Ok(rustix::fs::setxattr(&path, "user.large", &value, XattrFlags::empty())?)
        });
        if written.is_err() {
            break written;
        }
        made += 1;
    };
    assert!(is_over_quota(refused));
    let du = root.du();
    assert!((100..=512).contains(&made), "{made} files of one block, or two with the attribute's");
    assert!(du <= 2 * MIB, "{du}");
    let used = root.control().disk_use().unwrap().used_bytes;
    // The parts of a private directory that are no file's.
    assert!((du..du + 16 * KIB).contains(&used), "{used}, du says {du}");
    Command::new("sh").args(["-c", "rm -r \"$0\"/etc/file*"]).arg(root.mounted.path()).succeed();
    again_until("the kernel lets the files go", || {
        root.control().disk_use().unwrap().used_bytes < 64 * KIB
    });
}

#[test]
fn empty_files_do_not_use_up_the_hosts_inodes() {
    let root = Root::new(&["-o", "size=2M"]);
    let path = |number: u64| root.path(&format!("etc/empty{number}"));
    let mut made = 0;
    let refused = loop {
        let done = if made % 2 == 0 {
            File::create(path(made)).map(drop)
        } else {
            std::os::unix::fs::symlink("x", path(made))
        };
        match done {
            Ok(()) => made += 1,
            refused => break refused,
        }
        assert!(made < 5000, "nobody stops it");
    };
    assert!(is_over_quota(refused));
    // As many as are allowed at least, but for what a private directory is made of.
    assert!((4000..=4096).contains(&made), "{made}");
    let inodes =
        Command::new("df").args(["--output=itotal,iavail"]).arg(root.mounted.path()).succeed();
    let inodes: Vec<u64> = inodes.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(inodes, [4096, 0]);
    // What is removed makes room.
    fs::hard_link(path(0), path(made)).unwrap();
    for number in 1..20 {
        fs::remove_file(path(number)).unwrap();
    }
    // The kernel forgets a removed one some time later; a link may have taken a little.
    for number in 1..16 {
        again_until("there is room again", || File::create(path(number)).is_ok());
    }
}

#[test]
fn mapped_pages_beyond_the_limit_are_lost_and_reported() {
    let root = Root::new(&["-o", "size=1M"]);
    // A file with a hole, mapped: the pages are written back when the program asks, or later.
    let script = "import mmap, os, sys
f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(f, 4 << 20)
m = mmap.mmap(f, 4 << 20)
m[:] = b'x' * (4 << 20)
try:
    m.flush(); os.fsync(f)
    print('kept')
except OSError as error:
    print(error.errno)";
    let said = Command::new("python3").args(["-c", script]).arg(root.path("etc/map")).succeed();
    let errno = said.trim().parse::<i32>();
    assert!(
        errno.is_ok_and(|errno| [libc::EDQUOT, libc::EIO, libc::ENOSPC].contains(&errno)),
        "{said}"
    );
    assert!(root.du() <= MIB, "{}", root.du());
}

#[test]
fn a_limit_is_set_live_for_new_opens_and_stated_for_older_ones() {
    let root = Root::new(&[]);
    let mut older = File::create(root.path("etc/older")).unwrap();
    older.write_all(&[1; 4096]).unwrap();
    let mut control = root.control();
    let told = control.limit_disk(Some(6 * MIB)).unwrap();
    assert_eq!((told.limit_bytes, told.unheld_files), (Some(6 * MIB), 1), "{told:?}");
    // A new file, at once.
    let written = fill(&root.path("etc/new"));
    assert!((5 * MIB..=6 * MIB).contains(&written), "{written}");
    assert!(root.du() <= 6 * MIB);
    // The older descriptor passes through: what it writes is counted, and not refused.
    older.write_all(&vec![2; 1 << 20]).unwrap();
    let told = control.disk_use().unwrap();
    assert!(told.used_bytes > 6 * MIB && told.unheld_files == 1, "{told:?}");
    let du = root.du();
    assert!((du..du + 64 * KIB).contains(&told.used_bytes), "{told:?}, du says {du}");
    assert!(is_over_quota(fs::write(root.path("etc/third"), [0; 5000])));
    // Closed, it is held like any other.
    drop(older);
    again_until("nobody can write it unseen", || control.disk_use().unwrap().unheld_files == 0);
    let mut older = OpenOptions::new().append(true).open(root.path("etc/older")).unwrap();
    assert!(is_over_quota(older.write_all(&[3; 5000])));
    // Higher, at once; lower than what is used takes nothing away; none at all.
    control.limit_disk(Some(8 * MIB)).unwrap();
    older.write_all(&[3; 5000]).unwrap();
    control.limit_disk(Some(MIB)).unwrap();
    assert!(is_over_quota(older.write_all(&[3; 50_000])));
    let mut text = Vec::new();
    File::open(root.path("etc/older")).unwrap().read_to_end(&mut text).unwrap();
    assert!(text.len() as u64 > MIB);
    control.limit_disk(None).unwrap();
    older.write_all(&vec![4; 3 << 20]).unwrap();
    older.seek(SeekFrom::Start(0)).unwrap();
    let statfs = rustix::fs::statvfs(root.mounted.path()).unwrap();
    assert!(statfs.f_blocks * statfs.f_frsize > 100 * MIB, "the disk's own again");
    assert!(older.as_fd().try_clone_to_owned().is_ok());
}

fn mount_on(store: &Store, private: &Path, mountpoint: &Path) -> Mounted {
    store.mount("t:1", mountpoint, &MountOptions::private(private))
}

fn small_store(scratch: &Scratch) -> Store {
    let tree = scratch.directory("tree");
    fs::create_dir(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/file"), b"text").unwrap();
    let store = Store::at(&scratch.path().join("store"));
    store.import("t:1", &tree);
    store
}

#[test]
fn a_btrfs_with_quotas_holds_a_subvolume_by_itself() {
    require_root();
    let scratch = Scratch::new("quota");
    let image = scratch.path().join("disk");
    let disk = Disk::create(&image, &scratch.mountpoint("disk"), DiskFormat::Btrfs, 320 * MIB);
    let store = small_store(&scratch);
    // A directory from before is none that btrfs could hold.
    let plain = disk.path().join("plain");
    disk_limit::prepare(&plain).unwrap();
    let held = disk_limit::limit(&plain, Some(16 * MIB), 7, Tree::AtRest).unwrap();
    assert!(matches!(&held, HeldBy::Mount { why } if why.contains("no subvolume")), "{held:?}");
    Command::new("btrfs").args(["quota", "enable"]).arg(disk.path()).succeed();
    let private = disk.path().join("private");
    disk_limit::prepare(&private).unwrap();
    assert_eq!(
        disk_limit::limit(&private, Some(16 * MIB), 7, Tree::AtRest).unwrap(),
        HeldBy::Qgroup
    );
    let mounted = mount_on(&store, &private, &scratch.mountpoint("root"));
    let file = mounted.path().join("etc/filler");
    let written = fill(&file);
    assert!((8 * MIB..=16 * MIB).contains(&written), "{written}, passing through");
    // Live, and off again.
    assert_eq!(
        disk_limit::limit(&private, Some(32 * MIB), 7, Tree::AtRest).unwrap(),
        HeldBy::Qgroup
    );
    fs::write(mounted.path().join("etc/more"), vec![1; 4 << 20]).unwrap();
    assert_eq!(disk_limit::limit(&private, None, 7, Tree::AtRest).unwrap(), HeldBy::Qgroup);
    fs::write(mounted.path().join("etc/most"), vec![1; 40 << 20]).unwrap();
    drop(mounted);
    fs::remove_dir_all(&private).unwrap();
    disk.detach();
}

/// This kernel has no project quotas; where one has, the limit shows in statfs(2).
#[test]
fn a_project_quota_holds_or_is_refused_by_its_name() {
    require_root();
    let scratch = Scratch::new("quota");
    let image = scratch.path().join("disk");
    File::create_new(&image).unwrap().set_len(64 * MIB).unwrap();
    let features = ["-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"];
    Command::new("mkfs.ext4").args(features).arg(&image).succeed();
    let mountpoint = scratch.mountpoint("disk");
    let mut mount = Command::new("mount");
    let mounted = mount.args(["-o", "loop,prjquota"]).arg(&image).arg(&mountpoint).capture();
    let private = mountpoint.join("private");
    disk_limit::prepare(&private).unwrap();
    let held = disk_limit::limit(&private, Some(16 * MIB), 7, Tree::AtRest).unwrap();
    if mounted.status.success() {
        let accepted = matches!(&held, HeldBy::ProjectQuota)
            || matches!(&held, HeldBy::Mount { why } if why.contains("setquota"));
        assert!(accepted, "{held:?}");
    } else {
        assert!(
            matches!(&held, HeldBy::Mount { why } if why.contains("without project quotas")),
            "{held:?}"
        );
    }
}

#[test]
fn a_disk_image_holds_exactly_and_grows_in_use() {
    require_root();
    let scratch = Scratch::new("quota");
    let store = small_store(&scratch);
    let (image, private) = (scratch.path().join("private.img"), scratch.path().join("private"));
    let refused = disk_image::create(&image, MIB).unwrap_err().to_string();
    assert!(refused.contains("16777216 bytes at least") && !image.exists(), "{refused}");
    disk_image::create(&image, 32 * MIB).unwrap();
    assert!(disk_image::create(&image, 32 * MIB).is_err(), "it exists");
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < 8 * MIB, "sparse");
    disk_image::mount(&image, &private).unwrap();
    disk_image::mount(&image, &private).unwrap();
    let mounted = mount_on(&store, &private, &scratch.mountpoint("root"));
    let file = mounted.path().join("etc/filler");
    let mut filler = File::create(&file).unwrap();
    let written = io::copy(&mut io::repeat(7), &mut filler).map_err(|error| error.raw_os_error());
    assert_eq!(written, Err(Some(libc::ENOSPC)));
    let before = filler.metadata().unwrap().len();
    assert!((16 * MIB..32 * MIB).contains(&before), "{before}");
    let refused = disk_image::grow(&image, &private, 20 * MIB).unwrap_err().to_string();
    assert!(refused.contains("cannot shrink"), "{refused}");
    // ext4 grows in use for who has CAP_SYS_RESOURCE alone; else all is as before.
    let more = match disk_image::grow(&image, &private, 64 * MIB) {
        Ok(()) => {
            filler.write_all(&vec![7; 8 << 20]).unwrap();
            8 * MIB
        }
        Err(error) => {
            let told = error.to_string();
            assert!(told.contains("Permission denied to resize filesystem"), "{told}");
            assert_eq!(fs::metadata(&image).unwrap().len(), 32 * MIB);
            0
        }
    };
    assert!(disk_image::unmount(&private).is_err(), "a root is mounted from it");
    drop(filler);
    drop(mounted);
    again_until("the private directory is free", || disk_image::unmount(&private).is_ok());
    disk_image::unmount(&private).unwrap();
    // What was written is there again.
    disk_image::mount(&image, &private).unwrap();
    let again = mount_on(&store, &private, &scratch.mountpoint("root"));
    assert_eq!(fs::metadata(again.path().join("etc/filler")).unwrap().len(), before + more);
}

/// Random operations; du never exceeds the limit, and the count is never below du.
const FILES: u8 = 12;

/// What the host may add for itself once it writes a file back, whenever that is: blocks of the
/// file's map of extents, which count as the file's. Two have room for more extents than a file of
/// this test has blocks.
const BOOKKEEPING_BYTES: u64 = FILES as u64 * 2 * 4096;

#[test]
fn the_count_never_falls_short_of_the_disk() {
    let rounds = match std::env::var("MICA_TEST_COUNTS").as_deref() {
        Ok("quick") => 200,
        Ok("long") => 20_000,
        _ => 1000,
    };
    let seed = support::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let root = Root::new(&["-o", "size=3M"]);
    let mut control = root.control();
    for round in 0..rounds {
        let path = root.path(&format!("etc/{}", random.u8(0..FILES)));
        let len = random.usize(0..400_000);
        let done = match random.u8(0..7) {
            0 => fs::write(&path, vec![1; len]),
            1 => OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .and_then(|mut file| file.write_all(&vec![2; len])),
            2 => OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .and_then(|file| file.write_all_at(&vec![3; len], random.u64(0..1_000_000))),
            3 => fs::remove_file(&path),
            4 => OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_len(random.u64(0..1_000_000))),
            5 => OpenOptions::new().write(true).open(&path).and_then(|file| {
                Ok(rustix::fs::fallocate(
                    &file,
                    FallocateFlags::empty(),
                    random.u64(0..100_000),
                    1 + len as u64,
                )?)
            }),
            _ => fs::rename(&path, root.path(&format!("etc/{}", random.u8(0..FILES)))),
        };
        let errno = done.err().and_then(|error| error.raw_os_error());
        assert!(
            matches!(errno, None | Some(libc::EDQUOT | libc::ENOENT)),
            "{errno:?} in round {round}"
        );
        if round % 20 == 0 {
            let (du, told) = (root.du(), control.disk_use().unwrap());
            assert!(du <= 3 * MIB + BOOKKEEPING_BYTES, "{du} in round {round}");
            assert!(told.used_bytes >= du, "{told:?}, du {du} in round {round}");
        }
    }
}
