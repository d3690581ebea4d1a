//! `mica store reshare`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::api::{Client, at};
use crate::cli::FOUND;
use crate::cli::arguments::{Reshare, SharedWith};
use crate::cli::output::{Output, complain, count, size};
use crate::container::config::ContainerConfig;
use crate::host::mountpoint;
use crate::host::reshare::{Pace, Report, Wanted, reshare};
use crate::host::roots::ResharePolicy;
use crate::host::{Access, RootRecord, Roots, Store, interrupt_flag};
use crate::layer::import::Excludes;
use crate::node::daemon::SetDone;
use crate::node::registry::Registry;

pub(super) fn run(wanted: &Reshare, store: &Path, output: Output) -> Result<ExitCode> {
    let store = Store::open(store, Access::Write)?;
    let roots = Roots::open(&store)?;
    let records: Vec<RootRecord> = if wanted.all {
        roots.list()?
    } else {
        wanted.roots.iter().map(|root| roots.find(root)).collect::<Result<_, _>>()?
    };
    if let Some(policy) = wanted.policy {
        return set_policy(&store, &roots, &records, policy, output);
    }
    let pace = Pace::limited(wanted.rate.unwrap_or(0)).until(interrupt_flag()?);
    if wanted.rate.is_some() {
        pace.step_back();
    }
    crate::cli::log_to_stderr();
    let asked = Wanted {
        roots: records,
        exclude: Excludes::new(wanted.exclude.iter().map(|glob| glob.as_encoded_bytes()))
            .context("--exclude")?,
        least_age: wanted.min_age,
        dry_run: wanted.dry_run,
        pace: &pace,
    };
    let report = reshare(&store, &asked)?;
    if wanted.json.json {
        output.json(&report)?;
    } else {
        print(&report, output)?;
    }
    if report.interrupted {
        bail!("interrupted; what was shared until then stays shared, run it again for the rest");
    }
    let troubled = report.roots.values().any(|root| !root.notes.is_empty());
    Ok(if troubled { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

fn set_policy(
    store: &Store,
    roots: &Roots,
    records: &[RootRecord],
    policy: SharedWith,
    output: Output,
) -> Result<ExitCode> {
    let (policy, setting, word) = match policy {
        SharedWith::Off => (ResharePolicy::Off, "off", "nothing"),
        SharedWith::Templates => (ResharePolicy::Templates, "templates", "templates"),
        SharedWith::All => (ResharePolicy::All, "all", "templates and other containers"),
    };
    let containers = containers(store)?;
    for record in records {
        let owner = record.private.as_ref().and_then(|private| containers.get(private));
        match owner {
            // Its setting is what its next start goes by.
            Some(config) => set_of_container(store, config, setting)?,
            None => roots.lock()?.set_reshare(record, policy)?,
        }
        output.remark(format!("{} may share with {word} from now on", record.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Every container of the store, by where its changes are.
fn containers(store: &Store) -> Result<BTreeMap<PathBuf, ContainerConfig>> {
    let registry = Registry::open(store.path())?;
    let all = registry.list()?.into_iter();
    let all = all.map(|one| one.unwrap_or_else(|damaged| *damaged.recorded).config);
    let place = |config: &ContainerConfig| {
        let private = registry.places(&config.id).private(config);
        // As records have it, whatever symlinks lead there.
        mountpoint::future_path(&private).unwrap_or(private)
    };
    Ok(all.map(|config| (place(&config), config)).collect())
}

fn set_of_container(store: &Store, config: &ContainerConfig, setting: &str) -> Result<()> {
    let name = &config.name;
    let client = Client::connect(store.path()).with_context(|| {
        format!(
            "{name} is a container, and shares as its setting says: start the daemon, then \
             mica set {name} reshare={setting}"
        )
    })?;
    let settings = json!({ "settings": [("reshare", setting)] });
    let _done: Vec<SetDone> = client.patch(&at(config.id.as_str(), ""), &settings)?;
    Ok(())
}

fn print(report: &Report, output: Output) -> Result<()> {
    if output.is_quiet() {
        let touched = report.roots.iter().filter(|(_, root)| root.files > 0);
        output.names(touched.map(|(name, _)| name))?;
    } else {
        let rows: Vec<Vec<String>> = report
            .roots
            .iter()
            .filter(|(_, root)| root.files > 0)
            .map(|(name, root)| {
                vec![
                    name.clone(),
                    root.files.to_string(),
                    size(root.disk_bytes),
                    size(root.memory_bytes),
                ]
            })
            .collect();
        if !rows.is_empty() {
            output.table(&["ROOT", "FILES", "DISK", "IN MEMORY"], &rows)?;
        }
    }
    for (name, root) in &report.roots {
        for sentence in &root.notes {
            complain(&format!("root {name}: {sentence}"));
        }
    }
    let skipped = &report.skipped;
    for (number, why) in [
        (skipped.in_use, "in use"),
        (skipped.changed, "changed meanwhile"),
        (skipped.young, "changed too lately"),
        (skipped.linked, "with several names"),
        (skipped.sparse, "nearly all hole"),
        (skipped.unreadable, "not readable"),
    ] {
        if number > 0 {
            output.note(format!("{} left alone: {why}", count(number, "file")));
        }
    }
    let would = if report.dry_run { "would be " } else { "" };
    let new = match report.new_objects {
        0 => String::new(),
        objects => format!("; {} new ({})", count(objects, "object"), size(report.new_bytes)),
    };
    output.remark(format!(
        "{} {would}shared: {} of disk and {} of page cache won{new}; {} read",
        count(report.files, "file"),
        signed(report.disk_bytes),
        signed(report.memory_bytes),
        size(report.hashed_bytes),
    ))
}

/// A first file that becomes an object wins nothing, and costs a block or two.
fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", size(bytes.unsigned_abs()))
}
