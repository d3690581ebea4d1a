//! One container's private directory, by whatever name people know it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::text::printable;
use super::upper::{Bytes, Entry, Found, Upper, UpperError};
use super::{InspectError, Library};
use crate::host::roots::RootError;
use crate::host::{RootRecord, nearest};
use crate::layer::{FileKind, FileName, LayerPath};
use crate::object::{ObjectError, ObjectId};
use crate::private::PrivateLayer;
use crate::private::listing::UpperKind;
use crate::sys::inode;
use crate::union::UnionError;

/// A container's changes, found.
pub struct Container {
    /// What the store knows of its root; none for a private directory that it does not know.
    pub record: Option<RootRecord>,
    /// The private directory.
    pub private: PathBuf,
    /// What is in it.
    pub upper: Upper,
}

/// The content of a file, as far as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of it; the target of a symlink.
    Whole(Vec<u8>),
    /// More than was asked for.
    TooLong,
    /// It is neither a regular file nor a symlink, or it is gone by now.
    None,
}

impl Library {
    /// The container that `word` means: a root's name or identity, its mountpoint, or a private
    /// directory, of a root that the store knows or of any other made on a stack it has.
    ///
    /// # Errors
    /// [`InspectError::Host`] with the nearest name if there is none; [`InspectError::ReadOnly`]
    /// for a root without changes.
    pub fn container(&self, word: &OsStr) -> Result<Container, InspectError> {
        let record = match self.roots().find(word) {
            Ok(record) => Some(record),
            Err(unknown @ RootError::Unknown { .. }) => {
                let path = Path::new(word);
                match PrivateLayer::recorded_stack(path) {
                    Ok(Some(_)) => None,
                    Err(error @ crate::private::PrivateError::Record { .. }) => {
                        return Err(error.into());
                    }
                    Ok(None) | Err(_) => return Err(unknown.into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        let private = match &record {
            Some(record) => record
                .private
                .clone()
                .ok_or_else(|| InspectError::ReadOnly { root: record.name.clone() })?,
            None => PathBuf::from(word),
        };
        let upper = Upper::open(&private, self.layers())?;
        Ok(Container { record, private, upper })
    }

    /// The content of an object, up to `limit` bytes.
    ///
    /// # Errors
    /// [`InspectError::Object`], also if it is not what its name says; [`InspectError::System`].
    pub fn object_content(&self, id: &ObjectId, limit: u64) -> Result<Content, InspectError> {
        let file = self.objects().open_object(id)?;
        let read = read_whole(limit, |buffer, at| file.read_at(buffer, at))
            .map_err(|source| InspectError::System { what: format!("read object {id}"), source })?;
        match &read {
            Content::Whole(bytes) if ObjectId::of(bytes) != *id => {
                Err(ObjectError::Altered(*id).into())
            }
            Content::Whole(_) | Content::TooLong | Content::None => Ok(read),
        }
    }
}

impl Container {
    /// What to call it in a sentence.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.record {
            Some(record) => format!("root {}", record.name),
            None => format!("private directory {}", self.private.display()),
        }
    }

    /// Tells whether the container or its template has anything at `path`.
    ///
    /// # Errors
    /// [`InspectError::NoPath`] with the nearest name if neither has; [`InspectError::Upper`].
    pub fn known(&self, path: &LayerPath) -> Result<(), InspectError> {
        let now = self.upper.resolve(path)?;
        if !matches!(now, Found::Absent { .. }) || self.upper.tree().resolve(path)?.is_some() {
            return Ok(());
        }
        Err(self.no_path(path))
    }

    /// Nothing lies at a path: with the name that was probably meant, where it leaves what there is.
    pub(super) fn no_path(&self, path: &LayerPath) -> InspectError {
        let hint = self.hint(path).ok().flatten();
        InspectError::NoPath {
            whole: self.describe(),
            path: format!("/{}", printable(&path.to_bytes())),
            hint: hint.map_or_else(String::new, |near| format!("; did you mean {near}?")),
        }
    }

    fn hint(&self, path: &LayerPath) -> Result<Option<String>, UpperError> {
        for (depth, name) in path.names().iter().enumerate() {
            let dir = LayerPath::from_names(path.names()[..depth].to_vec());
            if !matches!(self.upper.resolve(&dir.join(name.clone()))?, Found::Absent { .. }) {
                continue;
            }
            let names = self.names_in(&dir)?;
            let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name)).collect();
            let wanted = String::from_utf8_lossy(name.as_bytes());
            let near = nearest(&wanted, names.iter().map(AsRef::as_ref));
            let near = near.and_then(|near| FileName::new(near.as_bytes()).ok());
            let whole = |near| format!("/{}", printable(&dir.join(near).to_bytes()));
            return Ok(near.map(whole));
        }
        Ok(None)
    }

    /// The names that the container shows in a directory.
    fn names_in(&self, dir: &LayerPath) -> Result<BTreeSet<Vec<u8>>, UpperError> {
        let fail = |source: Errno| UpperError::at(dir, source);
        let (own, below) = match self.upper.resolve(dir)? {
            Found::Private(entry) if entry.kind == FileKind::Directory => {
                (self.upper.names(&entry.fd).map_err(fail)?, entry.origin)
            }
            Found::Tree(inode) => (Vec::new(), Some(inode.ino)),
            Found::Private(_) | Found::Absent { .. } => (Vec::new(), None),
        };
        let mut names = BTreeSet::new();
        if let Some(below) = below {
            let inode = self.upper.tree().inode(below).map_err(|e| UpperError::at(dir, e))?;
            for entry in self.upper.tree().entries(&inode) {
                names.insert(entry.map_err(|e| UpperError::at(dir, e))?.name.to_vec());
            }
        }
        for entry in own {
            if entry.kind == UpperKind::Whiteout {
                names.remove(&*entry.name);
            } else {
                names.insert(entry.name.into_vec());
            }
        }
        Ok(names)
    }

    /// The content of what lies at `path` now, up to `limit` bytes.
    ///
    /// # Errors
    /// [`InspectError::Upper`], [`InspectError::Object`], [`InspectError::System`].
    pub fn content(
        &self,
        library: &Library,
        path: &LayerPath,
        limit: u64,
    ) -> Result<Content, InspectError> {
        let tree = self.upper.tree();
        match self.upper.resolve(path)? {
            Found::Absent { .. } => Ok(Content::None),
            Found::Tree(inode) => match (tree.object(&inode)?, inode.kind) {
                (Some(id), _) => library.object_content(&id, limit),
                (None, FileKind::Symlink) => {
                    Ok(Content::Whole(tree.symlink_target(&inode)?.to_vec()))
                }
                (None, _) => Ok(Content::None),
            },
            Found::Private(entry) => {
                let bytes = self.upper.bytes(&entry);
                match bytes.map_err(|source| InspectError::upper(path, source))? {
                    Bytes::Object { id, .. } => library.object_content(&id, limit),
                    Bytes::Private => private_content(&entry, limit)
                        .map_err(|errno| InspectError::upper(path, errno)),
                }
            }
        }
    }
}

fn private_content(entry: &Entry, limit: u64) -> Result<Content, UnionError> {
    match entry.kind {
        FileKind::Symlink => Ok(Content::Whole(inode::symlink_target(&entry.fd)?)),
        FileKind::Regular => {
            let file = inode::reopen(&entry.fd, OFlags::RDONLY)?;
            let read = |buffer: &mut [u8], at| Ok(rustix::io::pread(file.as_fd(), buffer, at)?);
            let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Ok(read_whole(limit, read).map_err(failed)?)
        }
        FileKind::Directory
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::CharDevice
        | FileKind::BlockDevice => Ok(Content::None),
    }
}

fn read_whole(
    limit: u64,
    mut read: impl FnMut(&mut [u8], u64) -> std::io::Result<usize>,
) -> std::io::Result<Content> {
    let mut content = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let at = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let count = read(&mut buffer, at)?;
        if count == 0 {
            return Ok(Content::Whole(content));
        }
        content.extend_from_slice(&buffer[..count]);
        if u64::try_from(content.len()).unwrap_or(u64::MAX) > limit {
            return Ok(Content::TooLong);
        }
    }
}
