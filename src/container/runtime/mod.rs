//! What turns a bundle into processes: the runtime inside this program, or an external one.
//!
//! Both are driven alike. `create` starts a monitor, which has the init made by a fresh process
//! (`launch`); the init waits. `start` lets it go. The kernel's own signals end it, and what is
//! left of it is deleted here. A caller may be threaded: nothing forks in it.

mod embedded;
mod external;

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::bundle::{Bundle, Created};
use super::config::RuntimeChoice;
use super::console::{Door, resize};
use super::monitor;
use super::passwd::UserError;
use super::program::OwnProgram;
use crate::sys::namespace::Process;

pub use embedded::Embedded;
pub(super) use embedded::create as create_embedded;
pub use external::External;
pub(super) use external::{create as create_external, exec as exec_external};

/// Why a runtime did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No such program.
    #[error("there is no OCI runtime {0}; install it, or use runtime=embedded")]
    NoProgram(PathBuf),
    /// It said why.
    #[error("cannot {what} the container: {message}")]
    Failed {
        /// What was asked for.
        what: &'static str,
        /// In its words.
        message: String,
    },
    /// The root is no safe ground for a runtime.
    #[error(
        "/{place} in the container's root is {what}, not a directory: what the runtime makes there would end up elsewhere, in the host even; put it right with `mica revert CT /{place}`, or import the template anew with a directory there"
    )]
    Place {
        /// Where.
        place: &'static str,
        /// What is there.
        what: &'static str,
    },
    /// There is no init to ask.
    #[error("the container is not running")]
    NotRunning,
    /// There is an init still.
    #[error("the container is running; stop it first")]
    Running,
    /// Its user.
    #[error(transparent)]
    User(#[from] UserError),
    /// A file or process.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl RuntimeError {
    /// What the runtime itself said.
    pub(super) fn word(&self) -> Option<&str> {
        if let Self::Failed { message, .. } = self { Some(message) } else { None }
    }

    /// What a shell would answer, where a runtime would not make the container for its command;
    /// none: for another reason.
    #[must_use]
    pub fn command_status(&self) -> Option<u8> {
        // "No such file" is said of much; these words only of the command.
        let of_command = |word: &&str| word.contains("exec: \"") || word.contains("executable '");
        let status = super::exec::code_of(self.word().filter(of_command)?);
        u8::try_from(status).ok().filter(|_| status != super::exec::OURS)
    }

    pub(super) fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::System { what, path, source }
    }
}

/// A command to be run in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Its words.
    pub args: Vec<String>,
    /// Variables beside those of the init, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Where it starts; none: where the init did.
    pub workdir: Option<PathBuf>,
    /// Whose it is, as in the configuration; none: root.
    pub user: Option<String>,
    /// Rows and columns of its terminal; none: pipes.
    pub terminal: Option<(u16, u16)>,
}

/// A command that runs in a container.
#[derive(Debug)]
pub struct ExecChild {
    /// The process that stands for it here: its standard streams are the command's (pipes), its
    /// status is the command's, 126 or 127 where it cannot be executed or found, 125 where Mica or
    /// the runtime failed. Killing it kills the command.
    pub child: Child,
    /// The terminal, when one was asked for.
    pub terminal: Option<OwnedFd>,
}

/// What turns a bundle into processes.
pub trait Runtime: Debug + Send + Sync {
    /// The file of this very program.
    fn program(&self) -> &Path;

    /// Makes the container: its namespaces, its root, and an init that waits for
    /// [`Runtime::start`]. The network namespace can be furnished between the two. The cgroup is there
    /// before; a runtime may take its own part of it away in [`Runtime::delete`].
    ///
    /// # Errors
    /// [`RuntimeError`]; [`Runtime::delete`] clears away what is left.
    fn create(&self, bundle: &Bundle) -> Result<Created, RuntimeError> {
        monitor::launch(self.program(), bundle)
    }

    /// Lets the init run its command.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn start(&self, bundle: &Bundle) -> Result<(), RuntimeError>;

    /// Sends the init a signal, by number; real-time ones are numbers from 34 on.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`].
    fn kill(&self, bundle: &Bundle, signal: i32) -> Result<(), RuntimeError> {
        init(bundle)?.signal(signal).map_err(RuntimeError::system("signal", bundle.directory()))
    }

    /// Removes what the runtime keeps, and everything of the bundle but `exit.json`. The cgroup is the
    /// caller's.
    ///
    /// # Errors
    /// [`RuntimeError::Running`] while there is an init and `force` does not end it.
    fn delete(&self, bundle: &Bundle, force: bool) -> Result<(), RuntimeError>;

    /// Runs a command in the container.
    ///
    /// # Errors
    /// [`RuntimeError`]; a command that is not found is told by its status.
    fn exec(&self, bundle: &Bundle, request: &ExecRequest) -> Result<ExecChild, RuntimeError> {
        exec(self.program(), bundle, request)
    }
}

/// The runtime that was chosen; `program` is the file of this very program.
///
/// # Errors
/// [`RuntimeError::NoProgram`].
pub fn open(choice: &RuntimeChoice, program: &Path) -> Result<Box<dyn Runtime>, RuntimeError> {
    match choice {
        RuntimeChoice::Embedded => Ok(Box::new(Embedded::new(program))),
        RuntimeChoice::External(runtime) => Ok(Box::new(External::find(runtime, program)?)),
    }
}

/// The init of a container.
pub(super) fn init(bundle: &Bundle) -> Result<Process, RuntimeError> {
    let here = |what| RuntimeError::system(what, bundle.directory());
    let created = bundle.created().map_err(here("read"))?.ok_or(RuntimeError::NotRunning)?;
    match Process::open(created.pid, created.start_ticks) {
        Ok(init) if init.has_ended().map_err(here("ask"))? => Err(RuntimeError::NotRunning),
        Ok(init) => Ok(init),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(RuntimeError::NotRunning),
        Err(error) => Err(here("find the init of")(error)),
    }
}

/// Ends the init when `force` says so, and waits until it has.
fn end(bundle: &Bundle, force: bool) -> Result<(), RuntimeError> {
    let here = |what| RuntimeError::system(what, bundle.directory());
    let created = bundle.created().map_err(here("read"))?;
    match init(bundle) {
        Err(RuntimeError::NotRunning) => {}
        Err(error) => return Err(error),
        Ok(_) if !force => return Err(RuntimeError::Running),
        Ok(init) => {
            init.signal(libc::SIGKILL).map_err(here("kill"))?;
            ended(&init).map_err(here("wait for"))?;
        }
    }
    // The monitor writes how it ended, and goes.
    if let Some(created) = created
        && let Ok(monitor) = Process::open(created.monitor_pid, created.monitor_start_ticks)
    {
        ended(&monitor).map_err(here("wait for the monitor of"))?;
    }
    Ok(())
}

fn ended(process: &Process) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let patience = rustix::time::Timespec { tv_sec: 30, tv_nsec: 0 };
    if poll(&mut fds, Some(&patience))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(())
}

/// Removes what a container leaves in its bundle when it is not running, but how it ended.
fn clear(bundle: &Bundle) -> Result<(), RuntimeError> {
    let here = |what| RuntimeError::system(what, bundle.directory());
    let root = bundle.runtime_root();
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(RuntimeError::system("remove", &root)(error));
        }
        Ok(()) | Err(_) => {}
    }
    for name in
        ["init", "init.json", "pid", "failure", "attach.sock", "terminal.sock", "runtime.log"]
    {
        bundle.remove(name).map_err(here("clean"))?;
    }
    Ok(())
}

fn exec(program: &Path, bundle: &Bundle, request: &ExecRequest) -> Result<ExecChild, RuntimeError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Refused here, where it can be told; the launch looks again.
    drop(init(bundle)?);
    let here = |what| RuntimeError::system(what, bundle.directory());
    let name = format!("exec-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    bundle.write(&format!("{name}.json"), request).map_err(here("write"))?;
    let started = || {
        let door = match request.terminal {
            Some(_) => {
                Some(Door::open(&bundle.file(&format!("{name}.sock"))).map_err(here("listen in"))?)
            }
            None => None,
        };
        let stream = || if door.is_some() { Stdio::null() } else { Stdio::piped() };
        let own = OwnProgram::open(program).map_err(RuntimeError::system("open", program))?;
        let child = own
            .command()
            .args(["container-launch", "exec"])
            .arg(bundle.directory())
            .arg(&name)
            .stdin(stream())
            .stdout(stream())
            .stderr(Stdio::piped())
            .current_dir("/")
            .spawn()
            .map_err(RuntimeError::system("start", program))?;
        let mut exec = ExecChild { child, terminal: None };
        if let (Some(door), Some((rows, columns))) = (door, request.terminal) {
            let pid = i32::try_from(exec.child.id()).ok().and_then(rustix::process::Pid::from_raw);
            let pid = pid.ok_or(RuntimeError::NotRunning)?;
            let launch = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
            let launch = launch.map_err(|e| here("watch")(e.into()))?;
            exec.terminal = door.terminal(launch.as_fd()).map_err(here("take a terminal from"))?;
            if let Some(terminal) = &exec.terminal {
                resize(terminal.as_fd(), rows, columns).map_err(here("size a terminal of"))?;
            }
        }
        Ok(exec)
    };
    let started = started();
    if started.is_err() {
        // Otherwise the launch takes it away once it has read it.
        bundle.remove(&format!("{name}.json")).map_err(here("clean"))?;
    }
    started
}
