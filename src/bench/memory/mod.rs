//! Memory: N containers that run something, each in a chroot and a cgroup of its own.
//!
//! One contender after the other, each from an empty page cache, so that whoever touches a
//! page first is charged for it. What serves the roots is in a cgroup too, and counted.

mod systems;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::cgroup::Cgroup;
use super::contender::{Kind, Lower, Mounted};
use super::error::{BenchError, Result};
use super::fixture;
use super::machine::{drop_caches, meminfo, process_memory};
use super::place::Place;
use super::results::{FULL_COPIES, MemoryCase, MemoryOf};
use super::run::{has, has_inside, run};
use super::session::Session;
use super::template::Prepared;
use crate::host::footprint::{drop_cached, resident_bytes};
use crate::inspect::Library;
use workload::Workload;

/// Bytes that a container of a workload may take at most, for the plan.
const EACH: u64 = 64 << 20;

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
    // A store of the template that the last workload ran in.
    let mut stores: Option<(&str, Place, Lower)> = None;
    for workload in wanted(&session.settings.workloads)? {
        let found = templates.iter().find(|one| has_inside(&one.tree, workload.program()));
        let Some(template) = found else {
            session.skip(
                &step(workload),
                format!("no template has {}; import one that has", workload.program()),
            );
            continue;
        };
        if workload == Workload::Systemd && !has("runc") {
            let why = "runc, which runs the peers' containers, is not installed here; \
                       apt-get install runc";
            session.skip(&step(workload), why.to_owned());
            continue;
        }
        session.part(&step(workload), "memory", |session| {
            if stores.as_ref().is_none_or(|(name, ..)| *name != template.name) {
                drop(stores.take());
                let place = session.place("memory")?;
                let lower = session.import(&place, &template.tree)?;
                stores = Some((&template.name, place, lower));
            }
            let Some((_, place, lower)) = &stores else { return Ok(()) };
            let contenders = match of_workload(session, workload, template, place, lower, &cgroup) {
                // Not every release of systemd boots on every host.
                Err(error) if workload == Workload::Systemd => {
                    session.skip(&step(workload), crate::host::sentence(&error));
                    return Ok(());
                }
                measured => measured?,
            };
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

/// Roots of one contender, what keeps them, and whose pages are whose.
struct Roots {
    who: &'static str,
    /// Where they are; empty if the supervisor mounts them.
    roots: Vec<PathBuf>,
    mounted: Vec<Mounted>,
    supervisor: Option<systems::Supervisor>,
    shared: Vec<PathBuf>,
    privates: Option<PathBuf>,
    store: Option<PathBuf>,
}

/// Starts the containers of some roots.
type Start<'a> = &'a dyn Fn(&Roots, &Group) -> Result<Running>;

fn of_workload(
    session: &mut Session<'_>,
    workload: Workload,
    template: &Prepared,
    place: &Place,
    lower: &Lower,
    cgroup: &Cgroup,
) -> Result<Vec<MemoryOf>> {
    let count = session.settings.containers;
    let bundles = place.directory("bundles")?;
    let in_chroot = |roots: &Roots, group: &Group| in_chroot(workload, roots, group);
    let by_runc = |roots: &Roots, group: &Group| systems::by_runc(&bundles, roots, group);
    let start: Start<'_> = if workload == Workload::Systemd { &by_runc } else { &in_chroot };
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
            measured.push(copies_of(session, all, cgroup, start)?);
            drop(copies);
            Vec::new()
        }
    };
    if !copies.is_empty() {
        let of_copies = copies_of(session, copies, cgroup, start);
        // A whole system writes journals and caches, which the savings part must not count.
        if workload == Workload::Systemd
            && let Some(copies) = &session.copies
        {
            copies.restore(template)?;
        }
        measured.push(of_copies?);
    }
    let all = [lower.tree.clone(), lower.stock.path().to_owned()];
    for kind in Kind::here() {
        if kind == Kind::Mica && workload == Workload::Systemd {
            let build = || systems::supervised(&lower.stock, count);
            measured.push(run_all(session, cgroup, &all, build, &systems::started)?);
            continue;
        }
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
                supervisor: None,
                shared: if kind == Kind::Mica { vec![] } else { vec![lower.tree.clone()] },
                privates: Some(privates.clone()),
                store: (kind == Kind::Mica).then(|| lower.stock.path().to_owned()),
            })
        };
        measured.push(run_all(session, cgroup, &all, build, start)?);
    }
    Ok(measured)
}

fn copies_of(
    session: &Session<'_>,
    copies: Vec<PathBuf>,
    cgroup: &Cgroup,
    start: Start<'_>,
) -> Result<MemoryOf> {
    let all = copies.clone();
    let build = || {
        Ok(Roots {
            who: FULL_COPIES,
            roots: copies.clone(),
            mounted: vec![],
            supervisor: None,
            shared: copies,
            privates: None,
            store: None,
        })
    };
    run_all(session, cgroup, &all, build, start)
}

/// The cgroups of one measurement; dropping it ends what is still in them and removes them.
struct Group {
    top: Cgroup,
    /// Of what serves the roots.
    servers: Cgroup,
}

impl Group {
    fn make(top: &Cgroup) -> Result<Self> {
        top.make()?;
        Ok(Self { top: top.clone(), servers: top.child("servers")? })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.servers.kill();
        self.top.remove();
    }
}

/// Containers that run; dropping it ends them.
#[derive(Default)]
struct Running {
    children: Vec<Child>,
    /// A cgroup for each container.
    cells: Vec<Cgroup>,
    /// What ends the containers that are not children of this process.
    ends: Vec<Command>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for end in &mut self.ends {
            if let Err(error) = run(end) {
                tracing::warn!(error = crate::host::sentence(&error), "a container stays");
            }
        }
        for cell in &self.cells {
            cell.kill();
        }
        for child in &mut self.children {
            let _killed = child.kill();
            if let Err(error) = child.wait() {
                tracing::warn!(%error, "a workload cannot be waited for");
            }
        }
    }
}

/// The workload in each root, by chroot, in a cgroup of its own.
fn in_chroot(workload: Workload, roots: &Roots, group: &Group) -> Result<Running> {
    let mut running = Running::default();
    for (number, root) in roots.roots.iter().enumerate() {
        let cell = group.top.child(&format!("cell-{number}"))?;
        running.cells.push(cell.clone());
        running.children.push(workload::start(workload, root, &cell)?);
    }
    Ok(running)
}

/// Mounts the roots, runs something in each, and measures.
fn run_all(
    session: &Session<'_>,
    cgroup: &Cgroup,
    trees: &[PathBuf],
    build: impl FnOnce() -> Result<Roots>,
    start: Start<'_>,
) -> Result<MemoryOf> {
    // Dropped last: first end the containers, then their roots.
    let group = Group::make(cgroup)?;
    forget(session, trees)?;
    let before = meminfo("MemFree");
    let roots = {
        // What serves the roots is started in there, so that all it touches is counted there.
        let _visit = group.servers.enter()?;
        build()?
    };
    let running = start(&roots, &group)?;
    let mut of = MemoryOf {
        contender: roots.who.to_owned(),
        containers: u32::try_from(running.cells.len()).unwrap_or(u32::MAX),
        servers_cgroup_bytes: group.servers.bytes()?,
        servers_cache_bytes: group.servers.cache_bytes()?,
        machine_bytes: before.saturating_sub(meminfo("MemFree")),
        ..MemoryOf::default()
    };
    for cell in &running.cells {
        of.cgroups_bytes += cell.bytes()?;
        let processes = cell.processes()?;
        of.pss_bytes +=
            processes.iter().filter_map(|pid| process_memory(*pid)).map(|one| one.pss).sum::<u64>();
    }
    for server in group.servers.processes()?.into_iter().filter_map(process_memory) {
        of.servers_pss_bytes += server.pss;
        of.servers_private_bytes += server.private_dirty + server.private_clean;
    }
    page_cache(&roots, &mut of)?;
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

/// Removes the cgroups that the run with this directory left behind, which was ended outright.
pub(super) fn sweep(scratch: &Path) {
    let name = scratch.file_name().unwrap_or_default().to_string_lossy();
    if let Ok(cgroup) = Cgroup::of_run(&name)
        && fs::symlink_metadata(cgroup.door()).is_ok()
    {
        cgroup.remove();
    }
    systems::sweep(scratch);
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
