//! The byte layout shared by reader and writer. docs/FORMAT.md is the prose of this file.
//!
//! All numbers are little-endian. A file is a 128-byte header, the section table, and the
//! sections, each starting at a multiple of 8 and padded with zeros.

use crate::object::Digest;

use super::ManifestError;

/// First bytes of every manifest; the high bit and the line feed betray text-mode damage.
pub(super) const MAGIC: [u8; 8] = *b"\x89Mica\r\n\x1a";
/// The only version so far.
pub(super) const VERSION: u32 = 1;
/// Incompatible features this code understands: none yet.
pub(super) const KNOWN_INCOMPATIBLE: u64 = 0;

pub(super) const HEADER_LEN: usize = 128;
/// Header bytes that the header digest covers, together with the section table.
pub(super) const HEADER_DIGESTED: usize = 96;
pub(super) const TABLE_RECORD: usize = 32;
/// A table longer than this is damage, not a future version.
pub(super) const MAX_SECTIONS: u32 = 64;

pub(super) const KIND_LAYER: u32 = 1;
pub(super) const KIND_TREE: u32 = 2;

/// Sections, in file order. The discriminant is the identifier in the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Inodes = 1,
    Entries = 2,
    Names = 3,
    Targets = 4,
    Objects = 5,
    XattrSets = 6,
    Xattrs = 7,
    XattrValues = 8,
    Links = 9,
    Stack = 10,
    Origins = 11,
}

impl Section {
    pub(super) const COUNT: usize = 11;
    pub(super) const ALL: [Self; Self::COUNT] = [
        Self::Inodes,
        Self::Entries,
        Self::Names,
        Self::Targets,
        Self::Objects,
        Self::XattrSets,
        Self::Xattrs,
        Self::XattrValues,
        Self::Links,
        Self::Stack,
        Self::Origins,
    ];

    pub(super) const fn id(self) -> u32 {
        self as u32
    }

    pub(super) const fn slot(self) -> usize {
        self as usize - 1
    }

    /// Bytes of one record; 1 for sections that are plain bytes.
    pub(super) const fn record_len(self) -> usize {
        match self {
            Self::Inodes => INODE_LEN,
            Self::Entries => ENTRY_LEN,
            Self::Names | Self::Targets | Self::XattrValues => 1,
            Self::Objects => OBJECT_LEN,
            Self::XattrSets => XATTR_SET_LEN,
            Self::Xattrs => XATTR_LEN,
            Self::Links => LINK_LEN,
            Self::Stack => STACK_LEN,
            Self::Origins => ORIGIN_LEN,
        }
    }

    /// Whether only trees have it.
    pub(super) const fn tree_only(self) -> bool {
        matches!(self, Self::Stack | Self::Origins)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Inodes => "inodes",
            Self::Entries => "entries",
            Self::Names => "names",
            Self::Targets => "targets",
            Self::Objects => "objects",
            Self::XattrSets => "xattr sets",
            Self::Xattrs => "xattrs",
            Self::XattrValues => "xattr values",
            Self::Links => "links",
            Self::Stack => "stack",
            Self::Origins => "origins",
        }
    }
}

pub(super) const INODE_LEN: usize = 64;
pub(super) const ENTRY_LEN: usize = 16;
pub(super) const OBJECT_LEN: usize = 48;
pub(super) const XATTR_SET_LEN: usize = 8;
pub(super) const XATTR_LEN: usize = 16;
pub(super) const LINK_LEN: usize = 16;
pub(super) const STACK_LEN: usize = 32;
pub(super) const ORIGIN_LEN: usize = 8;

/// Offsets of the fields of an inode record.
pub(super) mod inode {
    pub(in super::super) const KIND: usize = 0; // u8
    pub(in super::super) const FLAGS: usize = 1; // u8
    pub(in super::super) const MODE: usize = 2; // u16
    pub(in super::super) const UID: usize = 4; // u32
    pub(in super::super) const GID: usize = 8; // u32
    pub(in super::super) const NLINK: usize = 12; // u32
    pub(in super::super) const MTIME_SECS: usize = 16; // i64
    pub(in super::super) const MTIME_NANOS: usize = 24; // u32
    pub(in super::super) const PARENT: usize = 28; // u32
    pub(in super::super) const NAME_OFFSET: usize = 32; // u32
    pub(in super::super) const NAME_LEN: usize = 36; // u16
    pub(in super::super) const XATTR_COUNT: usize = 38; // u16
    pub(in super::super) const FIRST: usize = 40; // u64: size | target offset | rdev | first entry
    pub(in super::super) const SECOND: usize = 48; // u64: blocks | target length | 0 | entry count
    pub(in super::super) const OBJECT: usize = 56; // u32: object index, regular files
    pub(in super::super) const XATTR_SET: usize = 60; // u32: xattr set index, if the count is not 0
}

/// The directory hides what lower layers hold under its name.
pub(super) const FLAG_OPAQUE: u8 = 1;
/// The directory was never described by its layer: merging keeps the lower metadata.
pub(super) const FLAG_IMPLICIT: u8 = 2;
/// Trees: no name is left; the record stays because its number is permanent.
pub(super) const FLAG_HIDDEN: u8 = 4;

pub(super) const ENTRY_WHITEOUT: u8 = 0;

/// The first four bytes of a name, zero-filled, as a number that orders like the bytes.
/// Kept in the entry so that most steps of a binary search stay within the entries.
pub(super) fn name_prefix(name: &[u8]) -> u32 {
    let mut first = [0; 4];
    for (to, from) in first.iter_mut().zip(name) {
        *to = *from;
    }
    u32::from_be_bytes(first)
}

/// The `N` bytes of `record` at `at`, for constant `at` inside a fixed-size record.
fn bytes<const R: usize, const N: usize>(record: &[u8; R], at: usize) -> [u8; N] {
    let mut out = [0; N];
    // Cannot be outside: callers pass the constants above, each inside its record.
    out.copy_from_slice(&record[at..at + N]);
    out
}

pub(super) fn u16_at<const R: usize>(record: &[u8; R], at: usize) -> u16 {
    u16::from_le_bytes(bytes(record, at))
}

pub(super) fn u32_at<const R: usize>(record: &[u8; R], at: usize) -> u32 {
    u32::from_le_bytes(bytes(record, at))
}

pub(super) fn u64_at<const R: usize>(record: &[u8; R], at: usize) -> u64 {
    u64::from_le_bytes(bytes(record, at))
}

pub(super) fn i64_at<const R: usize>(record: &[u8; R], at: usize) -> i64 {
    i64::from_le_bytes(bytes(record, at))
}

pub(super) fn digest_at<const R: usize>(record: &[u8; R], at: usize) -> Digest {
    Digest::from_bytes(bytes(record, at))
}

/// Where one section lies in the file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) len: usize,
}

/// The checked header of a manifest.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) is_tree: bool,
    pub(super) compatible: u64,
    pub(super) read_only_compatible: u64,
    pub(super) spans: [Span; Section::COUNT],
    pub(super) body_digest: Digest,
    /// Where the digested body starts: after the section table.
    pub(super) body_start: usize,
}

impl Header {
    /// Checks the header and the section table of `file`; looks at nothing else.
    pub(super) fn parse(file: &[u8]) -> Result<Self, ManifestError> {
        let Some(head) = file.first_chunk::<HEADER_LEN>() else {
            return Err(match file.len() {
                0..8 => ManifestError::NotAManifest,
                _ if !file.starts_with(&MAGIC) => ManifestError::NotAManifest,
                found => ManifestError::Truncated { found: found as u64, expected: None },
            });
        };
        if !head.starts_with(&MAGIC) {
            return Err(ManifestError::NotAManifest);
        }
        let version = u32_at(head, 8);
        if version != VERSION {
            return Err(ManifestError::Version { found: version });
        }
        let incompatible = u64_at(head, 32);
        if incompatible & !KNOWN_INCOMPATIBLE != 0 {
            return Err(ManifestError::Features { unknown: incompatible & !KNOWN_INCOMPATIBLE });
        }
        let expected = u64_at(head, 40);
        if expected != file.len() as u64 {
            let found = file.len() as u64;
            return Err(ManifestError::Truncated { found, expected: Some(expected) });
        }
        let count = u32_at(head, 48);
        if count > MAX_SECTIONS {
            return Err(ManifestError::Header { problem: "too many sections" });
        }
        let table_end = HEADER_LEN + TABLE_RECORD * count as usize;
        let Some(table) = file.get(HEADER_LEN..table_end) else {
            return Err(ManifestError::Header { problem: "the section table is cut off" });
        };
        if header_digest(head, table) != digest_at(head, HEADER_DIGESTED) {
            return Err(ManifestError::Header { problem: "its digest does not match" });
        }
        let is_tree = match u32_at(head, 12) {
            KIND_LAYER => false,
            KIND_TREE => true,
            _ => return Err(ManifestError::Header { problem: "neither a layer nor a tree" }),
        };
        let spans = parse_table(table, table_end, file.len(), is_tree)?;
        Ok(Self {
            is_tree,
            compatible: u64_at(head, 16),
            read_only_compatible: u64_at(head, 24),
            spans,
            body_digest: digest_at(head, 64),
            body_start: table_end,
        })
    }
}

fn parse_table(
    table: &[u8],
    table_end: usize,
    file_len: usize,
    is_tree: bool,
) -> Result<[Span; Section::COUNT], ManifestError> {
    let bad = |problem| ManifestError::Header { problem };
    let mut spans = [Span::default(); Section::COUNT];
    let mut found = [false; Section::COUNT];
    let (records, _) = table.as_chunks::<TABLE_RECORD>();
    let mut last_id = 0;
    for record in records {
        let id = u32_at(record, 0);
        if id <= last_id {
            return Err(bad("sections are not in order"));
        }
        last_id = id;
        let start = usize::try_from(u64_at(record, 8));
        let len = usize::try_from(u64_at(record, 16));
        let (Ok(start), Ok(len)) = (start, len) else {
            return Err(bad("a section lies outside the file"));
        };
        let inside = start.checked_add(len).is_some_and(|end| end <= file_len);
        if !inside || start < table_end || start % 8 != 0 {
            return Err(bad("a section lies outside the file"));
        }
        let Some(section) = Section::ALL.into_iter().find(|section| section.id() == id) else {
            continue; // Only a compatible feature may add a section.
        };
        let record_len = section.record_len();
        if u32_at(record, 4) as usize != record_len || len % record_len != 0 {
            return Err(bad("a section has records of another size"));
        }
        if section.tree_only() && !is_tree {
            return Err(bad("a layer has a section that only trees have"));
        }
        // Numbers, indices and pool offsets are 32 bits wide.
        if u32::try_from(len / record_len).is_err() {
            return Err(bad("a section has too many records"));
        }
        spans[section.slot()] = Span { start, len };
        found[section.slot()] = true;
    }
    for section in Section::ALL {
        if !found[section.slot()] && (is_tree || !section.tree_only()) {
            return Err(bad("a section is missing"));
        }
    }
    Ok(spans)
}

fn header_digest(head: &[u8; HEADER_LEN], table: &[u8]) -> Digest {
    let mut digested = Vec::with_capacity(HEADER_DIGESTED + table.len());
    digested.extend_from_slice(&head[..HEADER_DIGESTED]);
    digested.extend_from_slice(table);
    Digest::of(&digested)
}

/// Writes length and digests into the header of `file`, as the last step of encoding.
///
/// Bytes too short for a header and table are left alone. Public within the crate's tests
/// and fuzz targets, which alter a manifest and need it past the digests.
pub fn seal(file: &mut [u8]) {
    let file_len = file.len() as u64;
    let Some((head, rest)) = file.split_first_chunk_mut::<HEADER_LEN>() else { return };
    let table_len = TABLE_RECORD.saturating_mul(u32_at(head, 48) as usize);
    let Some((table, body)) = rest.split_at_checked(table_len) else { return };
    head[40..48].copy_from_slice(&file_len.to_le_bytes());
    head[64..96].copy_from_slice(Digest::of(body).as_bytes());
    let digest = header_digest(head, table);
    head[HEADER_DIGESTED..].copy_from_slice(digest.as_bytes());
}
