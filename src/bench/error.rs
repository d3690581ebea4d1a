//! Why nothing, or not everything, could be measured.

use std::io;
use std::path::PathBuf;

use crate::control::ControlError;
use crate::host::launch::LaunchError;
use crate::host::roots::RootError;
use crate::host::{HostError, StoreError};
use crate::layer::store::LayersError;

/// A measuring step's answer.
pub(super) type Result<T, E = BenchError> = std::result::Result<T, E>;

/// Why a benchmark ended without figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Not root.
    #[error("measuring mounts file systems, which takes root; run it as root")]
    NotRoot,
    /// The system refused something.
    #[error("cannot {what} {}", path.display())]
    System {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A call of the measured work itself failed; [`BenchError::Step`] says in which step.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What failed, within the run.
    #[error("measuring {step:?} failed")]
    Step {
        /// The step, as the progress shows it.
        step: String,
        /// What happened.
        source: Box<BenchError>,
    },
    /// A program that is measured, or that makes what is measured, failed.
    #[error("{program} failed ({status}): {said}")]
    Program {
        /// The program with its arguments.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// The disk would not do.
    #[error(
        "this run needs {} MiB and {inodes} free inodes in {}, which has {} MiB and {inodes_free}; \
         name another disk with --dir, or fewer --containers",
        bytes >> 20, dir.display(), bytes_free >> 20
    )]
    Disk {
        /// Where everything is made.
        dir: PathBuf,
        /// What it takes.
        bytes: u64,
        /// What there is.
        bytes_free: u64,
        /// What it takes.
        inodes: u64,
        /// What there is.
        inodes_free: u64,
    },
    /// Everything would lie in memory, where neither disk nor page cache can be told apart.
    #[error("{} lies in memory (tmpfs); name a directory on a disk with --dir", .0.display())]
    InMemory(PathBuf),
    /// The memory would not do.
    #[error(
        "this run needs {} MiB of free memory and there are {} MiB; ask for fewer --containers",
        bytes >> 20, bytes_free >> 20
    )]
    Memory {
        /// What it takes.
        bytes: u64,
        /// What there is.
        bytes_free: u64,
    },
    /// A workload that nobody knows.
    #[error("there is no workload {wanted:?}; there are {known}")]
    Workload {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: String,
    },
    /// The measuring process said why it ended.
    #[error("{0}")]
    Failed(String),
    /// It ended without a word.
    #[error("the measuring process ended without a word ({0})")]
    Died(String),
    /// Somebody asked it to end.
    #[error("interrupted; all that was made is removed again")]
    Interrupted,
    /// A file is not what a run wrote.
    #[error("{} does not hold the results of a benchmark", path.display())]
    NotResults {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Results of a version to come.
    #[error(
        "{} has schema {found}, which this version of Mica does not know; use a newer one",
        path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// A picture cannot be drawn.
    #[error("cannot draw {name}: {reason}")]
    Picture {
        /// Which.
        name: &'static str,
        /// What the plotting library said; its errors live as long as its canvas.
        reason: String,
    },
    /// Nothing on this host to make a template of.
    #[error(transparent)]
    WorkingSet(Box<super::working_set::WorkingSetError>),
    /// The store, or a root in it.
    #[error(transparent)]
    Host(Box<HostError>),
    /// No mount process came up.
    #[error(transparent)]
    Launch(Box<LaunchError>),
    /// The store's layers.
    #[error(transparent)]
    Layers(Box<LayersError>),
    /// The registry of roots.
    #[error(transparent)]
    Root(Box<RootError>),
    /// The scratch store.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// A mount process does not answer.
    #[error(transparent)]
    Control(Box<ControlError>),
}

impl BenchError {
    /// For `map_err`: says what was being done to which file.
    pub(super) fn at<E: Into<io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::System { what, path, source: source.into() }
    }
}

impl From<rustix::io::Errno> for BenchError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Causes are kept in boxes: errors are rare, and every answer has their size.
macro_rules! boxed {
    ($($variant:ident: $cause:ty),*) => {
        $(impl From<$cause> for BenchError {
            fn from(cause: $cause) -> Self {
                Self::$variant(Box::new(cause))
            }
        })*
    };
}

boxed!(
    Host: HostError, Launch: LaunchError, Layers: LayersError, Root: RootError,
    Store: StoreError, Control: ControlError, WorkingSet: super::working_set::WorkingSetError
);
