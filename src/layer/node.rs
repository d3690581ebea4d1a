//! What can be put into a layer, and the rules it has to keep.

use crate::object::ObjectId;

use super::manifest::{
    EncodeError, FileKind, Inode, MAX_TARGET_BYTES, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES,
    MODE_BITS, Manifest, ManifestError, Metadata,
};
use super::path::LayerPath;

/// Name and value of an extended attribute.
pub type NewXattr = (Box<[u8]>, Box<[u8]>);

/// An inode to be put into a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// Mode, owner and time.
    pub metadata: Metadata,
    /// Extended attributes in any order; the last of equal names counts.
    pub xattrs: Vec<NewXattr>,
    /// What it is.
    pub content: NewContent,
}

/// What a new inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewContent {
    /// A directory. Over another directory it changes the metadata and keeps the names.
    Directory,
    /// A file whose content is an object, the empty one too.
    Regular {
        /// The content.
        object: ObjectId,
        /// Its length in bytes.
        size: u64,
        /// 512-byte units that are not holes.
        data_blocks: u64,
    },
    /// A symbolic link to this target.
    Symlink(Box<[u8]>),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device with this `dev_t`.
    CharDevice(u64),
    /// A block device with this `dev_t`.
    BlockDevice(u64),
}

impl NewContent {
    /// What it is, without its content.
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Directory => FileKind::Directory,
            Self::Regular { .. } => FileKind::Regular,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
        }
    }
}

/// Why a path cannot become part of a layer.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The root is not a directory, or was to be removed.
    #[error("the root of a layer is always a directory")]
    Root,
    /// A hard link to a path that the layer does not hold.
    #[error("hard link {path}: its target {target} is not there")]
    NoTarget {
        /// The link.
        path: LayerPath,
        /// What it should name.
        target: LayerPath,
    },
    /// A hard link to a directory.
    #[error("hard link {path}: its target {target} is a directory")]
    LinkToDirectory {
        /// The link.
        path: LayerPath,
        /// What it should name.
        target: LayerPath,
    },
    /// A symlink target that no kernel accepts.
    #[error(
        "{path}: no symlink can have this target ({len} bytes, 1 to {MAX_TARGET_BYTES} without NUL)"
    )]
    Target {
        /// The symlink.
        path: LayerPath,
        /// Length of the target.
        len: usize,
    },
    /// An extended attribute that no kernel accepts.
    #[error("{path}: extended attribute \"{name}\" is too long or has no proper name")]
    Xattr {
        /// The file.
        path: LayerPath,
        /// The attribute's name, printable.
        name: String,
    },
    /// More nanoseconds than a second has.
    #[error("{path}: a time has {nanos} nanoseconds")]
    Nanoseconds {
        /// The file.
        path: LayerPath,
        /// The nanoseconds.
        nanos: u32,
    },
    /// Mode bits outside `0o7777`.
    #[error("{path}: mode {mode:o} has more than permission bits")]
    Mode {
        /// The file.
        path: LayerPath,
        /// The mode.
        mode: u32,
    },
    /// The layer does not fit the format.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The layer below, which a hard link leads into, is damaged.
    #[error(transparent)]
    Below(#[from] ManifestError),
}

/// An inode of a manifest, as it would be put into a layer.
///
/// # Errors
/// [`ManifestError::Record`] for damage.
pub fn read_node(manifest: &Manifest, inode: &Inode) -> Result<NewNode, ManifestError> {
    let content = match inode.kind {
        FileKind::Directory => NewContent::Directory,
        FileKind::Regular => {
            let object = manifest.object(inode)?.ok_or(ManifestError::NoInode(inode.ino.get()))?;
            NewContent::Regular { object, size: inode.size, data_blocks: inode.data_blocks }
        }
        FileKind::Symlink => NewContent::Symlink(manifest.symlink_target(inode)?.into()),
        FileKind::Fifo => NewContent::Fifo,
        FileKind::Socket => NewContent::Socket,
        FileKind::CharDevice => NewContent::CharDevice(inode.rdev),
        FileKind::BlockDevice => NewContent::BlockDevice(inode.rdev),
    };
    let xattrs = manifest
        .xattrs(inode)?
        .map(|xattr| xattr.map(|(name, value)| (name.into(), value.into())))
        .collect::<Result<_, _>>()?;
    Ok(NewNode { metadata: inode.metadata(), xattrs, content })
}

pub(super) fn check(path: &LayerPath, node: &NewNode) -> Result<(), BuildError> {
    check_metadata(path, &node.metadata)?;
    if let NewContent::Symlink(target) = &node.content {
        let len = target.len();
        if len == 0 || len > MAX_TARGET_BYTES || target.contains(&0) {
            return Err(BuildError::Target { path: path.clone(), len });
        }
    }
    for (name, value) in &node.xattrs {
        let proper = (1..=MAX_XATTR_NAME_BYTES).contains(&name.len()) && !name.contains(&0);
        if !proper || value.len() > MAX_XATTR_VALUE_BYTES {
            let name = name.escape_ascii().to_string();
            return Err(BuildError::Xattr { path: path.clone(), name });
        }
    }
    Ok(())
}

pub(super) fn check_metadata(path: &LayerPath, metadata: &Metadata) -> Result<(), BuildError> {
    if metadata.mode & !MODE_BITS != 0 {
        return Err(BuildError::Mode { path: path.clone(), mode: metadata.mode });
    }
    if metadata.mtime.nanos >= 1_000_000_000 {
        return Err(BuildError::Nanoseconds { path: path.clone(), nanos: metadata.mtime.nanos });
    }
    Ok(())
}
