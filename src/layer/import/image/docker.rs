//! The docker-save archive: `manifest.json`, a configuration, and layers as plain tar files.
//!
//! moby, image/spec/v1.2.md, "Combined Image JSON + Filesystem Changeset Format".

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::oci::same_name;
use super::{ImageError, ImageFiles, Plan, PlannedLayer, diff_ids, document, json, run_config};
use crate::layer::import::Choice;
use crate::layer::import::intake::Expected;
use crate::layer::import::metadata::printable;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Chooses an image and reads its configuration.
pub(super) fn plan(files: &ImageFiles, choice: &Choice) -> Result<Plan, ImageError> {
    let images: Vec<SavedImage> = json(&document(files, "manifest.json", None)?, "manifest.json")?;
    let image = choose(&images, choice.reference.as_deref())?;
    let expected = config_digest(&image.config);
    let bytes = document(files, &image.config, None)?;
    let digest = match expected {
        Some(expected) => {
            super::Verified::new(&bytes[..], expected.clone()).finish(None)?;
            expected.as_str().to_owned()
        }
        None => image.config.clone(),
    };
    let config: ImageConfiguration = json(&bytes, &image.config)?;
    if let Some(wanted) = &choice.platform {
        let offered = offered(&config);
        if !wanted.accepts(&offered) {
            let available = super::platform::shown(&offered);
            return Err(ImageError::NoMatch { wanted: wanted.to_string(), available });
        }
    }
    let paths = image.layers.clone().unwrap_or_default();
    let diff_ids = diff_ids(&config, paths.len())?;
    let layers = paths.into_iter().zip(diff_ids);
    let layers = layers.map(|(path, diff_id)| PlannedLayer { path, blob: None, diff_id }).collect();
    Ok(Plan { layers, config: run_config(&config), digest })
}

fn choose<'a>(
    images: &'a [SavedImage],
    wanted: Option<&str>,
) -> Result<&'a SavedImage, ImageError> {
    let tags = |image: &'a SavedImage| image.repo_tags.iter().flatten();
    let matching: Vec<&SavedImage> = images
        .iter()
        .filter(|image| wanted.is_none_or(|wanted| tags(image).any(|tag| same_name(tag, wanted))))
        .collect();
    let listed = || {
        let all: Vec<String> =
            images.iter().flat_map(tags).take(20).map(|tag| printable(tag.as_bytes())).collect();
        if all.is_empty() { "images without a name".to_owned() } else { all.join(", ") }
    };
    match matching.as_slice() {
        [one] => Ok(one),
        [] => Err(ImageError::NoMatch {
            wanted: wanted.unwrap_or("any image").to_owned(),
            available: listed(),
        }),
        _ => Err(ImageError::Ambiguous(listed())),
    }
}

/// `<digits>.json`, or `blobs/sha256/<digits>`: the name is the digest.
fn config_digest(path: &str) -> Option<Expected> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let digits = name.strip_suffix(".json").unwrap_or(name);
    Expected::parse(&format!("sha256:{digits}")).ok()
}

fn offered(config: &ImageConfiguration) -> oci_spec::image::Platform {
    let mut offered = oci_spec::image::Platform::default();
    offered.set_os(config.os().clone());
    offered.set_architecture(config.architecture().clone());
    offered.set_variant(config.variant().clone());
    offered
}
