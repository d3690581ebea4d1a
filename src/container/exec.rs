//! Running a command in a container that is running: the process behind an `ExecChild`.
//!
//! For the embedded runtime it joins the init's namespaces itself, all at once and through the init's
//! pidfd, so that a container which ends meanwhile is never mistaken for another process. The command
//! has what the init was given: its capabilities, filter, cgroups and user.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use oci_spec::runtime::Spec;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, waitpid};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType};
use serde_json::{Value, json};

use super::bundle::{Bundle, Record};
use super::capabilities;
use super::config::RuntimeChoice;
use super::console;
use super::passwd::{self, User};
use super::runtime::{self, ExecRequest, RuntimeError};
use crate::sys::namespace::{Alone, Forked, fork, leave};

/// Mica or the runtime failed.
pub(super) const OURS: i32 = 125;
pub(super) const NOT_EXECUTABLE: i32 = 126;
pub(super) const NOT_FOUND: i32 = 127;

/// A status as a shell counts it.
pub(super) fn status_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(127))
}

/// What docker's status is for a runtime's complaint about a command.
pub(super) fn code_of(message: &str) -> i32 {
    if message.contains("not found in $PATH") || message.contains("no such file or directory") {
        NOT_FOUND
    } else if ["permission denied", "exec format error", "does not have correct permissions"]
        .iter()
        .any(|sign| message.contains(sign))
    {
        NOT_EXECUTABLE
    } else {
        OURS
    }
}

/// Waits for a child of this process, or one that fell to it, by its number as text.
pub(super) fn wait_for(pid: &str) -> io::Result<i32> {
    let pid = pid.parse().ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    loop {
        if let Some((_, status)) = waitpid(Some(pid), WaitOptions::empty())? {
            return Ok(code(status));
        }
    }
}

fn code(status: WaitStatus) -> i32 {
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or(signal).unwrap_or(OURS)
}

/// Runs the command that `name.json` in the bundle asks for; the answer is its status.
pub(super) fn run(bundle: &Bundle, name: &str) -> Result<i32, RuntimeError> {
    let here = |what| RuntimeError::system(what, bundle.directory());
    let file = format!("{name}.json");
    let request: Option<ExecRequest> = bundle.read(&file).map_err(here("read"))?;
    bundle.remove(&file).map_err(here("clean"))?;
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let request = request.ok_or_else(missing).map_err(here("read"))?;
    let record = bundle.record().map_err(here("read"))?;
    // Who runs for a container never hands the host's files to it through /proc.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| here("shield")(e.into()))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| here("watch")(e.into()))?;
    let spec: Value = bundle.read("config.json").map_err(here("read"))?.unwrap_or_default();
    let process = process(&record, &spec, &request)?;
    super::launch::join_cgroups(&record.cgroups).map_err(here("join the cgroups of"))?;
    match &record.runtime {
        RuntimeChoice::External(program) => {
            runtime::exec_external(bundle, &record, program, name, &process)
        }
        RuntimeChoice::Embedded => embedded(bundle, &record, name, &process),
    }
}

/// The init's description with what this command has instead.
fn process(record: &Record, spec: &Value, request: &ExecRequest) -> Result<Value, RuntimeError> {
    let mut process = spec.get("process").cloned().unwrap_or_default();
    let user = match request.user.as_deref() {
        Some(user) => passwd::resolve(&record.root, user)?,
        None => User::root(),
    };
    let home = format!("HOME={}", user.home.display());
    let mut env: Vec<String> = Vec::new();
    let base = process.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
    let base = base.iter().filter_map(Value::as_str).map(str::to_owned);
    let terminal = request.terminal.map(|_| "TERM=xterm".to_owned());
    for variable in base.chain([home]).chain(terminal).chain(request.env.iter().cloned()) {
        let name = variable.split('=').next().unwrap_or_default().to_owned() + "=";
        env.retain(|other| !other.starts_with(&name));
        env.push(variable);
    }
    if user.uid == 0 {
        let all = process["capabilities"]["bounding"].clone();
        process["capabilities"]["effective"] = all.clone();
        process["capabilities"]["permitted"] = all;
    } else {
        process["capabilities"]["effective"] = json!([]);
        process["capabilities"]["permitted"] = json!([]);
    }
    process["user"] = json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups});
    process["args"] = json!(request.args);
    process["env"] = json!(env);
    process["terminal"] = json!(request.terminal.is_some());
    if let Some(directory) = &request.workdir {
        process["cwd"] = json!(directory);
    }
    Ok(process)
}

/// Joins the container and runs the command there.
fn embedded(
    bundle: &Bundle,
    record: &Record,
    name: &str,
    process: &Value,
) -> Result<i32, RuntimeError> {
    let here = |what| RuntimeError::system(what, bundle.directory());
    let spec = Spec::load(bundle.file("config.json")).map_err(|error| RuntimeError::Failed {
        what: "run a command in",
        message: super::sentence(&error),
    })?;
    let door = match process["terminal"].as_bool() {
        Some(true) => {
            let path = bundle.file(&format!("{name}.sock"));
            Some(console::connect(&path).map_err(here("connect to"))?)
        }
        Some(false) | None => None,
    };
    let init = runtime::init(bundle)?;
    let mut kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK;
    kinds.set(ThreadNameSpaceType::USER, record.range.is_some());
    let alone = Alone::claim().map_err(here("copy a process for"))?;
    rustix::thread::move_into_thread_name_spaces(init.as_fd(), kinds)
        .map_err(|e| here("enter")(e.into()))?;
    match fork(&alone).map_err(here("begin a process in"))? {
        Forked::Parent(child) => {
            drop(door);
            wait_for(&child.as_raw_pid().to_string()).map_err(here("wait for a command in"))
        }
        Forked::Child => {
            let failed = become_command(process, &spec, door.as_ref());
            let (what, source) = failed;
            let unexecutable = [Some(libc::EACCES), Some(libc::ENOEXEC), Some(libc::EPERM)];
            let code = match source.raw_os_error() {
                _ if what != "run" => OURS,
                Some(libc::ENOENT | libc::ENOTDIR) => NOT_FOUND,
                number if unexecutable.contains(&number) => NOT_EXECUTABLE,
                Some(_) => OURS,
                // No word to run at all.
                None => NOT_FOUND,
            };
            let word = process["args"][0].as_str().unwrap_or_default();
            super::launch::complain(&format!("cannot {what} {word} in the container: {source}"));
            leave(code)
        }
    }
}

type Failure = (&'static str, io::Error);

/// Becomes the command, or says what it failed at. The only thread of a fresh process.
fn become_command(
    process: &Value,
    spec: &Spec,
    door: Option<&std::os::unix::net::UnixStream>,
) -> Failure {
    match prepare(process, spec, door) {
        Err(failure) => failure,
        Ok(mut command) => ("run", command.exec()),
    }
}

fn prepare(
    process: &Value,
    spec: &Spec,
    door: Option<&std::os::unix::net::UnixStream>,
) -> Result<Command, Failure> {
    let doing = |what: &'static str| move |errno: rustix::io::Errno| (what, io::Error::from(errno));
    rustix::process::setsid().map_err(doing("make a session for"))?;
    if let Some(door) = door {
        terminal(door).map_err(|error| ("give a terminal to", error))?;
    }
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let number = |value: &Value| {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| *number != u32::MAX);
        number.ok_or(("set the user of", io::Error::from(io::ErrorKind::InvalidInput)))
    };
    let user = &process["user"];
    let (uid, gid) = (number(&user["uid"])?, number(&user["gid"])?);
    let groups = user["additionalGids"].as_array().map(Vec::as_slice).unwrap_or_default();
    let groups = groups.iter().map(|group| number(group).map(Gid::from_raw));
    let groups = groups.collect::<Result<Vec<_>, _>>()?;
    let cwd = process["cwd"].as_str().unwrap_or("/");
    let no_new_privileges = process["noNewPrivileges"].as_bool() == Some(true);
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = || match seccomp {
        Some(seccomp) => libcontainer::seccomp::initialize_seccomp(seccomp)
            .map(drop)
            .map_err(|error| ("filter the system calls of", io::Error::other(error))),
        None => Ok(()),
    };
    let set = |list: &Value| -> CapabilitySet {
        let names = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let bits = names.iter().filter_map(Value::as_str).filter_map(capabilities::bit);
        CapabilitySet::from_bits_retain(bits.fold(0, |all, bit| all | bit))
    };
    let wanted = &process["capabilities"];
    let bounding = set(&wanted["bounding"]);
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if bounding.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // The kernel has fewer.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(doing("bound the capabilities of")(error)),
        }
    }
    if !no_new_privileges {
        // Before the right to do so is dropped.
        filter()?;
    }
    rustix::thread::set_keep_capabilities(true).map_err(doing("keep capabilities for"))?;
    rustix::thread::set_thread_groups(&groups).map_err(doing("set the groups of"))?;
    let gid = Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(doing("set the group of"))?;
    let uid_ = Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(uid_, uid_, uid_).map_err(doing("set the user of"))?;
    rustix::thread::set_keep_capabilities(false).map_err(doing("drop capabilities of"))?;
    rustix::process::chdir(cwd).map_err(doing("enter the directory of"))?;
    let (effective, permitted) = (set(&wanted["effective"]), set(&wanted["permitted"]));
    rustix::thread::clear_ambient_capability_set().map_err(doing("drop capabilities of"))?;
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(doing("drop capabilities of"))?;
    // Whoever kills the process outside kills the command. Any change of user forgets this.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(doing("watch over"))?;
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(doing("bind"))?;
        filter()?;
    }
    let texts = |list: &Value| -> Vec<OsString> {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(OsString::from).collect()
    };
    let mut args = texts(&process["args"]).into_iter();
    let nothing = || ("run", io::Error::from(io::ErrorKind::NotFound));
    let mut command = Command::new(args.next().ok_or_else(nothing)?);
    command.args(args).env_clear();
    for variable in texts(&process["env"]) {
        if let Some((name, value)) = variable.to_str().and_then(|text| text.split_once('=')) {
            command.env(name, value);
        }
    }
    Ok(command)
}

/// Makes a terminal in the container's own devpts, puts it in the place of the standard streams, and
/// hands the other side out.
fn terminal(door: &std::os::unix::net::UnixStream) -> io::Result<()> {
    // devpts(5): the device that makes terminals.
    const PTMX: (u32, u32) = (5, 2);
    const DEVPTS: rustix::fs::FsWord = 0x1cd1;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
    // The container could have put anything there.
    let number = rustix::fs::fstat(&master)?.st_rdev;
    let kind = rustix::fs::fstatfs(&master)?.f_type;
    if (rustix::fs::major(number), rustix::fs::minor(number)) != PTMX || kind != DEVPTS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    crate::sys::terminal::unlock(master.as_fd())?;
    let slave: OwnedFd = crate::sys::terminal::peer(master.as_fd())?;
    rustix::process::ioctl_tiocsctty(&slave)?;
    console::send(door, master.as_fd())?;
    rustix::stdio::dup2_stdin(&slave)?;
    rustix::stdio::dup2_stdout(&slave)?;
    Ok(rustix::stdio::dup2_stderr(&slave)?)
}
