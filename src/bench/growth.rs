//! Growth: how time and memory change with files, layers, roots, directories and file sizes.

use std::path::{Path, PathBuf};

use super::contender::{Kind, Lower, Mounted, Overlay, Stock, TEMPLATE};
use super::error::{BenchError, Result};
use super::fixture;
use super::machine::{self, meminfo, process_memory};
use super::measure::{Series, Work, interleave, seconds};
use super::place::{Place, settle};
use super::results::{Curve, Line, mebibytes};
use super::session::Session;
use super::speed::{find, open_to_write};

/// Files of one directory where the number of files grows.
const IN_DIRECTORY: usize = 100;
/// More files than this are too many for fuse-overlayfs, which keeps all it saw in memory.
const MOST_OF_FUSE_OVERLAYFS: usize = 100_000;
/// Memory that a mounted root may take, for the plan.
const EACH_ROOT: u64 = 8 << 20;

type Section = fn(&mut Session<'_>) -> Result<()>;

const SECTIONS: [(&str, f64, Section); 5] = [
    ("growth: files", 110.0, files),
    ("growth: layers", 25.0, layers),
    ("growth: roots", 60.0, roots),
    ("growth: directory entries", 25.0, entries),
    ("growth: file size", 15.0, sizes),
];

/// The steps of this part: names and planned seconds.
pub(super) fn steps() -> Vec<(String, f64)> {
    SECTIONS.iter().map(|(name, seconds, _)| ((*name).to_owned(), *seconds)).collect()
}

/// Measures this part.
pub(super) fn measure(session: &mut Session<'_>) -> Result<()> {
    for (name, _, section) in SECTIONS {
        machine::pin_self(machine::CLIENT)?;
        session.part(name, "growth", section)?;
        session.everywhere.restore()?;
    }
    Ok(())
}

/// 1, 10, 100, … times `first`, up to `last`.
fn tenfold(first: usize, last: usize) -> Vec<usize> {
    let steps = std::iter::successors(Some(first), |at| at.checked_mul(10));
    let mut steps: Vec<usize> = steps.take_while(|at| *at < last).collect();
    steps.push(last);
    steps
}

/// Points of several contenders that come one place after the other.
#[derive(Default)]
struct Gathered(Vec<Line>);

impl Gathered {
    fn add(&mut self, at: usize, series: Vec<Series>) {
        for Series { name, samples } in series {
            let at = at as f64;
            match self.0.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push((at, samples)),
                None => self.0.push(Line { name, points: vec![(at, samples)] }),
            }
        }
    }

    fn one(&mut self, at: usize, name: &str, value: f64) {
        self.add(at, vec![Series { name: name.to_owned(), samples: vec![value] }]);
    }

    fn curve(self, what: &str, unit: &str, along: &str, note: &str) -> Curve {
        Curve {
            what: what.to_owned(),
            unit: unit.to_owned(),
            along: along.to_owned(),
            lines: self.0,
            note: note.to_owned(),
        }
    }
}

/// Mount and first find, and what the server holds then.
struct FirstLook {
    mount: Vec<f64>,
    find: Vec<f64>,
    memory: Vec<f64>,
}

fn first_look(kind: Kind, lower: &Lower, place: &Place, rounds: usize) -> Result<FirstLook> {
    let mut seen = FirstLook { mount: vec![], find: vec![], memory: vec![] };
    for _ in 0..rounds {
        let (private, at) = (place.directory("private")?, place.directory("m")?);
        let mut mounted = None;
        let took = seconds(|| {
            mounted = Some(lower.mount(kind, &private, &at)?);
            Ok(())
        })?;
        seen.mount.push(took * 1e3);
        seen.find.push(seconds(|| find(&at))? * 1e3);
        if let Some(memory) = mounted.as_ref().and_then(Mounted::server).and_then(process_memory) {
            seen.memory.push(mebibytes(memory.private_dirty + memory.private_clean));
        }
    }
    Ok(seen)
}

fn many_files(top: &Path, files: usize) -> Result<()> {
    for number in 0..files {
        let (dir, parent) = (number / IN_DIRECTORY, number / IN_DIRECTORY / IN_DIRECTORY);
        let dir = top.join(format!("usr/share/{parent}/{dir}"));
        if number % IN_DIRECTORY == 0 {
            fixture::directories(&dir)?;
        }
        let path = dir.join(format!("file-{number}"));
        std::fs::write(&path, b"").map_err(BenchError::at("write", &path))?;
    }
    Ok(())
}

fn files(session: &mut Session<'_>) -> Result<()> {
    let (mut mounts, mut finds, mut memory, mut imports) =
        (Gathered::default(), Gathered::default(), Gathered::default(), Gathered::default());
    for count in tenfold(1000, session.sizes.growth_files) {
        let place = session.place("files")?;
        let tree = place.directory("lower")?;
        many_files(&tree, count)?;
        settle(&tree)?;
        let mut lower = None;
        let took = seconds(|| {
            lower = Some(Lower::import(&place, &tree, &session.settings.program)?);
            Ok(())
        })?;
        let Some(lower) = lower else { continue };
        imports.one(count, "mica", took);
        // Once to have the lower directory's inodes in memory for everybody.
        find(&tree)?;
        let rounds = if count > 100_000 { 1 } else { session.sizes.slow_rounds.min(3) };
        for kind in Kind::here() {
            if kind == Kind::FuseOverlay && count > MOST_OF_FUSE_OVERLAYFS {
                continue;
            }
            let seen = first_look(kind, &lower, &place, rounds)?;
            let series = |samples| vec![Series { name: kind.name().to_owned(), samples }];
            mounts.add(count, series(seen.mount));
            finds.add(count, series(seen.find));
            if !seen.memory.is_empty() {
                memory.add(count, series(seen.memory));
            }
        }
    }
    let along = "files";
    session.curve(mounts.curve("time to mount", "ms", along, "one layer, tree merged"));
    session.curve(finds.curve("first find of a fresh mount", "ms", along, "lower cached"));
    let note = "Private_Dirty + Private_Clean, after the find";
    session.curve(memory.curve("memory of the mount process", "MiB", along, note));
    session.curve(imports.curve("import of empty files", "s", along, ""));
    Ok(())
}

fn layers(session: &mut Session<'_>) -> Result<()> {
    let files = fixture::packages(session.sizes.tree_files / 4) * 1000;
    let (mut mounts, mut finds) = (Gathered::default(), Gathered::default());
    for count in tenfold(1, session.sizes.growth_layers) {
        let place = session.place("layers")?;
        let stock = Stock::at(place.path("store"), &session.settings.program);
        let mut lowers: Vec<PathBuf> = Vec::new();
        for layer in 0..count {
            // Names as short as mount(2) wants them for so many.
            let lower = place.top().join(format!("{layer}"));
            fixture::directories(&lower)?;
            let share = files / count;
            for number in layer * share..(layer + 1) * share {
                let path = format!("usr/share/{}/file-{number}", number % 97);
                fixture::file(&lower, &path, b"")?;
            }
            stock.import(TEMPLATE, &lower, (layer > 0).then_some(TEMPLATE))?;
            lowers.push(lower);
        }
        settle(place.top())?;
        let rounds = session.sizes.slow_rounds.min(3);
        let template = TEMPLATE.to_owned();
        let lower = Lower { tree: place.top().to_owned(), stock, template };
        let ours = first_look(Kind::Mica, &lower, &place, rounds)?;
        let series = |samples| vec![Series { name: "mica".to_owned(), samples }];
        mounts.add(count, series(ours.mount));
        finds.add(count, series(ours.find));
        // mount(2) takes options of one page: the names are short when they are relative.
        let here = std::env::current_dir()?;
        std::env::set_current_dir(place.top())?;
        let theirs = overlay_of_layers(&place, count, rounds);
        std::env::set_current_dir(here)?;
        let (mounted, found) = theirs?;
        mounts.add(count, vec![mounted]);
        finds.add(count, vec![found]);
    }
    let note = format!("{files} files in all layers together");
    session.curve(mounts.curve("time to mount", "ms", "layers", &note));
    session.curve(finds.curve("first find of a fresh mount", "ms", "layers", &note));
    Ok(())
}

fn overlay_of_layers(place: &Place, count: usize, rounds: usize) -> Result<(Series, Series)> {
    let lowers: Vec<PathBuf> = (0..count).map(|layer| layer.to_string().into()).collect();
    let series = || Series { name: "overlayfs".to_owned(), samples: Vec::new() };
    let (mut mounts, mut finds) = (series(), series());
    for _ in 0..rounds {
        let (private, at) = (place.directory("private")?, place.directory("m")?);
        let mut mounted = None;
        let took = seconds(|| {
            mounted = Some(Overlay::mount(&lowers, &private, &at)?);
            Ok(())
        })?;
        mounts.samples.push(took * 1e3);
        finds.samples.push(seconds(|| find(&at))? * 1e3);
        drop(mounted);
    }
    Ok((mounts, finds))
}

/// Roots that are all mounted at the same time.
fn roots(session: &mut Session<'_>) -> Result<()> {
    let place = session.place("roots")?;
    let tree = place.directory("lower")?;
    fixture::tree(&tree, 0, 2)?;
    let lower = session.import(&place, &tree)?;
    settle(&tree)?;
    let room = usize::try_from(meminfo("MemAvailable") / 2 / EACH_ROOT).unwrap_or(usize::MAX);
    let wanted = usize::try_from(session.sizes.mounted).unwrap_or(usize::MAX);
    let most = wanted.min(room);
    if most < wanted {
        session.skip(
            &format!("{wanted} roots mounted at once"),
            format!("memory for {most} of them: {} MiB are free", meminfo("MemAvailable") >> 20),
        );
    }
    let (mut times, mut servers, mut machine) =
        (Gathered::default(), Gathered::default(), Gathered::default());
    for kind in [Kind::Overlay, Kind::Mica] {
        let before = meminfo("MemAvailable");
        let mut mounted: Vec<Mounted> = Vec::new();
        let mut last = Vec::new();
        let marks = tenfold(1, most);
        for number in 1..=most {
            let (private, at) = (place.directory("private")?, place.directory("m")?);
            last.push(
                1e3 * seconds(|| {
                    mounted.push(lower.mount(kind, &private, &at)?);
                    Ok(())
                })?,
            );
            if !marks.contains(&number) {
                continue;
            }
            // What the mounts took since a tenth of them.
            let recent = last.split_off(last.len().saturating_sub(20));
            last.clear();
            let name = kind.name().to_owned();
            times.add(number, vec![Series { name, samples: recent }]);
            let each = |bytes: u64| mebibytes(bytes) / number as f64;
            if kind == Kind::Mica {
                let processes = mounted.iter().filter_map(Mounted::server);
                let pss = processes.filter_map(process_memory).map(|one| one.pss).sum();
                servers.one(number, kind.name(), each(pss));
            }
            let grown = before.saturating_sub(meminfo("MemAvailable"));
            machine.one(number, kind.name(), each(grown));
        }
        // The last one mounted is the first one to go.
        while let Some(last) = mounted.pop() {
            drop(last);
        }
    }
    let along = "roots mounted";
    session.curve(times.curve("time to mount one more root", "ms", along, "2,000 files"));
    let note = "proportional set size: what all share is divided among them";
    session.curve(servers.curve("memory of each mount process", "MiB", along, note));
    let note = "by how much MemAvailable shrank, divided by the number of roots";
    session.curve(machine.curve("memory of the machine for each root", "MiB", along, note));
    Ok(())
}

fn entries(session: &mut Session<'_>) -> Result<()> {
    let place = session.place("entries")?;
    let tree = place.directory("lower")?;
    let counts = tenfold(10, session.sizes.growth_entries);
    for count in &counts {
        let dir = tree.join(format!("usr/lib/{count}"));
        fixture::directories(&dir)?;
        for number in 0..*count {
            let path = dir.join(format!("entry-{number}"));
            std::fs::write(&path, b"").map_err(BenchError::at("write", &path))?;
        }
    }
    let lower = session.import(&place, &tree)?;
    let mut contenders = Vec::new();
    for kind in Kind::here() {
        contenders.push((kind.name(), lower.fresh(kind, &place)?));
    }
    let (mut lists, mut looks) = (Gathered::default(), Gathered::default());
    for count in counts {
        let dir = format!("usr/lib/{count}");
        let each = count as f64;
        let list = |top: &Path| -> Result<f64> {
            let path = top.join(&dir);
            let took = seconds(|| Ok(std::fs::read_dir(&path)?.count()))?;
            Ok(took * 1e9 / each)
        };
        let works = contenders
            .iter()
            .map(|(name, mounted)| Work::new(*name, || list(mounted.path())))
            .chain([Work::new("plain", || list(&tree))]);
        lists.add(count, interleave(works.collect(), 1, session.sizes.slow_rounds)?);
        // Each round other names, which nobody asked for before.
        let step = (count / 100).max(1);
        let look = |top: &Path, round: usize| -> Result<f64> {
            let path = top.join(&dir);
            let names: Vec<PathBuf> = (0..count)
                .skip(round % step)
                .step_by(step)
                .map(|number| path.join(format!("entry-{number}")))
                .collect();
            let took = seconds(|| {
                for name in &names {
                    std::fs::symlink_metadata(name)?;
                }
                Ok(())
            })?;
            Ok(took * 1e9 / names.len().max(1) as f64)
        };
        let works = contenders.iter().map(|(name, mounted)| {
            let mut round = 0;
            let look = &look;
            Work::new(*name, move || {
                round += 1;
                look(mounted.path(), round)
            })
        });
        looks.add(count, interleave(works.collect(), 0, session.sizes.slow_rounds)?);
    }
    let along = "entries of the directory";
    session.curve(lists.curve("listing a directory, for each entry", "ns", along, "warm"));
    session.curve(looks.curve("stat of a name in it", "ns", along, "many of them not seen before"));
    Ok(())
}

fn sizes(session: &mut Session<'_>) -> Result<()> {
    let place = session.place("sizes")?;
    let tree = place.directory("lower")?;
    let rounds = session.sizes.slow_rounds.min(4);
    let most = fixture::length(session.sizes.growth_bytes);
    let powers = std::iter::successors(Some(4096_usize), |bytes| bytes.checked_mul(8));
    let mut lengths: Vec<usize> = powers.take_while(|bytes| *bytes < most).collect();
    lengths.push(most);
    for length in &lengths {
        let content = fixture::noise(*length, 1);
        for round in 0..=rounds {
            fixture::file(&tree, &format!("usr/lib/{length}/{round}"), &content)?;
        }
    }
    let lower = session.import(&place, &tree)?;
    let mut contenders = Vec::new();
    for kind in Kind::here() {
        contenders.push((kind.name(), lower.fresh(kind, &place)?));
    }
    settle(place.top())?;
    let mut gathered = Gathered::default();
    for length in lengths {
        let works = contenders.iter().map(|(name, mounted)| {
            let mut round = 0;
            Work::new(*name, move || {
                round += 1;
                open_to_write(&mounted.path().join(format!("usr/lib/{length}/{}", round - 1)))
            })
        });
        gathered.add(length, interleave(works.collect(), 1, rounds)?);
    }
    let note = "overlayfs and Mica sync what they copy; fuse-overlayfs does not";
    session.curve(gathered.curve("first open for writing", "ms", "bytes of the file", note));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_tenfold_up_to_the_last() {
        assert_eq!(tenfold(1, 100), [1, 10, 100]);
        assert_eq!(tenfold(1, 250), [1, 10, 100, 250]);
        assert_eq!(tenfold(1000, 500), [500]);
    }
}
