//! Starting the daemon in the background and waiting until its socket answers.

use std::io;
use std::path::Path;
use std::process::Command;

use super::server::{self, Background, ServeError};
use super::wire::NodeAnswer;
use crate::host::background::{self, Silence};

/// Why no daemon came up.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It said why.
    #[error("{0}")]
    Failed(String),
    /// It ended without a word.
    #[error("the daemon ended before its socket answered ({0}); see its log")]
    Died(String),
    /// It cannot be started or heard.
    #[error("cannot {what} the daemon: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Starts `program`, this program's file, as the daemon of the store at `store`; returns once its
/// socket answers.
///
/// # Errors
/// [`LaunchError`]; no daemon runs then, or another one does.
pub fn start(program: &Path, store: &Path) -> Result<NodeAnswer, LaunchError> {
    let mut command = Command::new(program);
    command.arg("--store").arg(store).args(["node", "run", "--background"]);
    background::start(&mut command, b"").map_err(|silence| match silence {
        Silence::Failed(sentence) => LaunchError::Failed(sentence),
        Silence::Died(status) => LaunchError::Died(status),
        Silence::System { what, source } => LaunchError::System { what, source },
    })
}

/// The other end of [`start`].
///
/// # Errors
/// What ended a daemon whose socket answered, for the log.
pub fn run_in_background(store: &Path, program: &Path) -> Result<(), ServeError> {
    // Fails only for the leader of a process group, which a started process is not.
    let _session = rustix::process::setsid();
    let mut answered = false;
    let served = server::run(store, program.to_owned(), Background::Yes, |ready| {
        answered = true;
        background::tell_ready(ready);
    });
    match served {
        Err(error) if !answered => {
            background::tell_failed(crate::host::sentence(&error));
            Ok(())
        }
        served => served,
    }
}
