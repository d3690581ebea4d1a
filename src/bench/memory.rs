//! Memory: N containers that run something, each in a chroot and a cgroup of its own.
//!
//! One contender after the other, each from an empty page cache, so that whoever touches a
//! page first is charged for it. What serves the roots is in a cgroup too, and counted.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cgroup::Cgroup;
use super::contender::{Kind, Mounted};
use super::error::{BenchError, Result};
use super::fixture;
use super::machine::{drop_caches, meminfo, process_memory};
use super::results::{FULL_COPIES, MemoryCase, MemoryOf};
use super::run::{has_inside, inside, tool};
use super::session::Session;
use super::template::Prepared;
use crate::host::footprint::{drop_cached, resident_bytes};
use crate::inspect::Library;

/// How long a workload may take until it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that a container of a workload may take at most, for the plan.
const EACH: u64 = 48 << 20;

/// What runs in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workload {
    /// A shell that looks around once and then loops.
    Shell,
    /// `python3 -m http.server`, asked once.
    Python,
    /// nginx with one worker, asked once.
    Nginx,
}

impl Workload {
    const ALL: [Self; 3] = [Self::Shell, Self::Python, Self::Nginx];

    fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Python => "python",
            Self::Nginx => "nginx",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Shell => "sh",
            Self::Python => "python3",
            Self::Nginx => "nginx",
        }
    }

    /// What is run in the root, and whether it listens on `port`.
    fn start(self, root: &Path, port: u16) -> Result<(Command, bool)> {
        let port_text = port.to_string();
        Ok(match self {
            Self::Shell => {
                let script = "ls -l /usr/bin /etc >/dev/null; echo ready; \
                              while :; do read -t 60 x || :; done";
                (inside(root, &["sh", "-c", script]), false)
            }
            Self::Python => {
                let words = ["python3", "-m", "http.server", "--bind", "127.0.0.1", &port_text];
                (inside(root, &words), true)
            }
            Self::Nginx => {
                let config = format!(
                    "daemon off; worker_processes 1; pid /tmp/bench-nginx.pid; error_log stderr;\n\
                     events {{}}\n\
                     http {{ access_log off; server {{ listen 127.0.0.1:{port}; root /etc; }} }}\n"
                );
                fixture::file(root, "tmp/bench-nginx.conf", config.as_bytes())?;
                (inside(root, &["nginx", "-c", "/tmp/bench-nginx.conf"]), true)
            }
        })
    }
}

/// Names of all workloads, for a sentence.
fn known() -> String {
    Workload::ALL.map(Workload::name).join(", ")
}

/// The workloads that were asked for.
fn wanted(names: &[String]) -> Result<Vec<Workload>> {
    if names.is_empty() {
        return Ok(Workload::ALL.to_vec());
    }
    let find = |name: &String| {
        let found = Workload::ALL.into_iter().find(|one| one.name() == name.as_str());
        found.ok_or_else(|| BenchError::Workload { wanted: name.clone(), known: known() })
    };
    names.iter().map(find).collect()
}

/// Refuses names of workloads that nobody knows.
///
/// # Errors
/// [`BenchError::Workload`].
pub(super) fn check(names: &[String]) -> Result<()> {
    wanted(names).map(drop)
}

/// The steps of this part: names and planned seconds.
pub(super) fn steps(containers: u32) -> Vec<(String, f64)> {
    let step = |one: &Workload| (step(*one), 10.0 + f64::from(containers) * 1.2);
    Workload::ALL.iter().map(step).collect()
}

/// Bytes of memory that this part needs.
pub(super) fn need(containers: u32) -> u64 {
    u64::from(containers) * EACH
}

fn step(workload: Workload) -> String {
    format!("memory: {}", workload.name())
}

/// Measures this part.
pub(super) fn measure(session: &mut Session<'_>, templates: &[Prepared]) -> Result<()> {
    let name = session.scratch.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let cgroup = match Cgroup::of_run(&name) {
        Ok(cgroup) => cgroup,
        Err(why) => {
            session.skip("memory", why);
            return Ok(());
        }
    };
    for workload in wanted(&session.settings.workloads)? {
        let found = templates.iter().find(|one| has_inside(&one.tree, workload.program()));
        let Some(template) = found else {
            session.skip(
                &step(workload),
                format!("no template has {}; import one that has", workload.program()),
            );
            continue;
        };
        session.part(&step(workload), "memory", |session| {
            let contenders = of_workload(session, workload, template, &cgroup)?;
            session.results.memory.push(MemoryCase {
                workload: workload.name().to_owned(),
                template: template.name.clone(),
                contenders,
            });
            Ok(())
        })?;
    }
    Ok(())
}

/// Roots of one contender, and whose pages are whose.
struct Roots {
    who: &'static str,
    roots: Vec<PathBuf>,
    mounted: Vec<Mounted>,
    shared: Vec<PathBuf>,
    privates: Option<PathBuf>,
    store: Option<PathBuf>,
}

fn of_workload(
    session: &mut Session<'_>,
    workload: Workload,
    template: &Prepared,
    cgroup: &Cgroup,
) -> Result<Vec<MemoryOf>> {
    let place = session.place("memory")?;
    let lower = session.import(&place, &template.tree)?;
    let count = session.settings.containers;
    let mut measured = Vec::new();
    // Copies of the template that has this workload.
    let first = session.results.templates.first().is_some_and(|one| one.name == template.name);
    if first {
        super::savings::copies(session, template)?;
    }
    let copies: Vec<PathBuf> = match &session.copies {
        Some(copies) if first => copies.all().to_vec(),
        _other => {
            let copies = super::copies::Copies::make(
                session.place("more-copies")?,
                template,
                count.min(5),
                1 << 30,
                &|_| Ok(None),
            )?;
            let all = copies.all().to_vec();
            measured.push(copies_of(session, workload, all, cgroup)?);
            drop(copies);
            Vec::new()
        }
    };
    if !copies.is_empty() {
        measured.push(copies_of(session, workload, copies, cgroup)?);
    }
    for kind in Kind::here() {
        let privates = place.directory("privates")?;
        let build = || -> Result<Roots> {
            let mut mounted = Vec::new();
            for number in 0..count {
                let private = privates.join(number.to_string());
                fixture::directories(&private)?;
                mounted.push(lower.mount(kind, &private, &place.directory("m")?)?);
            }
            Ok(Roots {
                who: kind.name(),
                roots: mounted.iter().map(|one| one.path().to_owned()).collect(),
                mounted,
                shared: if kind == Kind::Mica { vec![] } else { vec![lower.tree.clone()] },
                privates: Some(privates.clone()),
                store: (kind == Kind::Mica).then(|| lower.stock.path().to_owned()),
            })
        };
        let all = [lower.tree.clone(), lower.stock.path().to_owned()];
        measured.push(run_all(session, workload, cgroup, &all, build)?);
    }
    Ok(measured)
}

fn copies_of(
    session: &Session<'_>,
    workload: Workload,
    copies: Vec<PathBuf>,
    cgroup: &Cgroup,
) -> Result<MemoryOf> {
    let all = copies.clone();
    run_all(session, workload, cgroup, &all, || {
        Ok(Roots {
            who: FULL_COPIES,
            roots: copies.clone(),
            mounted: vec![],
            shared: copies,
            privates: None,
            store: None,
        })
    })
}

/// Processes and cgroups of one measurement; dropping it ends and removes them.
struct Running {
    cgroup: Cgroup,
    children: Vec<Child>,
    cells: Vec<Cgroup>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for cell in &self.cells {
            for pid in cell.processes().unwrap_or_default() {
                let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
                if let Some(pid) = pid {
                    // It ended by itself, which is as good.
                    let _killed = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        for child in &mut self.children {
            let _killed = child.kill();
            if let Err(error) = child.wait() {
                tracing::warn!(%error, "a workload cannot be waited for");
            }
        }
        self.cgroup.remove();
    }
}

/// Mounts the roots, runs the workload in each, and measures.
fn run_all(
    session: &Session<'_>,
    workload: Workload,
    cgroup: &Cgroup,
    trees: &[PathBuf],
    build: impl FnOnce() -> Result<Roots>,
) -> Result<MemoryOf> {
    cgroup.make()?;
    let mut running = Running { cgroup: cgroup.clone(), children: Vec::new(), cells: Vec::new() };
    forget(session, trees)?;
    let before = meminfo("MemFree");
    let servers = cgroup.child("servers")?;
    running.cells.push(servers.clone());
    let roots = {
        // What serves the roots is started in there, so that all it touches is counted there.
        let _visit = servers.enter()?;
        build()?
    };
    for (number, root) in roots.roots.iter().enumerate() {
        let cell = cgroup.child(&format!("cell-{number}"))?;
        running.cells.push(cell.clone());
        running.children.push(start(workload, root, &cell)?);
    }
    let mut of = MemoryOf {
        contender: roots.who.to_owned(),
        containers: u32::try_from(roots.roots.len()).unwrap_or(u32::MAX),
        servers_cgroup_bytes: servers.bytes()?,
        machine_bytes: before.saturating_sub(meminfo("MemFree")),
        ..MemoryOf::default()
    };
    for cell in running.cells.iter().skip(1) {
        of.cgroups_bytes += cell.bytes()?;
        let processes = cell.processes()?;
        of.pss_bytes +=
            processes.iter().filter_map(|pid| process_memory(*pid)).map(|one| one.pss).sum::<u64>();
    }
    for server in roots.mounted.iter().filter_map(Mounted::server).filter_map(process_memory) {
        of.servers_pss_bytes += server.pss;
        of.servers_private_bytes += server.private_dirty + server.private_clean;
    }
    page_cache(&roots, &mut of)?;
    drop(running);
    drop(roots);
    Ok(of)
}

/// Empties the page cache of what will be used, so that it is charged to whoever reads it.
fn forget(session: &Session<'_>, trees: &[PathBuf]) -> Result<()> {
    for tree in trees {
        drop_cached(tree).map_err(BenchError::at("drop the cached pages of", tree))?;
    }
    if session.sizes.drop_caches {
        drop_caches()?;
    }
    Ok(())
}

/// Whose pages are in memory.
fn page_cache(roots: &Roots, of: &mut MemoryOf) -> Result<()> {
    let cached =
        |path: &PathBuf| resident_bytes(path).map_err(BenchError::at("look through", path));
    for tree in &roots.shared {
        of.cache_shared_bytes += cached(tree)?;
    }
    if let Some(store) = &roots.store {
        let usage = Library::open(store).and_then(|library| library.usage());
        let usage = usage.map_err(|error| BenchError::Failed(crate::host::sentence(&error)))?;
        of.cache_shared_bytes = usage.memory.objects_bytes;
        of.cache_private_bytes = usage.memory.private_bytes;
        of.cache_own_bytes = usage.memory.cached_bytes;
    } else if let Some(privates) = &roots.privates {
        of.cache_private_bytes = cached(privates)?;
        if roots.mounted.iter().any(|one| one.server().is_some()) {
            for root in &roots.roots {
                of.cache_own_bytes += cached(root)?;
            }
        }
    }
    Ok(())
}

/// Starts the workload in `root` within `cell`; returns once it answers.
fn start(workload: Workload, root: &Path, cell: &Cgroup) -> Result<Child> {
    let port = free_port()?;
    let (command, listens) = workload.start(root, port)?;
    let mut started = tool("sh");
    // 0 stands for whoever writes it; then the very same process goes on.
    started.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(cell.door());
    started.arg(command.get_program()).args(command.get_args()).env_clear();
    started.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    started.stdin(if listens { Stdio::null() } else { Stdio::piped() });
    started.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = started.spawn().map_err(BenchError::at("start", workload.program()))?;
    let ready = if listens { ask(port, &mut child) } else { hear(&mut child) };
    if ready.is_err() {
        let _killed = child.kill();
        let _ended = child.wait();
    }
    ready.map(|()| child)
}

/// A port that nobody has now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Waits for the line "ready".
fn hear(child: &mut Child) -> Result<()> {
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim() == "ready" { Ok(()) } else { Err(silent(child)) }
}

/// Asks over HTTP until there is an answer.
fn ask(port: u16, child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if child.try_wait()?.is_some() {
            break;
        }
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            if answer.starts_with(b"HTTP/1.") {
                return Ok(());
            }
        }
        // Nobody tells when somebody else's socket begins to listen.
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(silent(child))
}

fn silent(child: &mut Child) -> BenchError {
    let ended = child.try_wait().ok().flatten();
    let status = ended.map_or_else(|| "it runs".to_owned(), |status| status.to_string());
    BenchError::Program {
        program: "the workload".to_owned(),
        status,
        said: "it did not answer".to_owned(),
    }
}

/// Removes what a run of this name left behind that was ended outright.
pub(super) fn sweep(name: &str) {
    if let Ok(cgroup) = Cgroup::of_run(name)
        && fs::symlink_metadata(cgroup.door()).is_ok()
    {
        cgroup.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_workloads_are_refused_with_those_there_are() {
        let error = check(&["ngnix".to_owned()]).expect_err("nobody knows it");
        assert!(error.to_string().contains("shell, python, nginx"), "{error}");
        check(&["nginx".to_owned(), "shell".to_owned()]).expect("both are known");
    }
}
