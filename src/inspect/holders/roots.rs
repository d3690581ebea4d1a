//! What single roots hold: what they show of their tree, and what is theirs alone.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::super::{InspectError, Library};
use super::follow::{Look, follow};
use super::glob::Glob;
use super::stacks::{Hit, Opened};
use super::walk::{self, Walked};
use super::{Contents, HeldAs, Holding, RootFile};
use crate::catalog::{Glance, Held, Kept, RootKey, Session};
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
    /// Whether the private layer has something under a first name.
    touched: RefCell<BTreeMap<Vec<u8>, bool>>,
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
            key: key_of(record),
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

    /// Everything that its private layer holds.
    pub(super) fn kept(&self, session: Option<&Session>) -> Vec<Kept> {
        match (&self.walked, session) {
            (Some(kept), _) => kept.clone(),
            (None, Some(session)) => session.kept(&self.key).unwrap_or_default(),
            (None, None) => Vec::new(),
        }
    }

    /// Whether the private layer may say anything about a path.
    fn is_touched(&self, path: &[u8]) -> bool {
        let Some(private) = &self.record.private else { return false };
        let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        if let Some(touched) = self.touched.borrow().get(first) {
            return *touched;
        }
        let touched = exists(&private.join("upper"), first);
        self.touched.borrow_mut().insert(first.to_vec(), touched);
        touched
    }

    /// The contents under a path, if they are others than its stack has there; with a
    /// private file whose content is not known, that file.
    pub(super) fn ask_path(
        &self,
        path: &LayerPath,
        stack: &Opened,
        session: Option<&Session>,
    ) -> Asked {
        if !stack.on_the_way.iter().any(|first| self.is_touched(first)) {
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
                        let known = self
                            .kept(session)
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
        for kept in self.kept(session).into_iter().filter(|kept| glob.fits(&kept.path)) {
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
        for kept in self.kept(session) {
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
        if !copied && !self.is_touched(path) {
            found.add(hit.content, path.to_vec(), HeldAs::Template);
            return;
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
        self.record.private.as_ref().is_some_and(|p| exists(&p.join("index"), name.as_bytes()))
    }

    /// Whether a private file is the one it was when it was hashed.
    fn is_as_it_was(&self, kept: &Kept) -> bool {
        let (Some(upper), Ok(path)) = (self.upper(), LayerPath::parse(&kept.path)) else {
            return false;
        };
        match (upper.resolve(&path), walk::device(upper)) {
            (Ok(Found::Private(entry)), Ok(dev)) => {
                walk::identity(dev, &entry.status) == kept.identity
            }
            _ => false,
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

/// The eight bytes that the registry names a root by.
pub(super) fn key_of(record: &RootRecord) -> RootKey {
    let id = record.id.to_string();
    u64::from_str_radix(&id, 16).unwrap_or_default().to_be_bytes()
}

/// Whether there is something called `name` in `directory`.
fn exists(directory: &Path, name: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let path: PathBuf = directory.join(std::ffi::OsStr::from_bytes(name));
    // What cannot be told is looked at closely.
    !matches!(rustix::fs::lstat(&path), Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR))
}
