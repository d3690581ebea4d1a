//! What single roots hold: what they show of their tree, and what is theirs alone.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::super::{InspectError, Library};
use super::follow::{Look, follow};
use super::glob::Glob;
use super::stacks::{Hit, Opened};
use super::walk::{self, Walked};
use super::{Contents, HeldAs, Holding, RootFile};
use crate::catalog::{Glance, Held, Identity, Kept, RootKey, Session};
use crate::host::{RootRecord, sentence};
use crate::layer::{FileKind, LayerPath};
use crate::object::ObjectId;
use crate::sys::inode;
use crate::union::upper::{Bytes, Found, Upper, UpperError};

/// One root while a question is answered.
pub(super) struct Root<'a> {
    library: &'a Library,
    pub(super) record: &'a RootRecord,
    pub(super) key: RootKey,
    /// Its stack among those that were opened.
    pub(super) stack: Option<usize>,
    /// What its private layer is in numbers.
    pub(super) glance: Glance,
    /// What was just found in it; otherwise it is as it was remembered.
    pub(super) walked: Option<Vec<Kept>>,
    /// That is something else than what was remembered.
    pub(super) news: bool,
    pub(super) hashed: u64,
    /// Why the answer may lack something of this root.
    pub(super) note: Option<String>,
    upper: OnceCell<Result<Upper, UpperError>>,
    /// What the private layer has under paths that were looked up.
    touched: RefCell<BTreeMap<Vec<u8>, Touched>>,
}

impl<'a> Root<'a> {
    /// Looks whether what is remembered of the root still stands, and walks it otherwise.
    pub(super) fn look(
        library: &'a Library,
        record: &'a RootRecord,
        stack: Option<usize>,
        remembered: Option<Glance>,
        session: Option<&Session>,
        scan: bool,
    ) -> Self {
        let mut root = Self {
            library,
            record,
            key: record.key(),
            stack,
            glance: Glance::default(),
            walked: None,
            news: false,
            hashed: 0,
            note: None,
            upper: OnceCell::new(),
            touched: RefCell::default(),
        };
        let Some(private) = &record.private else { return root };
        let live = record.mount.is_some() && record.living().is_some();
        let stamp = walk::stamp(private);
        if let Some(glance) = remembered
            && !scan
            && !live
            && stamp == Some(glance.stamp)
        {
            root.glance = glance;
            return root;
        }
        let known = session.and_then(|session| session.kept(&root.key).ok()).unwrap_or_default();
        let walked = match root.opened(private) {
            Ok(upper) => walk::walk(upper, &known, scan).map_err(|error| sentence(&error)),
            Err(error) => Err(sentence(error)),
        };
        match walked {
            Ok(Walked { mut glance, kept, hashed, unreadable }) => {
                // Of a mounted one only the digests are worth remembering.
                let at_rest = stamp.filter(|_| !live && walk::stamp(private) == stamp);
                glance.stamp = at_rest.unwrap_or_default();
                root.glance = glance;
                root.news = remembered != Some(glance) || known != kept;
                root.walked = Some(kept);
                root.hashed = hashed;
                if unreadable > 0 {
                    root.note = Some(format!("{unreadable} of its private files cannot be read"));
                }
            }
            Err(reason) => {
                root.note = Some(reason);
                // What it hides is not known, so nothing can be said of what it shows.
                root.stack = None;
            }
        }
        root
    }

    /// Its private directory, if it can be looked into.
    fn upper(&self) -> Option<&Upper> {
        self.record.private.as_ref().and_then(|private| self.opened(private).ok())
    }

    fn opened(&self, private: &Path) -> Result<&Upper, &UpperError> {
        self.upper.get_or_init(|| Upper::open(private, self.library.layers())).as_ref()
    }

    /// What its private layer holds, as far as `wanted`.
    fn kept(&self, session: Option<&Session>, wanted: impl Fn(&[u8], &Held) -> bool) -> Vec<Kept> {
        match (&self.walked, session) {
            (Some(kept), _) => {
                kept.iter().filter(|kept| wanted(&kept.path, &kept.held)).cloned().collect()
            }
            (None, Some(session)) => session.kept_where(&self.key, wanted).unwrap_or_default(),
            (None, None) => Vec::new(),
        }
    }

    /// What the private layer says about a path, as far as a few lstat(2) can tell: where every
    /// directory merges with the tree's at its path, only the names on the way count.
    fn touched(&self, path: &[u8]) -> Touched {
        let Some(private) = &self.record.private else { return Touched::Not };
        let mut ends: Vec<usize> =
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).collect();
        ends.push(path.len());
        for end in ends {
            let here = path.get(..end).unwrap_or_default();
            let known = self.touched.borrow().get(here).copied();
            let found = known.unwrap_or_else(|| {
                let found = look_up(&private.join("upper"), here);
                self.touched.borrow_mut().insert(here.to_vec(), found);
                found
            });
            match found {
                Touched::Not => return Touched::Not,
                Touched::Directory if self.glance.moved == 0 => {}
                Touched::Removed if self.glance.moved == 0 => return Touched::Removed,
                Touched::Directory | Touched::Removed | Touched::Otherwise => {
                    return Touched::Otherwise;
                }
            }
        }
        Touched::Directory
    }

    /// The contents under a path, if they are others than its stack has there; with a
    /// private file whose content is not known, that file.
    pub(super) fn ask_path(
        &self,
        path: &LayerPath,
        stack: &Opened,
        session: Option<&Session>,
    ) -> Asked {
        // A directory of the tree that has a private side is one still.
        let same = |path: &Vec<u8>| match self.touched(path) {
            Touched::Not => true,
            Touched::Directory => stack.has_directory(path),
            Touched::Removed | Touched::Otherwise => false,
        };
        if stack.on_the_way.iter().all(same) {
            return Asked::AsStack;
        }
        let Some(upper) = self.upper() else { return Asked::AsStack };
        let found = follow(path, |path| {
            Ok::<_, InspectError>(match upper.resolve(path)? {
                Found::Absent { .. } => Look::Absent,
                Found::Tree(inode) if inode.kind == FileKind::Directory => Look::Directory,
                Found::Tree(inode) if inode.kind == FileKind::Symlink => {
                    Look::Link(upper.tree().symlink_target(&inode)?.to_vec())
                }
                Found::Private(entry) if entry.kind == FileKind::Directory => Look::Directory,
                Found::Private(entry) if entry.kind == FileKind::Symlink => {
                    let target = inode::symlink_target(&entry.fd);
                    Look::Link(target.map_err(|errno| InspectError::upper(path, errno))?)
                }
                file @ (Found::Tree(_) | Found::Private(_)) => Look::File(file),
            })
        });
        match found {
            Ok(None) => Asked::Nothing,
            Ok(Some((_, Found::Tree(inode)))) => match upper.tree().object(&inode) {
                Ok(Some(content)) => Asked::Content(content),
                Ok(None) | Err(_) => Asked::NoFile,
            },
            Ok(Some((path, Found::Private(entry)))) => {
                if entry.kind != FileKind::Regular {
                    return Asked::NoFile;
                }
                match upper.bytes(&entry) {
                    Ok(Bytes::Object { id, .. }) => Asked::Content(id),
                    Ok(Bytes::Private) => {
                        let dev = walk::device(upper).unwrap_or_default();
                        let identity = walk::identity(dev, &entry.status);
                        let here = path.to_bytes();
                        let known = self.kept(session, |path, _| path == here);
                        let known = known
                            .into_iter()
                            .find_map(|kept| kept.content().filter(|_| kept.identity == identity));
                        match known {
                            Some(content) => Asked::Content(content),
                            None if identity.size == 0 => Asked::Content(ObjectId::of(b"")),
                            None => Asked::Unhashed(path.to_bytes()),
                        }
                    }
                    Err(_) => Asked::Nothing,
                }
            }
            Ok(Some((_, Found::Absent { .. }))) | Err(_) => Asked::Nothing,
        }
    }

    /// The private files that fit a pattern: those with a known content, and the others.
    pub(super) fn ask_glob(
        &self,
        glob: &Glob,
        session: Option<&Session>,
    ) -> (Contents, Vec<Vec<u8>>) {
        let (mut known, mut unhashed) = (Contents::new(), Vec::new());
        if self.glance.files == 0 && self.walked.as_ref().is_none_or(Vec::is_empty) {
            return (known, unhashed);
        }
        for kept in self.kept(session, |path, _| glob.fits(path)) {
            match (kept.content(), kept.held) {
                (Some(content), _) => {
                    known.entry(content).or_default().insert(kept.path);
                }
                (None, Held::Private(_)) => unhashed.push(kept.path),
                (None, Held::Object(_) | Held::Moved(_)) => {}
            }
        }
        (known, unhashed)
    }

    /// Every place where it shows one of the contents. `private` are those that its private
    /// layer is remembered to hold.
    pub(super) fn holdings(
        &self,
        stack: Option<&Opened>,
        private: &BTreeSet<ObjectId>,
        session: Option<&Session>,
    ) -> Holdings {
        let mut found = Holdings::default();
        for hit in stack.iter().flat_map(|stack| &stack.hits) {
            self.shown(hit, &hit.path, &mut found);
        }
        if private.is_empty() && self.glance.moved == 0 && self.walked.is_none() {
            return found;
        }
        let wanted = |_: &[u8], held: &Held| match held {
            Held::Moved(_) => true,
            held @ (Held::Private(_) | Held::Object(_)) => {
                held.content().is_some_and(|content| private.contains(&content))
            }
        };
        for kept in self.kept(session, wanted) {
            match (kept.held, kept.content()) {
                (Held::Moved(top), _) => {
                    let Some(stack) = stack else { continue };
                    for hit in &stack.hits {
                        if let Ok(Some(rest)) = stack.below(hit, top) {
                            let path = [kept.path.as_slice(), b"/", &rest].concat();
                            self.shown(hit, &path, &mut found);
                        }
                    }
                }
                (held, Some(content)) if private.contains(&content) => {
                    let held = match held {
                        Held::Object(_) => HeldAs::Metadata,
                        Held::Private(_) | Held::Moved(_) => HeldAs::Private,
                    };
                    match self.is_as_it_was(&kept) {
                        true => found.add(content, kept.path, held),
                        false => found.changed += 1,
                    }
                }
                (_, Some(_) | None) => {}
            }
        }
        found
    }

    /// Notes that the root shows `hit` at `path`, if it does.
    fn shown(&self, hit: &Hit, path: &[u8], found: &mut Holdings) {
        let copied = hit.inode.nlink > 1 && self.is_indexed(hit);
        match self.touched(path) {
            Touched::Not if !copied => {
                found.add(hit.content, path.to_vec(), HeldAs::Template);
                return;
            }
            Touched::Removed => return,
            Touched::Not | Touched::Directory | Touched::Otherwise => {}
        }
        let (Some(upper), Ok(place)) = (self.upper(), LayerPath::parse(path)) else { return };
        match upper.resolve(&place) {
            Ok(Found::Tree(inode)) if inode.ino == hit.inode.ino => {
                found.add(hit.content, path.to_vec(), HeldAs::Template);
            }
            Ok(Found::Private(entry)) if entry.kind == FileKind::Regular => {
                if let Ok(Bytes::Object { id, .. }) = upper.bytes(&entry)
                    && id == hit.content
                {
                    found.add(hit.content, path.to_vec(), HeldAs::Metadata);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Whether a copy stands for all names of a file with several.
    fn is_indexed(&self, hit: &Hit) -> bool {
        let name = format!("{:08x}", hit.inode.ino.get());
        self.record.private.as_ref().is_some_and(|p| exists(&p.join("index"), &name))
    }

    /// Whether a private file is the one it was when it was hashed.
    fn is_as_it_was(&self, kept: &Kept) -> bool {
        let Some(private) = &self.record.private else { return false };
        let path = private.join("upper").join(OsStr::from_bytes(&kept.path));
        let Ok(found) = std::fs::symlink_metadata(path) else { return false };
        let time = |seconds, nanos: i64| (seconds, u32::try_from(nanos).unwrap_or(0));
        kept.identity
            == Identity {
                dev: found.dev(),
                ino: found.ino(),
                size: found.size(),
                mtime: time(found.mtime(), found.mtime_nsec()),
                ctime: time(found.ctime(), found.ctime_nsec()),
            }
    }
}

/// What a path means in a root.
pub(super) enum Asked {
    /// The same as in its stack.
    AsStack,
    /// Nothing is there.
    Nothing,
    /// Something is there, and it has no content.
    NoFile,
    /// This content.
    Content(ObjectId),
    /// A private file that was not hashed, and where it really is.
    Unhashed(Vec<u8>),
}

/// What one root holds.
#[derive(Default)]
pub(super) struct Holdings {
    pub(super) files: BTreeMap<ObjectId, BTreeMap<Vec<u8>, HeldAs>>,
    /// Files that were remembered to hold one of the contents, and have changed since.
    pub(super) changed: u64,
}

impl Holdings {
    fn add(&mut self, content: ObjectId, path: Vec<u8>, held: HeldAs) {
        self.files.entry(content).or_default().insert(path, held);
    }

    /// What it holds of one content, for the answer.
    pub(super) fn of(&self, root: &RootRecord, content: &ObjectId) -> Option<Holding> {
        let files = self.files.get(content)?;
        let files = files
            .iter()
            .map(|(path, held)| RootFile {
                path: super::super::text::PathText::absolute(path),
                held: *held,
            })
            .collect();
        Some(Holding { root: root.name.clone(), template: root.template.clone(), files })
    }
}

/// What a private layer has under a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touched {
    /// Nothing: the tree shows.
    Not,
    /// A directory, which merges with what the tree has.
    Directory,
    /// A whiteout.
    Removed,
    /// Something that has to be looked at closely.
    Otherwise,
}

/// What is at `path` of an upper directory whose parents are directories.
fn look_up(upper: &Path, path: &[u8]) -> Touched {
    match std::fs::symlink_metadata(upper.join(OsStr::from_bytes(path))) {
        Ok(found) if found.is_dir() => Touched::Directory,
        Ok(found) if found.file_type().is_char_device() && found.rdev() == 0 => Touched::Removed,
        Ok(_) => Touched::Otherwise,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Touched::Not,
        Err(_) => Touched::Otherwise,
    }
}

/// Whether there is something called `name` in `directory`.
fn exists(directory: &Path, name: &str) -> bool {
    // What cannot be told is looked at closely.
    directory.join(name).try_exists().unwrap_or(true)
}
