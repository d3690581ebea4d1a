//! The kernel adapter: a thin translation between FUSE and [`crate::fs`].
//!
//! Owns the mount, the session, capabilities, time-outs, backing registrations and
//! invalidation. The only module that names fuser. Must never know templates. Nothing here
//! survives the process; the kernel tells the next one everything again.

mod adapter;
mod backing;
mod convert;
mod notify;

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::fs::FileSystem;
use crate::sys::lease;
use adapter::Adapter;

/// The kernel's door.
const DEVICE: &str = "/dev/fuse";
/// What /proc/mounts shows as the file system type.
const TYPE: &str = "fuse.mica";

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Where.
    pub mountpoint: PathBuf,
    /// What /proc/mounts shows as the source.
    pub source: String,
    /// `ro`, `noexec`, `nosuid`, `nodev`, `noatime` and their like.
    pub flags: MountFlags,
    /// Whether opens may pass through where the kernel can.
    pub passthrough: bool,
    /// Threads that serve requests.
    pub threads: usize,
}

/// Why a root could not be mounted or served.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// /dev/fuse cannot be opened.
    #[error("cannot open {DEVICE}: {0}; load the fuse module (modprobe fuse) and run as root")]
    Device(#[source] Errno),
    /// mount(2) refused.
    #[error("cannot mount on {}: {errno}", mountpoint.display())]
    Mount {
        /// Where.
        mountpoint: PathBuf,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The kernel and the adapter did not agree.
    #[error("the kernel refused the session: {0}")]
    Session(#[source] std::io::Error),
}

/// A mounted root that is not served yet.
pub struct Mount {
    session: Session<Adapter>,
    fs: Arc<FileSystem>,
    mountpoint: PathBuf,
}

impl Mount {
    /// Mounts `fs` and agrees on a protocol with the kernel.
    ///
    /// # Errors
    /// Every variant of [`MountError`]; nothing stays mounted.
    pub fn new(fs: Arc<FileSystem>, options: &MountOptions) -> Result<Self, MountError> {
        // A writer that comes while a read lease is tried would end the process otherwise.
        lease::ignore_lease_breaks();
        let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(MountError::Device)?;
        let refused = |errno| MountError::Mount { mountpoint: options.mountpoint.clone(), errno };
        let data = format!(
            "fd={},rootmode=40755,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).map_err(|_| refused(Errno::INVAL))?;
        let (source, flags) = (options.source.as_str(), options.flags);
        rustix::mount::mount(source, &options.mountpoint, TYPE, flags, &*data).map_err(refused)?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(options.threads.max(1));
        let adapter = Adapter::new(Arc::clone(&fs), options.passthrough);
        match Session::from_fd(adapter, device, SessionACL::All, config) {
            Ok(session) => Ok(Self { session, fs, mountpoint: options.mountpoint.clone() }),
            Err(error) => {
                if let Err(errno) = detach(&options.mountpoint) {
                    tracing::warn!(%errno, "the mount of a failed session could not be undone");
                }
                Err(MountError::Session(error))
            }
        }
    }

    /// Whether the kernel passes opens through to backing files.
    pub fn passthrough(&self) -> bool {
        self.fs.passes_through()
    }

    /// Ends the mount from another thread.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { mountpoint: self.mountpoint.clone() }
    }

    /// Serves requests until the root is unmounted.
    ///
    /// # Errors
    /// [`MountError::Session`] if the connection broke.
    pub fn run(self) -> Result<(), MountError> {
        let notifying = notify::start(Arc::clone(&self.fs), self.session.notifier());
        let served = self.session.run().map_err(MountError::Session);
        notifying.stop();
        served
    }
}

/// Ends a mount.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mountpoint: PathBuf,
}

impl Unmounter {
    /// Unmounts; a busy mount stays and says so (`EBUSY`).
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn unmount(&self) -> Result<(), Errno> {
        rustix::mount::unmount(&self.mountpoint, UnmountFlags::NOFOLLOW)
    }

    /// Takes the mount out of the tree now; it ends with its last user.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn detach(&self) -> Result<(), Errno> {
        detach(&self.mountpoint)
    }
}

fn detach(mountpoint: &Path) -> Result<(), Errno> {
    rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}
