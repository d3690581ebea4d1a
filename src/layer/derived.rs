//! Whether what is made of other things is what making it anew gives.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::store::{Layers, LayersError, open_file};
use super::{Manifest, MergeError, Stack, merge};
use crate::sys::durable::{self, Existing};

/// How something derived was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derived {
    /// It is not there, and is made when it is needed.
    Absent,
    /// It is what making it anew gives.
    Right,
    /// It is something else.
    Wrong,
    /// It was something else, and was made anew.
    Replaced,
}

impl Layers {
    /// Merges the layers of `stack`, and nothing but them, and compares the stored tree with that;
    /// with `fix` a wrong one is replaced.
    ///
    /// # Errors
    /// [`LayersError`] if a layer cannot be read, or the tree not be replaced.
    pub fn check_tree(&self, stack: &Stack, fix: bool) -> Result<(Manifest, Derived), LayersError> {
        let mut tree: Option<Manifest> = None;
        for layer in stack.layers() {
            let fail = |source| LayersError::Merge { stack: stack.id(), layer: *layer, source };
            let manifest = self.load_verified(layer)?;
            let bytes = merge(tree.as_ref(), &manifest).map_err(fail)?;
            let merged = Manifest::from_bytes(bytes);
            tree = Some(merged.map_err(|source| fail(MergeError::Lower(source)))?);
        }
        let tree = tree.ok_or(LayersError::EmptyStack)?;
        let name = stack.id().to_string();
        let path = self.path.join("trees").join(&name);
        // Not while it is written or swept.
        let _alone = self.lock(&self.trees, FlockOperation::LockExclusive)?;
        let read = open_file(self.trees.as_fd(), &name).and_then(|file| {
            let mut bytes = Vec::new();
            let read = File::from(file).read_to_end(&mut bytes);
            read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            Ok(bytes)
        });
        let stored = match read {
            Err(Errno::NOENT) => Derived::Absent,
            Ok(bytes) if bytes == tree.as_bytes() => Derived::Right,
            Ok(_) | Err(_) if !fix => Derived::Wrong,
            Ok(_) | Err(_) => {
                let (directory, bytes) = (self.trees.as_fd(), tree.as_bytes());
                durable::write_file(directory, name.as_ref(), bytes, Existing::Replace)
                    .map_err(LayersError::io("write", path))?;
                Derived::Replaced
            }
        };
        Ok((tree, stored))
    }
}
