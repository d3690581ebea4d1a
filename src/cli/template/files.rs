//! `mica template files TEMPLATE [PATH]`

use std::path::Path;

use anyhow::Result;

use super::{layer, layer_path, view};
use crate::cli::arguments::{FileType, Files};
use crate::cli::output::{Output, printable, size};
use crate::inspect::text::short_time;
use crate::inspect::{Described, Filter, Kind, Library, Node, View};
use crate::layer::{FileKind, LayerPath};

pub(super) fn run(wanted: &Files, store: &Path, output: Output) -> Result<()> {
    let library = Library::open(store)?;
    let view = view(&library, &wanted.template)?;
    let filter = filter(wanted, &view)?;
    let (from, _) = view.follow(&layer_path(&wanted.path)?)?;
    if wanted.json.json {
        let mut found: Vec<Described> = Vec::new();
        view.files(&from, &filter, |path, node| {
            found.push(view.describe(path, node)?);
            anyhow::Ok(())
        })?;
        return output.json(&found);
    }
    if output.is_quiet() || wanted.print0 {
        return output.pour(|out| {
            view.files(&from, &filter, |path, _| {
                if wanted.print0 {
                    out.write_all(b"/")?;
                    out.write_all(path)?;
                    out.write_all(b"\0")?;
                } else {
                    writeln!(out, "/{}", printable(path))?;
                }
                Ok(())
            })
        });
    }
    table(&view, &from, &filter, output)
}

fn filter(wanted: &Files, view: &View) -> Result<Filter> {
    let mut filter = Filter::default();
    filter.kinds = wanted.types.iter().copied().map(kind).collect();
    filter.larger = wanted.larger;
    filter.setuid = wanted.setuid;
    filter.capabilities = wanted.caps;
    if let Some(word) = &wanted.layer {
        filter.layer = Some(layer(view, word)?.0);
    }
    if let Some(name) = &wanted.name {
        let name = name.as_encoded_bytes();
        filter = if name.contains(&b'/') { filter.path(name)? } else { filter.name(name)? };
    }
    Ok(filter)
}

fn kind(wanted: FileType) -> Kind {
    match wanted {
        FileType::File => Kind::File(FileKind::Regular),
        FileType::Directory => Kind::File(FileKind::Directory),
        FileType::Symlink => Kind::File(FileKind::Symlink),
        FileType::Fifo => Kind::File(FileKind::Fifo),
        FileType::Socket => Kind::File(FileKind::Socket),
        FileType::CharDevice => Kind::File(FileKind::CharDevice),
        FileType::BlockDevice => Kind::File(FileKind::BlockDevice),
        FileType::Whiteout => Kind::Whiteout,
    }
}

fn table(view: &View, from: &LayerPath, filter: &Filter, output: Output) -> Result<()> {
    let mut rows = Vec::new();
    view.files(from, filter, |path, node| {
        rows.push(row(view, path, node)?);
        anyhow::Ok(())
    })?;
    output.table(&["MODE", "OWNER", "SIZE", "CHANGED", "LAYER", "PATH"], &rows)
}

fn row(view: &View, path: &[u8], node: &Node) -> Result<Vec<String>> {
    let mut name = format!("/{}", printable(path));
    if let Some(target) = view.link_target(node)? {
        name.push_str(&format!(" -> {target}"));
    }
    Ok(vec![
        node.mode_text(),
        format!("{}:{}", node.uid, node.gid),
        node.device().unwrap_or_else(|| size(node.size)),
        short_time(node.mtime),
        node.number().map_or_else(|| "1".to_owned(), |number| number.to_string()),
        name,
    ])
}
