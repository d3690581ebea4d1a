//! `mica mount TEMPLATE MOUNTPOINT`, and without arguments the list of roots.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::arguments::Mount;
use super::output::{Output, path};
use crate::host::launch::{self, MountSpec, Ready};
use crate::host::log::LogWriter;
use crate::host::options::{MountOptions, shared_paths};
use crate::host::{Access, RootRecord, Roots, Store, serve};
use crate::inspect::Library;

pub(super) fn run(wanted: Mount, store: &Path, output: &Output) -> Result<ExitCode> {
    let (Some(template), Some(mountpoint)) = (&wanted.template, &wanted.mountpoint) else {
        list(wanted.json.json, store, *output)?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut options = MountOptions::default();
    for list in &wanted.options {
        options.parse(list, false)?;
    }
    // What has a flag of its own counts for more than what stands after -o.
    options.private = wanted.private.clone().or(options.private);
    options.name = wanted.name.clone().or(options.name);
    options.no_passthrough |= wanted.no_passthrough;
    if let Some(list) = &wanted.shared_paths {
        options.shared_paths = Some(shared_paths(list)?);
    }
    let mut spec = spec(template, mountpoint, options, store)?;
    spec.unheard = output.is_quiet();
    refuse_swapped(&spec, mountpoint)?;
    if wanted.foreground {
        log_to(LogWriter);
        serve::serve(&spec, &mut |ready| told(ready, *output))?;
    } else {
        told(&start(&spec)?, *output);
    }
    Ok(ExitCode::SUCCESS)
}

/// What the mount process needs to know, with every path absolute: it stands elsewhere.
pub(super) fn spec(
    template: &str,
    mountpoint: &Path,
    options: MountOptions,
    store: &Path,
) -> Result<MountSpec> {
    let absolute = |path: &Path| {
        if path.to_str().is_none() {
            bail!(
                "{} is not UTF-8, as the records of a store are; name another place",
                super::output::path(path)
            );
        }
        std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
    };
    Ok(MountSpec {
        store: absolute(options.store.as_deref().unwrap_or(store))?,
        template: template.to_owned(),
        mountpoint: absolute(mountpoint)?,
        private: options.private.as_deref().map(absolute).transpose()?,
        name: options.name,
        passthrough: !options.no_passthrough,
        shared_paths: options.shared_paths,
        fsname: options.fsname,
        disk_bytes: options.disk_bytes,
        generic: options.generic,
        unheard: false,
    })
}

/// Refuses a mountpoint and a template in each other's place.
fn refuse_swapped(spec: &MountSpec, second: &Path) -> Result<()> {
    // What is no store, or no text, is told elsewhere.
    let (Ok(library), Some(template)) = (Library::open(&spec.store), second.to_str()) else {
        return Ok(());
    };
    if library.template(&spec.template).is_err() && library.template(template).is_ok() {
        let mountpoint = &spec.template;
        bail!("{template} is a template, which comes first: mica mount {template} {mountpoint}");
    }
    Ok(())
}

/// Starts the mount process from this program's own file.
pub(super) fn start(spec: &MountSpec) -> Result<Ready> {
    let program = std::env::current_exe().context("cannot find mica's own program file")?;
    Ok(launch::start(&program, spec)?)
}

/// The hidden verb that [`start`] starts.
pub(super) fn run_process() -> Result<ExitCode> {
    log_to(LogWriter);
    launch::mount_process()?;
    Ok(ExitCode::SUCCESS)
}

/// A mount process logs to standard error, which is a file of bounded size in the background.
fn log_to(writer: LogWriter) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("MICA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || writer)
        .with_ansi(false)
        .try_init();
    // It fails only if logging was started already, which is as good.
    drop(started);
}

fn told(ready: &Ready, output: Output) {
    for note in &ready.notes {
        output.note(note);
    }
    let changes = match &ready.private {
        Some(private) if ready.read_only => format!("read-only over {}", private.display()),
        Some(private) => format!("changes in {}", private.display()),
        None => "read-only".to_owned(),
    };
    let place = ready.mountpoint.display();
    // The root is mounted, whether or not anybody reads this.
    let _told = output.remark(format!("{}: {} at {place}, {changes}", ready.name, ready.template));
}

fn list(json: bool, store: &Path, output: Output) -> Result<()> {
    let store = Store::open(store, Access::Read)?;
    let records = Roots::open(&store)?.list()?;
    if json {
        return output.json(&records.iter().map(listed).collect::<Vec<_>>());
    }
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            let mounted = record.living().and(record.mount.as_ref());
            vec![
                record.name.clone(),
                record.template.to_string(),
                mounted.map_or_else(|| "-".to_owned(), |mount| path(&mount.mountpoint)),
                record.private.as_deref().map_or_else(|| "-".to_owned(), path),
            ]
        })
        .collect();
    output.table(&["ROOT", "TEMPLATE", "MOUNTED AT", "CHANGES IN"], &rows)
}

/// A root in JSON, as far as its record tells.
pub(super) fn listed(record: &RootRecord) -> Value {
    let mount = record.mount.as_ref();
    json!({
        "name": record.name,
        "id": record.id,
        "template": record.template,
        "stack_id": record.stack.id().to_string(),
        "private": record.private,
        "created": record.created,
        "mounted": record.living().is_some(),
        "mountpoint": mount.map(|mount| mount.mountpoint.clone()),
        "pid": mount.map(|mount| mount.pid),
        "control": mount.map(|mount| mount.socket.clone()).map(PathBuf::into_os_string)
            .map(|path| path.to_string_lossy().into_owned()),
    })
}
