//! Who is measured: a root of Mica's, kernel overlayfs, fuse-overlayfs, a plain directory.
//!
//! Each is a guard that unmounts when dropped.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mica::control::Client;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

use super::support::{MountOptions, Mounted, Scratch, Store, Succeed, is_mountpoint};

/// A section's scratch directory, where everything gets a name of its own.
pub(super) struct Place {
    scratch: Scratch,
    /// Another disk than the scratch directory's.
    disk: Option<PathBuf>,
    next: std::cell::Cell<u32>,
}

impl Place {
    pub(super) fn new(name: &str) -> Self {
        Self { scratch: Scratch::new(name), disk: None, next: std::cell::Cell::new(0) }
    }

    /// The same on a disk that is mounted at `disk`.
    pub(super) fn within(disk: &Path) -> Self {
        Self { disk: Some(disk.to_owned()), ..Self::new("within") }
    }

    fn number(&self, name: &str) -> String {
        self.next.set(self.next.get() + 1);
        format!("{name}{}", self.next.get())
    }

    /// A path that nothing has yet.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.disk.as_deref().unwrap_or(self.scratch.path()).join(self.number(name))
    }

    /// A new directory on the disk.
    pub(super) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).expect("a directory can be made");
        path
    }

    /// A new directory to mount on.
    pub(super) fn mountpoint(&self, name: &str) -> PathBuf {
        self.scratch.mountpoint(&self.number(name))
    }
}

/// A kernel overlayfs.
pub(super) struct Overlay {
    mountpoint: PathBuf,
}

impl Overlay {
    /// Mounts `lowers`, lowest first, with a new upper directory in `private`.
    pub(super) fn mount(lowers: &[PathBuf], private: &Path, mountpoint: &Path) -> Self {
        let options = CString::new(options(lowers, private)).expect("paths without NUL");
        mount("overlay", mountpoint, "overlay", MountFlags::empty(), &*options)
            .expect("overlayfs mounts");
        Self { mountpoint: mountpoint.to_owned() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        take_down(&self.mountpoint);
    }
}

/// The options that both overlay file systems understand.
fn options(lowers: &[PathBuf], private: &Path) -> String {
    let (upper, work) = (private.join("upper"), private.join("work"));
    std::fs::create_dir_all(&upper).expect("an upper directory can be made");
    std::fs::create_dir_all(&work).expect("a work directory can be made");
    let lowers: Vec<String> = lowers.iter().rev().map(|dir| dir.display().to_string()).collect();
    format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display())
}

fn take_down(mountpoint: &Path) {
    if is_mountpoint(mountpoint)
        && unmount(mountpoint, UnmountFlags::NOFOLLOW).is_err()
        && let Err(error) = unmount(mountpoint, UnmountFlags::DETACH)
    {
        eprintln!("cannot unmount {}: {error}", mountpoint.display());
    }
}

/// fuse-overlayfs, where it is installed.
pub(super) struct FuseOverlay {
    mountpoint: PathBuf,
    server: Child,
}

/// Its version; empty if it is not installed.
pub(super) fn fuse_overlayfs_version() -> String {
    let output = Command::new("fuse-overlayfs").arg("--version").output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let version = text.lines().find_map(|line| line.strip_prefix("fuse-overlayfs: version "));
    version.unwrap_or_default().to_owned()
}

/// Starts `fuse-overlayfs`; it returns when it is mounted.
pub(super) fn fuse_overlayfs(lowers: &[PathBuf], private: &Path, mountpoint: &Path) -> Command {
    let mut command = Command::new("fuse-overlayfs");
    command.arg("-o").arg(options(lowers, private)).arg(mountpoint);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl FuseOverlay {
    /// Mounts as [`Overlay::mount`]; `None` if it is not installed.
    pub(super) fn mount(lowers: &[PathBuf], private: &Path, mountpoint: &Path) -> Option<Self> {
        if fuse_overlayfs_version().is_empty() {
            return None;
        }
        let mut command = fuse_overlayfs(lowers, private, mountpoint);
        let server = command.arg("-f").spawn().expect("fuse-overlayfs starts");
        let mut mounted = Self { mountpoint: mountpoint.to_owned(), server };
        while !is_mountpoint(mountpoint) {
            let ended = mounted.server.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "fuse-overlayfs ended before it was mounted");
            std::thread::yield_now();
        }
        Some(mounted)
    }

    pub(super) fn path(&self) -> &Path {
        &self.mountpoint
    }

    pub(super) fn pid(&self) -> u32 {
        self.server.id()
    }
}

impl Drop for FuseOverlay {
    fn drop(&mut self) {
        take_down(&self.mountpoint);
        if let Err(error) = self.server.wait() {
            eprintln!("fuse-overlayfs cannot be waited for: {error}");
        }
    }
}

/// A root of Mica's, mounted by `mica mount`.
pub(super) struct Root {
    mounted: Option<Mounted>,
    mountpoint: PathBuf,
    pid: u32,
    control: PathBuf,
}

impl Root {
    /// Mounts `template` with a new private directory.
    pub(super) fn mount(store: &Store, template: &str, private: &Path, mountpoint: &Path) -> Self {
        let mounted = store.mount(template, mountpoint, &MountOptions::private(private));
        let list = store.mica(["mount", "--json"]).succeed();
        let list: Vec<Value> = serde_json::from_str(&list).expect("a list of roots");
        let record = list
            .iter()
            .find(|record| record["mountpoint"].as_str().map(Path::new) == Some(mountpoint))
            .expect("the root is listed");
        let pid = record["pid"].as_u64().and_then(|pid| pid.try_into().ok());
        let pid = pid.expect("a mounted root has a process");
        // It has a session of its own.
        super::machine::prefer(pid);
        Self {
            mounted: Some(mounted),
            mountpoint: mountpoint.to_owned(),
            pid,
            control: record["control"].as_str().expect("a mounted root has a socket").into(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.mountpoint
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Requests that the kernel made so far, all kinds together, and each.
    pub(super) fn requests(&self) -> std::collections::BTreeMap<String, u64> {
        let client = Client::connect(&self.control);
        client.and_then(|mut client| client.statistics()).expect("statistics").requests
    }

    /// What `work` made the kernel ask, for a row's note.
    pub(super) fn requests_of<T>(&self, work: impl FnOnce() -> T) -> String {
        let before = self.requests();
        std::hint::black_box(work());
        let after = self.requests();
        let each: Vec<String> = after
            .iter()
            .map(|(kind, count)| (kind, count - before.get(kind).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        let each = if each.is_empty() { "none".to_owned() } else { each.join(", ") };
        format!("requests to Mica in one round: {each}")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Waits for the process, so that the next contender has the processor for itself.
        if let Some(mounted) = self.mounted.take()
            && !std::thread::panicking()
        {
            mounted.unmount();
        }
    }
}

/// All contenders over one lower tree, mounted at once.
pub(super) struct Contenders {
    plain: PathBuf,
    overlay: Overlay,
    /// Mica's.
    pub(super) root: Root,
    /// None if it is not installed.
    fuse_overlay: Option<FuseOverlay>,
}

impl Contenders {
    /// Mounts everything over `lower`, which is `template` in `store`.
    pub(super) fn mount(place: &Place, lower: &Path, store: &Store, template: &str) -> Self {
        let lowers = [lower.to_owned()];
        let (private, at) = (|| place.directory("private"), || place.mountpoint("m"));
        Self {
            plain: lower.to_owned(),
            overlay: Overlay::mount(&lowers, &private(), &at()),
            root: Root::mount(store, template, &private(), &at()),
            fuse_overlay: FuseOverlay::mount(&lowers, &private(), &at()),
        }
    }

    /// Names and places: "plain", "overlayfs", "mica", "fuse-overlayfs".
    pub(super) fn places(&self) -> Vec<(&'static str, PathBuf)> {
        let mut places = vec![
            ("plain", self.plain.clone()),
            ("overlayfs", self.overlay.path().to_owned()),
            ("mica", self.root.path().to_owned()),
        ];
        if let Some(peer) = &self.fuse_overlay {
            places.push(("fuse-overlayfs", peer.path().to_owned()));
        }
        places
    }

    /// Moves the serving processes to one processor.
    pub(super) fn pin_servers(&self, cpu: usize) {
        super::machine::pin_process(self.root.pid(), cpu);
        if let Some(peer) = &self.fuse_overlay {
            super::machine::pin_process(peer.pid(), cpu);
        }
    }
}
