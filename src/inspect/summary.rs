//! What templates and layers amount to, and what they share.
//!
//! Bytes here are bytes of content, each object once. Those of a template are exclusive where
//! no other template has the object in any of its layers, and shared otherwise; what a higher
//! layer hides counts, for it is there. What that takes on the disk, and what deleting would
//! give back, is for `store df`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use serde::Serialize;

use crate::host::{HostError, RootRecord, sentence};
use crate::layer::{
    FileKind, LayerId, LayersError, Manifest, ObjectRef, StackId, Template, TemplateName, TreeIno,
};
use crate::object::ObjectId;

use super::{InspectError, Library};

/// What a template amounts to.
#[derive(Clone, Debug, Serialize)]
pub struct TemplateSummary {
    /// The template as it is stored: name, kind, stack, run configuration, provenance.
    pub template: Template,
    /// Name of its stack.
    pub stack_id: StackId,
    /// Number of its layers.
    pub layers: usize,
    /// What can be told only if its layers are good.
    #[serde(flatten)]
    pub measured: Option<Measured>,
    /// The roots that were made from it.
    pub roots: Vec<String>,
    /// What is wrong with it, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// What the layers of a template hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// Inodes of its tree, hidden ones included.
    pub inodes: u32,
    /// Names in its tree, the root not counted.
    pub names: u64,
    /// Regular files in its tree; one with several names counts once.
    pub files: u64,
    /// Bytes of those, as `du --apparent-size` counts the content of a checkout.
    pub size_bytes: u64,
    /// Bytes of the distinct contents in all its layers.
    pub content_bytes: u64,
    /// Those of them that no other template has.
    pub exclusive_bytes: u64,
    /// Those of them that another template has too.
    pub shared_bytes: u64,
}

/// A template in a list: what it amounts to, or why that cannot be told.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum ListedSummary {
    /// A template, damaged or not.
    Template(Box<TemplateSummary>),
    /// A file among the templates that cannot be used.
    Unusable {
        /// Where it lies.
        path: String,
        /// Why, in a sentence.
        damage: String,
    },
}

/// What a layer amounts to.
#[derive(Clone, Debug, Serialize)]
pub struct LayerSummary {
    /// The layer.
    pub layer: LayerId,
    /// Bytes of its manifest.
    pub manifest_bytes: u64,
    /// What can be told only if its manifest is good.
    #[serde(flatten)]
    pub measured: Option<LayerMeasured>,
    /// The templates whose stack has it.
    pub templates: Vec<TemplateName>,
    /// The roots whose stack has it.
    pub roots: Vec<String>,
    /// What is wrong with it, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// What a layer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LayerMeasured {
    /// Names it gives, the root not counted, whiteouts included.
    pub names: u64,
    /// Regular files; one with several names counts once.
    pub files: u64,
    /// Directories, the root and those it only passes through not counted.
    pub directories: u64,
    /// Names that it removes from the layers below.
    pub whiteouts: u64,
    /// Directories that hide all that the layers below have in them.
    pub opaque_directories: u64,
    /// Bytes of its regular files.
    pub size_bytes: u64,
    /// Bytes of its distinct contents.
    pub content_bytes: u64,
    /// Those of them that no other layer has.
    pub exclusive_bytes: u64,
}

impl Library {
    /// Every template with what it amounts to, in order of their names.
    ///
    /// # Errors
    /// [`InspectError`] if templates or roots cannot be listed; damage to one of them is in
    /// the answer.
    pub fn summaries(&self) -> Result<Vec<ListedSummary>, InspectError> {
        let records = self.records()?;
        let mut templates = Vec::new();
        let mut answer = Vec::new();
        for listed in self.layers().templates().list()? {
            match listed.template {
                Ok(template) => templates.push(template),
                Err(error) => answer.push(ListedSummary::Unusable {
                    path: listed.path.display().to_string(),
                    damage: sentence(&HostError::from(error)),
                }),
            }
        }
        let summaries = self.weigh(templates, &records)?.into_iter();
        let summaries = summaries.map(|summary| ListedSummary::Template(Box::new(summary)));
        let mut all: Vec<ListedSummary> = summaries.collect();
        all.append(&mut answer);
        Ok(all)
    }

    /// What one template amounts to.
    ///
    /// # Errors
    /// As [`Library::summaries`].
    pub fn summary(&self, wanted: &TemplateName) -> Result<TemplateSummary, InspectError> {
        let found = self.summaries()?.into_iter().find_map(|listed| match listed {
            ListedSummary::Template(summary) if summary.template.name == *wanted => Some(*summary),
            ListedSummary::Template(_) | ListedSummary::Unusable { .. } => None,
        });
        Ok(found.ok_or_else(|| HostError::from(LayersError::NoTemplate(wanted.clone())))?)
    }

    fn weigh(
        &self,
        templates: Vec<Template>,
        records: &[RootRecord],
    ) -> Result<Vec<TemplateSummary>, InspectError> {
        let ids: BTreeSet<LayerId> =
            templates.iter().flat_map(|template| template.stack.layers()).copied().collect();
        let opened: BTreeMap<LayerId, Result<Manifest, LayersError>> =
            ids.into_iter().map(|id| (id, self.layers().load(&id))).collect();
        let good: Vec<(LayerId, &Manifest)> =
            opened.iter().filter_map(|(id, found)| Some((*id, found.as_ref().ok()?))).collect();
        let holders: Vec<Vec<usize>> = good
            .iter()
            .map(|(id, _)| {
                let has = |template: &Template| template.stack.layers().contains(id);
                (0..templates.len()).filter(|at| has(&templates[*at])).collect()
            })
            .collect();
        let mut weights = vec![Weight::default(); templates.len()];
        let manifests: Vec<&Manifest> = good.iter().map(|(_, manifest)| *manifest).collect();
        for_each_object(&manifests, |object, layers| {
            let holding: BTreeSet<usize> =
                layers.iter().flat_map(|layer| &holders[*layer]).copied().collect();
            for template in &holding {
                weights[*template].add(object.size, holding.len() == 1);
            }
        });
        let mut summaries = Vec::new();
        for (template, weight) in templates.into_iter().zip(weights) {
            let bad = template.stack.layers().iter().find_map(|id| opened.get(id)?.as_ref().err());
            let (measured, damage) = match bad {
                Some(error) => (None, Some(sentence(error))),
                None => match self.measure(&template, weight) {
                    Ok(measured) => (Some(measured), None),
                    Err(error) => (None, Some(sentence(&error))),
                },
            };
            let made_from = |record: &&RootRecord| record.template == template.name;
            summaries.push(TemplateSummary {
                stack_id: template.stack.id(),
                layers: template.stack.layers().len(),
                measured,
                roots: records.iter().filter(made_from).map(|root| root.name.clone()).collect(),
                damage,
                template,
            });
        }
        Ok(summaries)
    }

    fn measure(&self, template: &Template, weight: Weight) -> Result<Measured, InspectError> {
        let tree = self.layers().tree(&template.stack)?;
        let held = held(&tree)?;
        Ok(Measured {
            inodes: tree.len(),
            names: u64::from(tree.name_count()),
            files: held.files,
            size_bytes: held.size_bytes,
            content_bytes: weight.exclusive + weight.shared,
            exclusive_bytes: weight.exclusive,
            shared_bytes: weight.shared,
        })
    }

    /// Every layer with what it amounts to, in order of their digests. Each manifest is read
    /// and hashed.
    ///
    /// # Errors
    /// [`InspectError`] if layers, templates or roots cannot be listed; damage to one of them
    /// is in the answer.
    pub fn layer_summaries(&self) -> Result<Vec<LayerSummary>, InspectError> {
        let mut stored = self.layers().layers()?;
        stored.sort_unstable_by_key(|stored| stored.id);
        let templates = self.templates()?;
        // What templates want is shown as missing if it is not there.
        let there: BTreeSet<LayerId> = stored.iter().map(|stored| stored.id).collect();
        let wanted: BTreeSet<LayerId> =
            templates.iter().flat_map(|template| template.stack.layers()).copied().collect();
        let mut layers: Vec<(LayerId, u64)> =
            stored.iter().map(|stored| (stored.id, stored.len_bytes)).collect();
        layers.extend(wanted.difference(&there).map(|id| (*id, 0)));
        let records = self.records()?;
        let opened: Vec<_> = layers.iter().map(|(id, _)| self.open_layer(id)).collect();
        let manifests: Vec<&Manifest> = opened.iter().filter_map(|one| one.as_ref().ok()).collect();
        let mut weights = vec![Weight::default(); manifests.len()];
        for_each_object(&manifests, |object, layers| {
            for layer in layers {
                weights[*layer].add(object.size, layers.len() == 1);
            }
        });
        let mut weights = weights.into_iter();
        let mut summaries = Vec::new();
        for ((id, manifest_bytes), manifest) in layers.iter().zip(&opened) {
            let measured = match manifest {
                Ok(manifest) => measure_layer(manifest, weights.next().unwrap_or_default())
                    .map_err(|error| sentence(&error)),
                Err(error) => Err(sentence(error)),
            };
            let (measured, damage) = match measured {
                Ok(measured) => (Some(measured), None),
                Err(damage) => (None, Some(damage)),
            };
            let names = templates.iter().filter(|one| one.stack.layers().contains(id));
            let roots = records.iter().filter(|one| one.stack.layers().contains(id));
            summaries.push(LayerSummary {
                layer: *id,
                manifest_bytes: *manifest_bytes,
                measured,
                templates: names.map(|template| template.name.clone()).collect(),
                roots: roots.map(|root| root.name.clone()).collect(),
                damage,
            });
        }
        Ok(summaries)
    }
}

/// Bytes of distinct contents.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    exclusive: u64,
    shared: u64,
}

impl Weight {
    fn add(&mut self, bytes: u64, exclusive: bool) {
        *(if exclusive { &mut self.exclusive } else { &mut self.shared }) += bytes;
    }
}

/// Shows each object of some manifests once, with the manifests that have it.
///
/// Object tables are sorted, so they are merged in place: no set of all objects is made.
fn for_each_object(manifests: &[&Manifest], mut each: impl FnMut(ObjectRef, &[usize])) {
    let mut tables: Vec<_> = manifests.iter().map(|manifest| manifest.objects()).collect();
    let mut heads: BinaryHeap<Reverse<(ObjectId, usize)>> = BinaryHeap::new();
    let mut rows: Vec<Option<ObjectRef>> = tables.iter_mut().map(Iterator::next).collect();
    heads.extend(
        rows.iter().enumerate().filter_map(|(at, row)| Some(Reverse((row.as_ref()?.id, at)))),
    );
    let mut holders = Vec::new();
    while let Some(Reverse((id, at))) = heads.pop() {
        let Some(row) = rows[at] else { continue };
        holders.push(at);
        rows[at] = tables[at].next();
        if let Some(next) = &rows[at] {
            heads.push(Reverse((next.id, at)));
        }
        if heads.peek().is_none_or(|Reverse((next, _))| *next != id) {
            each(row, &holders);
            holders.clear();
        }
    }
}

pub(super) struct Held {
    files: u64,
    directories: u64,
    opaque: u64,
    pub(super) size_bytes: u64,
}

/// Counts the inodes of a manifest that have a name.
pub(super) fn held(manifest: &Manifest) -> Result<Held, InspectError> {
    let mut held = Held { files: 0, directories: 0, opaque: 0, size_bytes: 0 };
    for number in 1..=manifest.len() {
        let Some(ino) = TreeIno::new(number) else { continue };
        let inode = manifest.inode(ino)?;
        if inode.is_hidden() {
            continue;
        }
        match inode.kind {
            FileKind::Regular => {
                held.files += 1;
                held.size_bytes = held.size_bytes.saturating_add(inode.size);
            }
            FileKind::Directory => {
                held.directories += u64::from(ino != TreeIno::ROOT && !inode.implicit);
                held.opaque += u64::from(inode.opaque);
            }
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => {}
        }
    }
    Ok(held)
}

fn measure_layer(manifest: &Manifest, weight: Weight) -> Result<LayerMeasured, InspectError> {
    let held = held(manifest)?;
    let mut whiteouts = 0;
    for number in 1..=manifest.len() {
        let Some(ino) = TreeIno::new(number) else { continue };
        for entry in manifest.entries(&manifest.inode(ino)?) {
            whiteouts += u64::from(entry?.ino.is_none());
        }
    }
    Ok(LayerMeasured {
        names: u64::from(manifest.name_count()),
        files: held.files,
        directories: held.directories,
        whiteouts,
        opaque_directories: held.opaque,
        size_bytes: held.size_bytes,
        content_bytes: weight.exclusive + weight.shared,
        exclusive_bytes: weight.exclusive,
    })
}
