//! One pass over a tar stream: header, extended headers, content, padding.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::describe::{MemberKind, NamedAcls, kind, metadata_of, number, unsigned, xattrs_of};
use super::numeric::numeric;
use super::pax::PaxFields;
use super::sparse::{SparseMap, pax_ranges, text_ranges};
use super::{TarError, TarFault};
use crate::layer::Metadata;
use crate::layer::import::intake::drain;
use crate::layer::import::metadata::Xattrs;
use crate::object::ReadSparse;

const BLOCK: usize = 512;
const BLOCK_BYTES: u64 = 512;
/// Most bytes of extended headers, long names and sparse maps for one member. The attributes of
/// one file take 64 KiB of names; real headers are far below this.
pub(super) const MAX_EXTENSION_BYTES: u64 = 16 << 20;

/// Most bytes that global headers may set: each member gets all of them.
const MAX_GLOBAL_BYTES: usize = 64 << 10;

/// One member of an archive, before its content.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// The path as the archive spells it; never empty and without NUL.
    pub(crate) path: Box<[u8]>,
    pub(crate) kind: MemberKind,
    pub(crate) metadata: Metadata,
    pub(crate) xattrs: Xattrs,
    /// ACLs that name users or groups, and the attributes they become.
    pub(crate) named_acls: NamedAcls,
    /// Offset of the header, for messages.
    pub(crate) position: u64,
    /// Size of the content in bytes, holes included; 0 for anything but a regular file.
    pub(crate) size: u64,
    /// Bytes of that which are holes, and not in the archive.
    pub(crate) hole_bytes: u64,
    /// Offset of the content in the stream; `None` when it is stored as a sparse map.
    pub(crate) content_offset: Option<u64>,
}

/// Reads members from a stream.
pub(crate) struct Members<R> {
    input: R,
    /// Bytes taken from `input`.
    position: u64,
    /// Extended headers that apply to every later member (`g`).
    global: PaxFields,
    content: Content,
    /// The member whose content is being read, for error messages.
    current: Option<(Box<[u8]>, u64)>,
    /// Fails a missing end mark. A stream whose digest is verified may do without.
    needs_end_mark: bool,
    max_file_bytes: u64,
    /// What stopped a read of content; [`io::Error`] alone would not carry it.
    failure: Option<TarError>,
}

/// Where the reader stands in the content of the current member.
#[derive(Debug, Default)]
struct Content {
    /// Bytes of the expanded file that were not read yet.
    unread: u64,
    /// Offset in the expanded file.
    offset: u64,
    sparse: Option<SparseMap>,
    /// Next range of `sparse`.
    range: usize,
    /// Bytes of the archive that belong to the member and were not read yet, without padding.
    stored: u64,
    /// Bytes to the next header after `stored`.
    padding: u64,
}

/// The extended headers seen before a member.
#[derive(Default)]
struct Extensions {
    pax: Option<PaxFields>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    bytes: u64,
}

impl<R: Read> Members<R> {
    /// Starts at the first header of `input`.
    pub(crate) fn new(input: R, needs_end_mark: bool, max_file_bytes: u64) -> Self {
        Self {
            input,
            position: 0,
            global: PaxFields::default(),
            content: Content::default(),
            current: None,
            needs_end_mark,
            max_file_bytes,
            failure: None,
        }
    }

    /// Reads what follows the end mark; tells whether it is anything but zeros.
    ///
    /// Decoders check their trailers only at the end of the stream, and who writes into a pipe
    /// wants to write everything.
    pub(crate) fn finish(mut self) -> Result<bool, TarError> {
        let position = self.position;
        drain(&mut self.input).map_err(|error| TarError {
            member: None,
            position,
            fault: read_fault(error),
        })
    }

    /// Reads what is left of the current member's content to `at` of `buffer`, growing it where
    /// it is too short; returns where the content ends. A buffer that is used again is not
    /// cleared in between, because that costs as much as reading.
    pub(crate) fn read_into(&mut self, buffer: &mut Vec<u8>, at: usize) -> Result<usize, TarError> {
        const PIECE: usize = 1 << 20;
        let position = self.position;
        let mut filled = at;
        while self.content.unread > 0 {
            let left = usize::try_from(self.content.unread).unwrap_or(usize::MAX);
            // By pieces: a header may promise what never comes.
            let end = filled.saturating_add(left.min(PIECE));
            if buffer.len() < end {
                buffer.resize(end, 0);
            }
            let room = buffer.len().min(filled.saturating_add(left));
            match self.fill(&mut buffer[filled..room]) {
                Ok(count) => filled += count,
                Err(fault) => return Err(self.at_current(fault, position)),
            }
        }
        Ok(filled)
    }

    /// Skips what is left of the current member and reads the next; `None` at the end mark.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let start = self.position;
        self.skip_content().map_err(|fault| self.at_current(fault, start))?;
        self.current = None;
        let position = self.position;
        let mut extensions = Extensions::default();
        let mut name = None;
        self.find_member(&mut extensions, &mut name).map_err(|fault| TarError {
            member: name,
            position,
            fault,
        })
    }

    /// Reads content of the current member; 0 at its end.
    ///
    /// On an error [`Self::take_failure`] says what happened.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.fill(buffer) {
            Ok(count) => Ok(count),
            Err(fault) => {
                let position = self.position;
                let error = self.at_current(fault, position);
                let text = error.to_string();
                self.failure = Some(error);
                Err(io::Error::other(text))
            }
        }
    }

    /// Passes over what is left of the hole at this place of the current member's content, or all of
    /// it but less than a block; tells how many bytes.
    pub(crate) fn pass_hole(&mut self) -> u64 {
        const HOLE_BYTES: u64 = 4096;
        let content = &mut self.content;
        let hole = match &content.sparse {
            None => 0,
            Some(map) => match map.range(content.range) {
                None => content.unread,
                Some((start, _)) => start.saturating_sub(content.offset) / HOLE_BYTES * HOLE_BYTES,
            },
        };
        content.unread -= hole;
        content.offset += hole;
        hole
    }

    /// The fault behind an error of [`Self::read_content`].
    pub(crate) fn take_failure(&mut self) -> Option<TarError> {
        self.failure.take()
    }

    fn at_current(&self, fault: TarFault, position: u64) -> TarError {
        match &self.current {
            Some((path, position)) => {
                TarError { member: Some(path.clone()), position: *position, fault }
            }
            None => TarError { member: None, position, fault },
        }
    }

    fn find_member(
        &mut self,
        extensions: &mut Extensions,
        name: &mut Option<Box<[u8]>>,
    ) -> Result<Option<Member>, TarFault> {
        loop {
            let described = extensions.pax.is_some()
                || extensions.long_name.is_some()
                || extensions.long_link.is_some();
            let Some(header) = self.read_header()? else {
                return if described { Err(TarFault::DanglingExtension) } else { Ok(None) };
            };
            let raw_size = number(&header.as_old().size, "size")?;
            let raw_size = u64::try_from(raw_size).map_err(|_| TarFault::BadNumber("size"))?;
            match header.as_old().linkflag[0] {
                b'x' => {
                    let records = self.read_extension(raw_size, extensions)?;
                    let fields = extensions.pax.get_or_insert_with(|| self.global.clone());
                    fields.apply(&records)?;
                }
                b'g' => {
                    let records = self.read_extension(raw_size, extensions)?;
                    self.global.apply(&records)?;
                    if self.global.bytes() > MAX_GLOBAL_BYTES {
                        return Err(TarFault::GlobalTooLarge);
                    }
                }
                b'L' => extensions.long_name = Some(self.read_long(raw_size, extensions)?),
                b'K' => extensions.long_link = Some(self.read_long(raw_size, extensions)?),
                // A volume label is about the archive, not in it.
                b'V' => {
                    self.set_content(raw_size, raw_size, None);
                    self.skip_content()?;
                }
                _ => return self.member(&header, raw_size, extensions, name).map(Some),
            }
        }
    }

    fn member(
        &mut self,
        header: &Header,
        raw_size: u64,
        extensions: &mut Extensions,
        name: &mut Option<Box<[u8]>>,
    ) -> Result<Member, TarFault> {
        let pax = extensions.pax.take().unwrap_or_else(|| self.global.clone());
        let stored = pax.size.unwrap_or(raw_size);
        let path = match (&pax.sparse.name, &pax.path, extensions.long_name.take()) {
            (Some(path), _, _) | (None, Some(path), _) => path.clone(),
            (None, None, Some(path)) => path.into(),
            (None, None, None) => header.path_bytes().as_ref().into(),
        };
        *name = Some(path.clone());
        if path.is_empty() {
            return Err(TarFault::EmptyName);
        }
        if path.contains(&0) {
            return Err(TarFault::NulInName);
        }
        self.current = Some((path.clone(), self.position.saturating_sub(BLOCK_BYTES)));
        let kind = kind(header, &path, &pax, extensions.long_link.take())?;
        let metadata = metadata_of(header, &pax)?;
        let (xattrs, named_acls) = xattrs_of(&pax, &kind)?;
        let position = self.position.saturating_sub(BLOCK_BYTES);
        let sparse = self.find_sparse(header, &pax, stored, extensions)?;
        let (size, content_offset) = match (&kind, &sparse) {
            (MemberKind::Regular, None) => (stored, Some(self.position)),
            (MemberKind::Regular, Some(map)) => (map.real_size(), None),
            // A hard link's size is that of its target and nothing is stored, in GNU tar and Go
            // alike; the dump of a directory ("D") lists names Mica does not need.
            (MemberKind::HardLink(_), None) => (0, None),
            (MemberKind::Directory, None) if header.as_old().linkflag[0] == b'D' => (0, None),
            (_, None) if stored == 0 => (0, None),
            (_, _) => return Err(TarFault::UnexpectedContent),
        };
        if size > self.max_file_bytes {
            return Err(TarFault::FileTooLarge(size));
        }
        let hole_bytes = match &sparse {
            Some(map) => map.real_size().saturating_sub(self.content.stored),
            None => 0,
        };
        match &kind {
            MemberKind::HardLink(_) => self.set_content(0, 0, None),
            MemberKind::Directory => self.set_content(0, stored, None),
            MemberKind::Regular
            | MemberKind::Symlink(_)
            | MemberKind::Fifo
            | MemberKind::CharDevice(_)
            | MemberKind::BlockDevice(_) => match sparse {
                None => self.set_content(size, stored, None),
                // `find_sparse` left what is stored after the map in `self.content.stored`.
                Some(map) => self.set_content(size, self.content.stored, Some(map)),
            },
        }
        Ok(Member {
            path,
            kind,
            metadata,
            xattrs,
            named_acls,
            position,
            size,
            hole_bytes,
            content_offset,
        })
    }

    /// The sparse map of a regular member; reads it where it stands before the data.
    fn find_sparse(
        &mut self,
        header: &Header,
        pax: &PaxFields,
        stored: u64,
        extensions: &mut Extensions,
    ) -> Result<Option<SparseMap>, TarFault> {
        self.set_content(stored, stored, None);
        if header.as_old().linkflag[0] == b'S' {
            return self.old_gnu_map(header, stored, extensions).map(Some);
        }
        let real_size = || pax.sparse.real_size.ok_or(TarFault::BadSparseMap("it has no size"));
        match (pax.sparse.major, pax.sparse.minor) {
            (Some(1), Some(0)) => {
                let ranges = text_ranges(|| {
                    extensions.count(BLOCK_BYTES)?;
                    let mut block = [0; BLOCK];
                    if self.content.stored < BLOCK_BYTES {
                        return Err(TarFault::BadSparseMap("it is longer than the content"));
                    }
                    self.read_exact(&mut block)?;
                    self.content.stored -= BLOCK_BYTES;
                    Ok(block)
                })?;
                SparseMap::new(ranges, real_size()?, self.content.stored).map(Some)
            }
            (None, None) | (Some(0), _) => match pax_ranges(&pax.sparse)? {
                Some(ranges) => SparseMap::new(ranges, real_size()?, stored).map(Some),
                None => Ok(None),
            },
            (_, _) => Err(TarFault::BadSparseMap("its format version is unknown")),
        }
    }

    fn old_gnu_map(
        &mut self,
        header: &Header,
        stored: u64,
        extensions: &mut Extensions,
    ) -> Result<SparseMap, TarFault> {
        let gnu = header.as_gnu().ok_or(TarFault::UnknownType(b'S'))?;
        let mut ranges = Vec::new();
        let mut add = |record: &GnuSparseHeader| -> Result<(), TarFault> {
            if !record.is_empty() {
                ranges.push((
                    unsigned(&record.offset, "sparse offset")?,
                    unsigned(&record.numbytes, "sparse length")?,
                ));
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            extensions.count(BLOCK_BYTES)?;
            let mut block = GnuExtSparseHeader::new();
            self.read_exact(block.as_mut_bytes())?;
            block.sparse().iter().try_for_each(&mut add)?;
            more = block.is_extended();
        }
        SparseMap::new(ranges, unsigned(&gnu.realsize, "real size")?, stored)
    }

    /// The content of an extended header; it counts against the member's limit.
    fn read_extension(
        &mut self,
        size: u64,
        extensions: &mut Extensions,
    ) -> Result<Vec<u8>, TarFault> {
        extensions.count(size)?;
        self.set_content(size, size, None);
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.fill(&mut buffer)? {
                0 => break,
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
        self.skip_content()?;
        Ok(bytes)
    }

    /// A GNU long name, which is NUL-terminated.
    fn read_long(&mut self, size: u64, extensions: &mut Extensions) -> Result<Vec<u8>, TarFault> {
        let mut bytes = self.read_extension(size, extensions)?;
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(end);
        Ok(bytes)
    }

    /// The next header; `None` at the end of the archive.
    fn read_header(&mut self) -> Result<Option<Header>, TarFault> {
        let mut header = Header::new_old();
        match self.read_block(header.as_mut_bytes())? {
            0 if self.needs_end_mark => return Err(TarFault::NoEndMark),
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(TarFault::Truncated),
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            let mut second = [0; BLOCK];
            let got = self.read_block(&mut second)?;
            return if second[..got].iter().all(|byte| *byte == 0) {
                Ok(None)
            } else {
                Err(TarFault::LoneZeroBlock)
            };
        }
        if is_header(header.as_bytes()) { Ok(Some(header)) } else { Err(TarFault::BadChecksum) }
    }

    fn set_content(&mut self, unread: u64, stored: u64, sparse: Option<SparseMap>) {
        let padding = (BLOCK_BYTES - stored % BLOCK_BYTES) % BLOCK_BYTES;
        self.content = Content { unread, offset: 0, sparse, range: 0, stored, padding };
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TarFault> {
        let content = &mut self.content;
        if content.unread == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let (in_hole, run) = match &content.sparse {
            None => (false, content.unread),
            Some(map) => match map.range(content.range) {
                None => (true, content.unread),
                Some((start, _)) if content.offset < start => (true, start - content.offset),
                Some((start, length)) => (false, start + length - content.offset),
            },
        };
        let room = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let wanted = usize::try_from(run.min(room)).unwrap_or(buffer.len());
        let buffer = &mut buffer[..wanted];
        let count = if in_hole {
            buffer.fill(0);
            wanted
        } else {
            read_some(&mut self.input, buffer)?
        };
        if count == 0 {
            return Err(TarFault::Truncated);
        }
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        content.unread -= bytes;
        content.offset += bytes;
        if !in_hole {
            content.stored -= bytes;
            self.position = self.position.saturating_add(bytes);
            if bytes == run {
                content.range += 1;
            }
        }
        Ok(count)
    }

    /// Moves to the next header.
    fn skip_content(&mut self) -> Result<(), TarFault> {
        let mut left = self.content.stored.saturating_add(self.content.padding);
        self.content = Content::default();
        let mut buffer = [0; 16 * 1024];
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match read_some(&mut self.input, &mut buffer[..wanted])? {
                0 => return Err(TarFault::Truncated),
                count => {
                    let bytes = u64::try_from(count).unwrap_or(u64::MAX);
                    self.position = self.position.saturating_add(bytes);
                    left -= bytes;
                }
            }
        }
        Ok(())
    }

    /// Fills `block` as far as the stream goes.
    fn read_block(&mut self, block: &mut [u8]) -> Result<usize, TarFault> {
        let mut filled = 0;
        while filled < block.len() {
            match read_some(&mut self.input, &mut block[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        self.position = self.position.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
        Ok(filled)
    }

    fn read_exact(&mut self, block: &mut [u8]) -> Result<(), TarFault> {
        if self.read_block(block)? == block.len() { Ok(()) } else { Err(TarFault::Truncated) }
    }
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_content(buffer)
    }
}

impl<R: Read> ReadSparse for Members<R> {
    fn hole(&mut self) -> io::Result<u64> {
        Ok(self.pass_hole())
    }
}

impl Extensions {
    fn count(&mut self, bytes: u64) -> Result<(), TarFault> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_EXTENSION_BYTES { Err(TarFault::ExtensionTooLarge) } else { Ok(()) }
    }
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, TarFault> {
    loop {
        match input.read(buffer) {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_fault(error)),
        }
    }
}

/// Decoders report a stream that ends too early as `UnexpectedEof`.
fn read_fault(error: io::Error) -> TarFault {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        TarFault::Truncated
    } else {
        TarFault::Read(error)
    }
}

/// Whether a block is a header: its checksum matches, summed as unsigned or (old tars) signed.
pub(crate) fn is_header(block: &[u8; BLOCK]) -> bool {
    let sum = |value: fn(u8) -> i64| -> i64 {
        let outside = block[..148].iter().chain(&block[156..]);
        outside.map(|byte| value(*byte)).sum::<i64>() + 8 * i64::from(b' ')
    };
    let stated = numeric(&block[148..156]);
    let unsigned = sum(i64::from);
    let signed = sum(|byte| i64::from(byte.cast_signed()));
    stated == Some(i128::from(unsigned)) || stated == Some(i128::from(signed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: u8, size: u64) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkflag = [kind];
        header.set_mode(0o100_644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, kind, content.len() as u64);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn archive(parts: &[Vec<u8>]) -> Members<io::Cursor<Vec<u8>>> {
        let mut bytes = parts.concat();
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        Members::new(io::Cursor::new(bytes), true, u64::MAX)
    }

    fn next(members: &mut Members<io::Cursor<Vec<u8>>>) -> (String, Vec<u8>) {
        let member = members.next_member().unwrap().expect("a member");
        let mut content = Vec::new();
        let end = members.read_into(&mut content, 0).unwrap();
        content.truncate(end);
        (String::from_utf8(member.path.into()).unwrap(), content)
    }

    #[test]
    fn a_pax_size_counts_and_not_the_headers() {
        // Above 8 GiB the header has no room, so what it says does not matter.
        let mut body = header("x", b'0', 0);
        body.extend_from_slice(b"hello");
        body.resize(2 * BLOCK, 0);
        let mut members =
            archive(&[member("pax", b'x', b"10 size=5\n"), body, member("y", b'0', b"after")]);
        assert_eq!(next(&mut members), ("x".to_owned(), b"hello".to_vec()));
        assert_eq!(next(&mut members), ("y".to_owned(), b"after".to_vec()));
        assert!(members.next_member().unwrap().is_none());
        assert!(!members.finish().unwrap());
    }

    #[test]
    fn global_headers_hold_until_a_local_one_says_otherwise() {
        let mut members = archive(&[
            member("g", b'g', b"11 mtime=7\n11 uid=100\n"),
            member("a", b'0', b""),
            member("x", b'x', b"11 mtime=9\n"),
            member("b", b'0', b""),
        ]);
        let a = members.next_member().unwrap().expect("a");
        assert_eq!((a.metadata.mtime.secs, a.metadata.uid, a.metadata.mode), (7, 100, 0o644));
        let b = members.next_member().unwrap().expect("b");
        assert_eq!((b.metadata.mtime.secs, b.metadata.uid), (9, 100));
    }

    #[test]
    fn labels_and_dumps_of_directories_are_passed_over() {
        let mut members = archive(&[
            member("label", b'V', b""),
            member("dir/", b'D', b"Yfile\0\0"),
            member("dir/file", b'0', b"x"),
        ]);
        let dir = members.next_member().unwrap().expect("dir");
        assert_eq!((dir.kind, dir.size), (MemberKind::Directory, 0));
        assert_eq!(next(&mut members), ("dir/file".to_owned(), b"x".to_vec()));
    }

    #[test]
    fn what_a_header_promises_is_not_believed() {
        for kind in *b"xgLK" {
            let mut members = archive(&[header("x", kind, 1 << 40)]);
            let error = members.next_member().unwrap_err();
            assert!(matches!(error.fault, TarFault::ExtensionTooLarge), "{error}");
        }
        let mut members = archive(&[header("x", b'0', 1 << 40)]);
        let member = members.next_member().unwrap().expect("a member");
        assert_eq!(member.size, 1 << 40);
        let mut content = Vec::new();
        let error = members.read_into(&mut content, 0).unwrap_err();
        assert!(matches!(error.fault, TarFault::Truncated), "{error}");
        assert!(content.len() < 2 << 20, "{} bytes", content.len());
    }

    #[test]
    fn old_checksums_were_summed_with_signs() {
        let mut bytes = header("gr\u{fc}n", b'0', 0);
        let block: &mut [u8; BLOCK] = (&mut bytes[..]).try_into().unwrap();
        let signed: i64 = block[..148]
            .iter()
            .chain(&block[156..])
            .map(|byte| i64::from(byte.cast_signed()))
            .sum::<i64>()
            + 256;
        block[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
        assert!(is_header(block));
        block[0] ^= 1;
        assert!(!is_header(block));
    }
}
