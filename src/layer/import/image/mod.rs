//! Container images: OCI layouts and docker-save archives, as a directory or inside a tar.
//!
//! First a plan is made from the small documents (index, manifest, configuration), each checked
//! against the digest that names it; then the layers are read one after another, each checked
//! while it streams. The objects of a layer that turns out wrong were only staged. Knows nothing
//! of registries: what is referred to has to be there.

mod docker;
mod files;
mod oci;
mod platform;

use std::io;

use oci_spec::image::{Config, ImageConfiguration};

pub(super) use files::ImageFiles;
pub use platform::Platform;

use super::archive::{Rules, read_layer};
use super::compression::decompress;
use super::intake::{Expected, Intake, Verified};
use super::{Choice, ImportError, Session};
use crate::layer::{Manifest, RunConfig, merge};

/// Largest index, manifest or configuration, in bytes; registries refuse more than 4 MiB.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// What is wrong with a container image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No `oci-layout` with `index.json`, and no `manifest.json`.
    #[error("{0} holds neither an OCI layout nor a docker-save archive")]
    NotAnImage(String),
    /// A file that the image refers to is not there.
    #[error("the image lacks {0}; it was exported incompletely")]
    Missing(String),
    /// A file of the image cannot be read.
    #[error("{name} of the image cannot be read")]
    Read {
        /// Which file.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A document above the limit.
    #[error("{0} of the image is larger than 4 MiB")]
    TooLarge(String),
    /// A document that is not what it should be.
    #[error("{name} of the image is malformed")]
    Json {
        /// Which document.
        name: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A layout version this code does not know.
    #[error("the OCI layout has version {0}; this version reads 1.x")]
    LayoutVersion(String),
    /// Not `sha256:` or `sha512:` and as many hexadecimal digits.
    #[error("\"{0}\" is not a SHA-256 or SHA-512 digest")]
    BadDigest(String),
    /// Content that is not what its digest says.
    #[error("{name} of the image is damaged: its content has the digest {found}")]
    Digest {
        /// The digest it is named by.
        name: String,
        /// The digest it has.
        found: String,
    },
    /// Content of another size than stated.
    #[error("{name} of the image is damaged: it has {found} bytes instead of {stated}")]
    Size {
        /// The digest it is named by.
        name: String,
        /// Stated size in bytes.
        stated: u64,
        /// Size in bytes.
        found: u64,
    },
    /// Something that is not a layer, a manifest or a configuration Mica can use.
    #[error("the {what} has the media type {media_type}, which is not supported")]
    MediaType {
        /// Which part.
        what: &'static str,
        /// Its type.
        media_type: String,
    },
    /// No image of that name or platform.
    #[error("no image matches {wanted}; there is: {available}")]
    NoMatch {
        /// What was looked for.
        wanted: String,
        /// What could be chosen.
        available: String,
    },
    /// Several images, and none was chosen.
    #[error("there are several images; choose one of: {0}")]
    Ambiguous(String),
    /// An index inside an index, too often.
    #[error("the image index nests too deeply")]
    Nesting,
    /// More layers than anything stacks: each is read on top of all below it.
    #[error("the image has {0} layers; the limit is {MAX_LAYERS}")]
    TooManyLayers(usize),
    /// The configuration lists another number of layers than the manifest.
    #[error("the image has {layers} layers, but its configuration lists {diff_ids}")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Layers in the configuration.
        diff_ids: usize,
    },
    /// A platform that is not `os/architecture[/variant]`.
    #[error("\"{0}\" is not a platform; write os/architecture or os/architecture/variant")]
    BadPlatform(String),
}

/// Most layers of an image: what the kernel's overlayfs stacks. Docker makes up to 127.
const MAX_LAYERS: usize = 500;

/// An image as its documents describe it.
struct Plan {
    layers: Vec<PlannedLayer>,
    config: RunConfig,
    /// Digest of the manifest, or of the configuration where there is no manifest.
    digest: String,
}

struct PlannedLayer {
    /// Path of the file in the image.
    path: String,
    /// Digest and size of the file, where they are stated.
    blob: Option<(Expected, u64)>,
    /// Digest of the uncompressed archive.
    diff_id: Expected,
}

/// The layers of an image, lowest first, and what its documents say.
pub(super) struct ReadImage {
    pub(super) layers: Vec<Vec<u8>>,
    pub(super) members: u64,
    pub(super) config: RunConfig,
    pub(super) digest: String,
}

/// Reads one image of `files`; `lower` is the tree its lowest layer is put on.
pub(super) fn read_image(
    session: &Session<'_>,
    files: &ImageFiles,
    choice: &Choice,
    lower: Option<&Manifest>,
) -> Result<ReadImage, ImportError> {
    let plan = plan(files, choice)?;
    session.progress.expect(None, input_bytes(files, &plan));
    let mut layers = Vec::with_capacity(plan.layers.len());
    let mut members = 0;
    let mut below = lower.cloned();
    for (index, layer) in plan.layers.iter().enumerate() {
        session.progress.layer(index, plan.layers.len());
        let rules =
            Rules { lower: below.as_ref(), whiteouts: true, needs_end_mark: false, again: None };
        let (manifest, count) = read_blob(session, files, layer, rules)
            .map_err(|error| error.in_layer(index + 1, plan.layers.len()))?;
        members += count;
        if index + 1 < plan.layers.len() {
            let manifest = Manifest::from_bytes(manifest.clone())?;
            below = Some(Manifest::from_bytes(merge(below.as_ref(), &manifest)?)?);
        }
        layers.push(manifest);
    }
    Ok(ReadImage { layers, members, config: plan.config, digest: plan.digest })
}

fn plan(files: &ImageFiles, choice: &Choice) -> Result<Plan, ImageError> {
    // Newer docker-save archives are both; the layout says more (platforms, digests).
    if files.is_oci_layout() {
        oci::plan(files, choice)
    } else if files.has("manifest.json") {
        docker::plan(files, choice)
    } else {
        Err(ImageError::NotAnImage(files.name().to_owned()))
    }
}

fn input_bytes(files: &ImageFiles, plan: &Plan) -> Option<u64> {
    plan.layers.iter().try_fold(0_u64, |sum, layer| sum.checked_add(files.len(&layer.path)?))
}

fn read_blob(
    session: &Session<'_>,
    files: &ImageFiles,
    layer: &PlannedLayer,
    rules: Rules<'_>,
) -> Result<(Vec<u8>, u64), ImportError> {
    let file = Intake::new(files.open(&layer.path)?, session.cancel, Some(session.progress));
    let read = |input: &mut dyn io::Read| -> Result<(Vec<u8>, u64), ImportError> {
        let (_, decoder) = decompress(input)
            .map_err(|fault| ImportError::Compression { name: layer.path.clone(), fault })?;
        let mut verified = Verified::new(decoder, layer.diff_id.clone());
        let read = read_layer(session, &mut verified, rules)?;
        verified.finish(None)?;
        Ok((read.manifest, read.members))
    };
    match &layer.blob {
        None => {
            let mut file = file;
            read(&mut file)
        }
        Some((digest, size)) => {
            let mut verified = Verified::new(file, digest.clone());
            let layer = read(&mut verified);
            if layer.as_ref().is_err_and(|error| !error.is_of_the_source()) {
                return layer;
            }
            // Damage may look like a broken archive; the digest says it better.
            verified.finish(Some(*size))?;
            layer
        }
    }
}

/// Reads a document and checks it against its digest, where there is one.
fn document(
    files: &ImageFiles,
    path: &str,
    expected: Option<(&Expected, u64)>,
) -> Result<Vec<u8>, ImageError> {
    use io::Read;
    let mut bytes = Vec::new();
    let read = |source| ImageError::Read { name: path.to_owned(), source };
    files.open(path)?.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_DOCUMENT_BYTES) {
        return Err(ImageError::TooLarge(path.to_owned()));
    }
    if let Some((digest, size)) = expected {
        Verified::new(&bytes[..], digest.clone()).finish(Some(size))?;
    }
    Ok(bytes)
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T, ImageError> {
    serde_json::from_slice(bytes)
        .map_err(|source| ImageError::Json { name: name.to_owned(), source })
}

/// The digests of the uncompressed layers, one for each of `layers`.
fn diff_ids(config: &ImageConfiguration, layers: usize) -> Result<Vec<Expected>, ImageError> {
    if layers > MAX_LAYERS {
        return Err(ImageError::TooManyLayers(layers));
    }
    let ids = config.rootfs().diff_ids();
    if ids.len() != layers {
        return Err(ImageError::LayerCount { layers, diff_ids: ids.len() });
    }
    ids.iter().map(|id| Expected::parse(id)).collect()
}

/// What a template keeps of an image's configuration.
fn run_config(image: &ImageConfiguration) -> RunConfig {
    let empty = Config::default();
    let config = image.config().as_ref().unwrap_or(&empty);
    let list = |values: &Option<Vec<String>>| values.clone().unwrap_or_default();
    let sorted = |values: &Option<Vec<String>>| {
        // The image has them as the keys of a map, which keeps no order.
        let mut values = list(values);
        values.sort_unstable();
        values
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    RunConfig {
        architecture: image.architecture().to_string(),
        user: text(config.user()),
        env: list(config.env()),
        entrypoint: list(config.entrypoint()),
        cmd: list(config.cmd()),
        working_dir: text(config.working_dir()),
        stop_signal: text(config.stop_signal()),
        exposed_ports: sorted(config.exposed_ports()),
        volumes: sorted(config.volumes()),
        labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
    }
}
