//! Reading what an inode holds: object, symlink target, extended attributes.

use crate::object::ObjectId;

use super::format::{OBJECT_LEN, Section, XATTR_LEN, XATTR_SET_LEN, digest_at, u32_at, u64_at};
use super::read::{Inode, Manifest, ObjectRef, damaged};
use super::{
    FileKind, MAX_TARGET_BYTES, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES, ManifestError,
};

impl Manifest {
    /// The object of a regular file (an empty file has one too); none for other kinds.
    ///
    /// # Errors
    /// [`ManifestError::Record`] if the object table has no such row.
    pub fn object(&self, inode: &Inode) -> Result<Option<ObjectId>, ManifestError> {
        let Some(index) = inode.object else { return Ok(None) };
        let record: &[u8; OBJECT_LEN] = self
            .record(Section::Objects, index)
            .ok_or_else(|| damaged(Section::Inodes, inode.ino.get() - 1, "it has no object"))?;
        Ok(Some(ObjectId::new(digest_at(record, 0))))
    }

    /// Number of objects in the object table.
    pub fn object_count(&self) -> u32 {
        self.count(Section::Objects)
    }

    /// The object table, in order of the digests.
    pub fn objects(&self) -> impl ExactSizeIterator<Item = ObjectRef> + '_ {
        self.section(Section::Objects).as_chunks::<OBJECT_LEN>().0.iter().map(|record| ObjectRef {
            id: ObjectId::new(digest_at(record, 0)),
            size: u64_at(record, 32),
            data_blocks: u64_at(record, 40),
        })
    }

    /// The part of the object table whose digests begin with `first`, in order.
    pub fn objects_beginning(&self, first: u8) -> impl Iterator<Item = ObjectId> + '_ {
        let (records, _) = self.section(Section::Objects).as_chunks::<OBJECT_LEN>();
        let from = records.partition_point(|record| record[0] < first);
        let part = records.get(from..).unwrap_or_default();
        part.iter()
            .take_while(move |record| record[0] == first)
            .map(|record| ObjectId::new(digest_at(record, 0)))
    }

    /// Where an object is in the object table; none if the manifest does not refer to it.
    pub fn object_index(&self, id: &ObjectId) -> Option<u32> {
        let (records, _) = self.section(Section::Objects).as_chunks::<OBJECT_LEN>();
        let wanted = id.digest().as_bytes().as_slice();
        let found = records.binary_search_by(|record| record[..32].cmp(wanted)).ok()?;
        u32::try_from(found).ok()
    }

    /// Length in bytes of an object that the manifest refers to; none if it does not.
    pub fn object_size(&self, id: &ObjectId) -> Option<u64> {
        let record: &[u8; OBJECT_LEN] = self.record(Section::Objects, self.object_index(id)?)?;
        Some(u64_at(record, 32))
    }

    /// The target of a symlink; empty for other kinds.
    ///
    /// # Errors
    /// [`ManifestError::Record`] if it points outside its section.
    pub fn symlink_target(&self, inode: &Inode) -> Result<&[u8], ManifestError> {
        if inode.kind != FileKind::Symlink {
            return Ok(&[]);
        }
        let bad = |problem| damaged(Section::Inodes, inode.ino.get() - 1, problem);
        if inode.second > MAX_TARGET_BYTES as u64 {
            return Err(bad("its target is too long"));
        }
        self.pooled(Section::Targets, inode.first, inode.second, bad)
    }

    /// The value of one extended attribute.
    ///
    /// # Errors
    /// [`ManifestError::Record`] for damage.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<&[u8]>, ManifestError> {
        for xattr in self.xattrs(inode)? {
            let (found, value) = xattr?;
            if found == name {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// All extended attributes as (name, value), in byte order of the names.
    ///
    /// # Errors
    /// [`ManifestError::Record`] for damage.
    pub fn xattrs(&self, inode: &Inode) -> Result<Xattrs<'_>, ManifestError> {
        if inode.xattr_count == 0 {
            return Ok(Xattrs { manifest: self, next: 0, end: 0 });
        }
        let bad = |problem| damaged(Section::Inodes, inode.ino.get() - 1, problem);
        let set: &[u8; XATTR_SET_LEN] = self
            .record(Section::XattrSets, inode.xattr_set)
            .ok_or_else(|| bad("it has no xattr set"))?;
        let (next, count) = (u32_at(set, 0), u32_at(set, 4));
        let end = next.checked_add(count).filter(|end| *end <= self.count(Section::Xattrs));
        match end {
            Some(end) if count == inode.xattr_count => Ok(Xattrs { manifest: self, next, end }),
            _ => Err(bad("its xattr set has another size")),
        }
    }

    pub(super) fn xattr_range(&self, next: u32, end: u32) -> Xattrs<'_> {
        Xattrs { manifest: self, next, end }
    }

    fn xattr_at(&self, index: u32) -> Result<(&[u8], &[u8]), ManifestError> {
        let bad = |problem| damaged(Section::Xattrs, index, problem);
        let record: &[u8; XATTR_LEN] =
            self.record(Section::Xattrs, index).ok_or_else(|| bad("there is none"))?;
        let field = |at| u64::from(u32_at(record, at));
        if field(4) > MAX_XATTR_NAME_BYTES as u64 || field(12) > MAX_XATTR_VALUE_BYTES as u64 {
            return Err(bad("it is too long"));
        }
        let name = self.pooled(Section::Names, field(0), field(4), bad)?;
        Ok((name, self.pooled(Section::XattrValues, field(8), field(12), bad)?))
    }
}

/// The extended attributes of one inode; see [`Manifest::xattrs`].
#[derive(Clone, Debug)]
pub struct Xattrs<'a> {
    manifest: &'a Manifest,
    next: u32,
    end: u32,
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let index = self.next;
        self.next += 1;
        Some(self.manifest.xattr_at(index))
    }
}
