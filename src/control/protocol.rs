//! What can be asked, and the answers.
//!
//! Both sides skip fields they do not know; a request or an answer of an unknown kind is
//! an error on that connection only.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fs::DiskUse;
use crate::object::ObjectId;
use crate::telemetry::Snapshot;

/// One question or order to a mount process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// What is mounted, where and how.
    Status,
    /// The counters since the mount began.
    Statistics,
    /// Hold back everything that changes the root, until [`Request::Thaw`] or until the
    /// connection ends or is silent for half a minute.
    Freeze,
    /// Let changes through again.
    Thaw,
    /// Drop what the container changed at a path and below.
    Revert {
        /// The path relative to the root, in hexadecimal digits: it may hold any bytes.
        path_hex: String,
    },
    /// What the private files take on the disk, and may take.
    Disk,
    /// Limit what they may take, from now on.
    LimitDisk {
        /// The most, in bytes; none takes the limit off.
        bytes: Option<u64>,
    },
    /// Put objects in the place of private files. With the request come as many descriptors, in
    /// this order: each open for reading on the file, with a read lease on it that was taken
    /// before its content was read. At most [`REPLACEMENTS`].
    ReplaceByObjects {
        /// The files.
        files: Vec<FileToReplace>,
    },
    /// Keep nothing of these objects: they were damaged, and are set aside or whole again. What is
    /// open stays as it is.
    ForgetObjects {
        /// At most [`FORGOTTEN`].
        objects: Vec<ObjectId>,
    },
    /// Unmount and end.
    Stop {
        /// Also when files are open: the mount leaves the tree now and ends with its last user.
        #[serde(default)]
        detach: bool,
    },
}

/// The answer to one [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Statistics`].
    Statistics(Snapshot),
    /// To [`Request::Freeze`]: nothing changes from here on, but for what is written through
    /// descriptors and mappings that were open for writing and pass through to their files.
    Frozen,
    /// To [`Request::Thaw`]: nothing changed until here.
    Thawed,
    /// To [`Request::Revert`]: done, and the kernel shows it.
    Reverted {
        /// Names that stand for something else now.
        names: u64,
    },
    /// To [`Request::Disk`] and [`Request::LimitDisk`].
    Disk(DiskUse),
    /// To [`Request::ReplaceByObjects`]: what became of each, in the same order.
    Replaced {
        /// One for each file.
        outcomes: Vec<Outcome>,
    },
    /// To [`Request::ForgetObjects`]: who opens one of them from here on gets what the store has.
    Forgotten,
    /// To [`Request::Stop`]: unmounted, the process is ending.
    Stopping,
    /// The request was understood and not done.
    Refused {
        /// A sentence for a person.
        reason: String,
    },
}

/// Files that one [`Request::ReplaceByObjects`] names, at most: a message carries no more than 253
/// descriptors (unix(7)), and while one is served others wait.
pub const REPLACEMENTS: usize = 128;

/// Objects that one [`Request::ForgetObjects`] names, at most.
pub const FORGOTTEN: usize = 500;

/// A private file and the object that its content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileToReplace {
    /// The path relative to the root, in hexadecimal digits: it may hold any bytes.
    pub path_hex: String,
    /// The object.
    pub object: ObjectId,
    /// Its length in bytes.
    pub size: u64,
    /// 512-byte units that hold data.
    pub blocks: u64,
}

/// What became of a file that was to be replaced; but for the first it is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It refers to the object now.
    Replaced,
    /// The name stands for something else, or the content is another by now.
    Changed,
    /// Somebody has it open who may write, or must see what others write.
    InUse,
    /// It has several names.
    Linked,
    /// Something refused.
    Failed {
        /// A sentence for a person.
        reason: String,
    },
}

/// What one mount process serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The process, in the pid namespace it runs in.
    pub pid: u32,
    /// Where the root is mounted.
    pub mountpoint: PathBuf,
    /// The digest of the stack under it.
    pub stack: String,
    /// The private directory; absent on a read-only root without one.
    pub private: Option<PathBuf>,
    /// Whether anything may be written.
    pub read_only: bool,
    /// Whether shared files go straight to their objects, in one copy of memory for all roots.
    pub passthrough: bool,
    /// What is opened shared, as absolute paths; absent from a process of a version before this.
    #[serde(default)]
    pub shared_paths: Option<Vec<String>>,
    /// Whether it is still in the tree; if not, the process ends with its last user.
    #[serde(default = "yes")]
    pub mounted: bool,
    /// When the mount became usable, in seconds since 1970.
    pub since: u64,
}

/// A process of a version that does not say is taken to be as it was registered.
fn yes() -> bool {
    true
}
