//! The extended attributes that carry meaning in a private layer.
//!
//! `trusted.overlay.*` is the kernel overlayfs format; `trusted.mica.*` is Mica's own,
//! beside it. A container's attributes of either name are stored one level deeper, so
//! nothing it sets can be taken for a mark. docs/FORMAT.md, "Private layer".

use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::layer::TreeIno;
use crate::object::{Digest, ObjectId};
use crate::sys::inode;

/// A directory that hides what the tree has at its place: value `y`.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Where the tree has the inode that a moved entry came from: an absolute path.
pub const REDIRECT: &[u8] = b"trusted.overlay.redirect";
/// A regular file whose data still lies in the tree.
pub const METACOPY: &[u8] = b"trusted.overlay.metacopy";
/// The tree inode an entry was copied up from.
pub const ORIGIN: &[u8] = b"trusted.mica.origin";
/// The object that holds the data of an entry.
pub const OBJECT: &[u8] = b"trusted.mica.object";
/// The inode number an entry reports, if not its own.
pub const INO: &[u8] = b"trusted.mica.ino";
/// An empty file that stands for the character device 0:0.
pub const RDEV: &[u8] = b"trusted.mica.rdev";
/// A place for a mount that whoever starts containers made: no change of the container's own. It is
/// set through the mount, and so stored as a container's attribute is.
pub const PLACED: &[u8] = b"trusted.mica.mica.placed";
/// What a metadata-only copy has to get back if its copy-up is cut short.
pub const FILLING: &[u8] = b"trusted.mica.filling";
/// An index entry all of whose tree names are in the upper directory.
pub const NAMES_COMPLETE: &[u8] = b"trusted.mica.names";

const ORIGIN_VERSION: u8 = 1;
const ORIGIN_LEN: usize = 1 + 32 + 4 + 4;

/// Namespaces whose attributes of a container are stored one level deeper.
const GUARDED: [&[u8]; 2] = [b"trusted.overlay.", b"trusted.mica."];

/// The value of [`ORIGIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The layer that the inode record came from.
    pub layer: Digest,
    /// The record's number in that layer.
    pub index: u32,
    /// The record's permanent number in the tree.
    pub tree: TreeIno,
}

impl Origin {
    /// The mark's bytes: version, layer digest, index and tree number (little-endian).
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ORIGIN_LEN);
        bytes.push(ORIGIN_VERSION);
        bytes.extend_from_slice(self.layer.as_bytes());
        bytes.extend_from_slice(&self.index.to_le_bytes());
        bytes.extend_from_slice(&self.tree.get().to_le_bytes());
        bytes
    }

    /// Reads the mark's bytes; `None` if they are not a mark of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ORIGIN_LEN] = bytes.try_into().ok()?;
        let (version, rest) = bytes.split_first()?;
        let (layer, rest) = rest.split_first_chunk::<32>()?;
        let (index, rest) = rest.split_first_chunk::<4>()?;
        let tree = u32::from_le_bytes(rest.try_into().ok()?);
        if *version != ORIGIN_VERSION {
            return None;
        }
        Some(Self {
            layer: Digest::from_bytes(*layer),
            index: u32::from_le_bytes(*index),
            tree: TreeIno::new(tree)?,
        })
    }
}

/// The value of [`OBJECT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectMark {
    /// The object.
    pub id: ObjectId,
    /// 512-byte units that hold data; one written without counts all.
    pub blocks: Option<u64>,
}

impl ObjectMark {
    /// The mark's bytes: digest, units (little-endian).
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.id.digest().as_bytes().to_vec();
        bytes.extend(self.blocks.iter().flat_map(|blocks| blocks.to_le_bytes()));
        bytes
    }

    /// Reads the mark's bytes; `None` if they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (digest, rest) = bytes.split_first_chunk::<32>()?;
        let blocks = match rest {
            [] => None,
            rest => Some(u64::from_le_bytes(rest.try_into().ok()?)),
        };
        Some(Self { id: ObjectId::new(Digest::from_bytes(*digest)), blocks })
    }

    /// 512-byte units that a file of `size` bytes with this mark shows.
    pub fn blocks_of(&self, size: u64) -> u64 {
        let most = size.div_ceil(4096).saturating_mul(8);
        self.blocks.map_or(size.div_ceil(512), |blocks| blocks.min(most))
    }
}

/// The value of [`FILLING`]: what writing the content of a file changes beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filling {
    /// Size in bytes.
    pub size: u64,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// `security.capability`; empty if it has none.
    pub capability: Vec<u8>,
}

impl Filling {
    /// The mark's bytes: size, seconds, nanoseconds (little-endian), capability.
    pub fn encode(&self) -> Vec<u8> {
        let (seconds, nanos) = self.mtime;
        let size = self.size.to_le_bytes();
        [&size[..], &seconds.to_le_bytes(), &nanos.to_le_bytes(), &self.capability].concat()
    }

    /// Reads the mark's bytes; `None` if they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (size, rest) = bytes.split_first_chunk::<8>()?;
        let (seconds, rest) = rest.split_first_chunk::<8>()?;
        let (nanos, capability) = rest.split_first_chunk::<4>()?;
        let mtime = (i64::from_le_bytes(*seconds), u32::from_le_bytes(*nanos));
        let (size, capability) = (u64::from_le_bytes(*size), capability.to_vec());
        (mtime.1 < 1_000_000_000).then_some(Self { size, mtime, capability })
    }
}

/// The host name under which a container's attribute `name` is stored.
///
/// `trusted.overlay.X` becomes `trusted.overlay.overlay.X`, as the kernel's overlayfs
/// escapes its own (overlayfs.rst, "Nesting overlayfs mounts").
pub fn escape(name: &[u8]) -> Vec<u8> {
    for prefix in GUARDED {
        if name.starts_with(prefix) {
            let word = prefix.strip_prefix(b"trusted.".as_slice()).unwrap_or_default();
            return [prefix, word, &name[prefix.len()..]].concat();
        }
    }
    name.to_vec()
}

/// The name a container sees for host attribute `name`; `None` for a mark.
pub fn unescape(name: &[u8]) -> Option<Vec<u8>> {
    for prefix in GUARDED {
        if let Some(rest) = name.strip_prefix(prefix) {
            let word = prefix.strip_prefix(b"trusted.".as_slice()).unwrap_or_default();
            return rest.strip_prefix(word).map(|rest| [prefix, rest].concat());
        }
    }
    Some(name.to_vec())
}

/// Why the marks of an inode cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// The value is not what Mica or the kernel would have written.
    #[error("mark {0} is damaged")]
    Damaged(&'static str),
    /// The host refused to show them.
    #[error("the host file system refused: {0}")]
    Host(#[from] Errno),
}

/// All marks of one upper inode, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// See [`ORIGIN`].
    pub origin: Option<Origin>,
    /// See [`OBJECT`].
    pub object: Option<ObjectMark>,
    /// See [`INO`].
    pub ino: Option<u64>,
    /// See [`OPAQUE`].
    pub opaque: bool,
    /// See [`REDIRECT`].
    pub redirect: Option<Vec<u8>>,
    /// See [`METACOPY`].
    pub metacopy: bool,
    /// See [`RDEV`].
    pub rdev: bool,
    /// See [`PLACED`].
    pub placed: bool,
    /// See [`FILLING`].
    pub filling: Option<Filling>,
}

impl Marks {
    /// Reads the marks of the inode `fd` names. One system call when there are none.
    ///
    /// # Errors
    /// [`MarkError::Damaged`] for a mark that Mica wrote and cannot read.
    pub fn read(fd: impl AsFd) -> Result<Self, MarkError> {
        let mut marks = Self::default();
        for name in inode::xattr_names(&fd)? {
            if !GUARDED.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            let value = || Ok::<_, Errno>(inode::xattr(&fd, &name)?.unwrap_or_default());
            match name.as_slice() {
                ORIGIN => {
                    marks.origin = Some(
                        Origin::decode(&value()?)
                            .ok_or(MarkError::Damaged("trusted.mica.origin"))?,
                    )
                }
                OBJECT => {
                    marks.object = Some(
                        ObjectMark::decode(&value()?)
                            .ok_or(MarkError::Damaged("trusted.mica.object"))?,
                    )
                }
                INO => {
                    marks.ino =
                        Some(decode_ino(&value()?).ok_or(MarkError::Damaged("trusted.mica.ino"))?)
                }
                OPAQUE => marks.opaque = value()? == b"y",
                REDIRECT => marks.redirect = Some(value()?),
                METACOPY => marks.metacopy = true,
                RDEV => marks.rdev = true,
                PLACED => marks.placed = true,
                FILLING => {
                    marks.filling = Some(
                        Filling::decode(&value()?)
                            .ok_or(MarkError::Damaged("trusted.mica.filling"))?,
                    )
                }
                _ => {}
            }
        }
        Ok(marks)
    }
}

fn decode_ino(bytes: &[u8]) -> Option<u64> {
    // No file has number 0: listings that show it pass over the name.
    Some(u64::from_le_bytes(bytes.try_into().ok()?)).filter(|ino| *ino != 0)
}

/// Sets one mark.
pub fn set(fd: impl AsFd, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    inode::set_xattr(fd, name, value, XattrFlags::empty())
}

/// Removes one mark; it is no error if the inode has none.
pub fn clear(fd: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    match inode::remove_xattr(fd, name) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_cannot_forge_a_mark() {
        for mark in [OPAQUE, REDIRECT, METACOPY, ORIGIN, OBJECT, INO, RDEV, FILLING, NAMES_COMPLETE]
        {
            let stored = escape(mark);
            assert_ne!(stored, mark);
            assert_eq!(unescape(&stored).as_deref(), Some(mark));
            assert_eq!(unescape(mark), None);
            let twice = escape(&stored);
            assert_eq!(unescape(&twice).as_deref(), Some(stored.as_slice()));
        }
        assert_eq!(escape(b"trusted.overlay.opaque"), b"trusted.overlay.overlay.opaque");
        assert_eq!(escape(b"user.x"), b"user.x");
    }

    #[test]
    fn origin_survives_its_encoding_and_refuses_other_bytes() {
        let origin =
            Origin { layer: Digest::of(b"layer"), index: 7, tree: TreeIno::new(9).unwrap() };
        assert_eq!(Origin::decode(&origin.encode()), Some(origin));
        assert_eq!(Origin::decode(b""), None);
        assert_eq!(Origin::decode(&[0; ORIGIN_LEN]), None);
    }

    #[test]
    fn an_object_survives_its_encoding_with_and_without_its_blocks() {
        for blocks in [None, Some(0), Some(u64::MAX)] {
            let mark = ObjectMark { id: ObjectId::of(b"x"), blocks };
            assert_eq!(ObjectMark::decode(&mark.encode()), Some(mark));
            assert!(mark.blocks_of(5000) <= 16);
        }
        for len in [0, 31, 33, 39, 41] {
            assert_eq!(ObjectMark::decode(&vec![7; len]), None);
        }
    }

    #[test]
    fn what_a_copy_up_must_give_back_survives_its_encoding() {
        for capability in [Vec::new(), vec![1, 0, 0, 2]] {
            let filling = Filling { size: u64::MAX, mtime: (-7, 999_999_999), capability };
            assert_eq!(Filling::decode(&filling.encode()), Some(filling));
        }
        assert_eq!(Filling::decode(&[0; 19]), None);
        assert_eq!(Filling::decode(&[0xff; 20]), None);
    }
}
