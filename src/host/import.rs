//! Making a template of something from elsewhere: straight down through the layers, once.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::error::HostError;
use super::store::Store;
use super::templates;
use crate::catalog::Catalog;
use crate::layer::import::{Choice, Excludes, ImportOptions, Progress, Silent, Source, import};
use crate::layer::store::LayersError;
use crate::layer::template::default_shared_paths;
use crate::layer::{Layers, Provenance, RunConfig, Stack, Template, TemplateKind, TemplateName};
use crate::object::Objects;

/// Watches an import to its very end.
pub trait Watch: Progress {
    /// Everything is read; what is new is now made durable and gets its name.
    fn publishing(&self) {}
}

impl Watch for Silent {}

/// What to import, and as what.
#[derive(Debug)]
pub struct ImportRequest<'a> {
    /// The name of the new template.
    pub name: TemplateName,
    /// A directory or an archive; `-` is standard input.
    pub source: PathBuf,
    /// The template whose present stack it is put on.
    pub on: Option<String>,
    /// Whether an existing name may move.
    pub replace: bool,
    /// What to leave out of a directory.
    pub excludes: Excludes,
    /// Which image of several.
    pub choice: Choice,
    /// Stops the import when set.
    pub cancel: &'a AtomicBool,
}

/// What an import made.
#[derive(Debug, Clone)]
pub struct ImportReport {
    /// The template.
    pub template: Template,
    /// Names taken over, in all layers.
    pub names: u64,
    /// Objects that were not in the store before.
    pub new_objects: u64,
    /// Their length together.
    pub new_bytes: u64,
}

/// Imports into `store` what `request` says.
///
/// The template's name is the last thing to be written: before that nothing refers to what
/// was imported, and what an import leaves behind that fails, is stopped or dies is swept
/// by the next one or the next collection.
///
/// # Errors
/// [`LayersError::TemplateExists`] before anything is read, unless the name may move;
/// otherwise what the source, the store or the layers below have to say.
pub fn import_template(
    store: &Store,
    request: &ImportRequest<'_>,
    progress: &dyn Watch,
) -> Result<ImportReport, HostError> {
    let _store = store.share()?;
    let objects = Objects::open(store.path())?;
    objects.sweep_staging()?;
    let layers = Layers::open(store.path())?;
    if !request.replace {
        match layers.templates().get(&request.name) {
            Err(LayersError::NoTemplate(_)) => {}
            _there => return Err(LayersError::TemplateExists(request.name.clone()).into()),
        }
    }
    let from_stdin = request.source == Path::new("-");
    let source = if from_stdin {
        Source::stream("standard input".to_owned(), io::stdin())
    } else {
        Source::open(&request.source)?
    };
    let staging = objects.begin()?;
    let base = request.on.as_deref().map(|on| templates::find(&layers, on)).transpose()?;
    let mut lower = None;
    if let Some(base) = &base {
        for layer in base.stack.layers() {
            layers.pin(staging.dir(), layer)?;
        }
        lower = Some(layers.tree(&base.stack)?);
    }
    let options = ImportOptions {
        on: lower.as_ref(),
        excludes: request.excludes.clone(),
        choice: request.choice.clone(),
        measure: true,
        cancel: request.cancel,
        ..ImportOptions::default()
    };
    let imported = import(source, &staging, &options, progress)
        .map_err(HostError::import_of(&request.source))?;
    // From here on it is quicker to finish than to undo: stopping is not looked at again.
    progress.publishing();
    let published = staging.publish()?;
    let mut stack = base.as_ref().map_or_else(Stack::default, |base| base.stack.clone());
    for manifest in imported.layers {
        stack = stack.extended(layers.publish(staging.dir(), manifest)?);
    }
    layers.tree(&stack)?;
    record_in_catalog(store, &stack);

    let given = imported.config != RunConfig::default();
    let (base_config, base_shared) = match base {
        Some(base) => (base.config, base.shared_paths),
        None => (RunConfig::default(), default_shared_paths()),
    };
    let template = Template {
        name: request.name.clone(),
        kind: TemplateKind::Os,
        stack,
        config: if given { imported.config } else { base_config },
        shared_paths: base_shared,
        provenance: Provenance::now(
            if from_stdin { "-".to_owned() } else { full_name(&request.source) },
            imported.source_digest,
        ),
    };
    layers.templates().put(&template, request.replace)?;
    staging.finish()?;
    Ok(ImportReport {
        template,
        names: imported.names,
        new_objects: published.objects,
        new_bytes: published.bytes,
    })
}

/// The index is never the truth: an import does not fail for it.
pub(super) fn record_in_catalog(store: &Store, stack: &Stack) {
    let record = || {
        let catalog = Catalog::open(store.path())?;
        catalog.record_stack(stack)
    };
    if let Err(error) = record() {
        tracing::warn!(%error, "the catalog learns of this import later");
    }
}

fn full_name(path: &Path) -> String {
    path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string()
}
