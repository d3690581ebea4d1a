//! `mica store scrub`

use std::num::NonZeroU64;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::FOUND;
use crate::cli::arguments::Scrub;
use crate::cli::output::{Output, complain, count, printable, size};
use crate::cli::progress::WorkProgress;
use crate::host::scrub::{Found, ScrubOptions, ScrubProgress, Scrubbed, scrub};
use crate::host::{Access, Store, interrupt_flag};
use crate::inspect::Library;
use crate::inspect::holders::{Content, Wanted};
use crate::object::Damage;

/// Most names that one sentence has room for.
const MOST_NAMES: usize = 5;

pub(super) fn run(wanted: &Scrub, store: &Path, output: Output) -> Result<ExitCode> {
    let opened = Store::open(store, Access::Write)?;
    let interrupted = interrupt_flag()?;
    let options = ScrubOptions {
        restart: wanted.restart,
        bytes_per_second: wanted.rate.and_then(NonZeroU64::new),
        dry_run: wanted.dry_run,
    };
    let bar = WorkProgress::of_steps(output, "scrubbing", u16::MAX.into());
    let done = scrub(&opened, options, &|progress| go_on(progress, &bar, interrupted));
    bar.finish();
    let done = done?;
    let library = Library::open(store)?;
    if wanted.json.json {
        output.json(&answer(&done, wanted, &library)?)?;
    } else {
        tell(&done, wanted, &library, output)?;
    }
    if done.ended_early {
        let so_far = u32::from(done.progress.position) * 100 / u32::from(u16::MAX);
        let again = if wanted.dry_run { "" } else { "; the next scrub goes on from there" };
        bail!("interrupted at {so_far} %{again}");
    }
    Ok(if done.is_damaged() { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

fn go_on(progress: ScrubProgress, bar: &WorkProgress, interrupted: &AtomicBool) -> bool {
    bar.at(progress.position.into());
    !interrupted.load(Ordering::Relaxed)
}

fn answer(done: &Scrubbed, wanted: &Scrub, library: &Library) -> Result<serde_json::Value> {
    let mut found = Vec::new();
    for one in &done.found {
        let held = holders(one, library)?;
        found.push(json!({
            "object": one.object,
            "damage": damage(one),
            "needed": one.needed,
            "repaired": one.repaired_from.is_some(),
            "templates": held.iter().flat_map(|held| &held.templates).collect::<Vec<_>>(),
            "roots": held.iter().flat_map(|held| &held.roots).collect::<Vec<_>>(),
        }));
    }
    Ok(json!({
        "dry_run": wanted.dry_run,
        "whole": !done.is_damaged(),
        "complete": !done.ended_early,
        "resumed": done.resumed,
        "objects": done.progress.objects,
        "bytes": done.progress.bytes,
        "sealed": done.sealed,
        "found": found,
        "unreadable_layers": done.unreadable,
        "unsealed": done.unsealed.map(|errno| std::io::Error::from(errno).to_string()),
    }))
}

fn tell(done: &Scrubbed, wanted: &Scrub, library: &Library, output: Output) -> Result<()> {
    for layer in &done.unreadable {
        complain(&format!("{layer}; what it refers to was not looked for"));
    }
    for one in &done.found {
        let held = holders(one, library)?;
        let (object, how) = (one.object, damage(one));
        let set_aside = match (&one.damage, wanted.dry_run) {
            (Some(_), false) => " and was set aside",
            _ => "",
        };
        match &one.repaired_from {
            Some(from) => {
                let from = printable(from.as_os_str().as_encoded_bytes());
                output.note(format!("object {object} was {how}; put back from {from}"));
            }
            None if one.needed => complain(&format!(
                "object {object} is {how}{set_aside}; {} it; put it back with `mica template check \
                 --fix SOURCE`, or import its template again with --replace",
                names(&held)
            )),
            None => output.note(format!("object {object} was {how}; nothing refers to it")),
        }
    }
    if let Some(trouble) = &done.unrepaired {
        output.note(format!("nothing could be put back: {trouble}; free some space, scrub again"));
    }
    if let Some(trouble) = &done.unnoted {
        output.note(format!("how far it is could not be noted: {trouble}"));
    }
    let sealed = match done.sealed {
        0 => String::new(),
        sealed => format!(", {} sealed", count(sealed, "object")),
    };
    output.remark(format!(
        "{}{}: {} read, {}{sealed}",
        if done.is_damaged() { "damaged" } else { "whole" },
        if done.ended_early { " so far" } else { "" },
        count(done.progress.objects, "object"),
        size(done.progress.bytes),
    ))
}

/// What is wrong, after "is".
fn damage(found: &Found) -> String {
    match &found.damage {
        None => "missing".to_owned(),
        Some(Damage::Altered { .. }) => "altered".to_owned(),
        Some(Damage::NotAFile) => "no file".to_owned(),
        Some(Damage::Unreadable { errno }) => {
            format!("unreadable ({})", std::io::Error::from_raw_os_error(*errno))
        }
    }
}

fn holders(found: &Found, library: &Library) -> Result<Vec<Content>> {
    if !found.needed {
        return Ok(Vec::new());
    }
    Ok(library.who_has(&Wanted::Content(found.object), false)?.contents)
}

/// Who has it, as the beginning of a clause.
fn names(held: &[Content]) -> String {
    let mut names: Vec<String> = Vec::new();
    for content in held {
        for one in &content.templates {
            let path = one.files.first().map(|file| format!(" ({})", printable(&file.path.0)));
            names.push(format!("template {}{}", one.template, path.unwrap_or_default()));
        }
        names.extend(content.roots.iter().map(|one| format!("root {}", one.root)));
    }
    let more = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    match (names.as_slice(), more) {
        ([], _) => "a layer refers to".to_owned(),
        ([one], 0) => format!("{one} has"),
        (some, 0) => format!("{} have", some.join(", ")),
        (some, more) => format!("{} and {more} more have", some.join(", ")),
    }
}
