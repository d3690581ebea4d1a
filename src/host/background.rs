//! Starting this very program in the background and hearing one line from it: ready, or why not.
//!
//! Both ends of it: who starts reads until the end of the line; who was started answers once,
//! lets go of everything of its caller's and lives on.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::process::inherit_only_standard_streams;

/// What a process in the background answers, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer<Ready> {
    Ready(Ready),
    Failed(String),
}

/// Why a process in the background did not come up.
#[derive(Debug)]
pub enum Silence {
    /// It said why.
    Failed(String),
    /// It ended without a word; how it ended.
    Died(String),
    /// It cannot be started or talked to.
    System {
        /// What was being done, as a verb.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Starts `command` with `brief` on its standard input and returns what it answers.
///
/// # Errors
/// [`Silence`].
pub fn start<Ready: DeserializeOwned>(
    command: &mut Command,
    brief: &[u8],
) -> Result<Ready, Silence> {
    let system = |what| move |source| Silence::System { what, source };
    match inherit_only_standard_streams() {
        // Before Linux 5.11 what the caller left open leaks; the process works all the same.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {}
        done => done.map_err(system("shield"))?,
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .current_dir("/")
        .spawn()
        .map_err(system("start"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A process that died already is told about below.
        let _written = stdin.write_all(brief);
    }
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut answer).map_err(system("hear"))?;
    }
    match serde_json::from_str(&answer) {
        Ok(Answer::Ready(ready)) => Ok(ready),
        Ok(Answer::Failed(sentence)) => {
            // It is ending; reaped here so that it does not linger while its caller lives.
            child.wait().map_err(system("wait for"))?;
            Err(Silence::Failed(sentence))
        }
        Err(_) => {
            let status = child.wait().map_err(system("wait for"))?;
            Err(Silence::Died(status.to_string()))
        }
    }
}

/// Tells the caller that this process is ready, and lets go of the caller's pipes.
pub fn tell_ready(ready: &impl Serialize) {
    answer(&Answer::Ready(ready));
    // The caller reads to the end of the line; what else it connected may wait for ours.
    if let Err(error) = let_go() {
        tracing::warn!(%error, "the caller's streams stay open");
    }
}

/// Tells the caller why this process does not become ready.
pub fn tell_failed(sentence: String) {
    answer(&Answer::<()>::Failed(sentence));
}

/// Puts /dev/null in the place of the caller's pipes.
fn let_go() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

fn answer(answer: &Answer<impl Serialize>) {
    let line = serde_json::to_string(answer).unwrap_or_default();
    // A caller that went away is not waiting any more; the process goes on all the same.
    let _told = writeln!(io::stdout().lock(), "{line}");
}
