//! `mica template tree TEMPLATE [PATH]`

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;

use anyhow::Result;

use super::{layer, layer_path, view};
use crate::cli::arguments::{Tree, TreeShape};
use crate::cli::output::{Output, Paint, printable, size};
use crate::inspect::tree::MOST_LEVELS;
use crate::inspect::{Branch, Kind, Library, View};
use crate::layer::FileKind;

/// Levels of an answer in JSON: two nested values each, of which jq 1.6 reads 256.
const JSON_LEVELS: usize = 120;

pub(super) fn run(wanted: &Tree, store: &Path, output: Output) -> Result<()> {
    let library = Library::open(store)?;
    let mut view = view(&library, &wanted.template)?;
    if let Some(word) = &wanted.layer {
        view = View::of_layer(&library, layer(&view, word)?.1)?;
    }
    show(&view, &wanted.path, wanted.shape, output)
}

/// Shows what lies at `path` of a view.
pub(in crate::cli) fn show(
    view: &View,
    path: &OsStr,
    shape: TreeShape,
    output: Output,
) -> Result<()> {
    let (path, _) = view.follow(&layer_path(path)?)?;
    let most = if shape.json.json { JSON_LEVELS } else { MOST_LEVELS };
    let top = view.tree(&path, Some(shape.depth.unwrap_or(most).min(most)))?;
    if top.cut && shape.depth.is_none_or(|depth| depth > most) {
        output.note(format!(
            "what lies more than {most} directories deep is not shown; name a directory further \
             down, or ask `template files`"
        ));
    }
    if shape.json.json {
        return output.json(&top);
    }
    output.pour(|out| {
        if output.is_quiet() {
            return names(&top, &mut top.name.0.clone(), out);
        }
        draw(&top, "", "", shape, output, out)
    })
}

/// The whole paths, one a line.
fn names(branch: &Branch, path: &mut Vec<u8>, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{}", printable(path))?;
    for child in branch.children.iter().flatten() {
        let len = path.len();
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(&child.name.0);
        names(child, path, out)?;
        path.truncate(len);
    }
    Ok(())
}

/// One line for the branch, then those below it; `first` and `rest` begin them.
fn draw(
    branch: &Branch,
    first: &str,
    rest: &str,
    shape: TreeShape,
    output: Output,
    out: &mut dyn Write,
) -> Result<()> {
    let weight =
        if shape.size { format!("{:>10}  ", size(branch.size_bytes)) } else { String::new() };
    let (paint, mark) = look(branch);
    let name = printable(&branch.name.0);
    let name = paint.map_or_else(|| name.clone(), |paint| output.paint(paint, &name));
    write!(out, "{weight}{}{name}{mark}", output.paint(Paint::Faint, first))?;
    if let Some(target) = &branch.target {
        write!(out, " -> {target}")?;
    }
    if branch.opaque {
        write!(out, " {}", output.paint(Paint::Removed, "(hides what is below)"))?;
    }
    writeln!(out)?;
    let mut children: Vec<&Branch> = branch.children.iter().flatten().collect();
    if shape.size {
        children.sort_by_key(|child| std::cmp::Reverse(child.size_bytes));
    }
    for (at, child) in children.iter().enumerate() {
        let (tee, bar) =
            if at + 1 < children.len() { ("├── ", "│   ") } else { ("└── ", "    ") };
        draw(child, &format!("{rest}{tee}"), &format!("{rest}{bar}"), shape, output, out)?;
    }
    Ok(())
}

/// The colour of a name, and what `ls -F` puts behind it.
fn look(branch: &Branch) -> (Option<Paint>, &'static str) {
    match branch.node().kind {
        Kind::Whiteout => (Some(Paint::Removed), " (removed)"),
        // The outermost may end with its slash already.
        Kind::File(FileKind::Directory) if branch.name.0.ends_with(b"/") => {
            (Some(Paint::Directory), "")
        }
        Kind::File(FileKind::Directory) => (Some(Paint::Directory), "/"),
        Kind::File(FileKind::Symlink) => (Some(Paint::Link), ""),
        Kind::File(FileKind::Regular) if branch.node().mode & 0o111 != 0 => {
            (Some(Paint::Program), "*")
        }
        Kind::File(FileKind::Regular) => (None, ""),
        Kind::File(FileKind::Fifo) => (None, "|"),
        Kind::File(FileKind::Socket) => (None, "="),
        Kind::File(FileKind::CharDevice | FileKind::BlockDevice) => (None, ""),
    }
}
