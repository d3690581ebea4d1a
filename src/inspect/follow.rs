//! Paths as a program inside would take them: symbolic links followed, never out of the tree.

use std::collections::VecDeque;

use crate::layer::{FileKind, FileName, LayerPath};

use super::text::printable;
use super::{InspectError, Kind, Node, View};

/// Links followed in one path, at most, as in the kernel.
const MOST_LINKS: usize = 40;

impl View {
    /// What lies at `path` as seen from inside: every symbolic link on the way is followed, the
    /// last one too; `..` of the root is the root. Answers with the path that has no link in it.
    ///
    /// # Errors
    /// [`InspectError::NoPath`] with the nearest name, [`InspectError::Links`] for a loop,
    /// [`InspectError::Manifest`] for damage.
    pub fn follow(&self, path: &LayerPath) -> Result<(LayerPath, Node), InspectError> {
        let mut left: VecDeque<Vec<u8>> =
            path.names().iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut names: Vec<FileName> = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    names.pop();
                    continue;
                }
                name => {
                    let name = FileName::new(name).map_err(|source| {
                        crate::layer::PathError::Name { path: printable(name), source }
                    })?;
                    names.push(name);
                }
            }
            let node = self.get(&LayerPath::from_names(names.clone()))?;
            if node.kind != Kind::File(FileKind::Symlink) {
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                let path = format!("/{}", printable(&path.to_bytes()));
                return Err(InspectError::Links { whole: self.whole().to_owned(), path });
            }
            let target = self.target(&node)?;
            names.pop();
            if target.first() == Some(&b'/') {
                names.clear();
            }
            for part in target.split(|byte| *byte == b'/').rev() {
                left.push_front(part.to_vec());
            }
        }
        let path = LayerPath::from_names(names);
        let node = self.get(&path)?;
        Ok((path, node))
    }
}
