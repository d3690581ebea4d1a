//! The layers, trees and templates of one store.
//!
//! `layers/<digest>` are manifests, written once; `trees/<stack digest>` are merges of them,
//! which may vanish at any time and come back when they are asked for. A layer is durable
//! before its name exists, so after a crash a name is a whole layer. Knows nothing of objects
//! beyond their names: who publishes a layer has published its objects.
//!
//! An import keeps its layers from being collected through a second hard link in its staging
//! directory. Lock order: `layers/` or `trees/` (flock of the directory), never both.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::manifest::{Manifest, ManifestError};
use super::merge::{MergeError, merge};
use super::stack::{LayerId, Stack, StackId};
use super::template::TemplateName;
use super::templates::Templates;
use crate::object::crash_point;
use crate::sys::durable::{self, Existing};

/// Layers, merged trees and templates of a store.
#[derive(Debug)]
pub struct Layers {
    pub(super) path: PathBuf,
    layers: OwnedFd,
    pub(super) trees: OwnedFd,
    templates: Templates,
}

/// A failure with a layer, a tree or a template.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// A system call on a file of the store failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// No layer of that name is in the store.
    #[error(
        "layer {0} is missing from the store; import its template again with --replace to restore it"
    )]
    NoLayer(LayerId),
    /// The layer's manifest is damaged.
    #[error(
        "layer {id} is damaged ({source}); import its template again with --replace to restore it"
    )]
    Damaged {
        /// The layer.
        id: LayerId,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// The layer's manifest has another digest than its name.
    #[error(
        "layer {0} was altered: its content does not have that digest; \
         import its template again with --replace to restore it"
    )]
    Altered(LayerId),
    /// The bytes to be published are no layer.
    #[error("cannot publish a layer that is not valid")]
    Invalid(#[source] ManifestError),
    /// A stack without layers has no tree.
    #[error("a stack without layers cannot be merged")]
    EmptyStack,
    /// A layer of a stack cannot be merged.
    #[error("cannot merge layer {layer} of stack {stack}")]
    Merge {
        /// The stack.
        stack: StackId,
        /// The layer that does not fit.
        layer: LayerId,
        /// Why.
        source: MergeError,
    },
    /// No template has that name.
    #[error("there is no template \"{0}\"")]
    NoTemplate(TemplateName),
    /// The name is taken and was not to be replaced.
    #[error("template \"{0}\" exists already; pass --replace to move the name")]
    TemplateExists(TemplateName),
    /// A template's file is not what Mica wrote.
    #[error("template file {} is damaged", path.display())]
    TemplateDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A template's file was written by a newer version.
    #[error("template file {} has format {found}, which this version of mica does not know", path.display())]
    TemplateFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A file lies among the templates that is not one, or under another name than it says.
    #[error("{} does not lie where a template of its name belongs", path.display())]
    TemplateMisplaced {
        /// The file.
        path: PathBuf,
    },
}

impl LayersError {
    /// Whether the host file system was full, or a quota was.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    pub(super) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source: source.into() }
    }
}

/// A file of a store and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<Id> {
    /// Its name.
    pub id: Id,
    /// Its length in bytes.
    pub len_bytes: u64,
}

impl Layers {
    /// Opens the layers of the store at `store`, making the directories that are missing.
    ///
    /// # Errors
    /// [`LayersError::Io`].
    pub fn open(store: &Path) -> Result<Self, LayersError> {
        let open = |name: &str| {
            let path = store.join(name);
            open_or_make(&path).map_err(LayersError::io("open", path))
        };
        let templates = Templates::new(store.join("templates"), open("templates")?);
        Ok(Self {
            path: store.to_owned(),
            layers: open("layers")?,
            trees: open("trees")?,
            templates,
        })
    }

    /// The templates of the store.
    pub fn templates(&self) -> &Templates {
        &self.templates
    }

    /// Makes `bytes` a layer of the store. Durable on return, and kept from collection for as
    /// long as `staging` (the directory of an import) exists.
    ///
    /// # Errors
    /// [`LayersError::Invalid`] if they are no valid layer; [`LayersError::Io`] leaves nothing
    /// in `layers/`.
    pub fn publish(&self, staging: BorrowedFd<'_>, bytes: Vec<u8>) -> Result<LayerId, LayersError> {
        let id = LayerId::of(&bytes);
        let manifest = Manifest::from_bytes(bytes).map_err(LayersError::Invalid)?;
        manifest.validate().map_err(LayersError::Invalid)?;
        if manifest.is_tree() {
            let problem = "it is a tree";
            return Err(LayersError::Invalid(ManifestError::Header { problem }));
        }
        let path = self.layer_path(&id);
        let io = |action| LayersError::io::<io::Error>(action, path.clone());
        let _no_sweep = self.lock(&self.layers, FlockOperation::LockShared)?;
        let name = id.to_string();
        let pin = pin_name(&id);
        match self.pin_locked(staging, &id) {
            Ok(()) if self.load_verified(&id).is_ok() => {}
            Ok(()) | Err(LayersError::NoLayer(_)) => {
                unlink_if_there(staging, &pin).map_err(io("replace"))?;
                stage(staging, &pin, manifest.as_bytes()).map_err(io("stage"))?;
                // A damaged file under this name is replaced in the same step.
                let copy = format!("{pin}.new");
                unlink_if_there(staging, &copy).map_err(io("replace"))?;
                rustix::fs::linkat(staging, &pin, staging, &copy, AtFlags::empty())
                    .and_then(|()| rustix::fs::renameat(staging, &copy, &self.layers, &name))
                    .map_err(|errno| io("publish")(errno.into()))?;
            }
            Err(error) => return Err(error),
        }
        rustix::fs::fsync(&self.layers).map_err(|errno| io("make durable")(errno.into()))?;
        Ok(id)
    }

    /// Keeps a layer of the store from collection for as long as `staging` exists. An import
    /// does so with each layer it builds upon.
    ///
    /// # Errors
    /// [`LayersError::NoLayer`] and [`LayersError::Io`].
    pub fn pin(&self, staging: BorrowedFd<'_>, id: &LayerId) -> Result<(), LayersError> {
        let _no_sweep = self.lock(&self.layers, FlockOperation::LockShared)?;
        self.pin_locked(staging, id)
    }

    fn pin_locked(&self, staging: BorrowedFd<'_>, id: &LayerId) -> Result<(), LayersError> {
        let (name, pin) = (id.to_string(), pin_name(id));
        match rustix::fs::linkat(&self.layers, &name, staging, &pin, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(Errno::NOENT) => Err(LayersError::NoLayer(*id)),
            Err(errno) => Err(LayersError::io("pin", self.layer_path(id))(errno)),
        }
    }

    /// Opens a layer. Checks header and section table.
    ///
    /// # Errors
    /// [`LayersError::NoLayer`], [`LayersError::Damaged`] and [`LayersError::Io`].
    pub fn load(&self, id: &LayerId) -> Result<Manifest, LayersError> {
        let file = match open_file(self.layers.as_fd(), &id.to_string()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Err(LayersError::NoLayer(*id)),
            Err(errno) => return Err(LayersError::io("open", self.layer_path(id))(errno)),
        };
        let damaged = |source| LayersError::Damaged { id: *id, source };
        let manifest = Manifest::open(file).map_err(damaged)?;
        if manifest.is_tree() {
            return Err(LayersError::Altered(*id));
        }
        Ok(manifest)
    }

    /// Opens a layer and checks its digest, so that it says what it said when it was published.
    ///
    /// # Errors
    /// Those of [`Layers::load`], and [`LayersError::Altered`].
    pub fn load_authentic(&self, id: &LayerId) -> Result<Manifest, LayersError> {
        let manifest = self.load(id)?;
        if manifest.digest() != *id.digest() {
            return Err(LayersError::Altered(*id));
        }
        Ok(manifest)
    }

    /// Opens a layer and checks its digest and every record.
    ///
    /// # Errors
    /// Those of [`Layers::load`], and [`LayersError::Altered`].
    pub fn load_verified(&self, id: &LayerId) -> Result<Manifest, LayersError> {
        let manifest = self.load_authentic(id)?;
        manifest.validate().map_err(|source| LayersError::Damaged { id: *id, source })?;
        Ok(manifest)
    }

    /// All layers, in no order. Files that are no layers are passed over.
    ///
    /// # Errors
    /// [`LayersError::Io`].
    pub fn layers(&self) -> Result<Vec<Stored<LayerId>>, LayersError> {
        let found = list::<LayerId>(self.layers.as_fd());
        let found = found.map_err(LayersError::io("list", self.path.join("layers")))?;
        Ok(found.into_iter().map(|(stored, _)| stored).collect())
    }

    /// Layers that unfinished imports publish or build upon. Collection of objects counts them
    /// among the living.
    ///
    /// # Errors
    /// [`LayersError::Io`].
    pub fn pinned(&self) -> Result<Vec<LayerId>, LayersError> {
        let found = list::<LayerId>(self.layers.as_fd());
        let found = found.map_err(LayersError::io("list", self.path.join("layers")))?;
        Ok(found.into_iter().filter(|(_, links)| *links > 1).map(|(stored, _)| stored.id).collect())
    }

    /// Removes the layers that are neither pinned nor among those that `live` returns.
    ///
    /// `live` is asked after the candidates are known: an import that ended in between has
    /// its template written by then.
    ///
    /// # Errors
    /// What `live` answers, and [`LayersError::Io`].
    pub fn sweep<E: From<LayersError>>(
        &self,
        live: impl FnOnce() -> Result<HashSet<LayerId>, E>,
        dry_run: bool,
    ) -> Result<Vec<Stored<LayerId>>, E> {
        let _alone = self.lock(&self.layers, FlockOperation::LockExclusive)?;
        let found = list::<LayerId>(self.layers.as_fd())
            .map_err(LayersError::io("list", self.path.join("layers")))?;
        let live = live()?;
        let mut swept = Vec::new();
        for (stored, links) in found {
            if links > 1 || live.contains(&stored.id) {
                continue;
            }
            if !dry_run {
                unlink_if_there(self.layers.as_fd(), &stored.id.to_string())
                    .map_err(LayersError::io("remove", self.layer_path(&stored.id)))?;
                crash_point("layer removed");
            }
            swept.push(stored);
        }
        Ok(swept)
    }

    /// The merged tree of `stack`: as stored if its header, section table and stack are good,
    /// merged anew and stored otherwise.
    ///
    /// Merging reads and checks all layers. If the store cannot take the new tree (it is full
    /// or read-only), the tree is kept in memory only.
    ///
    /// # Errors
    /// [`LayersError::EmptyStack`], [`LayersError::Merge`], those of
    /// [`Layers::load_verified`].
    pub fn tree(&self, stack: &Stack) -> Result<Manifest, LayersError> {
        if let Some(tree) = self.stored_tree(stack) {
            return Ok(tree);
        }
        // Two mounts of one new template merge once. Without the lock both do, which is as right.
        let _alone = self.lock(&self.trees, FlockOperation::LockExclusive);
        match self.stored_tree(stack) {
            Some(tree) => Ok(tree),
            None => self.merge_and_store(stack),
        }
    }

    /// As [`Layers::tree`], but a stored tree also has to match its content digest.
    ///
    /// # Errors
    /// Those of [`Layers::tree`].
    pub fn tree_verified(&self, stack: &Stack) -> Result<Manifest, LayersError> {
        // As in `tree`.
        let _alone = self.lock(&self.trees, FlockOperation::LockExclusive);
        match self.stored_tree(stack) {
            Some(tree) if tree.verify_digest().is_ok() => Ok(tree),
            _ => self.merge_and_store(stack),
        }
    }

    fn stored_tree(&self, stack: &Stack) -> Option<Manifest> {
        let file = open_file(self.trees.as_fd(), &stack.id().to_string()).ok()?;
        let tree = Manifest::open(file).ok()?;
        (tree.is_tree() && tree.stack() == *stack).then_some(tree)
    }

    fn merge_and_store(&self, stack: &Stack) -> Result<Manifest, LayersError> {
        let bytes = self.merge_stack(stack)?;
        let name = stack.id().to_string();
        let stored = durable::write_file(
            self.trees.as_fd(),
            name.as_ref(),
            bytes.as_bytes(),
            Existing::Replace,
        );
        match stored {
            Ok(()) => Ok(self.stored_tree(stack).unwrap_or(bytes)),
            Err(error) => {
                tracing::info!(stack = %name, %error, "the merged tree cannot be stored");
                Ok(bytes)
            }
        }
    }

    /// Merges the layers of `stack` above its longest prefix that has a good tree.
    fn merge_stack(&self, stack: &Stack) -> Result<Manifest, LayersError> {
        let layers = stack.layers();
        let mut tree = None;
        let mut done = 0;
        for len in (1..layers.len()).rev() {
            let below = self.stored_tree(&Stack::new(layers[..len].to_vec()));
            if let Some(below) = below.filter(|below| below.validate().is_ok()) {
                (tree, done) = (Some(below), len);
                break;
            }
        }
        for layer in &layers[done..] {
            let fail = |source| LayersError::Merge { stack: stack.id(), layer: *layer, source };
            let manifest = self.load_verified(layer)?;
            let bytes = merge(tree.as_ref(), &manifest).map_err(fail)?;
            let merged = Manifest::from_bytes(bytes);
            tree = Some(merged.map_err(|source| fail(MergeError::Lower(source)))?);
        }
        tree.ok_or(LayersError::EmptyStack)
    }

    /// Removes the stored trees that are not in `live`, and what interrupted writers left.
    /// Mounted trees stay usable.
    ///
    /// # Errors
    /// [`LayersError::Io`].
    pub fn sweep_trees(
        &self,
        live: &HashSet<StackId>,
        dry_run: bool,
    ) -> Result<Vec<Stored<StackId>>, LayersError> {
        let path = self.path.join("trees");
        let _alone = self.lock(&self.trees, FlockOperation::LockExclusive)?;
        let dead = |(stored, _): &(Stored<StackId>, u64)| !live.contains(&stored.id);
        let found = list(self.trees.as_fd()).map_err(LayersError::io("list", &path))?;
        let swept: Vec<_> = found.into_iter().filter(dead).map(|(stored, _)| stored).collect();
        if !dry_run {
            for stored in &swept {
                unlink_if_there(self.trees.as_fd(), &stored.id.to_string())
                    .map_err(LayersError::io("remove", &path))?;
                crash_point("tree removed");
            }
            // Writers hold the lock: what is staged now belongs to nobody.
            remove_staged(self.trees.as_fd()).map_err(LayersError::io("clean", &path))?;
        }
        Ok(swept)
    }

    fn layer_path(&self, id: &LayerId) -> PathBuf {
        self.path.join("layers").join(id.to_string())
    }

    /// Locks one of the directories until the returned descriptor is closed.
    pub(super) fn lock(
        &self,
        dir: &OwnedFd,
        operation: FlockOperation,
    ) -> Result<OwnedFd, LayersError> {
        // A flock belongs to an open file: each holder needs its own.
        open_dir(dir.as_fd(), ".")
            .and_then(|fd| {
                rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, operation))?;
                Ok(fd)
            })
            .map_err(LayersError::io("lock", &self.path))
    }
}

fn pin_name(id: &LayerId) -> String {
    format!("layer-{id}")
}

fn stage(staging: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(staging, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(bytes)?;
    rustix::fs::fchmod(&file, Mode::RUSR | Mode::RGRP | Mode::ROTH)?;
    file.sync_all()
}

pub(super) fn open_file(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    if kind == rustix::fs::FileType::RegularFile { Ok(file) } else { Err(Errno::INVAL) }
}

pub(super) fn open_dir(dir: BorrowedFd<'_>, name: impl Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn open_or_make(path: &Path) -> Result<OwnedFd, Errno> {
    let open = || open_dir(rustix::fs::CWD, path);
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open(),
        // A read-only store is still good for reading.
        Err(errno) => open().map_err(|_| errno),
    }
}

pub(super) fn unlink_if_there(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes what [`durable::write_file`] left in `dir` when it was interrupted.
fn remove_staged(dir: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
        if durable::is_staged(name) {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
        }
    }
    Ok(())
}

/// The files of `dir` that are named by a digest, with their number of hard links.
fn list<Id: std::str::FromStr>(dir: BorrowedFd<'_>) -> io::Result<Vec<(Stored<Id>, u64)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let len_bytes = u64::try_from(stat.st_size).unwrap_or_default();
                found.push((Stored { id, len_bytes }, stat.st_nlink));
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
