//! The first bytes of a file, harmless to a terminal.

use std::os::fd::AsFd;

use rustix::fs::OFlags;

use crate::layer::{FileKind, LayerPath};
use crate::object::{ObjectError, ObjectId};
use crate::sys::inode;

use super::{PlaceId, Source, Strata};
use crate::inspect::text::printable;
use crate::inspect::upper::{Bytes, Found};
use crate::inspect::{InspectError, Kind, Library};

/// Bytes that a preview reads at most.
const HEAD_BYTES: usize = 64 * 1024;

/// Where the tabs of a terminal stand.
const TAB: usize = 8;

/// Bytes in one line of a dump.
const DUMPED: usize = 16;

/// The beginning of a file in lines that can be put on a terminal: whatever would command it,
/// or mislead the reader, is escaped as in C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The lines.
    pub lines: Vec<String>,
    /// Whether they are a dump of bytes rather than text.
    pub dump: bool,
    /// Whether there is more than the lines show.
    pub cut: bool,
}

impl Strata {
    /// The beginning of what is at a place as `layer` leaves it. The target of a symlink; one
    /// line in words for anything without content.
    ///
    /// # Errors
    /// [`InspectError::Object`] if its object is missing, [`InspectError::System`] and
    /// [`InspectError::Upper`] if it cannot be read, [`InspectError::Manifest`] for damage.
    pub fn preview(
        &self,
        library: &Library,
        place: PlaceId,
        layer: usize,
    ) -> Result<Preview, InspectError> {
        let Some(version) = self.at(place, layer) else {
            return Ok(Preview::words("There is nothing here."));
        };
        let head = match version.kind {
            Kind::File(FileKind::Regular) => match self.object(version.source)? {
                Some(object) => object_head(library, &object)?,
                None => match self.own_head(place)? {
                    Some(head) => head,
                    None => return Ok(Preview::words("It is gone by now.")),
                },
            },
            Kind::File(FileKind::Symlink) => match self.node_of(version.source)? {
                Some((view, node)) => view.target(&node)?.to_vec(),
                None => match self.own_target(place)? {
                    Some(target) => target,
                    None => return Ok(Preview::words("It is gone by now.")),
                },
            },
            kind @ (Kind::File(_) | Kind::Whiteout) => {
                return Ok(Preview::words(&format!("A {} has no content.", kind.word())));
            }
        };
        let size = usize::try_from(version.size).unwrap_or(usize::MAX);
        Ok(Preview::of(&head, size > head.len()))
    }

    /// What the private directory has at a place now.
    fn own(&self, place: PlaceId) -> Result<Option<(LayerPath, Found)>, InspectError> {
        let Some(private) = &self.private else { return Ok(None) };
        let path = LayerPath::parse(&self.path_bytes(place))?;
        let found = private.container.upper.resolve(&path)?;
        Ok(Some((path, found)))
    }

    fn own_head(&self, place: PlaceId) -> Result<Option<Vec<u8>>, InspectError> {
        let Some((path, Found::Private(entry))) = self.own(place)? else { return Ok(None) };
        let Some(private) = &self.private else { return Ok(None) };
        let bytes = private.container.upper.bytes(&entry);
        let private_bytes = bytes.map_err(|source| InspectError::upper(&path, source))?;
        if entry.kind != FileKind::Regular || private_bytes != Bytes::Private {
            return Ok(None);
        }
        let read = || -> rustix::io::Result<Vec<u8>> {
            let file = inode::reopen(&entry.fd, OFlags::RDONLY)?;
            let mut head = vec![0; HEAD_BYTES];
            let mut len = 0;
            while let Some(left) = head.get_mut(len..).filter(|left| !left.is_empty()) {
                let at = u64::try_from(len).unwrap_or(u64::MAX);
                match rustix::io::pread(file.as_fd(), left, at)? {
                    0 => break,
                    read => len += read,
                }
            }
            head.truncate(len);
            Ok(head)
        };
        read().map(Some).map_err(|errno| InspectError::upper(&path, errno))
    }

    fn own_target(&self, place: PlaceId) -> Result<Option<Vec<u8>>, InspectError> {
        let Some((path, Found::Private(entry))) = self.own(place)? else { return Ok(None) };
        if entry.kind != FileKind::Symlink {
            return Ok(None);
        }
        let target = inode::symlink_target(&entry.fd);
        target.map(Some).map_err(|errno| InspectError::upper(&path, errno))
    }

    /// Whether a place has something to look into.
    #[must_use]
    pub fn has_content(&self, place: PlaceId, layer: usize) -> bool {
        self.at(place, layer).is_some_and(|version| {
            matches!(version.kind, Kind::File(FileKind::Regular | FileKind::Symlink))
                && (version.shown || matches!(version.source, Source::Manifest { .. }))
        })
    }
}

fn object_head(library: &Library, object: &ObjectId) -> Result<Vec<u8>, InspectError> {
    let file = library.objects().open_object(object)?;
    let mut head = vec![0; HEAD_BYTES];
    let read = file.read_at(&mut head, 0);
    let failed = |source| InspectError::System { what: format!("read object {object}"), source };
    head.truncate(read.map_err(failed)?);
    // All of it can be compared with its name; of a longer one, at least its length was.
    if head.len() < HEAD_BYTES && ObjectId::of(&head) != *object {
        return Err(ObjectError::Altered(*object).into());
    }
    Ok(head)
}

impl Preview {
    /// A sentence in place of content.
    fn words(words: &str) -> Self {
        Self { lines: vec![words.to_owned()], dump: false, cut: false }
    }

    /// The lines of some bytes: a dump if there is a NUL among them, text otherwise.
    #[must_use]
    pub fn of(head: &[u8], cut: bool) -> Self {
        if head.is_empty() {
            return Self::words("The file is empty.");
        }
        let dump = head.contains(&0);
        let lines = if dump {
            head.chunks(DUMPED)
                .enumerate()
                .map(|(row, bytes)| dumped(row * DUMPED, bytes))
                .collect()
        } else {
            let text = head.strip_suffix(b"\n").unwrap_or(head);
            text.split(|byte| *byte == b'\n').map(line).collect()
        };
        Self { lines, dump, cut }
    }
}

/// One line of text, tabs made spaces.
fn line(bytes: &[u8]) -> String {
    let mut line = String::new();
    let mut columns = 0;
    for (index, part) in bytes.split(|byte| *byte == b'\t').enumerate() {
        if index > 0 {
            let spaces = TAB - columns % TAB;
            columns += spaces;
            line.extend(std::iter::repeat_n(' ', spaces));
        }
        // Backslashes of the text itself stay: it is for reading, and nothing obeys them.
        let part = printable(part).replace("\\\\", "\\");
        columns += part.chars().count();
        line.push_str(&part);
    }
    line
}

/// Offset, digits, and what of it is printable ASCII.
fn dumped(offset: usize, bytes: &[u8]) -> String {
    let digits =
        |half: &[u8]| half.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let (left, right) = bytes.split_at(bytes.len().min(DUMPED / 2));
    let shown = |byte: &u8| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '.',
    };
    let text: String = bytes.iter().map(shown).collect();
    format!("{offset:08x}  {:<23}  {:<23}  {text}", digits(left), digits(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_command_the_terminal() {
        let preview = Preview::of(b"a\tb\\n\r\n\x1b]0;title\x07\xff\xe2\x80\xae\n", false);
        assert_eq!(preview.lines, ["a       b\\n\\r", "\\x1b]0;title\\x07\\xff\\u{202e}"]);
        assert!(!preview.dump);
    }

    #[test]
    fn binary_is_dumped_in_lines_of_one_width() {
        let preview = Preview::of(b"\x7fELF\0\x1b[2Jabcdefghij", true);
        assert!(preview.dump && preview.cut);
        assert_eq!(
            preview.lines,
            [
                "00000000  7f 45 4c 46 00 1b 5b 32  4a 61 62 63 64 65 66 67  .ELF..[2Jabcdefg",
                "00000010  68 69 6a                                          hij",
            ]
        );
        assert_eq!(Preview::of(b"", false).lines, ["The file is empty."]);
    }
}
