//! Writing a template out of the store: as a directory, a tar archive, an OCI image layout.
//!
//! Whatever gets a name is whole by then (`place.rs`). Nothing in the store changes.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use super::error::HostError;
use super::place::{beside, examine};
use super::store::Store;
use super::templates;
use crate::layer::checkout::checkout;
use crate::layer::export::compress::Compressor;
use crate::layer::export::oci::{Image, write_image};
use crate::layer::export::{Compression, ExportError, Watched, Written, write_tree};
use crate::layer::{LayerPath, Layers, Template};
use crate::object::ObjectReader;

/// What becomes of a template that is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// A directory with everything in it as a root shows it.
    Directory,
    /// A tar archive of that.
    Tar(Compression),
    /// An image in an OCI layout, its layers as they are.
    Oci {
        /// How the layers are compressed.
        compression: Compression,
        /// What the image is called there; the template's tag unless given.
        reference: Option<String>,
    },
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct ExportReport {
    /// The template, `name:tag`.
    pub template: String,
    /// Names or members.
    pub names: u64,
    /// Bytes of regular files, holes included.
    pub bytes: u64,
    /// Device nodes, of a directory.
    pub devices: u64,
    /// Programs in a directory that run with another's rights.
    pub privileged: u64,
    /// Sockets, which archives cannot hold.
    pub sockets: Vec<LayerPath>,
    /// Of an image: the digest of its manifest.
    pub manifest: Option<String>,
    /// Of an image: the digests of its uncompressed layers.
    pub diff_ids: Vec<String>,
}

/// Writes the tree of a template as a tar stream.
///
/// # Errors
/// [`HostError::NoTemplate`], [`HostError::Export`].
pub fn export_stream(
    store: &Store,
    template: &str,
    compression: Compression,
    out: impl Write,
    watched: &Watched<'_>,
) -> Result<ExportReport, HostError> {
    let source = Source::open(store, template)?;
    let written = source.write_tar(compression, out, watched)?;
    Ok(source.report(written))
}

/// Writes a template to `target`. With `replace` an archive or a directory that is there goes
/// when the new one is whole; into an OCI layout an image is always added.
///
/// # Errors
/// [`HostError::NoTemplate`], [`HostError::ExportExists`], [`HostError::ExportPlace`],
/// [`HostError::Export`], [`HostError::System`].
pub fn export_to(
    store: &Store,
    template: &str,
    form: &Form,
    target: &Path,
    replace: bool,
    watched: &Watched<'_>,
) -> Result<ExportReport, HostError> {
    let source = Source::open(store, template)?;
    examine(store, target, !matches!(form, Form::Oci { .. }))?;
    match form {
        Form::Oci { compression, reference } => {
            let reference = reference.as_deref().unwrap_or(source.template.name.tag());
            source.write_oci(target, reference, *compression, watched)
        }
        Form::Tar(compression) => beside(target, replace, |staged| {
            let file = File::create_new(staged).map_err(HostError::system("make", staged))?;
            let out = BufWriter::with_capacity(256 * 1024, &file);
            let written = source.write_tar(*compression, out, watched)?;
            file.sync_all().map_err(HostError::system("write", staged))?;
            Ok(source.report(written))
        }),
        Form::Directory => beside(target, replace, |staged| {
            fs::create_dir(staged).map_err(HostError::system("make", staged))?;
            let dir = File::open(staged).map_err(HostError::system("open", staged))?;
            let tree = source.layers.tree(&source.template.stack)?;
            let done = checkout(&tree, &source.objects, dir.into(), watched.cancel)?;
            let written = Written { members: done.names, bytes: done.bytes, sockets: Vec::new() };
            let report = source.report(written);
            Ok(ExportReport { devices: done.devices, privileged: done.privileged, ..report })
        }),
    }
}

/// A template and all that is needed to read it.
struct Source {
    template: Template,
    layers: Layers,
    objects: ObjectReader,
}

impl Source {
    fn open(store: &Store, template: &str) -> Result<Self, HostError> {
        let layers = Layers::open(store.path())?;
        let template = templates::find(&layers, template)?;
        Ok(Self { template, layers, objects: ObjectReader::open(store.path())? })
    }

    fn write_tar(
        &self,
        compression: Compression,
        out: impl Write,
        watched: &Watched<'_>,
    ) -> Result<Written, HostError> {
        let failed = |source| ExportError::Write { what: "the archive".to_owned(), source };
        let tree = self.layers.tree(&self.template.stack)?;
        let mut out = Compressor::new(out, compression).map_err(failed)?;
        let written = write_tree(&tree, &self.objects, &mut out, watched)?;
        out.finish().and_then(|mut out| out.flush()).map_err(failed)?;
        Ok(written)
    }

    fn write_oci(
        &self,
        target: &Path,
        reference: &str,
        compression: Compression,
        watched: &Watched<'_>,
    ) -> Result<ExportReport, HostError> {
        let mut layers = Vec::new();
        for id in self.template.stack.layers() {
            layers.push((*id, self.layers.load_verified(id)?));
        }
        let created = humantime::format_rfc3339_seconds(self.template.provenance.created);
        let image = Image {
            reference,
            layers: &layers,
            config: &self.template.config,
            created: &created.to_string(),
        };
        let done = write_image(target, &image, &self.objects, compression, watched)?;
        Ok(ExportReport {
            manifest: Some(done.manifest),
            diff_ids: done.diff_ids,
            ..self.report(done.written)
        })
    }

    fn report(&self, written: Written) -> ExportReport {
        ExportReport {
            template: self.template.name.to_string(),
            names: written.members,
            bytes: written.bytes,
            sockets: written.sockets,
            ..ExportReport::default()
        }
    }
}
