//! Starting a mount process in the background and waiting until its root is usable.
//!
//! The process is this very program, called `mica mount-process TEMPLATE MOUNTPOINT`. What
//! it shall mount comes as JSON on its standard input; it answers one line of JSON on its
//! standard output: ready, or a sentence why not. Then it lets go of everything of its
//! caller's and lives on in a session of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::error::{HostError, sentence};
use super::options::GenericOptions;
use crate::sys::process::inherit_only_standard_streams;

/// What to mount, and how. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// The store.
    pub store: PathBuf,
    /// The template, as it was written.
    pub template: String,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// Where changes go; none makes a read-only root.
    pub private: Option<PathBuf>,
    /// What to call the root.
    pub name: Option<String>,
    /// Whether shared files may go straight to their objects.
    pub passthrough: bool,
    /// What is opened shared, instead of the template's own list.
    pub shared_paths: Option<Vec<String>>,
    /// The source shown in the mount table, instead of the template.
    pub fsname: Option<String>,
    /// The most that the private files may take on the disk, in bytes.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// What the kernel does for any mount.
    pub generic: GenericOptions,
    /// Nobody reads the notes of this mount: what is said once only is kept for the next.
    pub unheard: bool,
}

/// A root that is usable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What the root is called.
    pub name: String,
    /// The template it was made from.
    pub template: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Where its changes go.
    pub private: Option<PathBuf>,
    /// Whether nothing can be written.
    pub read_only: bool,
    /// Whether shared files go straight to their objects.
    pub passthrough: bool,
    /// The mount process.
    pub pid: u32,
    /// What the user should know though all went well.
    pub notes: Vec<String>,
}

/// What a mount process answers, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Ready(Ready),
    Failed(String),
}

/// Why no mount process came up.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It said why.
    #[error("{0}")]
    Failed(String),
    /// It ended without a word.
    #[error("the mount process ended before the root was usable ({status})")]
    Died {
        /// How it ended.
        status: String,
    },
    /// It cannot be started or talked to.
    #[error("cannot {what} the mount process: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Starts `program`, this program's file, as a mount process; returns once the root is usable.
///
/// # Errors
/// [`LaunchError`]; nothing is mounted then.
pub fn start(program: &Path, spec: &MountSpec) -> Result<Ready, LaunchError> {
    let system = |what| move |source| LaunchError::System { what, source };
    match inherit_only_standard_streams() {
        // Before Linux 5.11 what the caller left open leaks; the root works all the same.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {}
        done => done.map_err(system("shield"))?,
    }
    let mut child = Command::new(program)
        .arg("mount-process")
        .arg(&spec.template)
        .arg(&spec.mountpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .current_dir("/")
        .spawn()
        .map_err(system("start"))?;
    if let Some(mut stdin) = child.stdin.take() {
        let text = serde_json::to_vec(spec)
            .map_err(|error| LaunchError::System { what: "brief", source: error.into() })?;
        // A process that died already is told about below.
        let _written = stdin.write_all(&text);
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
            Err(LaunchError::Failed(sentence))
        }
        Err(_) => {
            let status = child.wait().map_err(system("wait for"))?;
            Err(LaunchError::Died { status: status.to_string() })
        }
    }
}

/// The other end of [`start`]: reads the brief, detaches from the caller, and serves.
///
/// Returns when the root is unmounted. A failure before the root was usable is the
/// caller's to tell, so it is answered and not returned.
///
/// # Errors
/// What ended a usable root before its time, for the log.
pub fn mount_process() -> Result<(), HostError> {
    let broken = HostError::system::<io::Error>;
    let spec: MountSpec = match serde_json::from_reader(io::stdin().lock()) {
        Ok(spec) => spec,
        Err(error) => return Err(broken("read the brief on", "standard input")(error.into())),
    };
    // Fails only for a process group leader, which a started process is not.
    let _session = rustix::process::setsid();
    let mut answered = false;
    let served = super::serve::serve(&spec, &mut |ready| {
        answered = true;
        answer(&Answer::Ready(ready.clone()));
        // The caller reads to the end of the line; what else it connected may wait for ours.
        if let Err(error) = let_go() {
            tracing::warn!(%error, "the caller's streams stay open");
        }
    });
    match served {
        Err(error) if !answered => {
            answer(&Answer::Failed(sentence(&error)));
            Ok(())
        }
        served => served,
    }
}

/// Puts /dev/null in the place of the caller's pipes.
///
/// # Errors
/// What opening /dev/null answers.
pub fn let_go() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

fn answer(answer: &Answer) {
    let line = serde_json::to_string(answer).unwrap_or_default();
    // A caller that went away is not waiting for the root any more; it is mounted all the same.
    let _told = writeln!(io::stdout().lock(), "{line}");
}
