//! Checking a store: does everything that is named exist, is it what its name says, and is what
//! is derived what making it anew gives.
//!
//! Nothing but derived things is ever replaced, and nothing at all removed: what cannot be derived
//! is told.

mod derived;
mod now;
mod privates;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use crate::catalog::{Catalog, CatalogError};
use crate::host::error::HostError;
use crate::host::roots::Roots;
use crate::host::store::{Store, StoreLock};
use crate::layer::{
    LayerId, LayerPath, Layers, LayersError, Stack, StackId, Template, TemplateName,
};
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
    /// Entries of private layers.
    pub private_files: u64,
    /// Those whose content is an object.
    pub references: u64,
    /// What was derived and wrong, and was made anew.
    pub fixed: Vec<String>,
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
    /// An entry of a private layer cannot be understood; the root answers EIO there.
    PrivateDamaged {
        /// The root.
        root: String,
        /// Where in it.
        path: LayerPath,
        /// What is wrong.
        reason: String,
    },
    /// A private file stands for an object that is not there.
    LostReference {
        /// The root.
        root: String,
        /// The file.
        path: LayerPath,
        /// The object.
        object: ObjectId,
    },
    /// Something derived is not what making it anew gives.
    Derived {
        /// What, in a sentence.
        what: String,
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
                write!(f, "{what} cannot be used: {}", crate::host::sentence(source))
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
            Self::PrivateDamaged { root, path, reason } => {
                write!(f, "{path} of root {root} is damaged in its private directory: {reason}")
            }
            Self::LostReference { root, path, object } => write!(
                f,
                "{path} of root {root} is object {object}, which is missing; import what has that \
                 content again"
            ),
            Self::Derived { what } => {
                write!(f, "{what}; `mica store check --fix` makes it again")
            }
            Self::PrivateGone { root, private } => write!(
                f,
                "the private directory {} of root {root} is gone; mount its disk, or let the \
                 root go: mica store forget {root}",
                private.display()
            ),
        }
    }
}

/// What a check is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Read every object again and compare it with its digest.
    pub rehash: bool,
    /// Make anew what is derived and wrong.
    pub fix: bool,
}

/// Checks every template, every registered root with its private layer, their layers, trees and
/// reverse indexes, and that each object they name is there.
///
/// `watch` is asked and told between objects. Beside it templates and roots may go, and what they
/// alone had be collected: what is found is true of the store as it is at the end.
///
/// # Errors
/// Only what keeps the check from being made; what it finds is in the answer.
pub fn check(
    store: &Store,
    options: CheckOptions,
    watch: &Watch<'_>,
) -> Result<Checked, HostError> {
    let mut check = Check::begin(store, options, watch)?;
    let catalog = Catalog::open(store.path()).map_err(|error| match error {
        CatalogError::Layers(error) => HostError::from(error),
        CatalogError::Manifest(error) => error.into(),
    })?;
    let mut stacks = check.templates(None)?;
    let mut records = Vec::new();
    let roots = Roots::open(store)?;
    for listed in roots.list_each()? {
        check.checked.roots += 1;
        match listed {
            Ok(record) => {
                stacks.push((format!("root {}", record.name), record.stack.clone()));
                records.push(record);
            }
            Err(source) => check.checked.findings.push(Finding::Unusable {
                what: "a root's record".to_owned(),
                layer: None,
                source: source.into(),
            }),
        }
    }
    check.stacks(stacks, Some(&catalog))?;
    for record in &records {
        check.private(&roots, record);
    }
    check.remembered(&records, &catalog);
    check.judge_by_now(store)?;
    Ok(check.finish())
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
    let mut check = Check::begin(store, CheckOptions { rehash: true, fix: true }, watch)?;
    let stacks = check.templates(names)?;
    check.stacks(stacks, None)?;
    check.judge_by_now(store)?;
    Ok(check.finish())
}

struct Check<'a> {
    layers: Layers,
    objects: Objects,
    rehash: bool,
    fix: bool,
    watch: &'a Watch<'a>,
    checked: Checked,
    /// What was found about derived things, with the stack that they are derived from.
    of_stacks: Vec<(StackId, Finding)>,
    seen_objects: HashSet<ObjectId>,
    _store: StoreLock,
}

impl<'a> Check<'a> {
    fn begin(
        store: &Store,
        options: CheckOptions,
        watch: &'a Watch<'a>,
    ) -> Result<Self, HostError> {
        let lock = store.share()?;
        Ok(Self {
            layers: Layers::open(store.path())?,
            objects: Objects::open(store.path())?,
            rehash: options.rehash,
            fix: options.fix,
            watch,
            checked: Checked::default(),
            of_stacks: Vec::new(),
            seen_objects: HashSet::new(),
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

    /// Checks the layers of these stacks and what they name; with a catalog also the index.
    fn stacks(
        &mut self,
        stacks: Vec<(String, Stack)>,
        catalog: Option<&Catalog>,
    ) -> Result<(), HostError> {
        let mut seen_stacks = HashSet::new();
        let mut seen_layers = HashSet::new();
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
                        return Ok(());
                    }
                    if self.seen_objects.insert(object.id) {
                        let checked = &mut self.checked;
                        let before = checked.hashed_bytes;
                        check_object(&self.objects, object.id, *id, self.rehash, checked)?;
                        (self.watch.hashed)(checked.hashed_bytes - before);
                    }
                }
            }
            if whole {
                self.derived(&owner, &stack, catalog);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Checked {
        self.checked.findings.sort_by_key(|finding| !finding.is_damage());
        self.checked
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
