//! The OCI image layout: `oci-layout`, `index.json`, `blobs/`. OCI image-spec, image-layout.md.

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout,
};

use super::platform::{self, Platform};
use super::{ImageError, ImageFiles, Plan, PlannedLayer, diff_ids, document, json, run_config};
use crate::layer::import::Choice;
use crate::layer::import::intake::Expected;

/// An index may list an index, for the platforms of one image. More levels serve no purpose.
const MAX_DEPTH: u32 = 4;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_LAYERS: [MediaType; 6] = [
    MediaType::ImageLayer,
    MediaType::ImageLayerGzip,
    MediaType::ImageLayerZstd,
    MediaType::ImageLayerNonDistributable,
    MediaType::ImageLayerNonDistributableGzip,
    MediaType::ImageLayerNonDistributableZstd,
];
const DOCKER_LAYERS: [&str; 5] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Follows the index to one manifest and its configuration.
pub(super) fn plan(files: &ImageFiles, choice: &Choice) -> Result<Plan, ImageError> {
    let layout: OciLayout = json(&document(files, "oci-layout", None)?, "oci-layout")?;
    let version = layout.image_layout_version();
    if version.split('.').next() != Some("1") {
        return Err(ImageError::LayoutVersion(version.clone()));
    }
    let index: ImageIndex = json(&document(files, "index.json", None)?, "index.json")?;
    let named = by_name(index.manifests(), choice.reference.as_deref())?;
    let descriptor = by_platform(files, named, choice.platform.as_ref(), 0)?;
    let (digest, bytes) = blob(files, &descriptor)?;
    let manifest: ImageManifest = json(&bytes, digest.as_str())?;
    let config_type = manifest.config().media_type();
    if *config_type != MediaType::ImageConfig && config_type.as_ref() != DOCKER_CONFIG {
        let media_type = config_type.to_string();
        return Err(ImageError::MediaType { what: "image configuration", media_type });
    }
    let (config_digest, bytes) = blob(files, manifest.config())?;
    let config: ImageConfiguration = json(&bytes, config_digest.as_str())?;
    let diff_ids = diff_ids(&config, manifest.layers().len())?;
    let layers = manifest.layers().iter().zip(diff_ids);
    let layers =
        layers.map(|(descriptor, diff_id)| layer(descriptor, diff_id)).collect::<Result<_, _>>()?;
    Ok(Plan { layers, config: run_config(&config), digest: digest.as_str().to_owned() })
}

fn layer(descriptor: &Descriptor, diff_id: Expected) -> Result<PlannedLayer, ImageError> {
    let media_type = descriptor.media_type();
    let known = OCI_LAYERS.contains(media_type) || DOCKER_LAYERS.contains(&media_type.as_ref());
    if !known {
        return Err(ImageError::MediaType { what: "layer", media_type: media_type.to_string() });
    }
    let digest = Expected::parse(descriptor.digest().as_ref())?;
    let path = digest.blob_path();
    Ok(PlannedLayer { path, blob: Some((digest, descriptor.size())), diff_id })
}

fn blob(files: &ImageFiles, descriptor: &Descriptor) -> Result<(Expected, Vec<u8>), ImageError> {
    let digest = Expected::parse(descriptor.digest().as_ref())?;
    let bytes = document(files, &digest.blob_path(), Some((&digest, descriptor.size())))?;
    Ok((digest, bytes))
}

/// The descriptors with the wanted name; all of them if no name is wanted.
fn by_name(all: &[Descriptor], wanted: Option<&str>) -> Result<Vec<Descriptor>, ImageError> {
    let Some(wanted) = wanted else { return Ok(all.to_vec()) };
    let matching: Vec<Descriptor> =
        all.iter().filter(|one| names(one).any(|name| same_name(name, wanted))).cloned().collect();
    if matching.is_empty() {
        return Err(ImageError::NoMatch { wanted: wanted.to_owned(), available: listed(all) });
    }
    Ok(matching)
}

fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    [REF_NAME, CONTAINERD_NAME].into_iter().filter_map(|key| {
        descriptor.annotations().as_ref().and_then(|all| all.get(key)).map(String::as_str)
    })
}

/// `docker.io/library/debian:12` is also called `debian:12`.
pub(super) fn same_name(name: &str, wanted: &str) -> bool {
    name == wanted
        || name.strip_suffix(wanted).is_some_and(|before| before.ends_with('/'))
        || wanted.strip_suffix(name).is_some_and(|before| before.ends_with(['/', ':']))
}

/// The one manifest for the wanted platform, or for this host's.
fn by_platform(
    files: &ImageFiles,
    candidates: Vec<Descriptor>,
    wanted: Option<&Platform>,
    depth: u32,
) -> Result<Descriptor, ImageError> {
    if depth > MAX_DEPTH {
        return Err(ImageError::Nesting);
    }
    let host = Platform::host();
    let platform = wanted.unwrap_or(&host);
    let mut matching: Vec<&Descriptor> = candidates
        .iter()
        .filter(|one| one.platform().as_ref().is_none_or(|offered| platform.accepts(offered)))
        .collect();
    // An attestation is listed beside the image it is about, without a platform or for none.
    matching.retain(|one| {
        one.annotations().as_ref().is_none_or(|all| !all.contains_key("vnd.docker.reference.type"))
    });
    // The same image under several names.
    matching.dedup_by(|a, b| a.digest() == b.digest());
    let [chosen] = matching.as_slice() else {
        return Err(match matching.as_slice() {
            [] => {
                ImageError::NoMatch { wanted: platform.to_string(), available: listed(&candidates) }
            }
            // Several variants of one architecture are in order of preference.
            [first, rest @ ..]
                if first.platform().is_some()
                    && rest.iter().all(|one| names(one).next().is_none()) =>
            {
                return finish(files, first, wanted, depth);
            }
            _ => ImageError::Ambiguous(listed(&candidates)),
        });
    };
    finish(files, chosen, wanted, depth)
}

fn finish(
    files: &ImageFiles,
    chosen: &Descriptor,
    wanted: Option<&Platform>,
    depth: u32,
) -> Result<Descriptor, ImageError> {
    let media_type = chosen.media_type();
    if *media_type == MediaType::ImageManifest || media_type.as_ref() == DOCKER_MANIFEST {
        return Ok(chosen.clone());
    }
    if *media_type == MediaType::ImageIndex || media_type.as_ref() == DOCKER_INDEX {
        let (digest, bytes) = blob(files, chosen)?;
        let index: ImageIndex = json(&bytes, digest.as_str())?;
        return by_platform(files, index.manifests().clone(), wanted, depth + 1);
    }
    Err(ImageError::MediaType { what: "image", media_type: media_type.to_string() })
}

/// What could be chosen, in words.
fn listed(all: &[Descriptor]) -> String {
    let mut shown: Vec<String> = all
        .iter()
        .map(|one| {
            let name = names(one)
                .next()
                .map(|name| crate::layer::import::metadata::printable(name.as_bytes()));
            let platform = one.platform().as_ref().map(platform::shown);
            match (name, platform) {
                (Some(name), Some(platform)) => format!("{name} ({platform})"),
                (Some(name), None) => name,
                (None, Some(platform)) => platform,
                (None, None) => one.digest().to_string(),
            }
        })
        .take(20)
        .collect();
    if shown.is_empty() {
        shown.push("nothing".to_owned());
    }
    shown.join(", ")
}
