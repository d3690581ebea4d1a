//! Full disks: ENOSPC, nothing half-made, and all is well once there is room again.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::fs::FallocateFlags;

use crate::stage::{LARGE_BYTES, errno, fill, large, picture};
use crate::support::{Disk, DiskFormat, MountOptions, Mounted, PATIENCE, Scratch, Store, Succeed};

const MIB: u64 = 1 << 20;

/// A file that takes all of a disk but a little.
struct Ballast(PathBuf);

impl Ballast {
    /// Fills the disk of `directory` and leaves `free_bytes`, as exactly as its kind can.
    fn leave(directory: &Path, free_bytes: u64) -> Self {
        let path = directory.join("ballast");
        let file = fs::File::create(&path).unwrap();
        let mut len = 0;
        for step in [64 * MIB, 4 * MIB, 256 << 10, 16 << 10, 4 << 10] {
            while rustix::fs::fallocate(&file, FallocateFlags::empty(), len, step).is_ok() {
                len += step;
            }
        }
        assert!(len > free_bytes, "the disk was full before");
        file.set_len(len - free_bytes).unwrap();
        rustix::fs::syncfs(&file).unwrap();
        Self(path)
    }

    fn remove(self) {
        fs::remove_file(&self.0).unwrap();
        rustix::fs::syncfs(fs::File::open(self.0.parent().unwrap()).unwrap()).unwrap();
    }
}

/// A small disk, and a store on another one or on this.
struct Cramped {
    disk: Disk,
    store: Store,
    scratch: Scratch,
}

impl Cramped {
    /// With `together`, the store lies on the small disk too: then content can be shared.
    fn new(format: DiskFormat, together: bool) -> Self {
        let scratch = crate::stage::Stage::empty("space");
        let size = if format == DiskFormat::Ext4 { 64 * MIB } else { 320 * MIB };
        let image = scratch.path().join("disk.img");
        let disk = Disk::create(&image, &scratch.mountpoint("disk"), format, size);
        let place = if together { disk.path() } else { scratch.path() };
        let store = Store::at(&place.join("store"));
        let source = scratch.directory("source");
        fill(&source);
        let program = source.join("usr/bin/tool");
        Command::new("setcap").arg("cap_net_raw+ep").arg(&program).succeed();
        store.import("base", &source);
        Self { disk, store, scratch }
    }

    fn private(&self) -> PathBuf {
        self.disk.path().join("private")
    }

    fn mount(&self, passthrough: bool) -> Mounted {
        let options = MountOptions::private(&self.private()).passthrough(passthrough);
        self.store.mount("base", &self.scratch.mountpoint("root"), &options)
    }
}

/// Every kind of disk, with passthrough and without, with the store beside and apart.
fn everywhere(mut each: impl FnMut(&Cramped, bool)) {
    for (format, together) in
        [(DiskFormat::Ext4, false), (DiskFormat::Xfs, false), (DiskFormat::Xfs, true)]
    {
        for passthrough in [true, false] {
            println!("{format:?}, store on the same disk: {together}, passthrough: {passthrough}");
            each(&Cramped::new(format, together), passthrough);
        }
    }
}

/// Writes until there is room: the kernel tells of a last close after close(2) has returned.
fn eventually(mut write: impl FnMut() -> io::Result<()>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = write() {
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        assert!(Instant::now() < deadline, "what was removed goes on taking room");
    }
}

fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::File::options().append(true).open(path)?.write_all(bytes)
}

fn capability(path: &Path) -> String {
    Command::new("getfattr").args(["-n", "security.capability", "-e", "hex"]).arg(path).succeed()
}

#[test]
fn a_full_disk_in_a_copy_up_changes_nothing_that_anybody_sees() {
    everywhere(|cramped, passthrough| {
        let root = cramped.mount(passthrough);
        let at = |path: &str| root.path().join(path);
        // Some of it private already: then only data is left to be copied.
        fs::set_permissions(at("srv/large"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(at("usr/bin/tool"), fs::Permissions::from_mode(0o750)).unwrap();
        let before = picture(root.path());
        let capable = capability(&at("usr/bin/tool"));
        let mut refused = 0;
        for free_bytes in [0, 4 << 10, 12 << 10, 64 << 10, MIB, 4 * MIB] {
            let ballast = Ballast::leave(cramped.disk.path(), free_bytes);
            for path in ["srv/large", "etc/conf", "usr/bin/tool", "srv/one", "srv/deep/er/file"] {
                if let Err(error) = fs::File::options().append(true).open(at(path)) {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{path}: {error}");
                    refused += 1;
                }
            }
            assert_eq!(picture(root.path()), before, "with {free_bytes} bytes left");
            assert_eq!(capability(&at("usr/bin/tool")), capable);
            ballast.remove();
        }
        assert!(refused > 0, "the disk was never full");
        root.unmount();
        let root = cramped.mount(passthrough);
        let at = |path: &str| root.path().join(path);
        assert_eq!(picture(root.path()), before);
        for path in ["srv/large", "etc/conf", "usr/bin/tool", "srv/one", "srv/deep/er/file"] {
            let len = fs::metadata(at(path)).unwrap().len();
            append(&at(path), b"more").unwrap();
            assert_eq!(fs::metadata(at(path)).unwrap().len(), len + 4);
        }
        assert_eq!(&fs::read(at("srv/large")).unwrap()[..LARGE_BYTES], large());
        assert_eq!(fs::read(at("etc/two")).unwrap(), b"linked\nmore");
    });
}

#[test]
fn a_full_disk_in_a_write_keeps_what_was_acknowledged() {
    everywhere(|cramped, passthrough| {
        let root = cramped.mount(passthrough);
        let at = |path: &str| root.path().join(path);
        append(&at("etc/conf"), b"acknowledged\n").unwrap();
        let ballast = Ballast::leave(cramped.disk.path(), 4 * MIB);
        let mut file =
            fs::File::options().read(true).append(true).create(true).open(at("srv/new")).unwrap();
        let chunk: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut written = 0;
        let error = loop {
            match file.write(&chunk) {
                Ok(count) => written += count,
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        let content = fs::read(at("srv/new")).unwrap();
        assert_eq!(content.len(), written);
        let wanted: Vec<u8> = chunk
            .iter()
            .copied()
            .cycle()
            .scan(0, |at, _| {
                let byte = chunk[*at % chunk.len()];
                *at += 1;
                Some(byte)
            })
            .take(written)
            .collect();
        // Short writes begin a new chunk; only whole ones line up.
        let whole = written / chunk.len() * chunk.len();
        let compared = whole.min(1 << 20);
        assert!(content[..compared] == wanted[..compared]);
        // What was there can be overwritten in place, where the disk does not copy on write.
        file.write_all_at(b"over", 0).ok();
        assert_eq!(fs::read(at("etc/conf")).unwrap(), b"key=value\nacknowledged\n");
        // Removing makes room again, and the root goes on.
        drop(file);
        fs::remove_file(at("srv/new")).unwrap();
        eventually(|| fs::write(at("srv/again"), &chunk));
        assert_eq!(fs::read(at("srv/again")).unwrap(), chunk);
        ballast.remove();
        let before = picture(root.path());
        root.unmount();
        assert_eq!(picture(cramped.mount(passthrough).path()), before);
    });
}

/// A root whose operations are tried on a full disk.
struct Tried {
    root: Mounted,
    picture: Option<String>,
    refused: u32,
}

impl Tried {
    fn new(root: Mounted) -> Self {
        Self { root, picture: None, refused: 0 }
    }

    /// Tries an operation; one that is refused must leave everything as it was.
    fn attempt(&mut self, what: &str, operation: impl FnOnce(&Path) -> io::Result<()>) {
        let root = self.root.path();
        let before = self.picture.take().unwrap_or_else(|| picture(root));
        if let Err(error) = operation(root) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{what}: {error}");
            assert_eq!(picture(root), before, "{what} was refused and yet changed something");
            self.refused += 1;
            self.picture = Some(before);
        }
    }
}

/// Moves what lies at one of two places to the other.
fn swing(one: PathBuf, two: PathBuf) -> io::Result<()> {
    if one.exists() { fs::rename(one, two) } else { fs::rename(two, one) }
}

#[test]
fn a_full_disk_under_changes_of_names_leaves_each_done_or_undone() {
    everywhere(|cramped, passthrough| {
        let mut tried = Tried::new(cramped.mount(passthrough));
        fs::create_dir(tried.root.path().join("own")).unwrap();
        let mut round = 0;
        for free_bytes in [0, 4 << 10, 12 << 10, 40 << 10] {
            let ballast = Ballast::leave(cramped.disk.path(), free_bytes);
            for _ in 0..3 {
                round += 1;
                try_all(&mut tried, round);
            }
            // What is left is what the next mount finds; it needs room only for its records.
            let before = picture(tried.root.path());
            let Tried { root, refused, .. } = tried;
            root.unmount();
            if cramped.store.path().starts_with(cramped.disk.path()) {
                ballast.remove();
                tried = Tried::new(cramped.mount(passthrough));
            } else {
                tried = Tried::new(cramped.mount(passthrough));
                ballast.remove();
            }
            tried.refused = refused;
            assert_eq!(picture(tried.root.path()), before, "with {free_bytes} bytes left");
        }
        assert!(tried.refused > 0, "the disk was never full");
        let at = |path: &str| tried.root.path().join(path);
        fs::create_dir_all(at("srv/much/room")).unwrap();
        let from = if at("srv/deep").exists() { "srv/deep" } else { "srv/moved" };
        fs::rename(at(from), at("srv/much/deep")).unwrap();
        assert_eq!(fs::read(at("srv/much/deep/er/file")).unwrap(), b"deeper\n");
    });
}

fn try_all(tried: &mut Tried, round: u32) {
    let long = "n".repeat(200);
    let fresh = |name: &str| format!("own/{name}{round}{long}");
    tried.attempt("mkdir", |root| fs::create_dir(root.join(fresh("dir"))));
    tried.attempt("mkdir in a shared directory", |root| {
        let top = if root.join("srv/deep").exists() { "deep" } else { "moved" };
        fs::create_dir(root.join(format!("srv/{top}/er/{round}")))
    });
    tried.attempt("create", |root| fs::File::create(root.join(fresh("file"))).map(drop));
    tried.attempt("symlink", |root| {
        std::os::unix::fs::symlink("t".repeat(900), root.join(fresh("symlink")))
    });
    tried.attempt("rename of a shared file", |root| {
        swing(root.join("etc/fine"), root.join("own/fine"))
    });
    tried.attempt("rename of a shared directory", |root| {
        swing(root.join("srv/deep"), root.join("srv/moved"))
    });
    tried.attempt("link of a shared file", |root| {
        fs::hard_link(root.join("etc/conf"), root.join(fresh("link")))
    });
    tried.attempt("link of a linked file", |root| {
        fs::hard_link(root.join("srv/one"), root.join(fresh("linked")))
    });
    tried.attempt("chmod", |root| {
        let mode = fs::Permissions::from_mode(0o600 + round % 8);
        fs::set_permissions(root.join("usr/bin/other"), mode)
    });
    tried.attempt("setfattr", |root| {
        let (name, flags) = (format!("user.name{round}"), rustix::fs::XattrFlags::empty());
        let path = root.join("usr/bin/other");
        Ok(rustix::fs::setxattr(path, name.as_str(), &[b'v'; 900], flags)?)
    });
    tried.attempt("exchange", |root| {
        let (one, two) = (root.join("etc/conf"), root.join("usr/bin/other"));
        let here = rustix::fs::CWD;
        Ok(rustix::fs::renameat_with(here, one, here, two, rustix::fs::RenameFlags::EXCHANGE)?)
    });
    tried.attempt("unlink", |root| match fs::remove_file(root.join("etc/link")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    });
}

/// Who has a full disk deletes files. That must not need room.
#[test]
fn a_full_disk_is_freed_by_removing_from_the_root_itself() {
    everywhere(|cramped, passthrough| {
        let root = cramped.mount(passthrough);
        let at = |path: &str| root.path().join(path);
        fs::create_dir(at("srv/own")).unwrap();
        for name in 0..200 {
            fs::write(at(&format!("srv/own/{name}")), vec![7; 1000]).unwrap();
        }
        append(&at("srv/large"), b"copied up").unwrap();
        append(&at("etc/conf"), b"copied up").unwrap();
        append(&at("srv/one"), b"copied up").unwrap();
        // A root that has something removed already has what the next removal needs.
        fs::remove_file(at("etc/link")).unwrap();
        let ballast = Ballast::leave(cramped.disk.path(), 0);
        let more = || {
            let path = at(&format!("srv/own/more{}", fastrand::u64(..)));
            fs::File::create(path)?.write_all(&[7; 4096])
        };
        while more().is_ok() {}
        for path in ["etc/conf", "srv/one", "etc/two", "srv/large"] {
            fs::remove_file(at(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        fs::remove_dir_all(at("srv/own")).unwrap();
        eventually(|| fs::write(at("srv/room"), vec![7; 100_000]));
        ballast.remove();
        let before = picture(root.path());
        root.unmount();
        assert_eq!(picture(cramped.mount(passthrough).path()), before);
    });
}

#[test]
fn a_full_disk_in_an_import_leaves_the_store_as_it_was() {
    for format in [DiskFormat::Ext4, DiskFormat::Xfs] {
        let cramped = Cramped::new(format, true);
        let source = cramped.scratch.directory("more");
        fs::create_dir(source.join("small")).unwrap();
        let mut random = fastrand::Rng::with_seed(11);
        let mut content = |len: usize| {
            let mut bytes = vec![0; len];
            random.fill(&mut bytes);
            bytes
        };
        for name in 0..600 {
            fs::write(source.join(format!("small/{name}")), content(900)).unwrap();
        }
        for name in ["one", "two"] {
            fs::write(source.join(name), content(6 << 20)).unwrap();
        }
        let archive = cramped.scratch.path().join("more.tar");
        Command::new("tar").arg("-C").arg(&source).arg("-cf").arg(&archive).arg(".").succeed();
        let store = cramped.store.path();
        let objects = || {
            let list =
                Command::new("find").arg(store.join("objects")).args(["-type", "f"]).succeed();
            list.lines().count()
        };
        let before = objects();
        let mut refused = 0;
        for free_bytes in [0, 16 << 10, 128 << 10, MIB, 3 * MIB, 7 * MIB, 13 * MIB, 16 * MIB] {
            let ballast = Ballast::leave(cramped.disk.path(), free_bytes);
            for from in [&source, &archive] {
                let mut import = cramped.store.mica(["template", "import", "more", "--replace"]);
                let output = import.arg(from).capture();
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                if output.status.success() {
                    continue;
                }
                refused += 1;
                assert!(said.contains("No space left on device"), "{said}");
                assert_eq!(said.trim_end().lines().count(), 1, "{said}");
                assert!(said.contains(&*store.to_string_lossy()), "it names the full disk: {said}");
                let staged = fs::read_dir(store.join("staging")).unwrap().count();
                assert_eq!(staged, 0, "with {free_bytes} bytes left: {said}");
            }
            cramped.store.mica(["store", "check", "--rehash"]).succeed();
            ballast.remove();
        }
        assert!(refused >= 4, "the disk was hardly ever full");
        cramped.store.mica(["template", "import", "more", "--replace"]).arg(&source).succeed();
        cramped.store.mica(["store", "check", "--rehash"]).succeed();
        // What refused imports had published goes as any garbage does.
        cramped.store.mica(["template", "delete", "more"]).succeed();
        cramped.store.mica(["store", "gc"]).succeed();
        assert_eq!(objects(), before);
    }
}

/// No inode left is a full disk too.
#[test]
fn a_disk_without_free_inodes_is_a_full_one() {
    crate::support::require_root();
    let scratch = Scratch::new("space");
    let image = scratch.path().join("disk.img");
    fs::File::create(&image).unwrap().set_len(32 * MIB).unwrap();
    Command::new("mkfs.ext4").args(["-q", "-F", "-N", "128"]).arg(&image).succeed();
    let disk = Disk::attach(&image, &scratch.mountpoint("disk"));
    let store = Store::at(&scratch.path().join("store"));
    let source = scratch.directory("source");
    fill(&source);
    store.import("base", &source);
    let options = MountOptions::private(&disk.path().join("private"));
    let root = store.mount("base", &scratch.mountpoint("root"), &options);
    let at = |path: &str| root.path().join(path);
    append(&at("etc/fine"), b"copied up").unwrap();
    fs::remove_file(at("etc/link")).unwrap();
    fs::create_dir(at("own")).unwrap();
    let mut made = 0;
    while fs::File::create(at(&format!("own/{made}"))).is_ok() {
        made += 1;
    }
    assert_eq!(errno(fs::create_dir(at("own/dir"))), libc::ENOSPC);
    let before = picture(root.path());
    assert_eq!(errno(append(&at("usr/bin/other"), b"more")), libc::ENOSPC);
    assert_eq!(errno(fs::rename(at("srv/deep"), at("own/deep"))), libc::ENOSPC);
    assert_eq!(picture(root.path()), before);
    assert_eq!(fs::metadata(at("usr/bin/other")).unwrap().nlink(), 1);
    // Removing needs none.
    fs::remove_file(at("etc/fine")).unwrap();
    for name in 0..4 {
        fs::remove_file(at(&format!("own/{name}"))).unwrap();
    }
    eventually(|| append(&at("usr/bin/other"), b"more"));
}
