//! A directory with all that is in it, and what each part weighs.

use std::collections::HashSet;

use serde::Serialize;

use crate::layer::{LayerPath, TreeIno};

use super::text::{NameText, TargetText};
use super::{InspectError, Node, Step, View};

/// Levels of directories that are shown at most: answers are built, printed and dropped level
/// by level of the stack, and any program may have made a tree deeper than that holds.
pub const MOST_LEVELS: usize = 1024;

/// A file, and what is below it if it is a directory.
#[derive(Clone, Debug, Serialize)]
pub struct Branch {
    /// Its name; the whole path of the outermost.
    #[serde(flatten)]
    pub name: NameText,
    /// As in every description of a file.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Where a symlink leads.
    #[serde(flatten)]
    pub target: Option<TargetText>,
    /// Number of the layer its record comes from, 1 the lowest.
    #[serde(rename = "layer_number", skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Permission, set-id and sticky bits, four octal digits.
    pub mode: String,
    /// Bytes of the regular files here and below; one with several names counts at the first.
    pub size_bytes: u64,
    /// Regular files here and below, counted likewise.
    pub files: u64,
    /// In a single layer: the directory hides what the layers below have in it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub opaque: bool,
    /// What is in the directory; absent beyond the depth asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub children: Option<Vec<Branch>>,
    #[serde(skip)]
    pub(crate) node: Node,
    /// Whether something below is not shown, for it lies too deep.
    #[serde(skip)]
    pub cut: bool,
}

impl Branch {
    /// What the branch begins with.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }
}

impl View {
    /// What lies at `path` and everything below it, weighed whole, shown `depth` directories
    /// deep (0: itself alone; none: all, up to 1,024).
    ///
    /// # Errors
    /// [`InspectError::NoPath`], [`InspectError::Manifest`] for damage.
    pub fn tree(&self, path: &LayerPath, depth: Option<usize>) -> Result<Branch, InspectError> {
        let depth = depth.unwrap_or(MOST_LEVELS).min(MOST_LEVELS);
        let mut seen: HashSet<TreeIno> = HashSet::new();
        // From the outermost directory to the one in hand.
        let mut open: Vec<Branch> = Vec::new();
        let top = path.names().len();
        self.walk(path, |found, node| {
            let names = found.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).count();
            close(&mut open, names - top);
            let last = || found.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let name = if open.is_empty() { [b"/", found].concat() } else { last().to_vec() };
            let counts = node.kind.is_regular() && node.ino.is_none_or(|ino| seen.insert(ino));
            open.push(Branch {
                name: NameText(name),
                kind: node.kind.word(),
                target: self.link_target(node)?,
                layer: node.number(),
                mode: format!("{:04o}", node.mode),
                size_bytes: if counts { node.size } else { 0 },
                files: u64::from(counts),
                opaque: node.opaque,
                children: (node.kind.is_directory() && names - top < depth).then(Vec::new),
                node: node.clone(),
                cut: false,
            });
            Ok::<_, InspectError>(Step::Into)
        })?;
        close(&mut open, 1);
        open.pop().ok_or_else(|| InspectError::NoPath {
            whole: self.whole().to_owned(),
            path: format!("/{}", super::text::printable(&path.to_bytes())),
            hint: String::new(),
        })
    }
}

/// Puts the branches from the `level`th on into those they are in.
fn close(open: &mut Vec<Branch>, level: usize) {
    while open.len() > level.max(1) {
        let Some(done) = open.pop() else { return };
        if let Some(outer) = open.last_mut() {
            outer.size_bytes = outer.size_bytes.saturating_add(done.size_bytes);
            outer.files += done.files;
            outer.cut |= done.cut || outer.children.is_none();
            if let Some(children) = &mut outer.children {
                children.push(done);
            }
        }
    }
}
