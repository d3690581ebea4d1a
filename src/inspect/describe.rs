//! One file, described as every answer describes one.

use serde::Serialize;

use crate::layer::FileKind;
use crate::object::ObjectId;

use super::text::{NameText, PathText, TargetText, hex, time};
use super::{InspectError, Kind, Node, View};

/// A file of a template or layer, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Described {
    /// Where it lies, from the root.
    #[serde(flatten)]
    pub path: PathText,
    /// What it is.
    #[serde(flatten)]
    pub file: FileText,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileText {
    /// `file`, `directory`, `symlink`, `fifo`, `socket`, `char-device`, `block-device` or
    /// `whiteout`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Permission, set-id and sticky bits, four octal digits.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content, or of a symlink's target; 0 for anything else.
    pub size_bytes: u64,
    /// Last change of the content, RFC 3339.
    pub mtime: String,
    /// Names it has.
    pub nlink: u32,
    /// Digest of a regular file's content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectId>,
    /// Where a symlink leads.
    #[serde(flatten)]
    pub target: Option<TargetText>,
    /// A device's numbers, `MAJOR:MINOR`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Extended attributes, in byte order of their names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<XattrText>,
    /// Number of the layer its record comes from, 1 the lowest of the stack.
    #[serde(rename = "layer_number", skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// In a single layer: the directory hides what the layers below have in it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub opaque: bool,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct XattrText {
    /// Its name with its namespace.
    #[serde(flatten)]
    pub name: NameText,
    /// Its value as hexadecimal digits.
    pub value_hex: String,
}

impl View {
    /// Describes the file at `path`, relative to the root of the view.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn describe(&self, path: &[u8], node: &Node) -> Result<Described, InspectError> {
        Ok(Described { path: PathText::absolute(path), file: self.file_text(node)? })
    }

    /// Describes a file without saying where it lies.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn file_text(&self, node: &Node) -> Result<FileText, InspectError> {
        let xattrs = self.xattrs(node)?.into_iter();
        Ok(FileText {
            kind: node.kind.word(),
            mode: format!("{:04o}", node.mode),
            uid: node.uid,
            gid: node.gid,
            size_bytes: node.size,
            mtime: time(node.mtime),
            nlink: node.nlink,
            object: node.object,
            target: self.link_target(node)?,
            device: node.device(),
            xattrs: xattrs
                .map(|xattr| XattrText { name: xattr.name.into(), value_hex: hex(xattr.value) })
                .collect(),
            layer: node.number(),
            opaque: node.opaque,
        })
    }

    /// Where a symlink leads; none for anything else.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn link_target(&self, node: &Node) -> Result<Option<TargetText>, InspectError> {
        let is_link = node.kind == Kind::File(FileKind::Symlink);
        is_link.then(|| self.target(node).map(TargetText::from)).transpose()
    }
}

impl Node {
    /// The number of the layer its record comes from, 1 the lowest; none in a single layer.
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        self.layer.map(|index| index.saturating_add(1))
    }

    /// A device's numbers, `MAJOR:MINOR`; none for anything else.
    #[must_use]
    pub fn device(&self) -> Option<String> {
        matches!(self.kind, Kind::File(FileKind::CharDevice | FileKind::BlockDevice))
            .then(|| format!("{}:{}", rustix::fs::major(self.rdev), rustix::fs::minor(self.rdev)))
    }

    /// Kind and mode as ls(1) writes them: `-rwxr-xr-x`.
    #[must_use]
    pub fn mode_text(&self) -> String {
        let mut text = String::with_capacity(10);
        text.push(self.kind.letter());
        // Each with the bit that takes the place of its x, and how that is written.
        for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
            let bits = self.mode >> shift;
            text.push(if bits & 4 != 0 { 'r' } else { '-' });
            text.push(if bits & 2 != 0 { 'w' } else { '-' });
            text.push(match (bits & 1 != 0, self.mode & special != 0) {
                (true, true) => letter,
                (false, true) => letter.to_ascii_uppercase(),
                (true, false) => 'x',
                (false, false) => '-',
            });
        }
        text
    }
}
