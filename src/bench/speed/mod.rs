//! How fast: the rows of docs/PERFORMANCE.md, single operations, and whole workloads.

mod content;
mod import;
mod jobs;
mod latency;
mod metadata;
mod mount;
mod open;
mod workloads;

pub(super) use metadata::find;
pub(super) use open::open_to_write;

use super::error::Result;
use super::machine;
use super::session::Session;
use super::template::Prepared;

/// One section: it makes what it needs, measures, and removes it.
type Section = fn(&mut Session<'_>) -> Result<()>;

/// Names, and seconds that they take at the standard scale in an optimised build.
const SECTIONS: [(&str, f64, Section); 9] = [
    ("warm", 25.0, metadata::warm),
    ("first", 40.0, metadata::first),
    ("mount", 25.0, mount::mount),
    ("content", 60.0, content::content),
    ("open", 10.0, open::open_read_close),
    ("copy-up", 25.0, open::open_for_write),
    ("reflink", 20.0, open::reflink),
    ("import", 45.0, import::import),
    ("latency", 20.0, latency::latency),
];

/// What whole workloads take.
const WORKLOADS: (&str, f64) = ("workloads", 240.0);

/// The steps of this part: names and planned seconds.
pub(super) fn steps(only: Option<&str>) -> Vec<(String, f64)> {
    let sections = SECTIONS.iter().map(|(name, seconds, _)| (*name, *seconds));
    sections
        .chain([WORKLOADS])
        .filter(|(name, _)| only.is_none_or(|only| name.contains(only)))
        .map(|(name, seconds)| (step(name), seconds))
        .collect()
}

fn step(section: &str) -> String {
    format!("speed: {section}")
}

/// Measures all sections that are wanted.
pub(super) fn measure(session: &mut Session<'_>, templates: &[Prepared]) -> Result<()> {
    let only = session.settings.only.clone();
    let wanted = |name: &str| only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let everywhere = machine::Everywhere::look()?;
    for (name, _, section) in SECTIONS.into_iter().filter(|(name, ..)| wanted(name)) {
        // Client and servers on one processor: how the kernel wakes a server on another, idle
        // one makes the difference otherwise. Sections that measure that say so.
        machine::pin_self(machine::CLIENT)?;
        session.part(&step(name), name, section)?;
        everywhere.restore()?;
    }
    if wanted(WORKLOADS.0) && !templates.is_empty() {
        session.part(&step(WORKLOADS.0), WORKLOADS.0, |session| {
            workloads::workloads(session, templates)
        })?;
    }
    Ok(())
}
