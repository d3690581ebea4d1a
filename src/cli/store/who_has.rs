//! `mica store who-has WORD`

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::FOUND;
use crate::cli::arguments::WhoHas;
use crate::cli::output::{Output, Paint, complain, count, printable, size};
use crate::inspect::holders::{Answer, Content, Glob, HeldAs, Wanted};
use crate::inspect::{InspectError, Library, Meaning, Sort, View};
use crate::layer::LayerPath;
use crate::object::ObjectId;

/// The fewest digits that are taken for the beginning of a digest rather than for a name.
const LEAST_DIGITS: usize = 6;

/// In how many templates the name that was meant is looked for: each takes a while.
const NEAR_IN: usize = 8;

pub(super) fn run(asked: &WhoHas, store: &Path, output: Output) -> Result<ExitCode> {
    let library = Library::open(store)?;
    let wanted = wanted(asked, &library)?;
    let mut answer = library.who_has(&wanted, asked.scan)?;
    if let (Some(_), Wanted::Glob(glob)) = (&asked.versions, &wanted) {
        answer.only_named(glob);
    }
    if asked.json.json {
        output.json(&answer)?;
    } else if output.is_quiet() {
        output.names(names(&answer))?;
    } else {
        print(&answer, asked, &|| near(&wanted, &library), output)?;
    }
    for sentence in &answer.damaged {
        complain(sentence);
    }
    let held = answer.contents.iter().any(|one| !one.templates.is_empty() || !one.roots.is_empty());
    Ok(if held && answer.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn wanted(asked: &WhoHas, library: &Library) -> Result<Wanted> {
    if let Some(pattern) = &asked.versions {
        if pattern.as_bytes().contains(&b'/') {
            bail!("--versions takes a pattern of names, like 'libssl*'; for paths leave it out");
        }
        return Ok(Wanted::Glob(Glob::new(pattern.as_bytes())));
    }
    if let Some(file) = &asked.host {
        return Ok(Wanted::HostFile(file.clone()));
    }
    let word = asked.word.as_deref().unwrap_or_default();
    let bytes = word.as_bytes();
    if bytes.starts_with(b"./") || bytes.starts_with(b"../") {
        return Ok(Wanted::HostFile(word.into()));
    }
    if let Some(content) = digest(word, library)? {
        return Ok(Wanted::Content(content));
    }
    if Glob::is_one(bytes) {
        return Ok(Wanted::Glob(Glob::new(bytes)));
    }
    Ok(Wanted::Path(LayerPath::parse(bytes)?))
}

/// The content that a word names by digits, if it does.
fn digest(word: &OsStr, library: &Library) -> Result<Option<ObjectId>> {
    let Some(text) = word.to_str() else { return Ok(None) };
    // Also of a content that only private files have, or nobody.
    if let Ok(whole) = text.parse() {
        return Ok(Some(whole));
    }
    let digits = text.len() >= LEAST_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits {
        return Ok(None);
    }
    match library.resolve(word, &[Sort::Object]) {
        Ok(Meaning::Object(content)) => Ok(Some(content)),
        // Then it is a name that happens to consist of digits.
        Ok(_) | Err(InspectError::Unknown { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Who holds anything of it, each once: `template NAME`, `root NAME`.
fn names(answer: &Answer) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for content in &answer.contents {
        names.extend(content.templates.iter().map(|one| format!("template {}", one.template)));
        names.extend(content.roots.iter().map(|one| format!("root {}", one.root)));
    }
    // Templates first.
    names.sort_by_key(|name| (name.starts_with("root "), name.clone()));
    names.dedup();
    names
}

/// What was probably meant by a path that nobody has, as the end of a clause.
fn near(wanted: &Wanted, library: &Library) -> String {
    let Wanted::Path(path) = wanted else { return String::new() };
    let stacks = library.templates().unwrap_or_default().into_iter().map(|one| one.stack);
    let mut hints = stacks.take(NEAR_IN).filter_map(|stack| {
        let view = View::of_stack(library, String::new(), &stack).ok()?;
        match view.get(path) {
            Err(InspectError::NoPath { hint, .. }) => Some(hint).filter(|hint| !hint.is_empty()),
            Ok(_) | Err(_) => None,
        }
    });
    hints.next().unwrap_or_default()
}

fn print(answer: &Answer, asked: &WhoHas, near: &dyn Fn() -> String, output: Output) -> Result<()> {
    for content in &answer.contents {
        print_content(content, asked.versions.is_some(), output)?;
    }
    for file in &answer.unknown {
        output
            .line(format!("root {} has its own {}, which was not hashed", file.root, file.path))?;
    }
    if answer.contents.is_empty() && answer.unknown.is_empty() {
        let word = asked.versions.as_deref().or(asked.word.as_deref()).unwrap_or_default();
        let word = printable(word.as_bytes());
        complain(&format!("no template and no root has a file {word}{}", near()));
    }
    let private = &answer.private;
    let open = private.unhashed + private.changed;
    if open > 0 {
        output.note(format!(
            "of {} {} were never hashed and {} changed since; they may hold it too: --scan hashes \
             them",
            count(private.files, "private file"),
            private.unhashed,
            private.changed,
        ));
    }
    Ok(())
}

fn print_content(content: &Content, versions: bool, output: Output) -> Result<()> {
    let length = content.size_bytes.map_or_else(|| "in private files".to_owned(), size);
    let title = match content.asked.as_slice() {
        [one] if versions => format!("{one}  {length}"),
        _ => length,
    };
    output.line(format!("{}  {title}", output.paint(Paint::Bold, &content.object.to_string())))?;
    if content.templates.is_empty() && content.roots.is_empty() {
        output.line("  nobody has it")?;
    }
    let mut rows = Vec::new();
    for one in &content.templates {
        let mut name = format!("  template {}", one.template);
        for file in &one.files {
            rows.push(vec![std::mem::take(&mut name), file.path.to_string()]);
        }
    }
    // Roots that have it in the same places are told together.
    let mut alike: BTreeMap<Vec<String>, Vec<&str>> = BTreeMap::new();
    for one in &content.roots {
        let files = one.files.iter().map(|file| match file.held {
            HeldAs::Template => file.path.to_string(),
            HeldAs::Metadata => format!("{} (its own metadata)", file.path),
            HeldAs::Private => format!("{} (its own copy)", file.path),
        });
        alike.entry(files.collect()).or_default().push(&one.root);
    }
    for (files, roots) in alike {
        let mut name = match roots.as_slice() {
            [root] => format!("  root {root}"),
            roots => format!("  roots {}", roots.join(", ")),
        };
        // A long list of roots would push the paths off the screen.
        if name.len() > 40 {
            rows.push(vec![std::mem::take(&mut name)]);
        }
        for file in files {
            rows.push(vec![std::mem::take(&mut name), file]);
        }
    }
    let width = rows.iter().filter(|row| row.len() > 1).filter_map(|row| row.first());
    let width = width.map(|name| name.chars().count()).max().unwrap_or(0);
    for row in rows {
        match row.as_slice() {
            [name, path] => output.line(format!("{name:<width$}  {path}"))?,
            row => output.line(row.concat())?,
        }
    }
    Ok(())
}
