//! The processes of a container, through its runtime and its monitor.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;

use super::hurry::{Hurry, Waited};
use super::{Driver, watch};
use crate::container::bundle::{Bundle, Observed};
use crate::container::cgroup::{Cgroup, Delegation};
use crate::container::config::{ContainerConfig, ContainerId, Kind, NetworkMode, UserNamespace};
use crate::container::console::{self, Pace};
use crate::container::runtime::{self, ExecChild, ExecRequest, Runtime, RuntimeError};
use crate::container::spec::{CgroupPlace, Inputs, NetworkNamespace, write_bundle};
use crate::node::NodeError;
use crate::node::registry::{Places, Recorded};
use crate::node::state::{Exit, now_ms};

/// SIGRTMIN+3, as the C library counts: what systemd takes for "shut down and halt".
const HALT: i32 = 37;

/// What is said of an init whose end nobody saw.
const UNSEEN: i32 = 255;

/// Who wants the streams of a container from its first moment.
#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<HashMap<ContainerId, Vec<mpsc::Sender<UnixStream>>>>);

/// What runs a container, as the host numbers it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Processes {
    /// Its init.
    pub(super) init: u32,
    /// What watches that; none if it was killed.
    pub(super) monitor: Option<u32>,
}

impl Driver {
    fn runtime(&self, recorded: &Recorded) -> Result<Box<dyn Runtime>, NodeError> {
        Ok(runtime::open(&recorded.config.runtime, &self.program)?)
    }

    /// Makes the init of a container, which waits.
    pub(super) fn create_processes(
        &self,
        recorded: &Recorded,
        places: &Places,
        group: &Cgroup,
    ) -> Result<Processes, NodeError> {
        let config = &recorded.config;
        let files = self.network.files(recorded, places)?;
        let of_host = config.privileged || config.userns == UserNamespace::Host;
        let range = recorded.state.users.filter(|_| !of_host);
        if config.kind == Kind::System {
            let root = range.map_or(0, |users| users.first());
            group.delegate(root, root, delegation(config))?;
        }
        let cgroup = CgroupPlace::of(&self.layout, group);
        let inputs = Inputs {
            config,
            root: &places.root(),
            range,
            cgroup: &cgroup,
            network: match config.network.mode {
                NetworkMode::Host => NetworkNamespace::Host,
                NetworkMode::Bridge | NetworkMode::None => NetworkNamespace::Own,
            },
            files: &files,
            log: &places.log(),
        };
        let runtime = self.runtime(recorded)?;
        let bundle = write_bundle(&places.run(), &inputs)?;
        let created = runtime.create(&bundle)?;
        self.children.add(created.monitor_pid);
        Ok(Processes { init: created.pid, monitor: Some(created.monitor_pid) })
    }

    /// Lets the init go. Who wanted its streams has them before.
    pub(super) fn start_processes(
        &self,
        recorded: &Recorded,
        places: &Places,
    ) -> Result<(), NodeError> {
        let bundle = Bundle::at(&places.run());
        let listeners = self.listeners.0.lock().remove(&recorded.config.id);
        for listener in listeners.into_iter().flatten() {
            // Whoever wanted them may be gone.
            let _given = listener.send(attach(&bundle, Pace::Follow)?);
        }
        Ok(self.runtime(recorded)?.start(&bundle)?)
    }

    /// Wants the streams of a container from the first moment of its next start on.
    #[must_use]
    pub fn listen(&self, id: &ContainerId) -> mpsc::Receiver<UnixStream> {
        let (sender, receiver) = mpsc::channel();
        self.listeners.0.lock().entry(id.clone()).or_default().push(sender);
        receiver
    }

    /// No longer wants them.
    pub fn stop_listening(&self, id: &ContainerId) {
        self.listeners.0.lock().remove(id);
    }

    /// The streams of a container that runs: frames as in `container/console.rs`.
    ///
    /// # Errors
    /// When its monitor does not answer.
    pub fn attach(&self, recorded: &Recorded) -> Result<UnixStream, NodeError> {
        attach(&Bundle::at(&self.places(recorded).run()), Pace::Console)
    }

    /// The init of a container, if there is one.
    pub(super) fn find_init(&self, recorded: &Recorded) -> Result<Option<u32>, NodeError> {
        Ok(self.find_processes(recorded)?.map(|processes| processes.init))
    }

    /// What runs a container, if it does.
    pub(super) fn find_processes(
        &self,
        recorded: &Recorded,
    ) -> Result<Option<Processes>, NodeError> {
        let directory = self.places(recorded).run();
        let observed = Bundle::at(&directory).observe();
        match observed.map_err(NodeError::system("look into", &directory))? {
            Observed::Running { created, watched } => Ok(Some(Processes {
                init: created.pid,
                monitor: watched.then_some(created.monitor_pid),
            })),
            Observed::Absent | Observed::Exited(_) | Observed::Lost => Ok(None),
        }
    }

    /// Sends the init the signal that asks it to end.
    pub(super) fn ask_to_end(&self, recorded: &Recorded) -> Result<(), NodeError> {
        let signal = match (recorded.config.stop_signal, recorded.config.kind) {
            (Some(signal), _) => signal,
            (None, Kind::System) => HALT,
            (None, Kind::Application) => libc::SIGTERM,
        };
        self.signal(recorded, signal)
    }

    /// Sends the init of a container a signal, by number; an ended one is fine.
    ///
    /// # Errors
    /// [`NodeError::Runtime`] for what is no signal.
    pub fn signal(&self, recorded: &Recorded, signal: i32) -> Result<(), NodeError> {
        let bundle = Bundle::at(&self.places(recorded).run());
        match self.runtime(recorded)?.kill(&bundle, signal) {
            Err(RuntimeError::NotRunning) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Removes what the runtime and the monitor keep; answers how the init ended, if there was one.
    pub(super) fn end_processes(
        &self,
        recorded: &Recorded,
        places: &Places,
    ) -> Result<Option<Exit>, NodeError> {
        let directory = places.run();
        if !directory.exists() {
            return Ok(None);
        }
        let bundle = Bundle::at(&directory);
        let deleted = self.runtime(recorded).and_then(|runtime| Ok(runtime.delete(&bundle, true)?));
        self.children.reap();
        let observed = bundle.observe().map_err(NodeError::system("look into", &directory))?;
        deleted?;
        Ok(match observed {
            Observed::Exited(exit) => {
                Some(Exit { status: exit.status, out_of_memory: false, at_ms: exit.at_ms })
            }
            Observed::Lost => Some(Exit { status: UNSEEN, out_of_memory: false, at_ms: now_ms() }),
            Observed::Absent | Observed::Running { .. } => None,
        })
    }

    /// Starts a command in a container that runs.
    ///
    /// # Errors
    /// [`NodeError::Runtime`]; a command that is not there is told by its status.
    pub fn exec(&self, recorded: &Recorded, request: &ExecRequest) -> Result<ExecChild, NodeError> {
        let bundle = Bundle::at(&self.places(recorded).run());
        Ok(self.runtime(recorded)?.exec(&bundle, request)?)
    }

    /// Whether the health check of a container succeeds now.
    pub(in crate::node) fn works(&self, recorded: &Recorded) -> bool {
        let Some(check) = &recorded.config.health else { return true };
        let request = ExecRequest { args: check.command.clone(), ..ExecRequest::default() };
        let limit = Duration::from_secs(check.timeout_s.max(1));
        let run = || -> Result<bool, NodeError> {
            let (status, _) = self.run(recorded, &request, &[], limit)?;
            Ok(status == Some(0))
        };
        run().unwrap_or_else(|error| {
            tracing::debug!(container = %recorded.config.name, error = %crate::host::sentence(&error), "not checked");
            false
        })
    }

    /// Runs a command in a container to its end, with `input`; answers its status, none when it
    /// took longer than `limit` and was killed, and what it said.
    ///
    /// # Errors
    /// As [`Driver::exec`].
    pub fn run(
        &self,
        recorded: &Recorded,
        request: &ExecRequest,
        input: &[u8],
        limit: Duration,
    ) -> Result<(Option<i32>, String), NodeError> {
        /// Most of what is kept of what a command says, in bytes.
        const SAID: u64 = 64 << 10;
        let mut child = self.exec(recorded, request)?.child;
        let here = self.places(recorded).run();
        if let Some(mut stdin) = child.stdin.take() {
            // A command that does not read its input has a reason.
            let _given = io::Write::write_all(&mut stdin, input);
        }
        let outputs: [Option<Box<dyn io::Read + Send>>; 2] = [
            child.stdout.take().map(|out| Box::new(out) as Box<dyn io::Read + Send>),
            child.stderr.take().map(|out| Box::new(out) as Box<dyn io::Read + Send>),
        ];
        let readers: Vec<_> = outputs
            .into_iter()
            .flatten()
            .map(|mut output| {
                std::thread::spawn(move || {
                    let mut said = Vec::new();
                    // What comes later is read, so that it does not wait for us, and left.
                    let read = io::Read::take(&mut output, SAID);
                    let _kept = io::Read::read_to_end(&mut { read }, &mut said);
                    let _left = io::copy(&mut output, &mut io::sink());
                    said
                })
            })
            .collect();
        let ended: OwnedFd = watch(child.id())?;
        let in_time = Hurry::default().wait(&ended, limit) == Waited::Ended;
        if !in_time {
            child.kill().map_err(NodeError::system("kill a command in", &here))?;
        }
        let status = child.wait().map_err(NodeError::system("wait for a command in", &here))?;
        let said: Vec<u8> =
            readers.into_iter().filter_map(|reader| reader.join().ok()).flatten().collect();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Ok((in_time.then(|| status.code().unwrap_or(UNSEEN)), said))
    }

    /// Where the init of a container is seen from outside: its own root.
    #[must_use]
    pub fn root(&self, recorded: &Recorded) -> PathBuf {
        self.places(recorded).root()
    }
}

/// How much of the groups' trees a container gets for its own.
fn delegation(config: &ContainerConfig) -> Delegation {
    if config.nesting { Delegation::Nesting } else { Delegation::Held }
}

fn attach(bundle: &Bundle, pace: Pace) -> Result<UnixStream, NodeError> {
    let socket = bundle.attach_socket();
    let connect = || {
        let stream = console::connect(&socket)?;
        io::Write::write_all(&mut &stream, &[pace.byte()])?;
        Ok(stream)
    };
    connect().map_err(NodeError::system("attach to", &socket))
}
