//! An OCI image layout: one layer of the image for each layer of the stack.
//!
//! Blobs are written under a name of their own and get their digest's by rename; the index comes
//! last, so that a layout never names what is not there. Other images of the layout stay. OCI
//! image-spec, image-layout.md.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::{
    ConfigBuilder, DescriptorBuilder, Digest as OciDigest, HistoryBuilder,
    ImageConfigurationBuilder, ImageManifestBuilder, MediaType, RootFsBuilder,
};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::compress::{Compression, Compressor};
use super::{ExportError, Watched, Written, write_layer};
use crate::layer::import::Platform;
use crate::layer::{LayerId, Manifest, RunConfig};
use crate::object::ObjectReader;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const BLOBS: &str = "blobs/sha256";

/// The image to be written.
pub struct Image<'a> {
    /// What the layout calls it.
    pub reference: &'a str,
    /// Its layers, lowest first.
    pub layers: &'a [(LayerId, Manifest)],
    /// How to run it.
    pub config: &'a RunConfig,
    /// When it was made, RFC 3339.
    pub created: &'a str,
}

/// What an image became.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Digest of its manifest: `sha256:…`.
    pub manifest: String,
    /// The uncompressed digests of its layers, lowest first.
    pub diff_ids: Vec<String>,
    /// What the layers hold together.
    pub written: Written,
}

/// Writes `image` into the layout at `dir`, making one if nothing is there.
///
/// # Errors
/// [`ExportError`]; the layout then is as it was, but for blobs that nothing names.
pub fn write_image(
    dir: &Path,
    image: &Image<'_>,
    objects: &ObjectReader,
    compression: Compression,
    watched: &Watched<'_>,
) -> Result<Exported, ExportError> {
    let layout = Layout::open(dir)?;
    let mut written = Written::default();
    let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for (id, layer) in image.layers {
        let (blob, diff_id, part) = layout.layer(layer, objects, compression, watched)?;
        written.members += part.members;
        written.bytes = written.bytes.saturating_add(part.bytes);
        written.sockets.extend(part.sockets);
        let media_type = match compression {
            Compression::None => MediaType::ImageLayer,
            Compression::Gzip => MediaType::ImageLayerGzip,
            Compression::Zstd => MediaType::ImageLayerZstd,
        };
        layers.push(descriptor(media_type, &blob)?);
        diff_ids.push(diff_id);
        history.push(
            HistoryBuilder::default()
                .created(image.created)
                .created_by(format!("mica layer {id}"))
                .build()
                .map_err(|error| layout.spec(error))?,
        );
    }
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids(diff_ids.clone()).build();
    let config = ImageConfigurationBuilder::default()
        .created(image.created)
        .architecture(architecture(image.config).as_str())
        .os("linux")
        .config(layout.run_config(image.config)?)
        .rootfs(rootfs.map_err(|error| layout.spec(error))?)
        .history(history)
        .build()
        .map_err(|error| layout.spec(error))?;
    let config = layout.document(&config)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(MediaType::ImageConfig, &config)?)
        .layers(layers)
        .build()
        .map_err(|error| layout.spec(error))?;
    let manifest = layout.document(&manifest)?;
    layout.name(image.reference, &manifest, &architecture(image.config))?;
    Ok(Exported { manifest: manifest.digest(), diff_ids, written })
}

/// A blob of the layout.
struct Blob {
    hex: String,
    size: u64,
}

impl Blob {
    fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }
}

struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Makes the layout at `dir`, or recognises it.
    fn open(dir: &Path) -> Result<Self, ExportError> {
        let layout = Self { dir: dir.to_owned() };
        let marker = dir.join("oci-layout");
        match fs::read(&marker) {
            Ok(text) => {
                let version = serde_json::from_slice::<Value>(&text).unwrap_or_default();
                let version = version["imageLayoutVersion"].as_str().unwrap_or_default();
                if !version.starts_with("1.") {
                    let reason = "it has another version than 1".to_owned();
                    return Err(ExportError::Layout { path: marker, reason });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
                    let reason = "it is not empty and has no oci-layout".to_owned();
                    return Err(ExportError::Layout { path: dir.to_owned(), reason });
                }
                fs::create_dir_all(dir).map_err(layout.failed(dir))?;
                layout.put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            }
            Err(source) => return Err(layout.failed(&marker)(source)),
        }
        // A layout that came from elsewhere must not send what is written here elsewhere.
        for part in ["blobs", BLOBS] {
            let path = dir.join(part);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(layout.failed(&path)(error));
                }
                Ok(()) | Err(_) => {}
            }
            if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                let reason = "it is no directory of its own".to_owned();
                return Err(ExportError::Layout { path, reason });
            }
        }
        Ok(layout)
    }

    /// Writes one layer; returns its blob, its uncompressed digest and what is in it.
    fn layer(
        &self,
        layer: &Manifest,
        objects: &ObjectReader,
        compression: Compression,
        watched: &Watched<'_>,
    ) -> Result<(Blob, String, Written), ExportError> {
        let staged = self.dir.join(BLOBS).join(format!(".layer-{}.partial", std::process::id()));
        let failed = || self.failed(&staged);
        let write = || {
            let file = fresh(&staged).map_err(failed())?;
            let blob = Hashed::new(BufWriter::with_capacity(256 * 1024, file));
            let compressor = Compressor::new(blob, compression).map_err(failed())?;
            let mut plain = Hashed::new(compressor);
            let written = write_layer(layer, objects, &mut plain, watched)?;
            let (compressor, diff_id, _) = plain.finish();
            let (file, hex, size) = compressor.finish().map_err(failed())?.finish();
            let file = file.into_inner().map_err(|error| failed()(error.into_error()))?;
            file.sync_all().map_err(failed())?;
            fs::rename(&staged, self.dir.join(BLOBS).join(&hex)).map_err(failed())?;
            Ok((Blob { hex, size }, format!("sha256:{diff_id}"), written))
        };
        let done = write();
        if done.is_err() {
            // The first error is the one that matters.
            let _removed = fs::remove_file(&staged);
        }
        done
    }

    /// Writes a JSON document as a blob. Through a value, whose members are sorted: the types of
    /// the specification hold maps without an order.
    fn document(&self, document: &impl Serialize) -> Result<Blob, ExportError> {
        let value = serde_json::to_value(document).map_err(|error| self.spec(error))?;
        let bytes = serde_json::to_vec(&value).map_err(|error| self.spec(error))?;
        let hex = hex(&Sha256::digest(&bytes));
        self.put(&format!("{BLOBS}/{hex}"), &bytes)?;
        Ok(Blob { hex, size: bytes.len() as u64 })
    }

    /// Gives the image its name in the index, in place of what had it before.
    fn name(
        &self,
        reference: &str,
        manifest: &Blob,
        architecture: &str,
    ) -> Result<(), ExportError> {
        let path = self.dir.join("index.json");
        let broken =
            |reason: &str| ExportError::Layout { path: path.clone(), reason: reason.into() };
        let mut index = match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice::<Value>(&text).map_err(|e| broken(&e.to_string()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => json!({
                "schemaVersion": 2,
                "mediaType": MediaType::ImageIndex.to_string(),
                "manifests": [],
            }),
            Err(source) => return Err(self.failed(&path)(source)),
        };
        let list =
            index["manifests"].as_array_mut().ok_or_else(|| broken("it has no manifests"))?;
        list.retain(|known| known["annotations"][REF_NAME] != reference);
        list.push(json!({
            "mediaType": MediaType::ImageManifest.to_string(),
            "digest": manifest.digest(),
            "size": manifest.size,
            "platform": { "architecture": architecture, "os": "linux" },
            "annotations": { REF_NAME: reference },
        }));
        let bytes = serde_json::to_vec(&index).map_err(|error| self.spec(error))?;
        self.put("index.json", &bytes)
    }

    /// Writes a small file, whole or not at all.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        let path = self.dir.join(name);
        let staged = path.with_extension(format!("{}.partial", std::process::id()));
        let write = || {
            let mut file = fresh(&staged)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&staged, &path)?;
            File::open(path.parent().unwrap_or(&self.dir))?.sync_all()
        };
        let done = write();
        if done.is_err() {
            // As above.
            let _removed = fs::remove_file(&staged);
        }
        done.map_err(self.failed(&path))
    }

    fn run_config(&self, config: &RunConfig) -> Result<oci_spec::image::Config, ExportError> {
        let mut built = ConfigBuilder::default();
        let text = |text: &String| (!text.is_empty()).then(|| text.clone());
        let list = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
        if let Some(user) = text(&config.user) {
            built = built.user(user);
        }
        if let Some(dir) = text(&config.working_dir) {
            built = built.working_dir(dir);
        }
        if let Some(signal) = text(&config.stop_signal) {
            built = built.stop_signal(signal);
        }
        if let Some(env) = list(&config.env) {
            built = built.env(env);
        }
        if let Some(entrypoint) = list(&config.entrypoint) {
            built = built.entrypoint(entrypoint);
        }
        if let Some(cmd) = list(&config.cmd) {
            built = built.cmd(cmd);
        }
        if let Some(ports) = list(&config.exposed_ports) {
            built = built.exposed_ports(ports);
        }
        if let Some(volumes) = list(&config.volumes) {
            built = built.volumes(volumes);
        }
        if !config.labels.is_empty() {
            let labels = config.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
            built = built.labels(labels.collect::<std::collections::HashMap<_, _>>());
        }
        built.build().map_err(|error| self.spec(error))
    }

    fn failed(&self, path: &Path) -> impl FnOnce(io::Error) -> ExportError + use<> {
        let what = path.display().to_string();
        move |source| ExportError::Write { what, source }
    }

    /// The specification's types refuse something, or it is no JSON.
    fn spec(&self, error: impl std::error::Error + Send + Sync + 'static) -> ExportError {
        let what = self.dir.display().to_string();
        ExportError::Write { what, source: io::Error::other(error) }
    }
}

/// A new file; what is left there of an export that was killed goes, and no link is followed.
fn fresh(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => File::create_new(path),
    }
}

fn descriptor(
    media_type: MediaType,
    blob: &Blob,
) -> Result<oci_spec::image::Descriptor, ExportError> {
    let failed = |error: &dyn std::fmt::Display| ExportError::Write {
        what: format!("the descriptor of {}", blob.digest()),
        source: io::Error::other(error.to_string()),
    };
    let digest: OciDigest = blob.digest().parse().map_err(|error| failed(&error))?;
    DescriptorBuilder::default()
        .media_type(media_type)
        .digest(digest)
        .size(blob.size)
        .build()
        .map_err(|error| failed(&error))
}

/// The processor in Go's words; this host's for what was not an image before.
fn architecture(config: &RunConfig) -> String {
    match config.architecture.as_str() {
        "" => Platform::host().architecture().to_owned(),
        known => known.to_owned(),
    }
}

/// Hashes what goes through.
struct Hashed<W> {
    out: W,
    hasher: Sha256,
    len: u64,
}

impl<W> Hashed<W> {
    fn new(out: W) -> Self {
        Self { out, hasher: Sha256::new(), len: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.out, hex(&self.hasher.finalize()), self.len)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.len += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
