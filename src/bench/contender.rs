//! Who is measured: a root of Mica's, kernel overlayfs, fuse-overlayfs, a plain directory.
//!
//! Each is a guard that unmounts when dropped.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::error::{BenchError, Result};
use super::place::Place;
use super::run::tool;
use crate::host::import::{ImportRequest, import_template};
use crate::host::launch::{self, MountSpec};
use crate::host::options::GenericOptions;
use crate::host::unmount::unmount as unmount_root;
use crate::host::{Access, HostError, Roots, Store, mount_table, templates};
use crate::layer::import::{Choice, Excludes, Silent};
use crate::layer::{Layers, Stack};

/// How everything in a run's own stores is called.
pub(super) const TEMPLATE: &str = "tree";

/// Whether something is mounted exactly at `path`.
pub(super) fn is_mountpoint(path: &Path) -> bool {
    mount_table::at(path).is_ok_and(|entry| entry.is_some())
}

/// A kernel overlayfs.
#[derive(Debug)]
pub(super) struct Overlay {
    mountpoint: PathBuf,
}

impl Overlay {
    /// Mounts `lowers`, lowest first, with a new upper directory in `private`.
    pub(super) fn mount(lowers: &[PathBuf], private: &Path, mountpoint: &Path) -> Result<Self> {
        let options = CString::new(options(lowers, private)?).map_err(std::io::Error::from)?;
        mount("overlay", mountpoint, "overlay", MountFlags::empty(), &*options)
            .map_err(BenchError::at("mount overlayfs on", mountpoint))?;
        Ok(Self { mountpoint: mountpoint.to_owned() })
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
fn options(lowers: &[PathBuf], private: &Path) -> Result<String> {
    let (upper, work) = (private.join("upper"), private.join("work"));
    for dir in [&upper, &work] {
        std::fs::create_dir_all(dir).map_err(BenchError::at("make", dir))?;
    }
    let lowers: Vec<String> = lowers.iter().rev().map(|dir| dir.display().to_string()).collect();
    let (upper, work) = (upper.display(), work.display());
    Ok(format!("lowerdir={},upperdir={upper},workdir={work}", lowers.join(":")))
}

fn take_down(mountpoint: &Path) {
    if is_mountpoint(mountpoint)
        && unmount(mountpoint, UnmountFlags::NOFOLLOW).is_err()
        && let Err(error) = unmount(mountpoint, UnmountFlags::DETACH)
    {
        tracing::warn!(%error, ?mountpoint, "cannot unmount");
    }
}

/// fuse-overlayfs, where it is installed.
#[derive(Debug)]
pub(super) struct FuseOverlay {
    mountpoint: PathBuf,
    server: Child,
}

/// Its version; empty if it is not installed.
pub(super) fn fuse_overlayfs_version() -> String {
    let output = tool("fuse-overlayfs").arg("--version").output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let version = text.lines().find_map(|line| line.strip_prefix("fuse-overlayfs: version "));
    version.unwrap_or_default().to_owned()
}

/// Starts `fuse-overlayfs`; it returns when it is mounted.
pub(super) fn fuse_overlayfs(
    lowers: &[PathBuf],
    private: &Path,
    mountpoint: &Path,
) -> Result<Command> {
    let mut command = tool("fuse-overlayfs");
    command.arg("-o").arg(options(lowers, private)?).arg(mountpoint);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

impl FuseOverlay {
    /// Mounts as [`Overlay::mount`].
    pub(super) fn mount(lowers: &[PathBuf], private: &Path, mountpoint: &Path) -> Result<Self> {
        let mut command = fuse_overlayfs(lowers, private, mountpoint)?;
        let server =
            command.arg("-f").spawn().map_err(BenchError::at("start", "fuse-overlayfs"))?;
        let mut mounted = Self { mountpoint: mountpoint.to_owned(), server };
        while !is_mountpoint(mountpoint) {
            if let Some(status) = mounted.server.try_wait()? {
                return Err(BenchError::Program {
                    program: "fuse-overlayfs".to_owned(),
                    status: status.to_string(),
                    said: "nothing was mounted".to_owned(),
                });
            }
            std::thread::yield_now();
        }
        Ok(mounted)
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
            tracing::warn!(%error, "fuse-overlayfs cannot be waited for");
        }
    }
}

/// A store of the run's own.
#[derive(Clone, Debug)]
pub(super) struct Stock {
    path: PathBuf,
    program: PathBuf,
}

impl Stock {
    /// Names a store at `path`; the first import makes it.
    pub(super) fn at(path: PathBuf, program: &Path) -> Self {
        Self { path, program: program.to_owned() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Imports a directory; `on` puts it on another template's stack.
    pub(super) fn import(&self, template: &str, source: &Path, on: Option<&str>) -> Result<()> {
        let store = Store::open_or_create(&self.path)?;
        let request = ImportRequest {
            name: template.parse().map_err(|error| BenchError::Failed(format!("{error}")))?,
            source: source.to_owned(),
            on: on.map(str::to_owned),
            replace: on.is_some(),
            excludes: Excludes::default(),
            choice: Choice::default(),
            cancel: &AtomicBool::new(false),
        };
        import_template(&store, &request, &Silent)?;
        Ok(())
    }

    /// The stack of a template in it.
    pub(super) fn stack(&self, template: &str) -> Result<Stack> {
        let layers = Layers::open(&self.path)?;
        Ok(templates::find(&layers, template)?.stack)
    }

    /// `mica`, working on this store.
    pub(super) fn mica<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.program);
        command.stdin(Stdio::null()).env("MICA_STORE", &self.path).args(arguments);
        command
    }

    /// Mounts `template` with the private directory `private`.
    pub(super) fn mount(&self, template: &str, private: &Path, mountpoint: &Path) -> Result<Root> {
        let spec = MountSpec {
            store: self.path.clone(),
            template: template.to_owned(),
            mountpoint: mountpoint.to_owned(),
            private: Some(private.to_owned()),
            name: None,
            passthrough: true,
            shared_paths: None,
            fsname: None,
            generic: GenericOptions::default(),
            unheard: true,
            disk_bytes: None,
        };
        let ready = launch::start(&self.program, &spec)?;
        Ok(Root {
            stock: self.clone(),
            name: ready.name,
            mountpoint: ready.mountpoint,
            pid: ready.pid,
        })
    }
}

/// A root of Mica's.
#[derive(Debug)]
pub(super) struct Root {
    stock: Stock,
    name: String,
    mountpoint: PathBuf,
    pid: u32,
}

impl Root {
    pub(super) fn path(&self) -> &Path {
        &self.mountpoint
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Requests that the kernel made so far, each kind.
    pub(super) fn requests(&self) -> Result<BTreeMap<String, u64>> {
        let store = Store::open(&self.stock.path, Access::Read)?;
        let record = Roots::open(&store)?.find(OsStr::new(&self.name))?;
        let not_mounted = || HostError::NotMounted { wanted: self.name.clone() };
        let mut client = record.living().ok_or_else(not_mounted)?;
        Ok(client.statistics()?.requests)
    }

    /// What `work` made the kernel ask, for a row's note.
    pub(super) fn requests_of<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<String> {
        let before = self.requests()?;
        std::hint::black_box(work()?);
        let after = self.requests()?;
        let each: Vec<String> = after
            .iter()
            .map(|(kind, count)| (kind, count - before.get(kind).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        let each = if each.is_empty() { "none".to_owned() } else { each.join(", ") };
        Ok(format!("requests to Mica in one round: {each}"))
    }

    fn take_down(&self) -> Result<()> {
        let store = Store::open(&self.stock.path, Access::Write)?;
        // Waits for the process, so that the next contender has the processor for itself.
        match unmount_root(Some(&store), self.mountpoint.as_os_str(), false) {
            Err(HostError::MountpointBusy { .. }) => {
                unmount_root(Some(&store), self.mountpoint.as_os_str(), true)?;
            }
            done => drop(done?),
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        // A child of ours; in no hurry if it goes on a moment.
        let _reaped = waitpid(pid, WaitOptions::NOHANG);
        Ok(())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            let told = crate::host::sentence(&error);
            tracing::warn!(error = told, mountpoint = ?self.mountpoint, "cannot unmount");
        }
    }
}

/// Who can be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Overlay,
    FuseOverlay,
    Mica,
}

impl Kind {
    /// Those that this host has.
    pub(super) fn here() -> Vec<Self> {
        let mut all = vec![Self::Overlay, Self::Mica];
        if !fuse_overlayfs_version().is_empty() {
            all.push(Self::FuseOverlay);
        }
        all
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlayfs",
            Self::FuseOverlay => "fuse-overlayfs",
            Self::Mica => "mica",
        }
    }
}

/// One of them, mounted.
#[derive(Debug)]
pub(super) enum Mounted {
    Overlay(Overlay),
    FuseOverlay(FuseOverlay),
    Mica(Root),
}

impl Mounted {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Overlay(mounted) => mounted.path(),
            Self::FuseOverlay(mounted) => mounted.path(),
            Self::Mica(mounted) => mounted.path(),
        }
    }

    /// The process that serves it, if one does.
    pub(super) fn server(&self) -> Option<u32> {
        match self {
            Self::Overlay(_) => None,
            Self::FuseOverlay(mounted) => Some(mounted.pid()),
            Self::Mica(mounted) => Some(mounted.pid()),
        }
    }
}

/// What roots are made of: one tree as a directory, and as a template of a store.
#[derive(Clone, Debug)]
pub(super) struct Lower {
    pub(super) tree: PathBuf,
    pub(super) stock: Stock,
    pub(super) template: String,
}

impl Lower {
    /// A store in `place` with the one template `tree`.
    pub(super) fn import(place: &Place, tree: &Path, program: &Path) -> Result<Self> {
        let stock = Stock::at(place.path("store"), program);
        stock.import(TEMPLATE, tree, None)?;
        Ok(Self { tree: tree.to_owned(), stock, template: TEMPLATE.to_owned() })
    }

    /// Mounts it; `private` and `mountpoint` are directories.
    pub(super) fn mount(&self, kind: Kind, private: &Path, mountpoint: &Path) -> Result<Mounted> {
        let lowers = std::slice::from_ref(&self.tree);
        Ok(match kind {
            Kind::Overlay => Mounted::Overlay(Overlay::mount(lowers, private, mountpoint)?),
            Kind::FuseOverlay => {
                Mounted::FuseOverlay(FuseOverlay::mount(lowers, private, mountpoint)?)
            }
            Kind::Mica => Mounted::Mica(self.stock.mount(&self.template, private, mountpoint)?),
        })
    }

    /// Mounts it with new directories.
    pub(super) fn fresh(&self, kind: Kind, place: &Place) -> Result<Mounted> {
        self.mount(kind, &place.directory("private")?, &place.directory("m")?)
    }
}

/// All contenders over one lower tree, mounted at once.
#[derive(Debug)]
pub(super) struct Contenders {
    plain: PathBuf,
    overlay: Overlay,
    /// Mica's.
    pub(super) root: Root,
    /// None if it is not installed.
    fuse_overlay: Option<FuseOverlay>,
}

impl Contenders {
    /// Mounts everything over `lower`.
    pub(super) fn mount(place: &Place, lower: &Lower) -> Result<Self> {
        let lowers = std::slice::from_ref(&lower.tree);
        let private = || place.directory("private");
        let at = || place.directory("m");
        let fuse_overlay = match fuse_overlayfs_version().as_str() {
            "" => None,
            _installed => Some(FuseOverlay::mount(lowers, &private()?, &at()?)?),
        };
        Ok(Self {
            plain: lower.tree.clone(),
            overlay: Overlay::mount(lowers, &private()?, &at()?)?,
            root: lower.stock.mount(&lower.template, &private()?, &at()?)?,
            fuse_overlay,
        })
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
    pub(super) fn pin_servers(&self, cpu: usize) -> Result<()> {
        super::machine::pin_process(self.root.pid(), cpu)?;
        if let Some(peer) = &self.fuse_overlay {
            super::machine::pin_process(peer.pid(), cpu)?;
        }
        Ok(())
    }
}
