//! What each layer of a template did to the layers below it.

use serde::Serialize;

use crate::host::sentence;
use crate::layer::{LayerBuilder, LayerId, Manifest, Template, TemplateName, merge};

use super::diff::{Counter, Difference, Tally, diff};
use super::summary::held;
use super::{InspectError, Library, View};

/// The layers of a template, one below the other: what each of them did.
#[derive(Clone, Debug, Serialize)]
pub struct History {
    /// The template.
    pub template: TemplateName,
    /// Its layers, lowest first.
    pub layers: Vec<HistoryRow>,
}

/// What one layer of a stack did to the layers below it.
#[derive(Clone, Debug, Serialize)]
pub struct HistoryRow {
    /// Its number in the stack, 1 the lowest.
    pub number: usize,
    /// The layer.
    pub layer: LayerId,
    /// Bytes of its regular files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// What it added, changed and deleted; absent if that cannot be told because this layer or
    /// one below it is damaged.
    #[serde(flatten)]
    pub tally: Option<Tally>,
    /// Where it came from: the sources of the templates that have it on top of their stacks.
    pub provenance: Vec<Source>,
    /// What is wrong with it, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// Where a layer came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// The template that was made by that import.
    pub template: TemplateName,
    /// The import's source: a path, or `-` for standard input.
    pub source: String,
    /// The source's digest, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    /// When it was imported, RFC 3339.
    pub created: String,
}

impl Library {
    /// What each layer of a template did.
    ///
    /// The tree of each lower part of the stack is merged in memory and compared with the next.
    ///
    /// # Errors
    /// [`InspectError`] if templates cannot be listed; damage to a layer is in the answer.
    pub fn history(&self, template: &Template) -> Result<History, InspectError> {
        let templates = self.templates()?;
        let ids = template.stack.layers();
        let mut below: Option<View> = None;
        let mut broken = false;
        let mut layers = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let mut row = HistoryRow {
                number: at + 1,
                layer: *id,
                size_bytes: None,
                tally: None,
                provenance: sources(&templates, template, at),
                damage: None,
            };
            match self.layers().load_verified(id) {
                Ok(manifest) => {
                    row.size_bytes = Some(held(&manifest)?.size_bytes);
                    if !broken {
                        match above(below.as_ref(), &manifest, ids.get(..=at).unwrap_or_default()) {
                            Ok((tally, view)) => {
                                row.tally = Some(tally);
                                below = Some(view);
                            }
                            Err(error) => {
                                broken = true;
                                row.damage = Some(sentence(&error));
                            }
                        }
                    }
                }
                Err(error) => {
                    broken = true;
                    row.damage = Some(sentence(&error));
                }
            }
            layers.push(row);
        }
        Ok(History { template: template.name.clone(), layers })
    }
}

/// What `layer` does to `below`, and the tree of both.
fn above(
    below: Option<&View>,
    layer: &Manifest,
    ids: &[LayerId],
) -> Result<(Tally, View), InspectError> {
    let fail = |source| InspectError::Merge { source };
    let bytes = merge(below.map(View::manifest), layer).map_err(fail)?;
    let view = View::of_bytes(String::new(), bytes, ids.to_vec())?;
    let mut counter = Counter::default();
    let mut count = |difference: Difference| {
        // The root is there in any tree, so its metadata is nothing that a first layer changes.
        if below.is_some() || !difference.path.is_empty() {
            counter.count(&difference);
        }
        Ok::<(), InspectError>(())
    };
    match below {
        Some(below) => diff(below, &view, false, &mut count)?,
        None => diff(&empty()?, &view, false, &mut count)?,
    }
    Ok((counter.tally(), view))
}

/// A tree with nothing in it.
fn empty() -> Result<View, InspectError> {
    let layer = LayerBuilder::new().finish().map_err(InspectError::Build)?;
    let layer = Manifest::from_bytes(layer)?;
    Ok(View::of_manifest(String::new(), layer, Vec::new()))
}

/// The imports that ended with the layer at `at` of the template's stack on top.
fn sources(templates: &[Template], template: &Template, at: usize) -> Vec<Source> {
    let part = template.stack.layers().get(..=at).unwrap_or_default();
    let of = |one: &Template| Source {
        template: one.name.clone(),
        source: one.provenance.source.clone(),
        source_digest: one.provenance.source_digest.clone(),
        created: time_of(one),
    };
    let mut sources: Vec<Source> =
        templates.iter().filter(|one| one.stack.layers() == part).map(of).collect();
    if sources.is_empty() && at + 1 < template.stack.layers().len() {
        // A lower layer of an image that was imported whole: it came with that.
        let rest = templates.iter().filter(|one| one.stack.layers().starts_with(part));
        sources.extend(rest.min_by_key(|one| one.stack.layers().len()).map(of));
    }
    sources
}

fn time_of(template: &Template) -> String {
    humantime::format_rfc3339_seconds(template.provenance.created).to_string()
}
