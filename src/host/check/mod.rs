//! Checking a store: does everything that is named exist, and is it what its name says.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use super::error::HostError;
use super::roots::Roots;
use super::store::{Store, StoreLock};
use crate::layer::{LayerId, Layers, LayersError, Stack, Template, TemplateName};
use crate::object::{ObjectId, Objects, Verdict};

/// What a check looked at and found wrong.
#[derive(Debug, Default)]
pub struct Checked {
    /// Templates.
    pub templates: u64,
    /// Registered roots.
    pub roots: u64,
    /// Layers of all of those.
    pub layers: u64,
    /// Objects of those layers.
    pub objects: u64,
    /// Bytes of objects that were read again and hashed.
    pub hashed_bytes: u64,
    /// What is wrong, worst kind first.
    pub findings: Vec<Finding>,
}

/// Who watches a check.
pub struct Watch<'a> {
    /// Ends the check early by saying no.
    pub proceed: &'a dyn Fn() -> bool,
    /// Is told of bytes that were hashed.
    pub hashed: &'a dyn Fn(u64),
}

impl Watch<'_> {
    /// Nobody.
    pub const NOBODY: Self = Self { proceed: &|| true, hashed: &|_| {} };
}

/// Something wrong with a store.
#[derive(Debug)]
pub enum Finding {
    /// A template, a layer or a tree cannot be used.
    Unusable {
        /// What it is, and which.
        what: String,
        /// The layer, if it is one.
        layer: Option<LayerId>,
        /// Why.
        source: HostError,
    },
    /// A file of a layer has no object.
    Missing {
        /// The object.
        object: ObjectId,
        /// The layer that names it.
        layer: LayerId,
    },
    /// An object's content is not what its name says.
    Altered {
        /// The object.
        object: ObjectId,
        /// The layer that names it.
        layer: LayerId,
    },
    /// A registered root's private directory is gone.
    PrivateGone {
        /// The root.
        root: String,
        /// Where it was.
        private: PathBuf,
    },
}

impl Finding {
    /// Whether data is damaged, as opposed to something that a person may want to tidy up.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::PrivateGone { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable { what, source, .. } => {
                write!(f, "{what} cannot be used: {}", super::sentence(source))
            }
            Self::Missing { object, layer } => write!(
                f,
                "object {object} of layer {layer} is missing; restore it with `mica template check \
                 --fix SOURCE`, or import the template again with --replace"
            ),
            Self::Altered { object, layer } => write!(
                f,
                "object {object} of layer {layer} was altered; restore it with `mica template check \
                 --fix SOURCE`"
            ),
            Self::PrivateGone { root, private } => write!(
                f,
                "the private directory {} of root {root} is gone; mount its disk, or let the \
                 root go: mica store forget {root}",
                private.display()
            ),
        }
    }
}

/// Checks every template, every registered root, their layers and trees, and that each
/// object they name is there; with `rehash` also that it has the content it should have.
///
/// `watch` is asked and told between objects.
///
/// # Errors
/// Only what keeps the check from being made; what it finds is in the answer.
pub fn check(store: &Store, rehash: bool, watch: &Watch<'_>) -> Result<Checked, HostError> {
    let mut check = Check::begin(store, rehash, watch)?;
    let mut stacks = check.templates(None)?;
    for record in Roots::open(store)?.list()? {
        check.checked.roots += 1;
        if let Some(private) = record.private.filter(|private| !private.exists()) {
            let root = record.name.clone();
            check.checked.findings.push(Finding::PrivateGone { root, private });
        }
        stacks.push((format!("root {}", record.name), record.stack));
    }
    check.stacks(stacks)
}

/// Checks these templates alone (without names: all of them), and that each of their objects has the content it should
/// have. `watch` is as for [`check()`].
///
/// # Errors
/// As [`check()`].
pub fn check_templates(
    store: &Store,
    names: Option<&[TemplateName]>,
    watch: &Watch<'_>,
) -> Result<Checked, HostError> {
    let mut check = Check::begin(store, true, watch)?;
    let stacks = check.templates(names)?;
    check.stacks(stacks)
}

struct Check<'a> {
    layers: Layers,
    objects: Objects,
    rehash: bool,
    watch: &'a Watch<'a>,
    checked: Checked,
    _store: StoreLock,
}

impl<'a> Check<'a> {
    fn begin(store: &Store, rehash: bool, watch: &'a Watch<'a>) -> Result<Self, HostError> {
        let lock = store.share()?;
        Ok(Self {
            layers: Layers::open(store.path())?,
            objects: Objects::open(store.path())?,
            rehash,
            watch,
            checked: Checked::default(),
            _store: lock,
        })
    }

    /// The stacks of all templates, or of those that are named, and who owns them.
    fn templates(
        &mut self,
        names: Option<&[TemplateName]>,
    ) -> Result<Vec<(String, Stack)>, HostError> {
        let mut stacks = Vec::new();
        let mut take = |path: String, template: Result<Template, LayersError>| {
            self.checked.templates += 1;
            match template {
                Ok(template) => {
                    stacks.push((format!("template {}", template.name), template.stack))
                }
                Err(source) => self.checked.findings.push(Finding::Unusable {
                    what: format!("template file {path}"),
                    layer: None,
                    source: source.into(),
                }),
            }
        };
        match names {
            Some(names) => {
                for name in names {
                    take(name.to_string(), self.layers.templates().get(name));
                }
            }
            None => {
                for listed in self.layers.templates().list()? {
                    take(listed.path.display().to_string(), listed.template);
                }
            }
        }
        Ok(stacks)
    }

    fn stacks(mut self, stacks: Vec<(String, Stack)>) -> Result<Checked, HostError> {
        let mut seen_stacks = HashSet::new();
        let mut seen_layers = HashSet::new();
        let mut seen_objects = HashSet::new();
        for (owner, stack) in stacks {
            if !seen_stacks.insert(stack.id()) {
                continue;
            }
            let mut whole = true;
            for id in stack.layers() {
                if !seen_layers.insert(*id) {
                    continue;
                }
                self.checked.layers += 1;
                let manifest = match self.layers.load_verified(id) {
                    Ok(manifest) => manifest,
                    Err(source) => {
                        whole = false;
                        self.checked.findings.push(Finding::Unusable {
                            what: format!("layer {id} of {owner}"),
                            layer: Some(*id),
                            source: source.into(),
                        });
                        continue;
                    }
                };
                for object in manifest.objects() {
                    if !(self.watch.proceed)() {
                        return Ok(self.checked);
                    }
                    if seen_objects.insert(object.id) {
                        let checked = &mut self.checked;
                        let before = checked.hashed_bytes;
                        check_object(&self.objects, object.id, *id, self.rehash, checked)?;
                        (self.watch.hashed)(checked.hashed_bytes - before);
                    }
                }
            }
            // A tree is derived: a damaged one is made again by looking at it.
            if whole && let Err(source) = self.layers.tree_verified(&stack) {
                let what = format!("the tree of {owner}");
                let finding = Finding::Unusable { what, layer: None, source: source.into() };
                self.checked.findings.push(finding);
            }
        }
        self.checked.findings.sort_by_key(|finding| !finding.is_damage());
        Ok(self.checked)
    }
}

fn check_object(
    objects: &Objects,
    object: ObjectId,
    layer: LayerId,
    rehash: bool,
    checked: &mut Checked,
) -> Result<(), HostError> {
    checked.objects += 1;
    if !rehash {
        if !objects.contains(&object)? {
            checked.findings.push(Finding::Missing { object, layer });
        }
        return Ok(());
    }
    match objects.verify(&object)? {
        Verdict::Whole { len_bytes, .. } => checked.hashed_bytes += len_bytes,
        Verdict::Missing => checked.findings.push(Finding::Missing { object, layer }),
        Verdict::Altered { len_bytes, .. } => {
            checked.hashed_bytes += len_bytes;
            checked.findings.push(Finding::Altered { object, layer });
        }
    }
    Ok(())
}
