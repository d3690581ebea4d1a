//! Whole workloads in a root: warm, with nothing in memory, and by many clients at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::jobs::{JOBS, Job, Material, furnish};
use crate::bench::contender::{Kind, Lower, Mounted};
use crate::bench::error::{BenchError, Result};
use crate::bench::machine;
use crate::bench::measure::{Work, interleave, seconds};
use crate::bench::place::{Place, settle};
use crate::bench::row::{Row, Unit};
use crate::bench::run::{has, has_inside, run, silently, tool};
use crate::bench::session::Session;
use crate::bench::template::Prepared;

/// Rounds of what takes long anyhow.
const FEW: usize = 3;

/// One contender with a root, mounted or copied.
struct Contender {
    name: &'static str,
    root: PathBuf,
    /// Mounted until the last job is done.
    _mounted: Option<Mounted>,
}

/// Everybody with a root of `tree`, and one more as a plain copy.
fn contenders(place: &Place, tree: &Path, program: &Path) -> Result<Vec<Contender>> {
    let copy = place.path("copy");
    run(tool("cp").arg("-a").arg(tree).arg(&copy))?;
    let lower = Lower::import(place, tree, program)?;
    let mut all = vec![Contender { name: "full copy", root: copy, _mounted: None }];
    for kind in Kind::here() {
        let mounted = lower.fresh(kind, place)?;
        let root = mounted.path().to_owned();
        all.push(Contender { name: kind.name(), root, _mounted: Some(mounted) });
    }
    settle(place.top())?;
    Ok(all)
}

/// Lets so many clients do it at once and waits for all.
fn crowd(count: usize, command: &dyn Fn(usize) -> Command) -> Result<()> {
    let mut clients: Vec<Child> = Vec::new();
    for client in 0..count {
        let mut command = command(client);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        clients.push(command.spawn().map_err(BenchError::at("start", command.get_program()))?);
    }
    // All of them, whatever becomes of one.
    let ended: Vec<_> = clients.iter_mut().map(Child::wait).collect();
    for (client, status) in ended.into_iter().enumerate() {
        if !status?.success() {
            // Once more alone, to hear why.
            run(&mut command(client))?;
        }
    }
    Ok(())
}

/// Rows of the first template, and of later ones what the earlier cannot.
pub(super) fn workloads(session: &mut Session<'_>, templates: &[Prepared]) -> Result<()> {
    let mut done = Vec::new();
    let mut failed: BTreeMap<&str, String> = BTreeMap::new();
    for template in templates {
        let wanted = |one: &&Job| {
            !done.contains(&one.name)
                && one.host.is_none_or(|(program, _)| has(program))
                && one.inside.iter().all(|program| has_inside(&template.tree, program))
        };
        let wanted: Vec<&Job> = JOBS.iter().filter(wanted).collect();
        if wanted.is_empty() {
            continue;
        }
        let place = session.place("workloads")?;
        let tree = place.path("tree");
        run(tool("cp").arg("-a").arg(&template.tree).arg(&tree))?;
        let material = furnish(&tree, &place, session.sizes)?;
        let program = session.settings.program.clone();
        let contenders = contenders(&place, &tree, &program)?;
        for job in wanted {
            if job.name.starts_with("apt-get") && !material.package {
                continue;
            }
            // What does not work in a full copy says nothing of anybody.
            if let Some(copy) = contenders.first() {
                let tried = run(&mut (job.command)(&copy.root, &material, 0));
                if let Err(error) = tried.and_then(|_| (job.undo)(&copy.root, 0)) {
                    failed.insert(job.name, crate::host::sentence(&error));
                    continue;
                }
            }
            one(session, job, &template.name, &contenders, &material)?;
            done.push(job.name);
        }
    }
    for job in JOBS.iter().filter(|one| !done.contains(&one.name)) {
        let lacking =
            |program: &&&str| !templates.iter().any(|template| has_inside(&template.tree, program));
        let why = match job.host {
            _tried if failed.contains_key(job.name) => {
                format!("it fails in a full copy too: {}", failed[job.name])
            }
            Some((program, package)) if !has(program) => {
                format!("{program} is not installed here; apt-get install {package}")
            }
            _installed => match job.inside.iter().find(lacking) {
                Some(program) => format!("no template has {program}; import one that has"),
                None => format!("no template has all of {}", job.inside.join(", ")),
            },
        };
        session.skip(job.name, why);
    }
    Ok(())
}

/// How a job is done in one row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Warm,
    /// So many at once.
    Crowd(usize),
    Cold,
}

impl Way {
    fn clients(self) -> usize {
        match self {
            Self::Crowd(clients) => clients,
            Self::Warm | Self::Cold => 1,
        }
    }

    fn name(self, job: &Job) -> String {
        match self {
            Self::Warm => job.name.to_owned(),
            Self::Crowd(clients) => format!("{}, {clients} at once", job.name),
            Self::Cold => format!("{}, caches dropped", job.name),
        }
    }
}

fn one(
    session: &mut Session<'_>,
    job: &Job,
    template: &str,
    contenders: &[Contender],
    material: &Material,
) -> Result<()> {
    let sizes = session.sizes;
    let rounds = sizes.workload_rounds;
    let few = rounds.min(FEW);
    let about = (job.about)(material);
    let note = format!("{about}template {template}; processes where the kernel puts them");
    let ways = [
        (Way::Warm, usize::from(rounds > 1), if job.long { few } else { rounds }),
        (Way::Crowd(sizes.crowd), 0, if job.crowd { few } else { 0 }),
        (Way::Cold, 0, if sizes.drop_caches { few } else { 0 }),
    ];
    for (way, warm_ups, rounds) in ways.into_iter().filter(|(.., rounds)| *rounds > 0) {
        let works = contenders.iter().map(|contender| {
            Work::new(contender.name, move || {
                let root = &contender.root;
                if way == Way::Cold {
                    machine::drop_caches()?;
                }
                let took = match way {
                    Way::Crowd(clients) => {
                        seconds(|| crowd(clients, &|client| (job.command)(root, material, client)))?
                    }
                    Way::Warm | Way::Cold => {
                        seconds(|| silently(&mut (job.command)(root, material, 0)))?
                    }
                };
                for client in 0..way.clients() {
                    (job.undo)(root, client)?;
                }
                Ok(took * 1e3)
            })
        });
        let series = interleave(works.collect(), warm_ups, rounds)?;
        session.row(Row::new(way.name(job), Unit::Milliseconds, None, series).note(&note));
    }
    Ok(())
}
