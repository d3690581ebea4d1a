//! What private layers refer to: their tree by origin marks, the store by object marks.
//!
//! Reads directories and marks, never content, and takes no lock: of a mounted root it tells
//! what was there when it came by.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::{Check, Finding};
use crate::host::referred;
use crate::host::roots::{RootRecord, Roots};
use crate::layer::{Derived, FileKind, LayerPath, TreeIno};
use crate::object::ObjectId;
use crate::sys::inode;
use crate::union::UnionError;
use crate::union::upper::{Bytes, Entry, Kept, Upper, hides};

/// A directory on the way. A container may make as many as it likes, so few of them are open.
struct Place {
    dir: Kept,
    origin: Option<TreeIno>,
    path: LayerPath,
}

impl Check<'_> {
    /// Checks the private layer of `record`.
    pub(super) fn private(&mut self, roots: &Roots, record: &RootRecord) {
        let Some(private) = &record.private else { return };
        if !private.exists() {
            let (root, private) = (record.name.clone(), private.clone());
            self.checked.findings.push(Finding::PrivateGone { root, private });
            return;
        }
        let root = record.name.clone();
        let upper = match Upper::open(private, &self.layers) {
            Ok(upper) => upper,
            Err(error) => {
                let (path, reason) = (LayerPath::root(), crate::host::sentence(&error));
                self.checked.findings.push(Finding::PrivateDamaged { root, path, reason });
                return;
            }
        };
        if !upper.stack().layers().starts_with(record.stack.layers()) {
            let reason = "it lies on another stack than the root is registered with".to_owned();
            let path = LayerPath::root();
            self.checked.findings.push(Finding::PrivateDamaged { root, path, reason });
            return;
        }
        match self.walk(record, &upper) {
            Ok(found) => self.logged(roots, record, &found),
            Err((path, error)) => {
                let reason = error.to_string();
                self.checked.findings.push(Finding::PrivateDamaged { root, path, reason });
            }
        }
    }

    /// Checks that the logs of references, which keep objects from being collected, name all of
    /// `found`.
    fn logged(&mut self, roots: &Roots, record: &RootRecord, found: &BTreeSet<ObjectId>) {
        let known = match referred::of_root(roots, record) {
            Ok(known) => known,
            Err(error) => {
                self.damaged(record, LayerPath::root(), &crate::host::sentence(&error));
                return;
            }
        };
        let missing: Vec<ObjectId> =
            found.iter().filter(|object| !known.contains(object)).copied().collect();
        if missing.is_empty() {
            return;
        }
        let fixed = self.fix && referred::note(roots, record, missing.iter().copied()).is_ok();
        let stored = if fixed { Derived::Replaced } else { Derived::Wrong };
        let (count, name) = (missing.len(), &record.name);
        self.judge(stored, || {
            format!(
                "files of root {name} are {count} objects that its log of references does not name"
            )
        });
    }

    /// Returns the objects that entries refer to by themselves.
    fn walk(
        &mut self,
        record: &RootRecord,
        upper: &Upper,
    ) -> Result<BTreeSet<ObjectId>, (LayerPath, UnionError)> {
        let mut found = BTreeSet::new();
        let top = LayerPath::root;
        let root = match upper.root() {
            Ok(root) => root,
            Err(error) => {
                self.damaged(record, top(), &error.to_string());
                return Ok(found);
            }
        };
        let origin = root.origin;
        let mut left = vec![Place { dir: Kept::new(root.fd, 0), origin, path: top() }];
        while let Some(place) = left.pop() {
            if !(self.watch.proceed)() {
                return Ok(found);
            }
            let fail = |errno: Errno| (place.path.clone(), UnionError::from(errno));
            let dir = match place.dir.open(upper) {
                Ok(dir) => dir,
                // Removed since its name was read.
                Err(Errno::NOENT | Errno::STALE) => continue,
                Err(errno) => return Err(fail(errno)),
            };
            for name in upper.names(&*dir).map_err(fail)? {
                if hides(&name) {
                    continue;
                }
                let Ok(file_name) = crate::layer::FileName::new(&name.name) else { continue };
                let path = place.path.join(file_name);
                let fd = match inode::open_path(&*dir, &name.name) {
                    Ok(fd) => fd,
                    Err(Errno::NOENT) => continue,
                    Err(errno) => return Err((path, errno.into())),
                };
                self.checked.private_files += 1;
                match upper.read(fd, place.origin, &name.name) {
                    Ok(entry) => {
                        let object = if self.lost(upper, &entry)
                            && !is_still(upper, &dir, &place, &name.name, &entry)
                        {
                            // Replaced or removed since it was read, and its object collected.
                            continue;
                        } else {
                            self.entry(record, upper, &path, &entry)
                        };
                        found.extend(object.filter(|_| entry.marks.object.is_some()));
                        if entry.kind == FileKind::Directory {
                            let origin = entry.origin;
                            left.push(Place { dir: Kept::new(entry.fd, left.len()), origin, path });
                        }
                    }
                    Err(error) => self.damaged(record, path, &error.to_string()),
                }
            }
        }
        for ino in upper.index().map_err(|errno| (top(), errno.into()))? {
            let indexed = upper.tree().inode(ino).map_err(UnionError::from);
            if let Err(error) = indexed.and_then(|inode| upper.indexed(&inode)) {
                let path = upper.tree().inode(ino).and_then(|inode| upper.tree().path(&inode));
                let path = path.ok().and_then(|path| LayerPath::parse(&path).ok());
                self.damaged(record, path.unwrap_or_default(), &format!("in index/: {error}"));
            }
        }
        Ok(found)
    }

    /// Whether the object is missing that an entry's content is.
    fn lost(&self, upper: &Upper, entry: &Entry) -> bool {
        match upper.bytes(entry) {
            Ok(Bytes::Object { id, .. }) => self.objects.contains(&id).is_ok_and(|there| !there),
            Ok(Bytes::Private) | Err(_) => false,
        }
    }

    /// The object that an entry's content is, if that is there.
    fn entry(
        &mut self,
        record: &RootRecord,
        upper: &Upper,
        path: &LayerPath,
        entry: &Entry,
    ) -> Option<ObjectId> {
        match upper.bytes(entry) {
            Ok(Bytes::Object { id, .. }) => self.reference(record, path, id).then_some(id),
            Ok(Bytes::Private) => None,
            Err(error) => {
                self.damaged(record, path.clone(), &error.to_string());
                None
            }
        }
    }

    /// Checks that an object which a private file stands for is there.
    fn reference(&mut self, record: &RootRecord, path: &LayerPath, object: ObjectId) -> bool {
        self.checked.references += 1;
        match self.objects.contains(&object) {
            Ok(true) => true,
            Ok(false) => {
                let (root, path) = (record.name.clone(), path.clone());
                self.checked.findings.push(Finding::LostReference { root, path, object });
                false
            }
            Err(error) => {
                self.damaged(record, path.clone(), &crate::host::sentence(&error));
                false
            }
        }
    }

    fn damaged(&mut self, record: &RootRecord, path: LayerPath, reason: &str) {
        let (root, reason) = (record.name.clone(), reason.to_owned());
        self.checked.findings.push(Finding::PrivateDamaged { root, path, reason });
    }
}

/// Whether a name stands for the same inode with the same marks as when it was read.
fn is_still(upper: &Upper, dir: &impl AsFd, place: &Place, name: &[u8], seen: &Entry) -> bool {
    let again = inode::open_path(dir, name).ok();
    let again = again.and_then(|fd| upper.read(fd, place.origin, name).ok());
    again.is_some_and(|again| again.status.ino == seen.status.ino && again.marks == seen.marks)
}
