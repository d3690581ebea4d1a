//! Why the kernel's groups would not do what was asked.

use std::io;
use std::path::{Path, PathBuf};

/// Why a group could not be made, changed, asked or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is nothing mounted to make groups in.
    #[error(
        "no cgroup hierarchy is mounted here; mount cgroup2 on /sys/fs/cgroup, or boot with an init that does"
    )]
    NoHierarchy,
    /// Not a name for a group.
    #[error(
        "{0:?} is no place for a group: it takes names divided by '/', none of them '.' or '..'"
    )]
    BadPath(String),
    /// A number outside what the kernel understands.
    #[error("{key} cannot be {value}: {reason}")]
    BadLimit {
        /// Which limit.
        key: &'static str,
        /// What was asked.
        value: String,
        /// What it takes.
        reason: String,
    },
    /// Less memory than what is in use and cannot be reclaimed.
    #[error(
        "memory cannot go down to {wanted_bytes} bytes: {used_bytes} are in use and cannot be reclaimed; stop something in the container first"
    )]
    MemoryInUse {
        /// What was asked.
        wanted_bytes: u64,
        /// What processes hold.
        used_bytes: u64,
    },
    /// Any device could be opened.
    #[error(
        "this host cannot keep a container from its devices: there is no `devices` hierarchy of cgroup v1, and a filter on cgroup2 is refused: {source}; mount one, use a kernel with CONFIG_CGROUP_BPF, or make the container privileged=yes"
    )]
    DevicesOpen {
        /// What the system said of the filter.
        source: io::Error,
    },
    /// The group still has processes after all of them were killed.
    #[error("processes of {} do not end: {pids:?}; they wait in the kernel, most likely for a disk", path.display())]
    Undying {
        /// The group's directory.
        path: PathBuf,
        /// Some of the processes.
        pids: Vec<u32>,
    },
    /// The group does not stand still in time.
    #[error("processes of {} do not stand still; one waits in the kernel", path.display())]
    NotFrozen {
        /// The group's directory.
        path: PathBuf,
    },
    /// A file of the kernel holds something else than it should.
    #[error("cannot make sense of {}: {content:?}", path.display())]
    Garbled {
        /// The file.
        path: PathBuf,
        /// The beginning of what it holds.
        content: String,
    },
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    System {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl CgroupError {
    /// For `map_err`: that `what` could not be done to `path`.
    pub(super) fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::System { what, path, source }
    }

    /// That `path` holds what nobody expects there.
    pub(super) fn garbled(path: &Path, content: &str) -> Self {
        Self::Garbled { path: path.to_owned(), content: content.chars().take(80).collect() }
    }
}
