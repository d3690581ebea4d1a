//! `mica why CT PATH`

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::arguments::Why as Arguments;
use super::diff::{absolute, shown, side_json};
use super::output::{Output, count, size};
use crate::inspect::text::{PathText, short_time, time};
use crate::inspect::why::{Comparison, Private, Source, State, Why};
use crate::inspect::{Kind, Library};
use crate::layer::{FileKind, LayerPath, Timestamp};

pub(super) fn run(wanted: &Arguments, store: &Path, output: &Output) -> Result<ExitCode> {
    let library = Library::open(store)?;
    let container = library.container(&wanted.container)?;
    let path = container.meant(&LayerPath::parse(wanted.path.as_bytes())?)?;
    let why = library.why(&container, &path)?;
    if wanted.json.json {
        output.json(&described(&path, &why))?;
        return Ok(ExitCode::SUCCESS);
    }
    if output.is_quiet() {
        output.line(word(why.state))?;
        return Ok(ExitCode::SUCCESS);
    }
    let template = container.record.as_ref().map(|record| record.template.to_string());
    for (label, text) in rows(&path, &why, template.as_deref()) {
        output.line(format!("{label:<10} {text}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn word(state: State) -> &'static str {
    match state {
        State::Shared => "shared",
        State::Metadata => "metadata",
        State::Private => "private",
        State::Added => "added",
        State::Removed => "removed",
    }
}

fn moment((secs, nanos): (i64, u32)) -> Timestamp {
    Timestamp { secs, nanos }
}

fn rows(path: &LayerPath, why: &Why, template: Option<&str>) -> Vec<(&'static str, String)> {
    let kind = why.now.as_ref().or(why.source.as_ref().map(|source| &source.side));
    let regular = kind.is_some_and(|side| side.kind == FileKind::Regular);
    let noun = kind.map_or("path", |side| Kind::File(side.kind).word());
    let state = match why.state {
        State::Shared => "the template's, untouched".to_owned(),
        State::Metadata if regular => {
            "owner, mode, time or attributes are this root's own; the content is shared".to_owned()
        }
        State::Metadata => "this root has its own version of the template's".to_owned(),
        State::Private => "this root has its own content here".to_owned(),
        State::Added => "made in this root; the template has nothing here".to_owned(),
        State::Removed => "removed in this root".to_owned(),
    };
    let mut rows = vec![("path", shown(path)), ("is", format!("a {noun}: {state}"))];
    if let Some(from) = &why.moved_from {
        rows.push(("moved from", shown(from)));
    }
    if let Some(name) = &why.link_to {
        rows.push(("link to", shown(name)));
    }
    if let Some(source) = &why.source {
        rows.extend(source_rows(source, template));
    }
    if let Some(private) = &why.private {
        rows.extend(private_rows(private, why));
    }
    if why.changes_below > 0 {
        rows.push(("below it", count(why.changes_below, "change")));
    }
    rows
}

fn source_rows(source: &Source, template: Option<&str>) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    let names: Vec<String> = source.templates.iter().map(ToString::to_string).collect();
    match (names.is_empty(), template) {
        (false, _) => rows.push(("template", names.join(", "))),
        (true, Some(template)) => rows.push(("template", template.to_owned())),
        (true, None) => {}
    }
    rows.push(("layer", format!("{} ({} of {})", source.layer, source.position, source.layers)));
    if let Some(object) = source.side.object {
        rows.push(("object", format!("{object}, {}", size(source.side.size))));
    }
    rows
}

fn private_rows(private: &Private, why: &Why) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    let changed = short_time(moment(private.changed));
    rows.push(match private.since {
        Some(since) => ("since", format!("{} (last changed {changed})", short_time(moment(since)))),
        None => ("changed", changed),
    });
    let copied = match (&why.now, why.state) {
        (Some(now), State::Private | State::Added) if now.kind == FileKind::Regular => {
            format!("{} on disk, of {}", size(private.disk_bytes), size(now.size))
        }
        _ => format!("{} on disk", size(private.disk_bytes)),
    };
    rows.push(("own copy", copied));
    if let Some(content) = &private.content {
        rows.push(("content", verdict(content)));
    }
    rows
}

fn verdict(content: &Comparison) -> String {
    let told = if content.as_template {
        "identical to the template's again; `mica revert` would give the copy back".to_owned()
    } else if content.in_store {
        format!("identical to object {} of the store", content.digest)
    } else {
        "like no object of the store".to_owned()
    };
    if content.unsteady { format!("{told} (it was written to while it was read)") } else { told }
}

fn described(path: &LayerPath, why: &Why) -> Value {
    let source = why.source.as_ref().map(|source| {
        json!({
            "layer": source.layer,
            "position": source.position,
            "layers": source.layers,
            "templates": source.templates,
            "side": side_json(&source.side),
        })
    });
    let private = why.private.as_ref().map(|private| {
        json!({
            "since": private.since.map(|since| time(moment(since))),
            "changed": time(moment(private.changed)),
            "disk_bytes": private.disk_bytes,
            "content": private.content.map(|content| json!({
                "digest": content.digest.to_string(),
                "in_store": content.in_store,
                "as_template": content.as_template,
                "unsteady": content.unsteady,
            })),
        })
    });
    let text = |path: &LayerPath| PathText(absolute(path));
    let mut value = json!({
        "state": word(why.state),
        "now": why.now.as_ref().map(side_json),
        "source": source,
        "private": private,
        "moved_from": why.moved_from.as_ref().map(text),
        "link_to": why.link_to.as_ref().map(text),
        "changes_below": why.changes_below,
    });
    if let Value::Object(members) = &mut value
        && let Ok(Value::Object(path)) = serde_json::to_value(text(path))
    {
        members.extend(path);
    }
    value
}
