//! Who holds a content: every template and root that has it, under whatever path.
//!
//! Templates answer from the reverse tables of their trees, roots from the tree they stand on
//! and what their private layer changes of it: a name that a container removed, replaced or
//! moved is not held there. Private files count as last hashed; how many were never hashed or
//! have changed since is part of the answer. A private layer at rest is known by what was
//! remembered of it; one that was mounted since, or is mounted, is walked. What somebody changes
//! in a private directory at rest, behind Mica's back, shows only when its holders are checked,
//! or with a scan. Knows no printing; the index may be lost at any time and only the digests of
//! private files with it.

mod follow;
mod glob;
mod roots;
mod stacks;
mod walk;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::text::PathText;
use super::{InspectError, Library};
use crate::catalog::{Catalog, CatalogError, Glance, Held, Kept, RootKey, Session};
use crate::host::parallel::each;
use crate::host::{RootRecord, sentence};
use crate::layer::{LayerId, LayerPath, Stack, StackId, Template, TemplateName};
use crate::object::{ObjectId, identify};
use roots::{Asked, Holdings, Root};
use stacks::Opened;

pub use glob::Glob;

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A content, by its digest.
    Content(ObjectId),
    /// Whatever lies at this path in any template or root; symbolic links are followed.
    Path(LayerPath),
    /// Whatever files fit a pattern.
    Glob(Glob),
    /// The content of a file of this host.
    HostFile(PathBuf),
}

/// Who holds what was asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answer {
    /// Each content, with who holds it; in order of the paths it was asked by.
    pub contents: Vec<Content>,
    /// Private files that were asked for, and whose content is not known: not hashed yet, or
    /// changed since.
    pub unknown: Vec<UnknownFile>,
    /// What is known of the private files of all roots.
    pub private: PrivateFiles,
    /// What could not be read, as sentences. The answer is without it.
    pub damaged: Vec<String>,
}

impl Answer {
    /// Leaves out what does not fit a pattern of names: then the contents are the versions of
    /// the files that are called so.
    pub fn only_named(&mut self, glob: &Glob) {
        let fits = |path: &PathText| glob.fits(&path.0);
        for content in &mut self.contents {
            for one in &mut content.templates {
                one.files.retain(|file| fits(&file.path));
            }
            for one in &mut content.roots {
                one.files.retain(|file| fits(&file.path));
            }
            content.templates.retain(|one| !one.files.is_empty());
            content.roots.retain(|one| !one.files.is_empty());
        }
        self.contents.retain(|one| !one.templates.is_empty() || !one.roots.is_empty());
    }
}

/// One content and its holders.
#[derive(Clone, Debug, Serialize)]
pub struct Content {
    /// Its digest.
    pub object: ObjectId,
    /// Its length in bytes; null if only private files have it.
    pub size_bytes: Option<u64>,
    /// The paths that it was found by, if it was asked for by path.
    pub asked: Vec<PathText>,
    /// Templates, in order of their names.
    pub templates: Vec<TemplateHolding>,
    /// Roots, in order of their names.
    pub roots: Vec<Holding>,
}

/// What one template has of a content.
#[derive(Clone, Debug, Serialize)]
pub struct TemplateHolding {
    /// `name:tag`.
    pub template: TemplateName,
    /// Where.
    pub files: Vec<TemplateFile>,
}

/// One name of a file of a template.
#[derive(Clone, Debug, Serialize)]
pub struct TemplateFile {
    /// Where it is.
    #[serde(flatten)]
    pub path: PathText,
    /// The layer that brought it.
    pub layer: Option<LayerId>,
}

/// What one root has of a content.
#[derive(Clone, Debug, Serialize)]
pub struct Holding {
    /// Its name.
    pub root: String,
    /// The template it was made from.
    pub template: TemplateName,
    /// Where.
    pub files: Vec<RootFile>,
}

/// One name of a file of a root.
#[derive(Clone, Debug, Serialize)]
pub struct RootFile {
    /// Where it is.
    #[serde(flatten)]
    pub path: PathText,
    /// How it has it.
    pub held: HeldAs,
}

/// How a root has a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldAs {
    /// As its template has it.
    Template,
    /// The content is shared, owner, mode, time, attributes or place are its own.
    Metadata,
    /// In a file of its own.
    Private,
}

/// A private file whose content is not known.
#[derive(Clone, Debug, Serialize)]
pub struct UnknownFile {
    /// The root.
    pub root: String,
    /// Where.
    #[serde(flatten)]
    pub path: PathText,
}

/// What is known of all private files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PrivateFiles {
    /// Private files of all roots.
    pub files: u64,
    /// Those that were never hashed: they may hold what was asked for.
    pub unhashed: u64,
    /// Those that were hashed and have changed since: likewise.
    pub changed: u64,
    /// Those that were hashed for this answer.
    pub hashed_now: u64,
}

impl Library {
    /// Finds who holds `wanted`. With `scan` private files that are not known are hashed first.
    ///
    /// # Errors
    /// [`InspectError::System`] if a file of this host cannot be read; when the store cannot be
    /// listed. That nobody holds it is an answer.
    pub fn who_has(&self, wanted: &Wanted, scan: bool) -> Result<Answer, InspectError> {
        let catalog = Catalog::open(self.store().path()).map_err(|error| match error {
            CatalogError::Layers(error) => InspectError::from(error),
            CatalogError::Manifest(error) => error.into(),
        })?;
        let host = match wanted {
            Wanted::HostFile(path) => Some(content_of(path)?),
            Wanted::Content(content) => Some(*content),
            Wanted::Path(_) | Wanted::Glob(_) => None,
        };
        // The database opens beside the reading of the records.
        std::thread::scope(|scope| {
            let session = scope.spawn(|| {
                let session = catalog.session()?;
                let glances = session.glances().ok()?;
                Some((session, glances))
            });
            let mut damaged = Vec::new();
            let templates = self.readable_templates(&mut damaged);
            let records = self.records();
            // A panic in there is one of ours: the index is gone without.
            let session = session.join().unwrap_or_default();
            let (session, glances) = session.unzip();
            let inquiry = Inquiry {
                library: self,
                catalog: &catalog,
                templates: templates?,
                records: records?,
                session: session.as_ref(),
                glances: glances.unwrap_or_default(),
                scan,
            };
            inquiry.answer(wanted, host, damaged)
        })
    }
}

/// One question while it is answered.
struct Inquiry<'a> {
    library: &'a Library,
    catalog: &'a Catalog,
    templates: Vec<Template>,
    records: Vec<RootRecord>,
    session: Option<&'a Session>,
    glances: HashMap<RootKey, Glance>,
    scan: bool,
}

/// The contents that a question means, each with the paths it was asked by.
type Contents = BTreeMap<ObjectId, BTreeSet<Vec<u8>>>;

impl Inquiry<'_> {
    fn answer(
        &self,
        wanted: &Wanted,
        host: Option<ObjectId>,
        damaged: Vec<String>,
    ) -> Result<Answer, InspectError> {
        let mut answer = Answer { damaged, ..Answer::default() };
        let mut stacks = self.stacks(wanted, &mut answer.damaged);
        let mut roots = self.roots(&stacks);
        let contents = self.contents(wanted, host, &stacks, &mut roots, &mut answer);
        self.remember(&roots);

        let ids: BTreeSet<ObjectId> = contents.keys().copied().collect();
        each(&mut stacks, |stack| {
            if let Ok(stack) = stack
                && let Err(error) = stack.find(self.catalog, &ids)
            {
                return Some(format!("stack {}: {}", stack.id, sentence(&error)));
            }
            None
        })
        .into_iter()
        .flatten()
        .for_each(|sentence| answer.damaged.push(sentence));
        let private = self.private_holders(&ids, &roots);
        let holdings: Vec<Holdings> = each(&mut roots, |root| {
            let stack =
                root.stack.and_then(|at| stacks.get(at)).and_then(|stack| stack.as_ref().ok());
            let private = private.get(&root.key).cloned().unwrap_or_default();
            root.holdings(stack, &private, self.session)
        });
        for (root, held) in roots.iter().zip(&holdings) {
            let private = &mut answer.private;
            private.files += u64::from(root.glance.files);
            private.unhashed += u64::from(root.glance.unhashed);
            private.changed += u64::from(root.glance.changed) + held.changed;
            private.hashed_now += root.hashed;
            if let Some(note) = &root.note {
                answer.damaged.push(format!("root {}: {note}", root.record.name));
            }
        }
        answer.contents = contents
            .into_iter()
            .map(|(content, asked)| self.content(content, asked, &stacks, &roots, &holdings))
            .collect();
        answer.contents.sort_by(|one, two| (&one.asked, one.object).cmp(&(&two.asked, two.object)));
        Ok(answer)
    }

    /// Opens every stack, and asks each what is wanted there.
    fn stacks(&self, wanted: &Wanted, damaged: &mut Vec<String>) -> Vec<Result<Opened, StackId>> {
        let mut known = HashSet::new();
        let all = self.templates.iter().map(|template| &template.stack);
        let all = all.chain(self.records.iter().map(|record| &record.stack));
        let mut stacks: Vec<&Stack> = all.filter(|stack| known.insert(*stack)).collect();
        self.catalog.prune(&stacks.iter().map(|stack| stack.id()).collect());
        let opened = each(&mut stacks, |stack| {
            let open = || {
                let mut opened = Opened::open(self.catalog, self.library.layers(), stack)?;
                match wanted {
                    Wanted::Path(path) => opened.ask_path(path).map(drop)?,
                    Wanted::Glob(glob) => opened.ask_glob(self.catalog, glob)?,
                    Wanted::Content(_) | Wanted::HostFile(_) => {}
                }
                Ok::<_, InspectError>(opened)
            };
            open().map_err(|error| (stack.id(), sentence(&error)))
        });
        let told = opened.into_iter().map(|opened| {
            opened.map_err(|(id, reason)| {
                damaged.push(format!("stack {id}: {reason}"));
                id
            })
        });
        told.collect()
    }

    /// Looks at every root.
    fn roots(&self, stacks: &[Result<Opened, StackId>]) -> Vec<Root<'_>> {
        let by_id: HashMap<StackId, usize> = stacks
            .iter()
            .enumerate()
            .filter_map(|(at, stack)| Some((stack.as_ref().ok()?.id, at)))
            .collect();
        let mut records: Vec<&RootRecord> = self.records.iter().collect();
        each(&mut records, |record| {
            let stack = by_id.get(&record.stack.id()).copied();
            let glance = self.glances.get(&record.key()).copied();
            Root::look(self.library, record, stack, glance, self.session, self.scan)
        })
    }

    /// The contents that the question means.
    fn contents(
        &self,
        wanted: &Wanted,
        host: Option<ObjectId>,
        stacks: &[Result<Opened, StackId>],
        roots: &mut [Root<'_>],
        answer: &mut Answer,
    ) -> Contents {
        let mut contents = Contents::new();
        contents.extend(host.map(|content| (content, BTreeSet::new())));
        for stack in stacks.iter().flatten() {
            for (content, paths) in &stack.asked {
                contents.entry(*content).or_default().extend(paths.iter().cloned());
            }
        }
        let unknown = |root: &Root<'_>, path: &[u8]| UnknownFile {
            root: root.record.name.clone(),
            path: PathText::absolute(path),
        };
        match wanted {
            Wanted::Path(path) => {
                let asked = each(roots, |root| {
                    let stack = root.stack.and_then(|at| stacks.get(at)?.as_ref().ok());
                    stack.map_or(Asked::Nothing, |stack| root.ask_path(path, stack, self.session))
                });
                for (root, asked) in roots.iter().zip(asked) {
                    match asked {
                        Asked::Content(content) => {
                            contents.entry(content).or_default().insert(path.to_bytes());
                        }
                        Asked::Unhashed(path) => answer.unknown.push(unknown(root, &path)),
                        Asked::AsStack | Asked::Nothing | Asked::NoFile => {}
                    }
                }
            }
            Wanted::Glob(glob) => {
                let asked = each(roots, |root| root.ask_glob(glob, self.session));
                for (root, (known, unhashed)) in roots.iter().zip(asked) {
                    for (content, paths) in known {
                        contents.entry(content).or_default().extend(paths);
                    }
                    answer.unknown.extend(unhashed.iter().map(|path| unknown(root, path)));
                }
            }
            Wanted::Content(_) | Wanted::HostFile(_) => {}
        }
        contents
    }

    /// Keeps what was found out about private layers for the next question.
    fn remember(&self, roots: &[Root<'_>]) {
        let Some(session) = self.session else { return };
        let news = roots.iter().filter(|root| root.news);
        let found: BTreeMap<RootKey, (Glance, Vec<Kept>)> =
            news.filter_map(|root| Some((root.key, (root.glance, root.walked.clone()?)))).collect();
        let known = roots.iter().map(|root| root.key).collect();
        if let Err(error) = session.remember(&found, &known) {
            tracing::debug!(%error, "what was found in private layers is not remembered");
        }
    }

    /// The contents that each root's private layer holds, as far as is known.
    fn private_holders(
        &self,
        contents: &BTreeSet<ObjectId>,
        roots: &[Root<'_>],
    ) -> HashMap<RootKey, BTreeSet<ObjectId>> {
        let mut holders: HashMap<RootKey, BTreeSet<ObjectId>> = HashMap::new();
        let remembered = self.session.and_then(|session| session.holders(contents).ok());
        for (content, root) in remembered.unwrap_or_default() {
            holders.entry(root).or_default().insert(content);
        }
        for root in roots {
            for kept in root.walked.iter().flatten() {
                let held = kept.content().filter(|_| !matches!(kept.held, Held::Moved(_)));
                if let Some(content) = held.filter(|content| contents.contains(content)) {
                    holders.entry(root.key).or_default().insert(content);
                }
            }
        }
        holders
    }

    fn content(
        &self,
        content: ObjectId,
        asked: BTreeSet<Vec<u8>>,
        stacks: &[Result<Opened, StackId>],
        roots: &[Root<'_>],
        holdings: &[Holdings],
    ) -> Content {
        let hits = |stack: &Opened| {
            let hits = stack.hits.iter().filter(|hit| hit.content == content);
            hits.map(|hit| TemplateFile { path: PathText::absolute(&hit.path), layer: hit.layer })
                .collect::<Vec<_>>()
        };
        let by_stack: HashMap<StackId, &Opened> =
            stacks.iter().flatten().map(|stack| (stack.id, stack)).collect();
        let mut templates = Vec::new();
        for template in &self.templates {
            let files = by_stack.get(&template.stack.id()).map(|stack| hits(stack));
            if let Some(mut files) = files.filter(|files| !files.is_empty()) {
                files.sort_by(|one, two| one.path.cmp(&two.path));
                templates.push(TemplateHolding { template: template.name.clone(), files });
            }
        }
        let size = stacks.iter().flatten().flat_map(|stack| &stack.hits);
        let size_bytes = size.filter(|hit| hit.content == content).map(|hit| hit.inode.size).next();
        Content {
            object: content,
            size_bytes,
            asked: asked.iter().map(|path| PathText::absolute(path)).collect(),
            templates,
            roots: roots
                .iter()
                .zip(holdings)
                .filter_map(|(root, held)| held.of(root.record, &content))
                .collect(),
        }
    }
}

/// The content of a file of this host.
fn content_of(path: &Path) -> Result<ObjectId, InspectError> {
    let read = || {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        identify(&file)
    };
    read()
        .map_err(|source| InspectError::System { what: format!("read {}", path.display()), source })
}
