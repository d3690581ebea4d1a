//! Tar streams: members, one after another, from any reader.
//!
//! Reads ustar, GNU and PAX archives in one pass without seeking, in bounded memory. The header
//! codec is the `tar` crate's. Framing is ours, because that crate (0.4.46) splits PAX records at
//! newlines, so values that hold one are lost and with them `size`; reads extension headers into
//! memory without a limit; takes the end of the file for the end of the archive; and knows none
//! of the three PAX sparse formats. Knows nothing of layers: `super::assemble` gives members
//! their meaning in a tree.

mod describe;
mod members;
mod numeric;
mod pax;
mod sparse;

pub(crate) use describe::MemberKind;
pub(crate) use members::{Member, Members};

use super::acl::AclFault;
use super::metadata::{MetadataFault, printable};

/// What is wrong with an archive, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}{fault}", place(.member.as_deref(), *.position))]
pub struct TarError {
    /// Path of the member as the archive spells it, when it is known.
    pub member: Option<Box<[u8]>>,
    /// Offset of the member's header in the uncompressed archive, in bytes.
    pub position: u64,
    /// What is wrong.
    pub fault: TarFault,
}

fn place(member: Option<&[u8]>, position: u64) -> String {
    match member {
        Some(path) => format!("\"{}\" in the archive: ", printable(path)),
        None => format!("the archive at byte {position}: "),
    }
}

/// What can be wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarFault {
    /// The stream below failed: I/O, decompression, a digest that does not match.
    #[error("reading failed: {0}")]
    Read(std::io::Error),
    /// The header checksum does not match.
    #[error("no valid tar header; the file is damaged or is not a tar archive")]
    BadChecksum,
    /// A numeric header field that is no number.
    #[error("the header field {0} is not a number")]
    BadNumber(&'static str),
    /// The stream ends inside a header or inside content.
    #[error("the archive is truncated here")]
    Truncated,
    /// The stream ends between members without the two zero blocks.
    #[error("the archive is truncated: its end mark is missing")]
    NoEndMark,
    /// One zero block and then data.
    #[error("a zero block stands between members; the archive is damaged")]
    LoneZeroBlock,
    /// Extended headers above the limit.
    #[error("its extended headers take more than {} MiB", members::MAX_EXTENSION_BYTES >> 20)]
    ExtensionTooLarge,
    /// A PAX record that is not `LENGTH KEY=VALUE\n`.
    #[error("an extended header record is malformed")]
    BadPaxRecord,
    /// A PAX value that cannot be used.
    #[error("the extended header {key} cannot be used: {reason}")]
    BadPaxValue {
        /// Which record.
        key: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A member type Mica does not know.
    #[error("its type {:?} is unknown", char::from(*.0))]
    UnknownType(u8),
    /// One volume of several.
    #[error("it continues on another volume; multi-volume archives are not supported")]
    MultiVolume,
    /// A link, directory or device that claims content, which tar programs read differently.
    #[error("it is not a regular file, but has content")]
    UnexpectedContent,
    /// An extended header describes a member that never comes.
    #[error("an extended header stands at the end with no member after it")]
    DanglingExtension,
    /// No name at all.
    #[error("a member has an empty name")]
    EmptyName,
    /// NUL inside a name or link target.
    #[error("its name or link target holds a NUL byte")]
    NulInName,
    /// A link without a target.
    #[error("it is a link without a target")]
    NoLinkTarget,
    /// Global extended headers above the limit.
    #[error("its global extended headers set more than 64 KiB")]
    GlobalTooLarge,
    /// A sparse map that contradicts itself.
    #[error("its sparse map is broken: {0}")]
    BadSparseMap(&'static str),
    /// A regular file above the limit.
    #[error("its size of {0} bytes is above the limit for one file")]
    FileTooLarge(u64),
    /// Metadata no file can have.
    #[error(transparent)]
    Metadata(#[from] MetadataFault),
    /// An ACL that cannot be kept.
    #[error(transparent)]
    Acl(#[from] AclFault),
}
