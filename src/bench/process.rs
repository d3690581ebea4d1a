//! The two processes of a run: one that the user started, and one that measures.
//!
//! The second one is this very program, called `mica bench-process`, in a mount and a process
//! namespace of its own. However it ends, its mounts and the processes it started end with
//! it; the first one then removes the directory and the cgroups. What a run leaves behind
//! whose both processes were killed outright, the next run sweeps.

use std::fs::DirBuilder;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde::{Deserialize, Serialize};

use super::error::{BenchError, Result};
use super::machine::{Everywhere, Machine};
use super::place::{remove_tree, unmount_beneath};
use super::results::{Results, SCHEMA, TemplateFacts};
use super::run::tool;
use super::session::Session;
use super::settings::{Part, Settings};
use super::watch::{Clock, Event, Watch};
use super::{growth, memory, plan, savings, speed, template};
use crate::host::{footprint, sentence};

/// How the directory of a run begins; the process number follows.
const SCRATCH: &str = "mica-bench-";

/// How often the flag of an interruption is looked at.
const GLANCE: Duration = Duration::from_millis(100);

/// What the measuring process is told.
#[derive(Debug, Serialize, Deserialize)]
struct Brief {
    settings: Settings,
    scratch: PathBuf,
}

/// What it tells, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Told {
    Event(Event),
    Done(Box<Results>),
    Failed(String),
}

/// Measures what `settings` say; `watch` sees it go on.
///
/// Raising `interrupted` ends it. Nothing stays behind: no mount, process, cgroup or file.
///
/// # Errors
/// [`BenchError`]; before anything is made for what would not do.
pub fn run(
    settings: &Settings,
    interrupted: &AtomicBool,
    watch: &mut dyn Watch,
) -> Result<Results> {
    if !geteuid().is_root() {
        return Err(BenchError::NotRoot);
    }
    let dir = &settings.dir;
    let in_memory = footprint::is_memory_file_system(dir);
    if in_memory.map_err(BenchError::at("use", dir))? {
        return Err(BenchError::InMemory(dir.clone()));
    }
    sweep(dir);
    plan::check(settings)?;
    let scratch = Scratch::new(dir)?;
    let measured = measure(settings, &scratch.path, interrupted, watch);
    scratch.remove()?;
    if interrupted.load(Ordering::Relaxed) {
        return Err(BenchError::Interrupted);
    }
    measured
}

/// The directory of a run; what is in it goes with the value.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(dir: &Path) -> Result<Self> {
        let path = dir.join(format!("{SCRATCH}{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).map_err(BenchError::at("make", &path))?;
        Ok(Self { path })
    }

    fn remove(self) -> Result<()> {
        let removed = remove(&self.path);
        std::mem::forget(self);
        removed
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(error = sentence(&error), "something of the benchmark stays");
        }
    }
}

fn remove(scratch: &Path) -> Result<()> {
    memory::sweep(scratch);
    unmount_beneath(scratch);
    remove_tree(scratch)
}

/// Removes what runs left that were killed outright.
fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(SCRATCH));
        let gone = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if owner.is_some_and(gone)
            && let Err(error) = remove(&entry.path())
        {
            tracing::warn!(error = sentence(&error), "what an earlier run left stays");
        }
    }
}

/// Starts the measuring process and hears it out.
fn measure(
    settings: &Settings,
    scratch: &Path,
    interrupted: &AtomicBool,
    watch: &mut dyn Watch,
) -> Result<Results> {
    // The measuring process is the first one of its namespace: with it all others end. What is
    // unmounted outside meanwhile goes inside too ("slave"), so that nobody's disk stays busy.
    let mut child = tool("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "slave"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(&settings.program)
        .arg("bench-process")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // An interruption from the terminal is for the first process alone.
        .process_group(0)
        .spawn()
        .map_err(BenchError::at("start", "unshare"))?;
    let told = hear(&mut child, &Brief { settings: settings.clone(), scratch: scratch.to_owned() });
    let mut outcome = None;
    if let Ok(told) = &told {
        while outcome.is_none() && !interrupted.load(Ordering::Relaxed) {
            match told.recv_timeout(GLANCE) {
                Ok(Told::Event(event)) => watch.event(&event),
                Ok(Told::Done(results)) => outcome = Some(Ok(*results)),
                Ok(Told::Failed(sentence)) => outcome = Some(Err(BenchError::Failed(sentence))),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
    }
    if outcome.is_none() {
        end(&child);
    }
    let status = child.wait()?;
    told?;
    outcome.unwrap_or_else(|| Err(BenchError::Died(status.to_string())))
}

/// Hands over the brief; what the process says comes through the channel.
fn hear(child: &mut Child, brief: &Brief) -> Result<mpsc::Receiver<Told>> {
    if let Some(mut stdin) = child.stdin.take() {
        let text = serde_json::to_vec(brief).map_err(io::Error::from)?;
        // A process that died already is told about by its status.
        let _written = stdin.write_all(&text);
    }
    let (tell, told) = mpsc::channel();
    let stdout = child.stdout.take();
    std::thread::spawn(move || {
        let Some(stdout) = stdout else { return };
        for line in BufReader::new(stdout).lines().map_while(io::Result::ok) {
            // Lines of programs that inherited the stream by mistake are nothing to us.
            if let Ok(line) = serde_json::from_str(&line)
                && tell.send(line).is_err()
            {
                return;
            }
        }
    });
    Ok(told)
}

/// Ends the measuring process and, being the first of its namespace, everything it started.
fn end(child: &Child) {
    let pid = child.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let first = children.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    // unshare(1) ends once that process is gone with all of its namespace. Killed itself, it
    // takes the namespace along, but nobody can wait for that.
    let target = first.or(i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(target) = target {
        // It fails only when there is nothing left to end.
        let _killed = kill_process(target, Signal::KILL);
    }
}

/// The other end of [`run`]: measures what standard input says, and tells it on standard
/// output.
///
/// # Errors
/// When nobody listens.
pub fn measuring_process() -> Result<()> {
    let brief: Brief = serde_json::from_reader(io::stdin().lock()).map_err(io::Error::from)?;
    let tell = |told: &Told| -> io::Result<()> {
        let mut line = serde_json::to_vec(told)?;
        line.push(b'\n');
        io::stdout().lock().write_all(&line)
    };
    let mut emit = |event: &Event| {
        // Nobody listens any more only when this process is about to be ended.
        let _told = tell(&Told::Event(event.clone()));
    };
    let told = match measure_all(&brief, &mut emit) {
        Ok(results) => Told::Done(Box::new(results)),
        Err(error) => Told::Failed(sentence(&error)),
    };
    Ok(tell(&told)?)
}

fn measure_all(brief: &Brief, emit: &mut dyn FnMut(&Event)) -> Result<Results> {
    let begun = Instant::now();
    let Brief { settings, scratch } = brief;
    let sizes = settings.scale.sizes();
    let started = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let results = Results {
        schema: SCHEMA,
        mica: env!("CARGO_PKG_VERSION").to_owned(),
        started,
        seconds: 0.0,
        machine: Machine::describe(scratch),
        settings: settings.without_paths(),
        sizes,
        templates: Vec::new(),
        savings: Vec::new(),
        memory: Vec::new(),
        speed: Vec::new(),
        latencies: Vec::new(),
        growth: Vec::new(),
        skipped: Vec::new(),
        steps: Vec::new(),
    };
    let mut session = Session {
        settings,
        sizes,
        scratch: scratch.clone(),
        everywhere: Everywhere::look()?,
        results,
        copies: None,
        clock: Clock::new(plan::steps(settings)),
        emit,
        section: String::new(),
        places: 0,
    };
    if session.results.machine.fuse_overlayfs.is_empty() {
        let why = "it is not installed here; apt-get install fuse-overlayfs";
        session.skip("fuse-overlayfs", why.to_owned());
    }
    session.step("templates");
    let place = session.place("templates")?;
    let mut templates = Vec::new();
    let only_sections = settings.only.as_ref().is_some_and(|only| !"workloads".contains(only));
    if settings.parts.iter().any(|part| *part != Part::Growth) && !only_sections {
        templates = template::prepare(settings, &place)?;
    }
    let facts = |one: &template::Prepared| TemplateFacts {
        name: one.name.clone(),
        bytes: one.taken.bytes,
        inodes: one.taken.inodes,
    };
    session.results.templates = templates.iter().map(facts).collect();
    for part in plan::ORDER.into_iter().filter(|part| settings.parts.contains(part)) {
        match part {
            Part::Memory => memory::measure(&mut session, &templates)?,
            Part::Savings => savings::measure(&mut session, &templates)?,
            Part::Speed => {
                // Their room is needed now.
                session.copies = None;
                speed::measure(&mut session, &templates)?;
            }
            Part::Growth => {
                session.copies = None;
                growth::measure(&mut session)?;
            }
        }
    }
    let mut results = session.results;
    results.steps = session.clock.finish();
    results.seconds = begun.elapsed().as_secs_f64();
    Ok(results)
}
