//! Starting a mount process in the background and waiting until its root is usable.
//!
//! The process is this very program, called `mica mount-process TEMPLATE MOUNTPOINT`. What
//! it shall mount comes as JSON on its standard input; it answers one line of JSON on its
//! standard output: ready, or a sentence why not. Then it lets go of everything of its
//! caller's and lives on in a session of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::background::{self, Silence};
use super::error::{HostError, sentence};
use super::options::GenericOptions;

/// What to mount, and how. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// The store.
    pub store: PathBuf,
    /// The template, as it was written.
    pub template: String,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// Where changes go; none makes a read-only root.
    pub private: Option<PathBuf>,
    /// What to call the root.
    pub name: Option<String>,
    /// Whether shared files may go straight to their objects.
    pub passthrough: bool,
    /// What is opened shared, instead of the template's own list.
    pub shared_paths: Option<Vec<String>>,
    /// The source shown in the mount table, instead of the template.
    pub fsname: Option<String>,
    /// The most that the private files may take on the disk, in bytes.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// What the kernel does for any mount.
    pub generic: GenericOptions,
    /// Nobody reads the notes of this mount: what is said once only is kept for the next.
    pub unheard: bool,
}

/// A root that is usable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What the root is called.
    pub name: String,
    /// The template it was made from.
    pub template: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Where its changes go.
    pub private: Option<PathBuf>,
    /// Whether nothing can be written.
    pub read_only: bool,
    /// Whether shared files go straight to their objects.
    pub passthrough: bool,
    /// The mount process.
    pub pid: u32,
    /// What the user should know though all went well.
    pub notes: Vec<String>,
}

/// Why no mount process came up.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It said why.
    #[error("{0}")]
    Failed(String),
    /// It ended without a word.
    #[error("the mount process ended before the root was usable ({status})")]
    Died {
        /// How it ended.
        status: String,
    },
    /// It cannot be started or talked to.
    #[error("cannot {what} the mount process: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Starts `program`, this program's file, as a mount process; returns once the root is usable.
///
/// # Errors
/// [`LaunchError`]; nothing is mounted then.
pub fn start(program: &Path, spec: &MountSpec) -> Result<Ready, LaunchError> {
    let brief = serde_json::to_vec(spec)
        .map_err(|error| LaunchError::System { what: "brief", source: error.into() })?;
    let mut command = Command::new(program);
    command.arg("mount-process").arg(&spec.template).arg(&spec.mountpoint);
    background::start(&mut command, &brief).map_err(|silence| match silence {
        Silence::Failed(sentence) => LaunchError::Failed(sentence),
        Silence::Died(status) => LaunchError::Died { status },
        Silence::System { what, source } => LaunchError::System { what, source },
    })
}

/// The other end of [`start`]: reads the brief, detaches from the caller, and serves.
///
/// Returns when the root is unmounted. A failure before the root was usable is the
/// caller's to tell, so it is answered and not returned.
///
/// # Errors
/// What ended a usable root before its time, for the log.
pub fn mount_process() -> Result<(), HostError> {
    let broken = HostError::system::<io::Error>;
    let spec: MountSpec = match serde_json::from_reader(io::stdin().lock()) {
        Ok(spec) => spec,
        Err(error) => return Err(broken("read the brief on", "standard input")(error.into())),
    };
    crate::sys::memory::map_large_blocks();
    crate::sys::memory::keep_one_heap();
    // Fails only for a process group leader, which a started process is not.
    let _session = rustix::process::setsid();
    let mut answered = false;
    let served = super::serve::serve(&spec, &mut |ready| {
        answered = true;
        background::tell_ready(ready);
    });
    match served {
        Err(error) if !answered => {
            background::tell_failed(sentence(&error));
            Ok(())
        }
        served => served,
    }
}
