//! Starting the daemon in the background and waiting until its socket answers.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::server::{self, Background, ServeError};
use super::wire::NodeAnswer;
use crate::sys::process::inherit_only_standard_streams;

/// What a daemon in the background answers, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Ready(NodeAnswer),
    Failed(String),
}

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
    let system = |what| move |source| LaunchError::System { what, source };
    match inherit_only_standard_streams() {
        // Before Linux 5.11 what the caller left open leaks; the daemon works all the same.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {}
        done => done.map_err(system("shield"))?,
    }
    let mut child = Command::new(program)
        .arg("--store")
        .arg(store)
        .args(["node", "run", "--background"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .current_dir("/")
        .spawn()
        .map_err(system("start"))?;
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut answer).map_err(system("hear"))?;
    }
    match serde_json::from_str(&answer) {
        Ok(Answer::Ready(ready)) => Ok(ready),
        Ok(Answer::Failed(sentence)) => {
            child.wait().map_err(system("wait for"))?;
            Err(LaunchError::Failed(sentence))
        }
        Err(_) => {
            let status = child.wait().map_err(system("wait for"))?;
            Err(LaunchError::Died(status.to_string()))
        }
    }
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
        answer(&Answer::Ready(ready.clone()));
        if let Err(error) = crate::host::launch::let_go() {
            tracing::warn!(%error, "the caller's streams stay open");
        }
    });
    match served {
        Err(error) if !answered => {
            answer(&Answer::Failed(crate::host::sentence(&error)));
            Ok(())
        }
        served => served,
    }
}

fn answer(answer: &Answer) {
    let line = serde_json::to_string(answer).unwrap_or_default();
    // A caller that went away is not waiting for the daemon any more; it serves all the same.
    let _told = writeln!(io::stdout().lock(), "{line}");
}
