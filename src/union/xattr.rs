//! Extended attributes of the merged view.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::{NodeId, Place, Union, UnionError};
use crate::private::marks;
use crate::sys::inode;

impl Union {
    /// The target of symlink `id`.
    ///
    /// # Errors
    /// [`UnionError::Invalid`] for anything else.
    pub fn symlink_target(&self, id: NodeId) -> Result<Vec<u8>, UnionError> {
        match self.place(id)? {
            Place::Tree(inode) => Ok(self.tree.symlink_target(&inode)?.to_vec()),
            Place::Private(node) => Ok(inode::symlink_target(&*self.descriptor(&node)?)?),
        }
    }

    /// The value of one attribute.
    ///
    /// # Errors
    /// [`UnionError::NoAttribute`].
    pub fn xattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>, UnionError> {
        let value = match self.place(id)? {
            Place::Tree(inode) => self.tree.xattr(&inode, name)?.map(<[u8]>::to_vec),
            Place::Private(node) => inode::xattr(&*self.descriptor(&node)?, &marks::escape(name))?,
        };
        value.ok_or(UnionError::NoAttribute)
    }

    /// The names of all attributes.
    ///
    /// # Errors
    /// [`UnionError::Stale`]; the host's errno.
    pub fn xattr_names(&self, id: NodeId) -> Result<Vec<Vec<u8>>, UnionError> {
        match self.place(id)? {
            Place::Tree(inode) => self
                .tree
                .xattrs(&inode)?
                .map(|xattr| Ok(xattr?.0.to_vec()))
                .collect::<Result<_, UnionError>>(),
            Place::Private(node) => {
                let names = inode::xattr_names(&*self.descriptor(&node)?)?;
                Ok(names.iter().filter_map(|name| marks::unescape(name)).collect())
            }
        }
    }

    /// Sets an attribute, copying up metadata only.
    ///
    /// # Errors
    /// [`UnionError::Exists`] and [`UnionError::NoAttribute`] as `flags` ask.
    pub fn set_xattr(
        &self,
        id: NodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), UnionError> {
        let node = self.own(id)?;
        let fd = self.descriptor(&node)?;
        let _copied = self.await_copy(&node);
        inode::set_xattr(&*fd, &marks::escape(name), value, flags).map_err(refusal)
    }

    /// Removes an attribute, copying up metadata only.
    ///
    /// # Errors
    /// [`UnionError::NoAttribute`].
    pub fn remove_xattr(&self, id: NodeId, name: &[u8]) -> Result<(), UnionError> {
        // A missing attribute is no reason to copy anything up.
        if let Place::Tree(inode) = self.place(id)?
            && self.tree.xattr(&inode, name)?.is_none()
        {
            return Err(UnionError::NoAttribute);
        }
        let node = self.own(id)?;
        let fd = self.descriptor(&node)?;
        let _copied = self.await_copy(&node);
        inode::remove_xattr(&*fd, &marks::escape(name)).map_err(refusal)
    }
}

fn refusal(errno: Errno) -> UnionError {
    match errno {
        Errno::NODATA => UnionError::NoAttribute,
        Errno::EXIST => UnionError::Exists,
        errno => UnionError::Host(errno),
    }
}
