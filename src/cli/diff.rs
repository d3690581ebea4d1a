//! `mica diff CT [PATH…]`

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::FOUND;
use super::arguments::Diff;
use super::output::{Output, Paint, count, printable, size};
use super::patch;
use crate::inspect::changes::{Change, ChangeKind, Changes, Side};
use crate::inspect::text::{PatchText, PathText, PrivateText, time};
use crate::inspect::{Container, Content, Kind, Library};
use crate::layer::{FileKind, LayerPath, Timestamp};

pub(super) fn run(wanted: &Diff, store: &Path, output: &Output) -> Result<ExitCode> {
    let library = Library::open(store)?;
    let container = library.container(&wanted.container)?;
    let mut paths = Vec::new();
    for path in &wanted.paths {
        let path = container.meant(&LayerPath::parse(path.as_bytes())?)?;
        // What is asked of a link is asked of where it leads as well: /bin is /usr/bin.
        let led = container.follow(&path, true)?;
        paths.push((path, led));
    }
    let concerned = |(path, led): &(LayerPath, LayerPath), changed: &LayerPath, change: &Change| {
        concerns(changed, change, path) || concerns(changed, change, led)
    };
    let changes = Changes::of(&container.upper)?;
    // A path is made when it is shown and let go then: those of a deep tree, all at once, take
    // memory by the square of its depth.
    let shown: Vec<&Change> = changes
        .iter()
        .filter(|change| {
            paths.is_empty() || {
                let path = changes.path(change);
                paths.iter().any(|top| concerned(top, &path, change))
            }
        })
        .collect();
    for path in &paths {
        // That nothing of it changed may not be said of what there never was.
        if !shown.iter().any(|change| concerned(path, &changes.path(change), change)) {
            container.known(&path.0)?;
        }
    }
    if wanted.json.json {
        let list = shown.iter().map(|change| {
            let path = &changes.path(change);
            let mut value = described(path, change);
            if wanted.content {
                let mut text = Vec::new();
                content(&mut text, &library, &container, (path, change), &|line| line.to_vec())?;
                if !text.is_empty() {
                    extend(&mut value, &PatchText(text));
                }
            }
            Ok(value)
        });
        let changes = (!wanted.stat).then(|| list.collect::<Result<Vec<Value>>>()).transpose()?;
        output.json(&Answer {
            root: container.record.as_ref().map(|record| record.name.as_str()),
            private: PrivateText::from(container.private.as_os_str().as_bytes()),
            stack: container.upper.stack().id().to_string(),
            changes,
            totals: totals_json(&shown),
        })?;
    } else if wanted.stat {
        totals(&shown, *output)?;
    } else if output.is_quiet() {
        output.names(shown.iter().map(|change| absolute(&changes.path(change))))?;
    } else if wanted.content {
        output.pour(|out| {
            for change in &shown {
                let path = &changes.path(change);
                let mut text = Vec::new();
                content(&mut text, &library, &container, (path, change), &patch::visible)?;
                if text.is_empty() {
                    writeln!(out, "{}", line(path, change, *output))?;
                }
                out.write_all(&text)?;
            }
            Ok(())
        })?;
    } else {
        output.pour(|out| {
            for change in &shown {
                let path = &changes.path(change);
                writeln!(out, "{}", line(path, change, *output))?;
            }
            Ok(())
        })?;
    }
    Ok(if shown.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// Whether a change is of what lies at `top` or below: there, or above and of all that is below.
fn concerns(path: &LayerPath, change: &Change, top: &LayerPath) -> bool {
    let above = |path: &LayerPath| top.names().starts_with(path.names());
    let within = |path: &LayerPath| path.names().starts_with(top.names());
    match &change.kind {
        ChangeKind::Moved { from, .. } => {
            within(path) || within(from) || above(path) || above(from)
        }
        ChangeKind::Removed | ChangeKind::Opaque | ChangeKind::Replaced => {
            within(path) || above(path)
        }
        ChangeKind::Added { .. }
        | ChangeKind::Content
        | ChangeKind::Metadata
        | ChangeKind::Damaged(_) => within(path),
    }
}

/// The answer in JSON.
#[derive(Serialize)]
struct Answer<'a> {
    root: Option<&'a str>,
    #[serde(flatten)]
    private: PrivateText,
    stack: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<Value>>,
    totals: Value,
}

/// The path as the container knows it.
pub(super) fn absolute(path: &LayerPath) -> Vec<u8> {
    [b"/".as_slice(), &path.to_bytes()].concat()
}

pub(super) fn shown(path: &LayerPath) -> String {
    printable(&absolute(path))
}

/// The letter that `docker diff` has for it; `R` for a move, as git has.
fn letter(kind: &ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added { .. } => "A",
        ChangeKind::Content | ChangeKind::Metadata | ChangeKind::Opaque | ChangeKind::Replaced => {
            "C"
        }
        ChangeKind::Removed => "D",
        ChangeKind::Moved { .. } => "R",
        ChangeKind::Damaged(_) => "!",
    }
}

fn word(kind: &ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added { .. } => "added",
        ChangeKind::Content => "content",
        ChangeKind::Metadata => "metadata",
        ChangeKind::Opaque => "opaque",
        ChangeKind::Replaced => "replaced",
        ChangeKind::Removed => "removed",
        ChangeKind::Moved { .. } => "moved",
        ChangeKind::Damaged(_) => "damaged",
    }
}

fn paint(kind: &ChangeKind) -> Paint {
    match letter(kind) {
        "A" => Paint::Added,
        "D" => Paint::Removed,
        "!" => Paint::Alarm,
        _ => Paint::Changed,
    }
}

pub(super) fn line(path: &LayerPath, change: &Change, output: Output) -> String {
    let head = format!("{} {}", letter(&change.kind), shown(path));
    let head = output.paint(paint(&change.kind), &head);
    let remarks = remarks(change);
    if remarks.is_empty() {
        return head;
    }
    format!("{head}  {}", output.paint(Paint::Faint, &remarks.join(", ")))
}

/// What is to be said of a change beyond its letter.
fn remarks(change: &Change) -> Vec<String> {
    let mut remarks = Vec::new();
    let has_size = |side: &Option<Side>| {
        side.as_ref().filter(|side| side.kind == FileKind::Regular).map(|side| side.size)
    };
    let (old, new) = (has_size(&change.old), has_size(&change.new));
    match &change.kind {
        ChangeKind::Added { link_to: Some(name) } => {
            remarks.push(format!("another name of {}", shown(name)));
        }
        ChangeKind::Added { link_to: None } => remarks.extend(new.map(size)),
        ChangeKind::Removed if change.hidden.names > 0 => remarks.push(format!(
            "{}, {}",
            count(change.hidden.names, "name"),
            size(change.hidden.bytes)
        )),
        ChangeKind::Removed => remarks.extend(old.map(size)),
        ChangeKind::Content => {
            if let (Some(old), Some(new)) = (old, new) {
                remarks.push(format!("{} → {}", size(old), size(new)));
            }
        }
        ChangeKind::Metadata => {}
        ChangeKind::Opaque => remarks.push("another directory than the template's".to_owned()),
        ChangeKind::Replaced => {
            if let (Some(old), Some(new)) = (&change.old, &change.new) {
                let (was, is) = (Kind::File(old.kind).word(), Kind::File(new.kind).word());
                remarks.push(format!("{was} → {is}"));
            }
        }
        ChangeKind::Moved { from, content } => {
            remarks.push(format!("from {}", shown(from)));
            if let (true, Some(old), Some(new)) = (*content, old, new) {
                remarks.push(format!("{} → {}", size(old), size(new)));
            }
        }
        ChangeKind::Damaged(reason) => remarks.push(printable(reason.as_bytes())),
    }
    if matches!(
        change.kind,
        ChangeKind::Metadata | ChangeKind::Content | ChangeKind::Moved { .. } | ChangeKind::Opaque
    ) && let (Some(old), Some(new)) = (&change.old, &change.new)
    {
        if change.differences.mode {
            remarks.push(format!("mode {:04o} → {:04o}", old.metadata.mode, new.metadata.mode));
        }
        if change.differences.owner {
            let (was, is) = (old.metadata, new.metadata);
            remarks.push(format!("owner {}:{} → {}:{}", was.uid, was.gid, is.uid, is.gid));
        }
        if change.differences.xattrs {
            remarks.push("attributes".to_owned());
        }
        if change.differences.mtime && change.kind == ChangeKind::Metadata {
            remarks.push("time".to_owned());
        }
    }
    remarks
}

/// One version of a file.
pub(super) fn side_json(side: &Side) -> Value {
    json!({
        "type": Kind::File(side.kind).word(),
        "size_bytes": side.size,
        "disk_bytes": side.disk_bytes,
        "mode": format!("{:04o}", side.metadata.mode),
        "uid": side.metadata.uid,
        "gid": side.metadata.gid,
        "mtime": time(side.metadata.mtime),
        "object": side.object.map(|id| id.to_string()),
    })
}

pub(super) fn described(path: &LayerPath, change: &Change) -> Value {
    let side = |side: &Option<Side>| side.as_ref().map(side_json);
    let mut value = json!({
        "kind": word(&change.kind),
        "letter": letter(&change.kind),
        "old": side(&change.old),
        "new": side(&change.new),
        "differs": change.differences.words(),
        "since": change.since.map(|(secs, nanos)| time(Timestamp { secs, nanos })),
        "origin": change.origin.map(|origin| origin.get()),
    });
    extend(&mut value, &PathText(absolute(path)));
    if let Value::Object(members) = &mut value {
        let mut add = |name: &str, value| members.insert(name.to_owned(), value);
        match &change.kind {
            ChangeKind::Added { link_to: Some(name) } => {
                add("link_to", json!(PathText(absolute(name))));
            }
            ChangeKind::Moved { from, content } => {
                add("from", json!(PathText(absolute(from))));
                add("content_changed", json!(content));
            }
            ChangeKind::Removed => {
                add("hidden_names", json!(change.hidden.names));
                add("hidden_bytes", json!(change.hidden.bytes));
            }
            ChangeKind::Damaged(reason) => {
                add("reason", json!(reason));
            }
            ChangeKind::Added { link_to: None }
            | ChangeKind::Content
            | ChangeKind::Metadata
            | ChangeKind::Opaque
            | ChangeKind::Replaced => {}
        }
    }
    value
}

/// Adds the members that a text has in JSON.
fn extend(value: &mut Value, text: &impl Serialize) {
    if let (Value::Object(members), Ok(Value::Object(more))) = (value, serde_json::to_value(text)) {
        members.extend(more);
    }
}

/// One row of the summary.
#[derive(Default)]
struct Total {
    paths: u64,
    old: u64,
    new: u64,
    disk: u64,
}

const ROWS: [(&str, &str); 5] =
    [("added", "A"), ("changed", "C"), ("removed", "D"), ("moved", "R"), ("damaged", "!")];

/// Counts per letter; a file with several names costs its blocks once.
fn sums(changes: &[&Change]) -> Vec<(&'static str, Total)> {
    let mut seen = std::collections::HashSet::new();
    ROWS.iter()
        .map(|(name, of)| {
            let mut total = Total::default();
            for change in changes.iter().filter(|change| letter(&change.kind) == *of) {
                total.paths += 1;
                let bytes = |side: &Option<Side>| {
                    side.as_ref()
                        .filter(|side| side.kind == FileKind::Regular)
                        .map_or(0, |side| side.size)
                };
                total.old += bytes(&change.old) + change.hidden.bytes;
                total.new += bytes(&change.new);
                if change.host_ino != 0 && seen.insert(change.host_ino) {
                    total.disk += change.new.as_ref().map_or(0, |side| side.disk_bytes);
                }
            }
            (*name, total)
        })
        .collect()
}

fn totals(changes: &[&Change], output: Output) -> Result<()> {
    let rows: Vec<Vec<String>> = sums(changes)
        .into_iter()
        .filter(|(_, total)| total.paths > 0)
        .map(|(name, total)| {
            let number = |number: u64| indicatif::HumanCount(number).to_string();
            vec![
                name.to_owned(),
                number(total.paths),
                size(total.old),
                size(total.new),
                size(total.disk),
            ]
        })
        .collect();
    output.table(&["CHANGE", "PATHS", "TEMPLATE'S", "NOW", "ON DISK"], &rows)
}

fn totals_json(changes: &[&Change]) -> Value {
    let mut totals = serde_json::Map::new();
    for (name, total) in sums(changes) {
        totals.insert(
            name.to_owned(),
            json!({
                "paths": total.paths,
                "old_bytes": total.old,
                "new_bytes": total.new,
                "disk_bytes": total.disk,
            }),
        );
    }
    Value::Object(totals)
}

/// Writes how the content of one path changed; nothing if it is something else that did. `show`
/// turns the bytes of a line into what is written.
fn content(
    out: &mut Vec<u8>,
    library: &Library,
    container: &Container,
    (path, change): (&LayerPath, &Change),
    show: &dyn Fn(&[u8]) -> Vec<u8>,
) -> Result<()> {
    let differs = match &change.kind {
        ChangeKind::Moved { content, .. } => *content,
        ChangeKind::Added { link_to } => link_to.is_none(),
        ChangeKind::Content | ChangeKind::Removed | ChangeKind::Replaced => true,
        ChangeKind::Metadata | ChangeKind::Opaque | ChangeKind::Damaged(_) => false,
    };
    let old_path = match &change.kind {
        ChangeKind::Moved { from, .. } => from,
        ChangeKind::Added { .. }
        | ChangeKind::Content
        | ChangeKind::Metadata
        | ChangeKind::Removed
        | ChangeKind::Opaque
        | ChangeKind::Replaced
        | ChangeKind::Damaged(_) => path,
    };
    let old = match (&change.old, differs) {
        (Some(side), true) => tree_content(library, container, old_path, side)?,
        (Some(_) | None, _) => Content::None,
    };
    let new = match (&change.new, differs) {
        (Some(_), true) => container.content(library, path, patch::LIMIT_BYTES)?,
        (Some(_) | None, _) => Content::None,
    };
    let label = |side: &str, path: &LayerPath, content: &Content| match content {
        Content::None => "/dev/null".to_owned(),
        Content::Whole(_) | Content::TooLong => {
            format!("{side}/{}", printable(&path.to_bytes()))
        }
    };
    let (old_label, new_label) = (label("a", old_path, &old), label("b", path, &new));
    let empty = Vec::new();
    let text = |content| match content {
        &Content::None => Some(&empty),
        Content::Whole(bytes) if patch::is_text(bytes) => Some(bytes),
        Content::Whole(_) | Content::TooLong => None,
    };
    if old == Content::None && new == Content::None {
        return Ok(());
    }
    let (Some(old_text), Some(new_text)) = (text(&old), text(&new)) else {
        let same = old == new && old != Content::TooLong;
        let verdict = if same { "are equal" } else { "differ" };
        return Ok(writeln!(out, "Binary files {old_label} and {new_label} {verdict}")?);
    };
    Ok(patch::patch(out, (&old_label, old_text), (&new_label, new_text), show)?)
}

/// What the tree has.
fn tree_content(
    library: &Library,
    container: &Container,
    path: &LayerPath,
    side: &Side,
) -> Result<Content> {
    if let Some(id) = &side.object {
        return Ok(library.object_content(id, patch::LIMIT_BYTES)?);
    }
    let tree = container.upper.tree();
    match tree.resolve(path)? {
        Some(inode) if inode.kind == FileKind::Symlink => {
            Ok(Content::Whole(tree.symlink_target(&inode)?.to_vec()))
        }
        Some(_) | None => Ok(Content::None),
    }
}
