//! Where a path of a container comes from, and why it is not shared any more.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;

use super::changes::{Change, ChangeKind, Changes, Side};
use super::upper::{Bytes, Entry, Found};
use super::{Container, InspectError, Library};
use crate::layer::{FileKind, Inode, LayerId, LayerPath, TemplateName};
use crate::object::{Digest, ObjectId};
use crate::sys::inode;
use crate::union::UnionError;

/// What a path of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The template's, untouched.
    Shared,
    /// Its metadata is the container's own; its content, if it has any, is shared.
    Metadata,
    /// Its content is the container's own copy.
    Private,
    /// The container made it; the template has nothing here.
    Added,
    /// The template has it, the container removed it.
    Removed,
}

/// The answer to "why is this here".
#[derive(Clone, Debug)]
pub struct Why {
    /// What it is.
    pub state: State,
    /// What the root shows; none if it was removed.
    pub now: Option<Side>,
    /// What the template has, here or where it was moved from.
    pub source: Option<Source>,
    /// What the container's own copy costs, if it has one.
    pub private: Option<Private>,
    /// Where the template has it, if it was moved.
    pub moved_from: Option<LayerPath>,
    /// Another name of the same file in the template, if this name was added to it.
    pub link_to: Option<LayerPath>,
    /// Of a directory: how many paths below it the container changed.
    pub changes_below: u64,
}

/// Where the template has a path from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The layer whose record it is.
    pub layer: LayerId,
    /// Position of the layer in the stack, lowest 1.
    pub position: usize,
    /// Layers of the stack.
    pub layers: usize,
    /// Templates that end with this layer, on the layers that are below it here.
    pub templates: Vec<TemplateName>,
    /// What it is.
    pub side: Side,
}

/// The container's own copy.
#[derive(Clone, Debug)]
pub struct Private {
    /// When the copy was made, where the host file system knows.
    pub since: Option<(i64, u32)>,
    /// When it last changed.
    pub changed: (i64, u32),
    /// Bytes that it takes on the host's disk.
    pub disk_bytes: u64,
    /// What its content was found to be, if it is a regular file of its own.
    pub content: Option<Comparison>,
}

/// A private content, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The digest of the content.
    pub digest: ObjectId,
    /// The store has an object of this content.
    pub in_store: bool,
    /// It is the content that the template has.
    pub as_template: bool,
    /// It was written to meanwhile: the digest may be that of no version.
    pub unsteady: bool,
}

impl Library {
    /// Tells where `path` of `container` comes from. Reads the content of a private file.
    ///
    /// # Errors
    /// [`InspectError::NoPath`] if neither the root nor the template has it;
    /// [`InspectError::Upper`] for damage.
    pub fn why(&self, container: &Container, path: &LayerPath) -> Result<Why, InspectError> {
        let upper = &container.upper;
        let fail = |source: UnionError| InspectError::upper(path, source);
        let found = upper.resolve(path)?;
        let changes = match &found {
            // Nothing below an untouched file was changed, and it was not moved.
            Found::Tree(inode) if inode.kind != FileKind::Directory => None,
            Found::Tree(_) | Found::Private(_) | Found::Absent { .. } => Some(Changes::of(upper)?),
        };
        let (own, below) = changes.as_ref().map_or((None, 0), |changes| about(changes, path));
        let (moved_from, link_to) = match own.map(|change| &change.kind) {
            Some(ChangeKind::Moved { from, .. }) => (Some(from.clone()), None),
            Some(ChangeKind::Added { link_to }) => (None, link_to.clone()),
            Some(_) | None => (None, None),
        };
        let none = Why {
            state: State::Shared,
            now: None,
            source: None,
            private: None,
            moved_from,
            link_to,
            changes_below: below,
        };
        match found {
            Found::Tree(inode) => Ok(Why {
                now: Some(Side::of_tree(upper.tree(), &inode)?),
                source: Some(self.source(container, &inode)?),
                ..none
            }),
            Found::Private(entry) => {
                let bytes = upper.bytes(&entry).map_err(fail)?;
                let here = upper.tree().resolve(path)?;
                let origin = entry.origin.map(|ino| upper.tree().inode(ino)).transpose()?;
                let source = origin.or(here).map(|inode| self.source(container, &inode));
                let source = source.transpose()?;
                let shared_kind = entry.kind != FileKind::Regular && entry.origin.is_some();
                let state = match (&source, bytes) {
                    (None, _) => State::Added,
                    (Some(_), Bytes::Object { .. }) => State::Metadata,
                    (Some(_), Bytes::Private) if shared_kind => State::Metadata,
                    (Some(_), Bytes::Private) => State::Private,
                };
                let private = self.private(&entry, &bytes, source.as_ref()).map_err(fail)?;
                let now = Some(Side::of_entry(&entry, &bytes));
                Ok(Why { state, now, source, private: Some(private), ..none })
            }
            Found::Absent { .. } => match upper.tree().resolve(path)? {
                Some(inode) => {
                    let source = Some(self.source(container, &inode)?);
                    Ok(Why { state: State::Removed, source, ..none })
                }
                None => Err(container.no_path(path)),
            },
        }
    }

    fn source(&self, container: &Container, inode: &Inode) -> Result<Source, InspectError> {
        let (tree, stack) = (container.upper.tree(), container.upper.stack());
        let index = tree.origin(inode.ino)?.map_or(0, |origin| origin.layer);
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let layer =
            stack.layers().get(index).copied().ok_or(crate::layer::ManifestError::Header {
                problem: "an origin names no layer",
            })?;
        let below = &stack.layers()[..=index];
        let templates = self.templates()?.into_iter();
        Ok(Source {
            layer,
            position: index + 1,
            layers: stack.layers().len(),
            templates: templates
                .filter(|template| template.stack.layers() == below)
                .map(|template| template.name)
                .collect(),
            side: Side::of_tree(tree, inode)?,
        })
    }

    fn private(
        &self,
        entry: &Entry,
        bytes: &Bytes,
        source: Option<&Source>,
    ) -> Result<Private, UnionError> {
        let content = match (entry.kind, bytes) {
            (FileKind::Regular, Bytes::Private) => {
                let file = inode::reopen(&entry.fd, OFlags::RDONLY)?;
                let digest = hash(&file)?;
                let now = inode::status(&file)?;
                let was = &entry.status;
                Some(Comparison {
                    digest,
                    in_store: self.objects().open_object(&digest).is_ok(),
                    as_template: source.and_then(|source| source.side.object) == Some(digest),
                    unsteady: (was.size, was.mtime, was.ctime) != (now.size, now.mtime, now.ctime),
                })
            }
            _ => None,
        };
        Ok(Private {
            since: inode::birth(&entry.fd)?,
            changed: entry.status.ctime,
            disk_bytes: entry.status.blocks.saturating_mul(512),
            content,
        })
    }
}

/// The change at `path`, and the number of those below it.
fn about<'a>(changes: &'a Changes, path: &LayerPath) -> (Option<&'a Change>, u64) {
    let (mut own, mut below) = (None, 0);
    for change in changes.iter() {
        let place = changes.path(change);
        if place == *path {
            own = Some(change);
        } else if place.names().starts_with(path.names()) {
            below += 1;
        }
    }
    (own, below)
}

/// The digest of a file's content.
fn hash(file: &OwnedFd) -> Result<ObjectId, UnionError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    loop {
        let count = rustix::io::pread(file.as_fd(), buffer.as_mut_slice(), at)?;
        if count == 0 {
            return Ok(ObjectId::new(Digest::from_bytes(*hasher.finalize().as_bytes())));
        }
        hasher.update(&buffer[..count]);
        at += u64::try_from(count).unwrap_or(u64::MAX);
    }
}
