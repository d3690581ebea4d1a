//! What the private layer takes on the disk, and which of its files somebody can still write
//! unseen.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Bytes, Node, NodeId, Union, UnionError};
use crate::layer::FileKind;
use crate::private::Allocated;
use crate::sys::inode;

/// What stat(2) counts blocks in.
const BLOCK_BYTES: u64 = 512;

impl Union {
    /// What the private layer has allocated, as du(1) counts, and what files have that
    /// have lost their last name and are still in use.
    ///
    /// # Errors
    /// The host's errno.
    pub fn allocated(&self) -> Result<Allocated, UnionError> {
        let Some(private) = &self.private else { return Ok(Allocated { bytes: 0, files: 0 }) };
        let mut all = private.allocated()?;
        let unlinked: Vec<Arc<Node>> = {
            let table = self.table.read();
            let files = table.nodes.values().filter(|node| node.kind == FileKind::Regular);
            files.filter(|node| node.is_unlinked()).cloned().collect()
        };
        for node in unlinked {
            let bytes = match self.node_bytes(&node) {
                // Nobody had it open, so it is gone from the disk; the kernel alone has not forgotten
                // its number yet, as after a revert.
                Err(UnionError::Stale) => continue,
                bytes => bytes?,
            };
            all.bytes = all.bytes.saturating_add(bytes);
            all.files = all.files.saturating_add(1);
        }
        Ok(all)
    }

    /// Bytes that the private file of `id` has allocated; 0 while its content is an object.
    ///
    /// # Errors
    /// The host's errno.
    pub fn file_bytes(&self, id: NodeId) -> Result<u64, UnionError> {
        match self.bytes(id)? {
            Bytes::Object(_) => Ok(0),
            Bytes::Private(node) => self.node_bytes(&node),
        }
    }

    fn node_bytes(&self, node: &Node) -> Result<u64, UnionError> {
        let status = inode::status(&*self.descriptor(node)?)?;
        Ok(status.blocks.saturating_mul(BLOCK_BYTES))
    }

    /// Files that a descriptor or a mapping may write in the kernel, past this process.
    pub fn written_unseen(&self) -> usize {
        let maybe: Vec<Arc<Node>> = {
            let table = self.table.read();
            let nodes = table.nodes.values();
            nodes.filter(|node| node.maybe_written.load(Ordering::Acquire)).cloned().collect()
        };
        maybe.iter().filter(|node| !self.prove_unwritten(node)).count()
    }
}
