//! The full check of a manifest: every record, every order, every cross-reference.
//!
//! Linear in the size of the file. What passes here behaves: each name leads to an inode of
//! the kind it says, each inode is reachable or marked hidden, link counts are true.

use crate::layer::name::check_name;
use crate::object::Digest;

use super::format::{
    ENTRY_LEN, FLAG_HIDDEN, FLAG_IMPLICIT, FLAG_OPAQUE, OBJECT_LEN, ORIGIN_LEN, Section,
    XATTR_SET_LEN, inode, name_prefix, u16_at, u32_at, u64_at,
};
use super::read::{EntryKind, Manifest, damaged};
use super::{FileKind, MODE_BITS, ManifestError, TreeIno};

impl Manifest {
    /// Checks everything that [`Manifest::open`] leaves unread: the content digest and every
    /// record.
    ///
    /// # Errors
    /// The first damage found.
    pub fn validate(&self) -> Result<(), ManifestError> {
        self.verify_digest()?;
        self.check_records()
    }

    /// Checks the digest over everything behind the header. A tree that passes is what Mica
    /// wrote.
    ///
    /// # Errors
    /// [`ManifestError::BodyDigest`].
    pub fn verify_digest(&self) -> Result<(), ManifestError> {
        let body = self.as_bytes().get(self.header().body_start..).unwrap_or_default();
        if Digest::of(body) == self.header().body_digest {
            Ok(())
        } else {
            Err(ManifestError::BodyDigest)
        }
    }

    fn check_records(&self) -> Result<(), ManifestError> {
        if self.is_empty() {
            return Err(ManifestError::NoInode(TreeIno::ROOT.get()));
        }
        self.check_objects()?;
        self.check_xattr_sets()?;
        let names = self.check_directories()?;
        self.check_inodes(&names)?;
        self.check_links(&names)?;
        self.check_origins()
    }

    fn check_objects(&self) -> Result<(), ManifestError> {
        let mut last = None;
        for (index, row) in (0..).zip(self.objects()) {
            if last.is_some_and(|last| last >= row.id) {
                return Err(damaged(Section::Objects, index, "objects are not in order"));
            }
            last = Some(row.id);
        }
        Ok(())
    }

    /// Sets tile the xattrs, so that one set is not read once for each of many owners in vain.
    fn check_xattr_sets(&self) -> Result<(), ManifestError> {
        let mut next = 0;
        let mut values = 0;
        for index in 0..self.count(Section::XattrSets) {
            let bad = |problem| damaged(Section::XattrSets, index, problem);
            let set: &[u8; XATTR_SET_LEN] =
                self.record(Section::XattrSets, index).ok_or_else(|| bad("there is none"))?;
            let (first, count) = (u32_at(set, 0), u32_at(set, 4));
            if first != next || count == 0 {
                return Err(bad("sets do not follow each other"));
            }
            next = first.checked_add(count).ok_or_else(|| bad("it is too long"))?;
            if next > self.count(Section::Xattrs) {
                return Err(bad("it points outside the xattrs"));
            }
            let mut last: &[u8] = b"";
            for xattr in self.xattr_range(first, next) {
                let (name, value) = xattr?;
                if name <= last {
                    return Err(bad("names are not in order"));
                }
                if name.contains(&0) {
                    return Err(bad("a name holds a NUL byte"));
                }
                values += value.len();
                last = name;
            }
        }
        if next != self.count(Section::Xattrs) {
            return Err(damaged(Section::Xattrs, next, "it is in no set"));
        }
        // Values are not shared: all of them together are no more than the file.
        if values != self.section(Section::XattrValues).len() {
            return Err(damaged(Section::XattrSets, 0, "its values are not those of the section"));
        }
        Ok(())
    }

    /// Checks all names and counts them per inode; the first name and its directory are
    /// those of the inode record.
    fn check_directories(&self) -> Result<Vec<u32>, ManifestError> {
        let mut names = vec![0_u32; self.len() as usize];
        let mut next = 0;
        for ino in (1..=self.len()).filter_map(TreeIno::new) {
            let dir = self.inode(ino)?;
            if dir.kind != FileKind::Directory {
                continue;
            }
            let (first, end) = self.entry_range(&dir)?;
            if first != end && first != next {
                let problem = "directories do not follow each other";
                return Err(damaged(Section::Inodes, ino.get() - 1, problem));
            }
            if first != end {
                next = end;
            }
            let mut last: &[u8] = b"";
            for (at, entry) in (first..).zip(self.entries(&dir)) {
                let entry = entry?;
                let bad = |problem| damaged(Section::Entries, at, problem);
                let record: &[u8; ENTRY_LEN] =
                    self.record(Section::Entries, at).ok_or_else(|| bad("there is none"))?;
                if check_name(entry.name).is_err() {
                    return Err(bad("it is not a file name"));
                }
                if entry.name <= last {
                    return Err(bad("names are not in order"));
                }
                if u32_at(record, 12) != name_prefix(entry.name) || u16_at(record, 6) != 0 {
                    return Err(bad("its prefix is not that of its name"));
                }
                last = entry.name;
                let (EntryKind::Inode(kind), Some(ino)) = (entry.kind, entry.ino) else {
                    continue;
                };
                let named = self.inode(ino)?;
                if named.kind != kind {
                    return Err(bad("it names an inode of another kind"));
                }
                let count = &mut names[ino.get() as usize - 1];
                if *count > 0 && kind == FileKind::Directory {
                    return Err(bad("a directory has two names"));
                }
                if *count == 0 && (named.parent != dir.ino || self.name(&named)? != entry.name) {
                    return Err(bad("its inode says another first name"));
                }
                *count += 1;
            }
        }
        if next != self.count(Section::Entries) {
            return Err(damaged(Section::Entries, next, "it is in no directory"));
        }
        Ok(names)
    }

    fn check_inodes(&self, names: &[u32]) -> Result<(), ManifestError> {
        let mut subdirectories = vec![0_u32; names.len()];
        for ino in (2..=self.len()).filter_map(TreeIno::new) {
            let inode = self.inode(ino)?;
            let named = names[ino.get() as usize - 1] > 0;
            if inode.kind == FileKind::Directory && named {
                subdirectories[inode.parent.get() as usize - 1] += 1;
            }
        }
        for ino in (1..=self.len()).filter_map(TreeIno::new) {
            let slot = ino.get() as usize - 1;
            self.check_inode(ino, names[slot], subdirectories[slot])?;
        }
        Ok(())
    }

    fn check_inode(
        &self,
        ino: TreeIno,
        names: u32,
        subdirectories: u32,
    ) -> Result<(), ManifestError> {
        let index = ino.get() - 1;
        let bad = |problem| damaged(Section::Inodes, index, problem);
        let found = self.inode(ino)?;
        let record: &[u8; 64] =
            self.record(Section::Inodes, index).ok_or(ManifestError::NoInode(ino.get()))?;
        let is_root = ino == TreeIno::ROOT;
        let is_directory = found.kind == FileKind::Directory;

        let flags = record[inode::FLAGS];
        let hidden = flags & FLAG_HIDDEN != 0;
        let allowed = match (self.is_tree(), is_directory) {
            (false, true) => FLAG_OPAQUE | FLAG_IMPLICIT,
            (false, false) => 0,
            (true, _) => FLAG_HIDDEN,
        };
        if flags & !allowed != 0 {
            return Err(bad("unknown flags"));
        }
        if hidden != (names == 0 && !is_root) {
            return Err(bad("it has no name"));
        }
        let nlink = match (hidden, is_directory) {
            (true, _) => 0,
            (false, true) => 2 + subdirectories,
            (false, false) => names,
        };
        if u32_at(record, inode::NLINK) != nlink {
            return Err(bad("its link count is wrong"));
        }
        if u32::from(u16_at(record, inode::MODE)) & !MODE_BITS != 0 {
            return Err(bad("unknown mode bits"));
        }
        let name = self.name(&found)?;
        if is_root != name.is_empty() || (!is_root && check_name(name).is_err()) {
            return Err(bad("it is not a file name"));
        }
        let parent = self.inode(found.parent)?;
        if parent.kind != FileKind::Directory || (parent.is_hidden() && !hidden) {
            return Err(bad("its parent is no directory"));
        }
        if hidden && self.entry_count(&found) > 0 {
            return Err(bad("a hidden directory has names"));
        }
        if found.xattr_count == 0 && u32_at(record, inode::XATTR_SET) != 0 {
            return Err(bad("it has an empty xattr set"));
        }
        self.xattrs(&found)?;
        self.check_content(&found, record).map_err(bad)
    }

    fn check_content(&self, found: &super::Inode, record: &[u8; 64]) -> Result<(), &'static str> {
        let (first, second) = (u64_at(record, inode::FIRST), u64_at(record, inode::SECOND));
        match found.kind {
            FileKind::Regular => {
                let row: Option<&[u8; OBJECT_LEN]> =
                    found.object.and_then(|index| self.record(Section::Objects, index));
                let row = row.ok_or("it has no object")?;
                if u64_at(row, 32) != found.size || u64_at(row, 40) != found.data_blocks {
                    return Err("its size is not that of its object");
                }
                return Ok(());
            }
            FileKind::Symlink => {
                let target = self.symlink_target(found).map_err(|_| "it has no target")?;
                if target.is_empty() || target.contains(&0) {
                    return Err("no symlink can have its target");
                }
            }
            FileKind::Directory => {
                if second == 0 && first != 0 {
                    return Err("an empty directory has entries");
                }
            }
            FileKind::Fifo | FileKind::Socket => {
                if first != 0 || second != 0 {
                    return Err("it has content");
                }
            }
            FileKind::CharDevice | FileKind::BlockDevice => {
                if second != 0 {
                    return Err("it has content");
                }
            }
        }
        if u32_at(record, inode::OBJECT) != 0 {
            return Err("it has an object");
        }
        Ok(())
    }

    /// The links section holds each name of each file with several, in order, and no other.
    fn check_links(&self, names: &[u32]) -> Result<(), ManifestError> {
        let mut last: Option<(TreeIno, TreeIno, &[u8])> = None;
        let mut seen = 0_u64;
        for index in 0..self.count(Section::Links) {
            let bad = |problem| damaged(Section::Links, index, problem);
            let link = self.link(index)?;
            if last.is_some_and(|last| last >= link) {
                return Err(bad("links are not in order"));
            }
            last = Some(link);
            let (of, dir, name) = link;
            if dir.get() > self.len() || of.get() > self.len() {
                return Err(bad("it points to no inode"));
            }
            let entry = self.lookup(&self.inode(dir)?, name)?;
            if entry.and_then(|entry| entry.ino) != Some(of) {
                return Err(bad("its name is not in its directory"));
            }
            if names[of.get() as usize - 1] < 2 {
                return Err(bad("its inode has one name"));
            }
            seen += 1;
        }
        let expected: u64 =
            names.iter().filter(|count| **count > 1).map(|count| u64::from(*count)).sum();
        if seen != expected {
            return Err(damaged(Section::Links, self.count(Section::Links), "there is none"));
        }
        Ok(())
    }

    fn check_origins(&self) -> Result<(), ManifestError> {
        if !self.is_tree() {
            return Ok(());
        }
        if self.count(Section::Origins) != self.len() {
            return Err(damaged(Section::Origins, self.len(), "there is none"));
        }
        let mut last = None;
        for index in 0..self.len() {
            let bad = |problem| damaged(Section::Origins, index, problem);
            let record: &[u8; ORIGIN_LEN] =
                self.record(Section::Origins, index).ok_or_else(|| bad("there is none"))?;
            let origin = (u32_at(record, 0), u32_at(record, 4));
            if origin.0 >= self.count(Section::Stack) || origin.1 == 0 {
                return Err(bad("it is in no layer"));
            }
            if last.is_some_and(|last| last >= origin) {
                return Err(bad("origins are not in order"));
            }
            last = Some(origin);
        }
        Ok(())
    }
}
