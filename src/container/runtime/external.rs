//! A program that speaks the OCI runtime command line: runc, crun, youki, …

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Bundle, Runtime, RuntimeError, clear, end, init};
use crate::container::bundle::Record;

/// An external runtime.
#[derive(Debug)]
pub struct External {
    runtime: PathBuf,
    program: PathBuf,
}

impl External {
    /// Finds `runtime`, a path or a name in `PATH`.
    ///
    /// # Errors
    /// [`RuntimeError::NoProgram`].
    pub fn find(runtime: &Path, program: &Path) -> Result<Self, RuntimeError> {
        let runtime = find(runtime).ok_or_else(|| RuntimeError::NoProgram(runtime.to_owned()))?;
        Ok(Self { runtime, program: program.to_owned() })
    }

    fn id(bundle: &Bundle) -> Result<String, RuntimeError> {
        let record = bundle.record().map_err(RuntimeError::system("read", bundle.directory()))?;
        Ok(record.id.to_string())
    }

    fn run(&self, what: &'static str, bundle: &Bundle, args: &[&str]) -> Result<(), RuntimeError> {
        let log = bundle.file("runtime.log");
        let output = command(&self.runtime, bundle, &log)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .map_err(RuntimeError::system("run", &self.runtime))?;
        if output.status.success() {
            return Ok(());
        }
        let message = last_word(&log)
            .unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_owned());
        Err(RuntimeError::Failed { what, message })
    }
}

fn find(runtime: &Path) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if runtime.components().count() > 1 {
        return Some(runtime.to_owned()).filter(executable);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).map(|directory| directory.join(runtime)).find(executable)
}

/// The runtime with what every call of it has.
fn command(runtime: &Path, bundle: &Bundle, log: &Path) -> Command {
    let mut command = Command::new(runtime);
    command.arg("--root").arg(bundle.runtime_root()).arg("--log").arg(log);
    command.args(["--log-format", "json"]);
    command
}

impl Runtime for External {
    fn program(&self) -> &Path {
        &self.program
    }

    fn start(&self, bundle: &Bundle) -> Result<(), RuntimeError> {
        drop(init(bundle)?);
        self.run("start", bundle, &["start", &Self::id(bundle)?])
    }

    fn delete(&self, bundle: &Bundle, force: bool) -> Result<(), RuntimeError> {
        end(bundle, force)?;
        let id = match bundle.record() {
            Ok(record) => record.id.to_string(),
            // A bundle that was never finished, or that a power cut left without content.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return clear(bundle),
            Err(error) => return Err(RuntimeError::system("read", bundle.directory())(error)),
        };
        if bundle.runtime_root().join(&id).exists() {
            self.run("delete", bundle, &["delete", "--force", &id])?;
        }
        clear(bundle)
    }
}

/// Makes the init, in a process of its own. Our streams become the init's.
pub(in crate::container) fn create(
    bundle: &Bundle,
    record: &Record,
    runtime: &Path,
) -> Result<(), RuntimeError> {
    let runtime = find(runtime).ok_or_else(|| RuntimeError::NoProgram(runtime.to_owned()))?;
    let log = bundle.file("runtime.log");
    let mut command = command(&runtime, bundle, &log);
    command.arg("create").arg("--bundle").arg(bundle.directory());
    command.arg("--pid-file").arg(bundle.file("pid"));
    // The path of a socket has at most 107 bytes.
    let directory = fs::File::open(bundle.directory())
        .map_err(RuntimeError::system("open", bundle.directory()))?;
    if record.terminal {
        command.arg("--console-socket").arg(short(&directory, "terminal.sock"));
    }
    let status =
        command.arg(record.id.as_str()).status().map_err(RuntimeError::system("run", &runtime))?;
    if status.success() {
        return Ok(());
    }
    let message = last_word(&log).unwrap_or_else(|| format!("it ended with {status}"));
    Err(RuntimeError::Failed { what: "create", message })
}

/// Runs a command in the container as `name.json` of the bundle says; its standard streams are ours.
/// The answer is the command's status. With a terminal it goes to `name.sock`.
pub(in crate::container) fn exec(
    bundle: &Bundle,
    record: &Record,
    runtime: &Path,
    name: &str,
    process: &serde_json::Value,
) -> Result<i32, RuntimeError> {
    let here = |what| RuntimeError::system(what, bundle.directory());
    let runtime = find(runtime).ok_or_else(|| RuntimeError::NoProgram(runtime.to_owned()))?;
    let file = |end: &str| format!("{name}.{end}");
    crate::container::launch::pretend_root()?;
    bundle.write(&file("process"), process).map_err(here("write"))?;
    let log = bundle.file(&file("log"));
    let mut command = command(&runtime, bundle, &log);
    command.arg("exec").arg("--process").arg(bundle.file(&file("process")));
    let directory = fs::File::open(bundle.directory()).map_err(here("open"))?;
    let terminal = process.get("terminal").and_then(serde_json::Value::as_bool) == Some(true);
    if terminal {
        command.arg("--detach").arg("--pid-file").arg(bundle.file(&file("pid")));
        command.arg("--console-socket").arg(short(&directory, &file("sock")));
        command.stderr(Stdio::null());
    } else {
        // It tells its own failures there.
        command.stderr(Stdio::inherit());
    }
    let ran = (|| {
        let status = command.arg(record.id.as_str()).status().map_err(here("run a command in"))?;
        let word = last_word(&log);
        if let (false, Some(message)) = (status.success(), word) {
            if terminal {
                return Err(RuntimeError::Failed { what: "run a command in", message });
            }
            return Ok(crate::container::exec::code_of(&message));
        }
        if !terminal {
            return Ok(crate::container::exec::status_code(status));
        }
        let pid = fs::read_to_string(bundle.file(&file("pid"))).map_err(here("read a pid of"))?;
        crate::container::exec::wait_for(pid.trim()).map_err(here("wait for a command in"))
    })();
    for end in ["process", "log", "pid"] {
        bundle.remove(&file(end)).map_err(here("clean"))?;
    }
    ran
}

fn short(directory: &fs::File, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    let own = std::process::id();
    Path::new(&format!("/proc/{own}/fd/{}", directory.as_raw_fd())).join(OsStr::new(name))
}

/// The last error in a runtime's log.
pub(in crate::container) fn last_word(log: &Path) -> Option<String> {
    let text = match fs::read_to_string(log) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(error.to_string()),
    };
    let lines = text.lines().rev().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let level = line.get("level")?.as_str()?;
        let message = line.get("msg")?.as_str()?;
        matches!(level, "error" | "fatal" | "panic").then(|| message.to_owned())
    });
    lines.into_iter().next()
}
