//! The hidden verbs behind which a container's own processes are.

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::arguments::{ContainerLaunch, ContainerMonitor, LaunchVerb};
use crate::container::launch::{self, Launch};
use crate::container::monitor;

pub(super) fn monitor(wanted: &ContainerMonitor) -> Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find mica's own program file")?;
    monitor::run(&program, &wanted.bundle)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn launch(wanted: ContainerLaunch) -> ExitCode {
    let (bundle, launch) = match wanted.what {
        LaunchVerb::Create { bundle } => (bundle, Launch::Create),
        LaunchVerb::Exec { bundle, name } => (bundle, Launch::Exec(name)),
    };
    ExitCode::from(launch::run(&bundle, &launch))
}
