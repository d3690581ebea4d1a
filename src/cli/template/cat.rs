//! `mica template cat TEMPLATE PATH…`

use std::path::Path;

use anyhow::{Result, bail};
use serde::Serialize;

use super::{layer_path, view};
use crate::cli::arguments::Cat;
use crate::cli::output::{Output, printable, size};
use crate::inspect::text::hex;
use crate::inspect::{Described, InspectError, Library, View};

/// The longest content that is put into JSON, which is made in memory.
const MOST_BYTES: u64 = 64 << 20;

/// A file with its content.
#[derive(Debug, Serialize)]
struct Printed {
    #[serde(flatten)]
    file: Described,
    /// The content, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// The content as hexadecimal digits, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hex: Option<String>,
}

pub(super) fn run(wanted: &Cat, store: &Path, output: Output) -> Result<()> {
    let library = Library::open(store)?;
    let view = view(&library, &wanted.template)?;
    let paths = wanted.paths.iter().map(|path| layer_path(path)).collect::<Result<Vec<_>>>()?;
    if wanted.json.json {
        let printed = paths.iter().map(|path| printed(&library, &view, path));
        return output.json(&printed.collect::<Result<Vec<_>>>()?);
    }
    output.pour(|out| {
        for path in &paths {
            let (path, node) = view.follow(path)?;
            view.read(library.objects(), &path, &node, |piece| anyhow::Ok(out.write_all(piece)?))?;
        }
        Ok(())
    })
}

fn printed(library: &Library, view: &View, path: &crate::layer::LayerPath) -> Result<Printed> {
    let (path, node) = view.follow(path)?;
    if node.size > MOST_BYTES {
        bail!(
            "/{} has {}, too many for an answer in JSON; leave --json out, or ask `template files` \
             for what is known of it",
            printable(&path.to_bytes()),
            size(node.size)
        );
    }
    let mut bytes = Vec::new();
    view.read(library.objects(), &path, &node, |piece| {
        bytes.extend_from_slice(piece);
        Ok::<_, InspectError>(())
    })?;
    let file = view.describe(&path.to_bytes(), &node)?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Printed { file, content: Some(text), content_hex: None },
        Err(error) => Printed { file, content: None, content_hex: Some(hex(error.as_bytes())) },
    })
}
