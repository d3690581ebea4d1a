//! What this program starts of itself in the background: the process of a root, those of a
//! container, and those that `doctor` and `bench` start; and what prints docs/CLI.md.
//!
//! No part of the grammar, so neither help nor a completion shows it to anybody; and known before that
//! is made: there is one for each root and container, and half a megabyte of the grammar's would stay
//! in each as long as it lives.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::output::Output;
use super::{bench, doctor, mount, reference};
use crate::container::launch::{self, Launch};
use crate::container::monitor;

/// Runs what `arguments`, the program's own name first, ask for; none when that is a verb.
pub(super) fn run(arguments: &[OsString]) -> Option<Result<ExitCode>> {
    let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let path = |at: usize| arguments.get(at).map(Path::new).unwrap_or(Path::new(""));
    match words.as_slice() {
        // What to mount comes on its standard input; these are for who lists processes.
        [_, "mount-process", _template, _mountpoint] => Some(mount::run_process()),
        [_, "container-monitor", _] => Some(watch(path(2))),
        [_, "container-launch", "create", _] => {
            Some(Ok(launch::run(path(3), &Launch::Create).into()))
        }
        [_, "container-launch", "exec", _, name] => {
            Some(Ok(launch::run(path(3), &Launch::Exec((*name).to_owned())).into()))
        }
        [_, "user-namespace"] => Some(doctor::run_user_namespace()),
        [_, "bench-process"] => Some(bench::run_process()),
        [_, "reference"] => {
            let printed = reference::markdown(Output::new(false));
            Some(printed.map(|()| ExitCode::SUCCESS))
        }
        _ => None,
    }
}

/// Watches the container whose bundle is at `bundle`.
fn watch(bundle: &Path) -> Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find mica's own program file")?;
    monitor::run(&program, bundle)?;
    Ok(ExitCode::SUCCESS)
}
