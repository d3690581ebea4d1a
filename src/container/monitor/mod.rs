//! The process that watches one container: `mica container-monitor BUNDLE`.
//!
//! It owns what has to outlive the daemon: the container's terminal or pipes, its log, and the
//! status of its init, whose parent it is. One thread, no runtime, a few hundred KiB. When it is
//! killed the container goes on, but its output and its status are lost.

mod serve;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::bundle::{Bundle, Created, Record};
use super::console::Door;
use super::log::{Log, Stream};
use super::program::OwnProgram;
use super::runtime::RuntimeError;
use crate::sys::namespace::{Process, start_ticks};
use crate::sys::process::inherit_only_standard_streams;

/// What a monitor answers, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Created(Created),
    Failed(String),
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    RuntimeError::system(what, path)
}

/// Starts the monitor of a container, which makes the init; returns once that waits to be started.
pub(super) fn launch(program: &Path, bundle: &Bundle) -> Result<Created, RuntimeError> {
    let directory = bundle.directory();
    match inherit_only_standard_streams() {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {}
        done => done.map_err(system("shield", program))?,
    }
    let mut child = Command::new(program)
        .arg("container-monitor")
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .current_dir("/")
        .spawn()
        .map_err(system("start", program))?;
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut answer).map_err(system("hear", program))?;
    }
    match serde_json::from_str(&answer) {
        Ok(Answer::Created(created)) => Ok(created),
        Ok(Answer::Failed(message)) => {
            child.wait().map_err(system("wait for", program))?;
            Err(RuntimeError::Failed { what: "create", message })
        }
        Err(_) => {
            let status = child.wait().map_err(system("wait for", program))?;
            let message = format!("its monitor ended before it was there ({status})");
            Err(RuntimeError::Failed { what: "create", message })
        }
    }
}

/// The monitor itself. Returns when the container has ended and everybody knows.
///
/// # Errors
/// What kept it from watching to the end; a failure to create is answered, not returned.
pub fn run(program: &Path, directory: &Path) -> Result<(), RuntimeError> {
    let bundle = Bundle::at(directory);
    match create(program, &bundle) {
        Ok((created, watched)) => {
            answer(&Answer::Created(created));
            crate::sys::memory::give_back();
            let_go().map_err(system("let go of", Path::new("the caller")))?;
            serve::serve(&bundle, watched).map_err(system("watch", directory))
        }
        Err(error) => {
            // Who hears it says again what could not be done.
            let message =
                error.word().map_or_else(|| crate::container::sentence(&error), str::to_owned);
            answer(&Answer::Failed(message));
            Ok(())
        }
    }
}

/// A container that exists, and what comes out of it.
struct Watched {
    init: Process,
    door: Door,
    log: Log,
    /// Where output comes from.
    outputs: Vec<(Stream, OwnedFd)>,
    /// Where input goes; none when nobody reads it.
    input: Option<OwnedFd>,
    terminal: bool,
    /// The container's side of the terminal: while it is open, no moment in which nobody inside has
    /// it open looks like its end.
    _slave: Option<OwnedFd>,
}

fn create(program: &Path, bundle: &Bundle) -> Result<(Created, Watched), RuntimeError> {
    let directory = bundle.directory();
    let here = |what| system(what, directory);
    let record: Record = bundle.record().map_err(here("read"))?;
    // Fails only for the leader of a process group, which a started process is not.
    let _session = rustix::process::setsid();
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).map_err(|e| here("watch")(e.into()))?;
    for stale in ["init.json", "exit.json", "failure", "pid"] {
        bundle.remove(stale).map_err(here("clean"))?;
    }
    let log = Log::open(&record.log, record.log_limits).map_err(system("write", &record.log))?;
    let door = Door::open(&bundle.attach_socket()).map_err(here("listen in"))?;
    let own_program = OwnProgram::open(program).map_err(system("open", program))?;
    let (streams, terminal, mut launch) =
        streams(bundle, &record, &own_program).map_err(here("prepare"))?;
    let mut child = launch.spawn().map_err(system("start", program))?;
    // The copies of the container's ends of the pipes go with it.
    drop(launch);
    let status = child.wait().map_err(system("wait for", program))?;
    if !status.success() {
        let message = fs::read_to_string(bundle.file("failure")).unwrap_or_default();
        let message = match message.trim() {
            "" => format!("the runtime ended without a word ({status})"),
            message => message.to_owned(),
        };
        return Err(RuntimeError::Failed { what: "create", message });
    }
    let pid = fs::read_to_string(bundle.file("pid")).map_err(here("read the pid in"))?;
    let pid: i32 = pid.trim().parse().map_err(|_| {
        let message = format!("the runtime wrote no pid but {pid:?}");
        RuntimeError::Failed { what: "create", message }
    })?;
    let raw = u32::try_from(pid).unwrap_or_default();
    let created = Created {
        pid: raw,
        start_ticks: start_ticks(pid).map_err(here("find the init of"))?,
        monitor_pid: std::process::id(),
        monitor_start_ticks: start_ticks(own.as_raw_pid()).map_err(here("find the monitor of"))?,
    };
    let init = Process::open(raw, created.start_ticks).map_err(here("find the init of"))?;
    let (outputs, input, slave) = match terminal {
        None => (streams.outputs, streams.input, None),
        Some(door) => {
            let master = door.terminal(init.as_fd()).map_err(here("take the terminal of"))?;
            let missing = || RuntimeError::Failed {
                what: "create",
                message: "the runtime handed over no terminal".to_owned(),
            };
            let master = master.ok_or_else(missing)?;
            let copy = master.try_clone().map_err(here("take the terminal of"))?;
            let slave =
                crate::sys::terminal::peer(master.as_fd()).map_err(here("open the terminal of"))?;
            (vec![(Stream::Stdout, copy)], Some(master), Some(slave))
        }
    };
    bundle.write("init.json", &created).map_err(here("write"))?;
    let terminal = record.terminal;
    Ok((created, Watched { init, door, log, outputs, input, terminal, _slave: slave }))
}

#[derive(Default)]
struct Streams {
    outputs: Vec<(Stream, OwnedFd)>,
    input: Option<OwnedFd>,
}

/// Our ends of the container's streams, and the command that gives it the others.
fn streams(
    bundle: &Bundle,
    record: &Record,
    program: &OwnProgram,
) -> io::Result<(Streams, Option<Door>, Command)> {
    let mut launch = program.command();
    launch.arg("container-launch").arg("create").arg(bundle.directory()).stdin(Stdio::null());
    if record.terminal {
        // What is written before the terminal is there has nowhere to go.
        launch.stdout(Stdio::null()).stderr(Stdio::null());
        let door = Door::open(&bundle.file("terminal.sock"))?;
        return Ok((Streams::default(), Some(door), launch));
    }
    let mut streams = Streams::default();
    if record.interactive {
        let (reader, writer) = io::pipe()?;
        launch.stdin(reader);
        streams.input = Some(writer.into());
    }
    let (reader, writer) = io::pipe()?;
    launch.stdout(writer);
    streams.outputs.push((Stream::Stdout, reader.into()));
    let (reader, writer) = io::pipe()?;
    launch.stderr(writer);
    streams.outputs.push((Stream::Stderr, reader.into()));
    Ok((streams, None, launch))
}

fn answer(answer: &Answer) {
    let line = serde_json::to_string(answer).unwrap_or_default();
    // A caller that went away finds the container by its bundle.
    let _told = writeln!(io::stdout().lock(), "{line}");
}

/// Puts /dev/null in the place of the caller's streams.
fn let_go() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}
