//! The words of a random history: what one step does to a tree.
//!
//! A step is plain data. It names places and handle slots, never descriptors, so that the same
//! history can be replayed on any [`crate::world::World`] and any part of it can be left out
//! while it is being shortened. Knows nothing of how a world carries it out.

use std::fmt;

/// A path relative to the root of a tree, as bytes; empty is the root itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Place(Vec<u8>);

impl Place {
    /// The root of the tree.
    pub(crate) fn root() -> Self {
        Self(Vec::new())
    }

    /// A place from its path; a leading `/` is dropped.
    pub(crate) fn new(path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        Self(path.strip_prefix(b"/").unwrap_or(path).to_vec())
    }

    /// The path, without a leading `/`.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True for the root.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The place called `name` in this directory.
    pub(crate) fn join(&self, name: &[u8]) -> Self {
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path)
    }

    /// The directory that holds this place; the root holds itself.
    pub(crate) fn parent(&self) -> Self {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => Self(self.0[..slash].to_vec()),
            None => Self::root(),
        }
    }

    /// The last component.
    pub(crate) fn name(&self) -> &[u8] {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => &self.0[slash + 1..],
            None => &self.0,
        }
    }

    /// The components from the top.
    pub(crate) fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }

    /// The number of components.
    pub(crate) fn depth(&self) -> usize {
        self.components().count()
    }

    /// True when `self` is `top` or lies below it.
    pub(crate) fn is_under(&self, top: &Place) -> bool {
        top.is_root()
            || self.0 == top.0
            || (self.0.starts_with(&top.0) && self.0.get(top.0.len()) == Some(&b'/'))
    }

    /// The same place after `from`, which holds it, was renamed to `to`.
    pub(crate) fn moved(&self, from: &Place, to: &Place) -> Self {
        let rest = self.0[from.0.len()..].strip_prefix(b"/").unwrap_or(b"");
        if rest.is_empty() { to.clone() } else { to.join(rest) }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() > 60 {
            write!(f, "\"{}…{} bytes\"", self.0[..24].escape_ascii(), self.0.len())
        } else {
            write!(f, "\"{}\"", self.0.escape_ascii())
        }
    }
}

/// Bytes that print as text: attribute names and values, targets of symbolic links.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) Vec<u8>);

impl Text {
    /// A copy of `bytes`.
    pub(crate) fn new(bytes: impl AsRef<[u8]>) -> Self {
        Self(bytes.as_ref().to_vec())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Place(self.0.clone()).fmt(f)
    }
}

/// Bytes to write, made from a seed so that a step stays short to print. Seed 0 is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    /// Length in bytes.
    pub(crate) len: usize,
    /// What the bytes are made from.
    pub(crate) seed: u8,
}

impl Fill {
    /// The bytes.
    pub(crate) fn bytes(self) -> Vec<u8> {
        if self.seed == 0 {
            return vec![0; self.len];
        }
        let mut random = fastrand::Rng::with_seed(u64::from(self.seed));
        (0..self.len).map(|_| random.u8(1..=255)).collect()
    }
}

/// What a step acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The file at a place; a final symbolic link is followed where the call follows it.
    Name(Place),
    /// An open file.
    Handle(usize),
}

/// Who does it. Others than root have no capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// uid 0, gid 0.
    Root,
    /// uid 1000, gid 1000, also in group 100.
    User,
    /// uid 65534, gid 65534.
    Nobody,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// `O_RDONLY`.
    Read,
    /// `O_WRONLY`.
    Write,
    /// `O_RDWR`.
    ReadWrite,
}

/// The flags of an open beside its access.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct OpenHow {
    /// `O_CREAT` with this mode.
    pub(crate) create: Option<u32>,
    /// `O_EXCL`.
    pub(crate) exclusive: bool,
    /// `O_TRUNC`.
    pub(crate) truncate: bool,
    /// `O_APPEND`.
    pub(crate) append: bool,
    /// `O_NOFOLLOW`.
    pub(crate) no_follow: bool,
    /// `O_DIRECTORY`.
    pub(crate) directory: bool,
}

impl fmt::Debug for OpenHow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [
            (self.exclusive, "EXCL"),
            (self.truncate, "TRUNC"),
            (self.append, "APPEND"),
            (self.no_follow, "NOFOLLOW"),
            (self.directory, "DIRECTORY"),
        ];
        let mut set = f.debug_set();
        if let Some(mode) = self.create {
            set.entry(&format_args!("CREAT {mode:04o}"));
        }
        for (_, name) in flags.iter().filter(|(on, _)| *on) {
            set.entry(&format_args!("{name}"));
        }
        set.finish()
    }
}

/// What `mknod` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    /// `S_IFREG`.
    Regular,
    /// `S_IFIFO`.
    Fifo,
    /// `S_IFSOCK`.
    Socket,
    /// `S_IFCHR` with major and minor; 0:0 is a container's own overlayfs whiteout.
    Character(u32, u32),
    /// `S_IFBLK` with major and minor.
    Block(u32, u32),
}

/// The flags of `renameat2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RenameHow {
    /// No flag.
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
    /// `RENAME_WHITEOUT`.
    Whiteout,
}

/// The modes of `fallocate` that FUSE carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllocateHow {
    /// Mode 0: the file grows.
    Grow,
    /// `FALLOC_FL_KEEP_SIZE`.
    KeepSize,
    /// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`.
    Punch,
    /// `FALLOC_FL_ZERO_RANGE`.
    Zero,
}

/// The time argument of `utimensat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    /// `UTIME_NOW`.
    Now,
    /// `UTIME_OMIT`.
    Keep,
    /// This many seconds and nanoseconds; always long before the test began.
    At(i64, u32),
}

/// The flags of `setxattr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetHow {
    /// No flag.
    Set,
    /// `XATTR_CREATE`.
    Create,
    /// `XATTR_REPLACE`.
    Replace,
}

/// A POSIX ACL: permissions of the owner, one named user, the group, one named group, the mask
/// and others, each 0..=7. Named entries make it an extended one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acl {
    /// `ACL_USER_OBJ`.
    pub(crate) owner: u16,
    /// `ACL_USER` for a uid.
    pub(crate) user: Option<(u32, u16)>,
    /// `ACL_GROUP_OBJ`.
    pub(crate) group: u16,
    /// `ACL_GROUP` for a gid.
    pub(crate) named_group: Option<(u32, u16)>,
    /// `ACL_MASK`; must be there with a named entry.
    pub(crate) mask: Option<u16>,
    /// `ACL_OTHER`.
    pub(crate) other: u16,
}

/// Tags of the kernel's xattr form of an ACL (`include/uapi/linux/posix_acl.h`).
pub(crate) mod acl_tag {
    pub(crate) const USER_OBJ: u16 = 0x01;
    pub(crate) const USER: u16 = 0x02;
    pub(crate) const GROUP_OBJ: u16 = 0x04;
    pub(crate) const GROUP: u16 = 0x08;
    pub(crate) const MASK: u16 = 0x10;
    pub(crate) const OTHER: u16 = 0x20;
}

impl Acl {
    /// The entries in the order the kernel wants them: (tag, permissions, id).
    pub(crate) fn entries(&self) -> Vec<(u16, u16, u32)> {
        let none = u32::MAX;
        let mut entries = vec![(acl_tag::USER_OBJ, self.owner, none)];
        entries.extend(self.user.map(|(id, permissions)| (acl_tag::USER, permissions, id)));
        entries.push((acl_tag::GROUP_OBJ, self.group, none));
        entries.extend(self.named_group.map(|(id, permissions)| (acl_tag::GROUP, permissions, id)));
        entries.extend(self.mask.map(|permissions| (acl_tag::MASK, permissions, none)));
        entries.push((acl_tag::OTHER, self.other, none));
        entries
    }

    /// The value of `system.posix_acl_access` or `system.posix_acl_default`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode_acl(&self.entries())
    }
}

/// The xattr form of ACL entries.
pub(crate) fn encode_acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `mkdir`.
    MakeDirectory { place: Place, mode: u32 },
    /// `symlink`.
    Symlink { place: Place, target: Text },
    /// `mknod`.
    MakeNode { place: Place, kind: NodeKind, mode: u32 },
    /// `linkat`, following a final symbolic link of `from` when told to.
    Link { from: Place, to: Place, follow: bool },
    /// `linkat` of an open file by its name in `/proc/self/fd`.
    LinkHandle { slot: usize, to: Place },
    /// `unlink`.
    Unlink { place: Place },
    /// `rmdir`.
    RemoveDirectory { place: Place },
    /// `renameat2`.
    Rename { from: Place, to: Place, how: RenameHow },

    /// Open, `pwrite` (or append), close; a handle is written in place.
    Write { target: Target, offset: u64, fill: Fill, how: OpenHow },
    /// `pread`.
    Read { target: Target, offset: u64, len: usize },
    /// `truncate` or `ftruncate`.
    Truncate { target: Target, len: u64 },
    /// `fallocate`.
    Allocate { target: Target, how: AllocateHow, offset: u64, len: u64 },
    /// Writes through a shared mapping of a freshly opened file, inside its size; then msync.
    MapWrite { target: Target, offset: u64, fill: Fill },
    /// `copy_file_range`.
    CopyRange { from: Target, to: Target, from_offset: u64, to_offset: u64, len: usize },
    /// Walks `SEEK_DATA` and `SEEK_HOLE` and checks that no byte of data lies in a hole.
    Holes { target: Target },

    /// `fchmodat` or `fchmod`.
    Chmod { target: Target, mode: u32 },
    /// `fchownat` or `fchown`.
    Chown { target: Target, uid: Option<u32>, gid: Option<u32>, follow: bool },
    /// `utimensat` or `futimens`.
    SetTimes { target: Target, access: Time, modify: Time, follow: bool },
    /// `setxattr` or `fsetxattr`.
    SetXattr { target: Target, name: Text, value: Text, how: SetHow, follow: bool },
    /// `removexattr` or `fremovexattr`.
    RemoveXattr { target: Target, name: Text, follow: bool },
    /// `getxattr` with a buffer of this many bytes.
    GetXattr { target: Target, name: Text, room: usize },

    /// `open` into a slot; what was open there is closed.
    Open { slot: usize, place: Place, access: Access, how: OpenHow },
    /// `open("/proc/self/fd/N")` into a slot.
    Reopen { slot: usize, from: usize, access: Access, truncate: bool },
    /// `close`.
    Close { slot: usize },
    /// `fstat` and, where the handle can read, the content.
    Inspect { slot: usize },
    /// `fsync` or `fdatasync`.
    Sync { slot: usize, data_only: bool },

    /// Maps a handle's file into a map slot.
    Map { map: usize, slot: usize, len: usize, write: bool },
    /// Writes into a map; with `sync`, then msync.
    MapPoke { map: usize, offset: usize, fill: Fill, sync: bool },
    /// Reads from a map.
    MapPeek { map: usize, offset: usize, len: usize },
    /// `munmap`.
    Unmap { map: usize },

    /// All names of a directory with their kinds.
    List { place: Place },
    /// `opendir` into a listing slot.
    OpenListing { slot: usize, place: Place },
    /// Reads one small buffer of names; with `seek`, first seeks to where the last one ended.
    ListSome { slot: usize, seek: bool },
    /// Reads to the end; the names are judged against what happened meanwhile.
    ListRest { slot: usize },
    /// `rm -r` as `find -delete` does it: unlinks each name as it is read, one level deep.
    EmptyWhileListing { place: Place },

    /// Makes the kernel forget every inode that nothing holds.
    Forget,
    /// Closes everything, unmounts and mounts again.
    Remount,
}

/// One step: who does what under which umask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Who.
    pub(crate) who: Who,
    /// The umask.
    pub(crate) umask: u32,
    /// What.
    pub(crate) operation: Operation,
}

impl Operation {
    /// The places whose state the operation may have changed.
    pub(crate) fn places(&self) -> Vec<&Place> {
        use Operation as O;
        fn of(target: &Target) -> Option<&Place> {
            match target {
                Target::Name(place) => Some(place),
                Target::Handle(_) => None,
            }
        }
        match self {
            O::MakeDirectory { place, .. }
            | O::Symlink { place, .. }
            | O::MakeNode { place, .. }
            | O::Unlink { place }
            | O::RemoveDirectory { place }
            | O::Open { place, .. }
            | O::List { place }
            | O::OpenListing { place, .. }
            | O::EmptyWhileListing { place } => vec![place],
            O::Link { from, to, .. } | O::Rename { from, to, .. } => vec![from, to],
            O::LinkHandle { to, .. } => vec![to],
            O::Write { target, .. }
            | O::Read { target, .. }
            | O::Truncate { target, .. }
            | O::Allocate { target, .. }
            | O::MapWrite { target, .. }
            | O::Holes { target }
            | O::Chmod { target, .. }
            | O::Chown { target, .. }
            | O::SetTimes { target, .. }
            | O::SetXattr { target, .. }
            | O::RemoveXattr { target, .. }
            | O::GetXattr { target, .. } => of(target).into_iter().collect(),
            O::CopyRange { from, to, .. } => of(from).into_iter().chain(of(to)).collect(),
            O::Reopen { .. }
            | O::Close { .. }
            | O::Inspect { .. }
            | O::Sync { .. }
            | O::Map { .. }
            | O::MapPoke { .. }
            | O::MapPeek { .. }
            | O::Unmap { .. }
            | O::ListSome { .. }
            | O::ListRest { .. }
            | O::Forget
            | O::Remount => Vec::new(),
        }
    }
}
