//! `mica store df`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::cli::FOUND;
use crate::cli::arguments::Json;
use crate::cli::output::{Output, complain, size};
use crate::inspect::Library;
use crate::inspect::usage::{RootUsage, TemplateUsage, Usage};

pub(super) fn run(json: Json, store: &Path, output: Output) -> Result<ExitCode> {
    let usage = Library::open(store)?.usage()?;
    if json.json {
        output.json(&usage)?;
    } else if output.is_quiet() {
        let templates = usage.templates.iter().map(|one| one.template.to_string());
        output.names(templates.chain(usage.roots.iter().map(|one| one.root.clone())))?;
    } else {
        print(&usage, output)?;
    }
    for sentence in &usage.damaged {
        complain(sentence);
    }
    Ok(if usage.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn print(usage: &Usage, output: Output) -> Result<()> {
    let headings = ["ON DISK", "APPARENT", "ALL", "EXCLUSIVE", "SHARED", "DELETING FREES"];
    let rows: Vec<Vec<String>> =
        usage.templates.iter().map(of_template).chain(usage.roots.iter().map(of_root)).collect();
    output.table(&headings, &rows)?;
    output.line("")?;
    let headings = ["IN MEMORY", "SHARED", "EXCLUSIVE", "PRIVATE FILES", "OWN CACHE"];
    let templates = usage.templates.iter().map(|one| {
        let shared = one.resident_bytes.saturating_sub(one.resident_exclusive_bytes);
        let exclusive = size(one.resident_exclusive_bytes);
        vec![one.template.to_string(), size(shared), exclusive, dash(), dash()]
    });
    let roots = usage.roots.iter().map(|one| {
        vec![
            format!("  root {}", one.root),
            size(one.resident_shared_bytes),
            dash(),
            size(one.resident_private_bytes),
            one.resident_cached_bytes.map_or_else(dash, size),
        ]
    });
    let rows: Vec<Vec<String>> = templates.chain(roots).collect();
    output.table(&headings, &rows)?;
    output.line("")?;
    totals(usage, output)?;
    for root in &usage.roots {
        if let Some(note) = &root.note {
            output.note(format!("root {}: {note}", root.root));
        }
    }
    Ok(())
}

fn of_template(one: &TemplateUsage) -> Vec<String> {
    let freed = match one.used_by.as_slice() {
        [] => size(one.freed_bytes),
        [root] => format!("in use by {root}"),
        roots => format!("in use by {} roots", roots.len()),
    };
    vec![
        one.template.to_string(),
        size(one.apparent_bytes),
        size(one.disk_bytes),
        size(one.exclusive_bytes),
        size(one.shared_bytes),
        freed,
    ]
}

fn of_root(one: &RootUsage) -> Vec<String> {
    vec![
        format!("  root {}", one.root),
        one.apparent_bytes.map_or_else(dash, size),
        size(one.disk_bytes),
        size(one.exclusive_bytes),
        size(one.shared_bytes),
        size(one.freed_bytes),
    ]
}

fn totals(usage: &Usage, output: Output) -> Result<()> {
    let (disk, memory) = (&usage.disk, &usage.memory);
    let other = disk.file_system_used_bytes.saturating_sub(disk.store_bytes + disk.private_bytes);
    for (label, bytes) in [
        ("store on disk", disk.store_bytes),
        ("  exclusive to single templates", disk.exclusive_bytes),
        ("  shared by templates", disk.shared_bytes),
        ("  unreferenced (mica store gc)", disk.unreferenced_bytes),
        ("  directories, index, staging", disk.overhead_bytes),
        ("private directories", disk.private_bytes),
        ("others on that file system", other),
        ("page cache of this host", memory.page_cache_bytes),
        ("  objects", memory.objects_bytes),
        ("  private files", memory.private_bytes),
        ("  roots' own caches", memory.cached_bytes),
        ("  layers, trees and the rest of the store", memory.store_bytes),
        ("  not of Mica, or not attributable", memory.remainder_bytes),
    ] {
        output.line(format!("{label:<42} {:>12}", size(bytes)))?;
    }
    Ok(())
}

/// Stands where there is no figure.
fn dash() -> String {
    "-".to_owned()
}
