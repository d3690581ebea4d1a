//! Paths as a program inside would take them: symbolic links followed, never out of the tree.

use std::collections::VecDeque;

use crate::layer::{FileKind, FileName, LayerPath};

use super::text::printable;
use super::{Container, InspectError, Kind, Node, View};
use crate::sys::inode;
use crate::union::upper::Found;

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
        let target = |path: &LayerPath| {
            let node = self.get(path)?;
            let is_link = node.kind == Kind::File(FileKind::Symlink);
            is_link.then(|| Ok(self.target(&node)?.to_vec())).transpose()
        };
        let path = walk(path, true, || self.whole().to_owned(), target)?;
        let node = self.get(&path)?;
        Ok((path, node))
    }
}

impl Container {
    /// The path that `path` means inside: itself if the container or its template has something
    /// there, else with the symbolic links of directories on the way followed (`/bin/sh` on a Debian
    /// whose `/bin` is a link). Where neither has anything it stays as it is.
    ///
    /// # Errors
    /// [`InspectError::Links`] for a loop, [`InspectError::Upper`] for damage.
    pub fn meant(&self, path: &LayerPath) -> Result<LayerPath, InspectError> {
        if self.known(path).is_ok() {
            return Ok(path.clone());
        }
        let followed = self.follow(path, false)?;
        Ok(if self.known(&followed).is_ok() { followed } else { path.clone() })
    }

    /// The path without links that `path` leads to now; with `last` the last one is followed, too.
    ///
    /// # Errors
    /// As [`Container::meant`].
    pub fn follow(&self, path: &LayerPath, last: bool) -> Result<LayerPath, InspectError> {
        let tree = self.upper.tree();
        let target = |path: &LayerPath| {
            let found = self.upper.resolve(path)?;
            Ok(match found {
                Found::Tree(inode) if inode.kind == FileKind::Symlink => {
                    Some(tree.symlink_target(&inode)?.to_vec())
                }
                Found::Private(entry) if entry.kind == FileKind::Symlink => {
                    let target = inode::symlink_target(&entry.fd);
                    Some(target.map_err(|errno| InspectError::upper(path, errno))?)
                }
                Found::Tree(_) | Found::Private(_) | Found::Absent { .. } => None,
            })
        };
        walk(path, last, || self.describe(), target)
    }
}

/// Walks `path` as from inside; `target` tells where what lies at a path leads, if that is a link, and
/// `whole` what it all belongs to.
fn walk(
    path: &LayerPath,
    last: bool,
    whole: impl Fn() -> String,
    target: impl Fn(&LayerPath) -> Result<Option<Vec<u8>>, InspectError>,
) -> Result<LayerPath, InspectError> {
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
                let name = FileName::new(name).map_err(|source| crate::layer::PathError::Name {
                    path: printable(name),
                    source,
                })?;
                names.push(name);
            }
        }
        if left.is_empty() && !last {
            break;
        }
        let Some(target) = target(&LayerPath::from_names(names.clone()))? else { continue };
        links += 1;
        if links > MOST_LINKS {
            let path = format!("/{}", printable(&path.to_bytes()));
            return Err(InspectError::Links { whole: whole(), path });
        }
        names.pop();
        if target.first() == Some(&b'/') {
            names.clear();
        }
        for part in target.split(|byte| *byte == b'/').rev() {
            left.push_front(part.to_vec());
        }
    }
    Ok(LayerPath::from_names(names))
}
