//! Reading where an inode is: its names, its path, the layer it comes from.

use crate::layer::path::LayerPath;
use crate::layer::stack::{LayerId, Stack};

use super::format::{LINK_LEN, ORIGIN_LEN, STACK_LEN, Section, digest_at, u32_at};
use super::read::{Inode, Manifest, Origin, damaged};
use super::{FileKind, ManifestError, TreeIno};

impl Manifest {
    /// Every name of an inode as (directory, name), the first name first. Empty for the root
    /// and for hidden inodes.
    ///
    /// # Errors
    /// [`ManifestError::Record`] for damage.
    pub fn links(
        &self,
        ino: TreeIno,
    ) -> Result<impl ExactSizeIterator<Item = (TreeIno, &[u8])>, ManifestError> {
        let inode = self.inode(ino)?;
        let mut links = Vec::new();
        if ino != TreeIno::ROOT && inode.nlink > 0 {
            if inode.nlink == 1 || inode.kind == FileKind::Directory {
                links.push((inode.parent, self.name(&inode)?));
            } else {
                let all = self.count(Section::Links);
                let mut index = self.first_link(ino);
                while index < all {
                    let (of, dir, name) = self.link(index)?;
                    if of != ino {
                        break;
                    }
                    links.push((dir, name));
                    index += 1;
                }
            }
        }
        Ok(links.into_iter())
    }

    /// Index of the first record of the links section that is not before `ino`.
    fn first_link(&self, ino: TreeIno) -> u32 {
        let (mut low, mut high) = (0, self.count(Section::Links));
        while low < high {
            let middle = low + (high - low) / 2;
            let of = self.record::<LINK_LEN>(Section::Links, middle).map(|link| u32_at(link, 0));
            if of < Some(ino.get()) { low = middle + 1 } else { high = middle }
        }
        low
    }

    pub(super) fn link(&self, index: u32) -> Result<(TreeIno, TreeIno, &[u8]), ManifestError> {
        let bad = |problem| damaged(Section::Links, index, problem);
        let record: &[u8; LINK_LEN] =
            self.record(Section::Links, index).ok_or_else(|| bad("there is none"))?;
        let of = TreeIno::new(u32_at(record, 0)).ok_or_else(|| bad("it has no inode"))?;
        let dir = TreeIno::new(u32_at(record, 4)).ok_or_else(|| bad("it has no directory"))?;
        let (offset, len) = (u64::from(u32_at(record, 8)), u64::from(u32_at(record, 12)));
        Ok((of, dir, self.pooled(Section::Names, offset, len, bad)?))
    }

    /// Where a tree's inode number comes from; none in a layer. Never changes for a number,
    /// however many layers are put on top.
    ///
    /// # Errors
    /// [`ManifestError::NoInode`] beyond the last one, [`ManifestError::Record`] for damage.
    pub fn origin(&self, ino: TreeIno) -> Result<Option<Origin>, ManifestError> {
        if !self.is_tree() {
            return Ok(None);
        }
        let index = ino.get() - 1;
        let record: &[u8; ORIGIN_LEN] =
            self.record(Section::Origins, index).ok_or(ManifestError::NoInode(ino.get()))?;
        let in_layer = TreeIno::new(u32_at(record, 4))
            .ok_or_else(|| damaged(Section::Origins, index, "it has no inode"))?;
        Ok(Some(Origin { layer: u32_at(record, 0), ino: in_layer }))
    }

    /// The tree inode that was given to an origin, the inverse of [`Manifest::origin`].
    pub fn by_origin(&self, origin: Origin) -> Option<TreeIno> {
        let wanted = (origin.layer, origin.ino.get());
        let (records, _) = self.section(Section::Origins).as_chunks::<ORIGIN_LEN>();
        let found = records
            .binary_search_by_key(&wanted, |record| (u32_at(record, 0), u32_at(record, 4)))
            .ok()?;
        TreeIno::new(u32::try_from(found).ok()?.checked_add(1)?)
    }

    /// The layers a tree was merged from, lowest first; empty in a layer.
    pub fn stack(&self) -> Stack {
        let (records, _) = self.section(Section::Stack).as_chunks::<STACK_LEN>();
        Stack::new(records.iter().map(|record| LayerId::new(digest_at(record, 0))).collect())
    }

    /// Finds the inode at `path`, following no symlink; none if a name is missing or a
    /// parent is no directory.
    ///
    /// # Errors
    /// [`ManifestError::Record`] for damage on the way.
    pub fn resolve(&self, path: &LayerPath) -> Result<Option<Inode>, ManifestError> {
        let mut inode = self.root()?;
        for name in path.names() {
            let entry = self.lookup(&inode, name.as_bytes())?;
            let Some(ino) = entry.and_then(|entry| entry.ino) else { return Ok(None) };
            inode = self.inode(ino)?;
        }
        Ok(Some(inode))
    }

    /// The path of an inode by its first name; a hidden inode's last path.
    ///
    /// # Errors
    /// [`ManifestError::Record`] for damage on the way.
    pub fn path(&self, inode: &Inode) -> Result<Vec<u8>, ManifestError> {
        let mut names = Vec::new();
        let mut at = *inode;
        while at.ino != TreeIno::ROOT {
            names.push(self.name(&at)?);
            let parent = self.inode(at.parent)?;
            if parent.kind != FileKind::Directory {
                let index = at.ino.get() - 1;
                return Err(damaged(Section::Inodes, index, "its parent is no directory"));
            }
            at = parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }
}
