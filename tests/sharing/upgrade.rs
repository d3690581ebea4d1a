//! The same real packages installed in several containers: afterwards there is one copy of them, on
//! the disk and in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::stage::by_counts;
use crate::support::{
    Disk, DiskFormat, MountOptions, Mounted, Scratch, Store, Succeed, require_root,
};

/// Packages that the template does not have, and one that it has: put there once more, as an
/// upgrade does.
const PACKAGES: [&str; 5] = ["less", "file", "libmagic1", "libmagic-mgc", "python3.11-minimal"];

/// Their archives, from wherever apt on this machine gets its packages; kept with the build.
fn packages() -> Vec<PathBuf> {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sharing-packages");
    if !kept.exists() {
        let part = kept.with_extension("part");
        fs::create_dir_all(&part).unwrap();
        let mut download = Command::new("apt-get");
        download.arg("download").args(PACKAGES).current_dir(&part).succeed();
        fs::rename(&part, &kept).unwrap();
    }
    let archives: Vec<PathBuf> =
        fs::read_dir(kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(archives.len(), PACKAGES.len());
    archives
}

/// A Debian root as an archive, made once and kept with the build.
fn debian() -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian-minbase.tar");
    if !kept.exists() {
        let part = kept.with_extension("sharing.tar");
        let mut make = Command::new("mmdebstrap");
        make.args(["--variant=minbase", "--include=python3-minimal", "bookworm"]);
        make.arg(&part).succeed();
        fs::rename(&part, &kept).unwrap();
    }
    kept
}

/// A program of the package that is replaced, running in a root.
struct Service(Child);

impl Service {
    fn start(root: &Path) -> Self {
        let script = "import sys, time; print('up', flush=True); time.sleep(1000)";
        let mut chroot = Command::new("chroot");
        chroot.arg(root).args(["/usr/bin/python3.11", "-S", "-c", script]);
        let mut child = chroot.stdout(Stdio::piped()).start();
        let mut line = String::new();
        let out = child.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        assert_eq!(line, "up\n");
        Self(child)
    }

    /// Its part of the memory that files take, in KiB (proc(5), Pss_File).
    fn file_kib(&self) -> u64 {
        let told = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id())).unwrap();
        let line = told.lines().find_map(|line| line.strip_prefix("Pss_File:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What the services of all roots have of memory together.
fn memory(roots: &[Mounted]) -> u64 {
    let services: Vec<Service> = roots.iter().map(|root| Service::start(root.path())).collect();
    services.iter().map(Service::file_kib).sum()
}

/// KiB that the file system at `disk` holds.
fn used(disk: &Path) -> u64 {
    Command::new("sync").arg("-f").arg(disk).succeed();
    let told = rustix::fs::statvfs(disk).unwrap();
    (told.f_blocks - told.f_bfree) * told.f_frsize / 1024
}

/// KiB that one root keeps to itself after any sharing: directories, files below 4 KiB, and what
/// lies outside the paths of programs.
fn kept(upper: &Path) -> u64 {
    let script = "find . \\( -type d -o -size -4096c -o -path './var/*' -o -path './etc/*' \\) \
                  -printf '%k\\n' | awk '{ sum += $1 } END { print sum + 0 }'";
    let mut find = Command::new("sh");
    find.arg("-c").arg(script).current_dir(upper).succeed().trim().parse().unwrap()
}

#[test]
fn after_the_same_upgrade_there_is_one_copy_on_the_disk_and_in_memory() {
    require_root();
    let scratch = Scratch::new("upgrade");
    let (packages, debian) = (packages(), debian());
    let at = scratch.mountpoint("disk");
    let disk = Disk::create(&scratch.path().join("disk.img"), &at, DiskFormat::Ext4, 4 << 30);
    let store = Store::at(&at.join("store"));
    store.import("debian", &debian);
    let count = by_counts(3_usize, 3, 20);
    let private = |number: usize| at.join(format!("private{number}"));
    let roots: Vec<Mounted> = (0..count)
        .map(|number| {
            let options = MountOptions::private(&private(number));
            store.mount("debian", &scratch.mountpoint(&format!("root{number}")), &options)
        })
        .collect();
    let memory_before = memory(&roots);
    let before = used(&at);
    let mut growth = Vec::new();
    for root in &roots {
        let inside = root.path().join("tmp/packages");
        fs::create_dir(&inside).unwrap();
        for package in &packages {
            fs::copy(package, inside.join(package.file_name().unwrap())).unwrap();
        }
        let mut dpkg = Command::new("chroot");
        dpkg.arg(root.path()).args(["sh", "-c", "dpkg --install /tmp/packages/*.deb"]);
        dpkg.env("DEBIAN_FRONTEND", "noninteractive").succeed();
        fs::remove_dir_all(&inside).unwrap();
        growth.push(used(&at) - before - growth.iter().sum::<u64>());
    }
    let memory_diverged = memory(&roots);
    let kept = kept(&private(1).join("upper"));
    let mut reshare = store.mica(["store", "reshare", "--all", "--json"]);
    let done: serde_json::Value = serde_json::from_str(&reshare.succeed()).unwrap();
    let memory_after = memory(&roots);
    let after = used(&at) - before;
    let (one, containers) = (growth[0], u64::try_from(count).unwrap());
    eprintln!(
        "{count} containers: {one} KiB each, {after} KiB after sharing, of which each keeps {kept} \
         KiB; services {memory_before} KiB before, {memory_diverged} KiB after the upgrade, \
         {memory_after} KiB after sharing; {done:#}"
    );
    // One container's worth of new content, and what each keeps of its own; 5 % of room.
    let wanted = one + (containers - 1) * kept;
    assert!(after <= wanted + one / 20, "{after} KiB, no more than {wanted} KiB wanted");
    assert!(memory_diverged > memory_before * 3 / 2, "the upgrade took memory");
    assert!(memory_after <= memory_before * 21 / 20, "memory is back to what it was");
    // Everything works as dpkg left it.
    for root in &roots {
        let mut verify = Command::new("chroot");
        verify.arg(root.path()).args(["sh", "-c", "dpkg --verify && file /bin/sh && less -V"]);
        verify.succeed();
    }
    store.mica(["store", "gc"]).succeed();
    store.mica(["store", "check", "--rehash"]).succeed();
    for root in roots {
        root.unmount();
    }
    drop(disk);
}
