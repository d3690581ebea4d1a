//! Names and attributes: warm, first of a fresh mount, and what the mount process holds then.

use std::cell::RefCell;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RawDir};

use crate::bench::contender::{Contenders, Kind, Lower, Mounted, Root};
use crate::bench::error::{BenchError, Result};
use crate::bench::measure::{Series, Work, interleave, seconds};
use crate::bench::place::{Place, settle};
use crate::bench::row::{Row, Target, Unit};
use crate::bench::run::{silently, tool};
use crate::bench::session::Session;
use crate::bench::{fixture, machine};

/// `top` joined with every path, ready for the kernel.
fn joined(top: &Path, paths: &[PathBuf]) -> Result<Vec<CString>> {
    let path = |path: &PathBuf| CString::new(top.join(path).as_os_str().as_bytes());
    Ok(paths.iter().map(path).collect::<Result<_, _>>().map_err(std::io::Error::from)?)
}

fn stat_all(paths: &[CString]) -> Result<()> {
    for path in paths {
        rustix::fs::stat(path.as_c_str())?;
    }
    Ok(())
}

fn stat_none(paths: &[CString]) -> Result<()> {
    for path in paths {
        if rustix::fs::stat(path.as_c_str()).is_ok() {
            return Err(std::io::Error::from(std::io::ErrorKind::AlreadyExists).into());
        }
    }
    Ok(())
}

/// Opens, reads and closes every directory, without looking at what the names stand for.
fn list_all(directories: &[CString]) -> Result<usize> {
    let mut names = 0;
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    for dir in directories {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, dir.as_c_str(), flags, Mode::empty())?;
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            entry?;
            names += 1;
        }
    }
    Ok(names)
}

/// find(1) that has to look at the size of everything.
pub(in crate::bench) fn find(top: &Path) -> Result<()> {
    silently(tool("find").arg(top).args(["-size", "+1000000k"]))
}

fn nanos(seconds: f64, count: usize) -> f64 {
    seconds * 1e9 / count as f64
}

/// Names of contenders, and what each has to look at.
fn each<'a>(
    places: &'a [(&'static str, PathBuf)],
    paths: &'a [Vec<CString>],
) -> impl Iterator<Item = (&'static str, &'a Vec<CString>)> {
    places.iter().map(|(name, _)| *name).zip(paths)
}

/// Rows of a tree that was looked at before.
pub(super) fn warm(session: &mut Session<'_>) -> Result<()> {
    let sizes = session.sizes;
    let place = session.place("warm")?;
    let lower = place.directory("lower")?;
    let names = fixture::tree(&lower, 0, fixture::packages(sizes.tree_files))?;
    let lower = session.import(&place, &lower)?;
    let contenders = Contenders::mount(&place, &lower)?;
    settle(place.top())?;
    let places = contenders.places();
    let below = |names: &[PathBuf]| -> Result<Vec<Vec<CString>>> {
        places.iter().map(|(_, top)| joined(top, names)).collect()
    };
    let files = names.files.len();

    let paths = below(&names.files)?;
    let works = each(&places, &paths).map(|(name, paths)| {
        Work::new(name, || Ok(nanos(seconds(|| stat_all(paths))?, paths.len())))
    });
    let series = interleave(works.collect(), 2, sizes.rounds)?;
    let ours = joined(contenders.root.path(), &names.files)?;
    let note = contenders.root.requests_of(|| stat_all(&ours))?;
    let what = format!("warm stat of {files} files");
    let target = Some(Target::RatioAtMost(1.05));
    session.row(Row::new(what, Unit::Nanoseconds, target, series).note(note));

    let missing: Vec<PathBuf> =
        names.files.iter().step_by(10).map(|path| path.with_extension("none")).collect();
    let paths = below(&missing)?;
    let works = each(&places, &paths).map(|(name, paths)| {
        Work::new(name, || Ok(nanos(seconds(|| stat_none(paths))?, paths.len())))
    });
    let series = interleave(works.collect(), 2, sizes.rounds)?;
    session.row(Row::new("warm stat of missing names", Unit::Nanoseconds, None, series));

    let works =
        places.iter().map(|(name, top)| Work::new(*name, || Ok(seconds(|| find(top))? * 1e3)));
    let series = interleave(works.collect(), 2, sizes.rounds)?;
    let note = contenders.root.requests_of(|| find(contenders.root.path()))?;
    let what = format!("warm find, {files} files in {} directories", names.directories.len());
    let target = Some(Target::RatioAtMost(0.8));
    session.row(Row::new(what, Unit::Milliseconds, target, series).note(note));

    let paths = below(&names.directories)?;
    let works = each(&places, &paths).map(|(name, paths)| {
        Work::new(name, || Ok(nanos(seconds(|| list_all(paths))?, paths.len())))
    });
    let series = interleave(works.collect(), 2, sizes.rounds)?;
    let what = "warm readdir: open, read and close a directory of 10";
    session.row(Row::new(what, Unit::Nanoseconds, None, series));

    large_directory(session)
}

/// Listing one directory that holds a hundred names, which is more than opening it.
fn large_directory(session: &mut Session<'_>) -> Result<()> {
    let place = session.place("readdir")?;
    let lower = place.directory("lower")?;
    let directories: Vec<String> =
        (0..100).map(|number| format!("usr/lib/many-{number:02}")).collect();
    for dir in &directories {
        for name in 0..100 {
            fixture::file(&lower, &format!("{dir}/module-{name:02}.so"), b"")?;
        }
    }
    let directories: Vec<PathBuf> = directories.into_iter().map(PathBuf::from).collect();
    let lower = session.import(&place, &lower)?;
    let contenders = Contenders::mount(&place, &lower)?;
    let places = contenders.places();
    let paths: Vec<_> =
        places.iter().map(|(_, top)| joined(top, &directories)).collect::<Result<_>>()?;
    let works = each(&places, &paths).map(|(name, paths)| {
        Work::new(name, || {
            let ten_times = || (0..10).try_for_each(|_| list_all(paths).map(drop));
            Ok(nanos(seconds(ten_times)?, 10 * paths.len()))
        })
    });
    let series = interleave(works.collect(), 2, session.sizes.rounds)?;
    let ours = joined(contenders.root.path(), &directories)?;
    let note = contenders.root.requests_of(|| list_all(&ours))?;
    let what = "warm readdir: open, read and close a directory of 100";
    let target = Some(Target::RatioAtMost(0.5));
    session.row(Row::new(what, Unit::Nanoseconds, target, series).note(note));
    Ok(())
}

/// What a find meets in a mount that nobody has looked at yet.
#[derive(Clone, Copy)]
struct Conditions {
    /// Nothing is in memory.
    cold: bool,
    /// The server runs on another processor than the client.
    elsewhere: bool,
}

impl Conditions {
    fn prepare(self, server: Option<u32>) -> Result<()> {
        if let Some(pid) = server.filter(|_| self.elsewhere) {
            machine::pin_process(pid, machine::OTHER)?;
        }
        if self.cold {
            machine::drop_caches()?;
        }
        Ok(())
    }
}

/// Looks at a mount after its find.
type After<'a> = &'a mut dyn FnMut(&Mounted) -> Result<()>;

/// Everybody's find under `conditions`; `after` looks at each mount afterwards.
fn fresh_finds(
    place: &Place,
    lower: &Lower,
    conditions: Conditions,
    (warm_ups, rounds): (usize, usize),
    after: &RefCell<After<'_>>,
) -> Result<Vec<Series>> {
    let mut works = vec![Work::new("plain", || {
        conditions.prepare(None)?;
        Ok(seconds(|| find(&lower.tree))? * 1e3)
    })];
    works.extend(Kind::here().into_iter().map(|kind| {
        Work::new(kind.name(), move || {
            let mounted = lower.fresh(kind, place)?;
            conditions.prepare(mounted.server())?;
            let took = seconds(|| find(mounted.path()))? * 1e3;
            (after.borrow_mut())(&mounted)?;
            Ok(took)
        })
    }));
    interleave(works, warm_ups, rounds)
}

/// What was found of a server's memory, round by round, in MiB.
#[derive(Default)]
struct Memory {
    all: Vec<f64>,
    dirty: Vec<f64>,
}

impl Memory {
    fn look(&mut self, pid: u32) {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        if let Some(memory) = machine::process_memory(pid) {
            self.all.push(mebibytes(memory.private_dirty + memory.private_clean));
            self.dirty.push(mebibytes(memory.private_dirty));
        }
    }
}

fn all_requests(root: &Root) -> Result<String> {
    let requests = root.requests()?.into_iter().map(|(kind, count)| format!("{count} {kind}"));
    Ok(format!("requests to Mica: {}", requests.collect::<Vec<_>>().join(", ")))
}

/// Rows of a tree that nobody has looked at since it was mounted.
pub(super) fn first(session: &mut Session<'_>) -> Result<()> {
    let sizes = session.sizes;
    let place = session.place("first")?;
    let tree = place.directory("lower")?;
    let files = fixture::tree(&tree, 0, fixture::packages(sizes.tree_files))?.files.len();
    let lower = session.import(&place, &tree)?;
    settle(&tree)?;
    let warm = Conditions { cold: false, elsewhere: false };

    let (mut ours, mut theirs, mut note) = (Memory::default(), Memory::default(), String::new());
    let mut look = |mounted: &Mounted| -> Result<(), BenchError> {
        match mounted {
            Mounted::Mica(root) => {
                ours.look(root.pid());
                note = all_requests(root)?;
            }
            Mounted::FuseOverlay(peer) => theirs.look(peer.pid()),
            Mounted::Overlay(_) => {}
        }
        Ok(())
    };
    let rounds = (1, sizes.slow_rounds);
    let series = fresh_finds(&place, &lower, warm, rounds, &RefCell::new(&mut look))?;
    let what = format!("first find of a fresh mount, {files} files, lower cached");
    let row = Row::new(what, Unit::Milliseconds, Some(Target::RatioAtMost(1.3)), series);
    session.row(row.note(note));

    let memory = |name: &str, samples: Vec<f64>| Series { name: name.to_owned(), samples };
    let mut series = vec![memory("mica", ours.all), memory("mica, dirty pages only", ours.dirty)];
    if !theirs.all.is_empty() {
        series.push(memory("fuse-overlayfs", theirs.all));
    }
    let what = format!("private memory of the mount process after finding {files} files");
    let row = Row::new(what, Unit::Mebibytes, Some(Target::AtMost(8.0)), series);
    session.row(row.beside("fuse-overlayfs").note(
        "smaps_rollup, Private_Dirty + Private_Clean of the only root on the host; clean pages, \
         of the program and of the tree, are shared once there is a second root",
    ));

    let mut nothing = |_: &Mounted| Ok(());
    let nothing = RefCell::new(&mut nothing as After<'_>);
    if machine::processors() > 1 {
        let elsewhere = Conditions { elsewhere: true, ..warm };
        let series = fresh_finds(&place, &lower, elsewhere, rounds, &nothing)?;
        let what = "first find of a fresh mount, lower cached, servers on another, idle CPU";
        session.row(Row::new(what, Unit::Milliseconds, None, series));
    }

    let cold = Conditions { cold: sizes.drop_caches, ..warm };
    let series = fresh_finds(&place, &lower, cold, (0, sizes.slow_rounds.min(5)), &nothing)?;
    let what = format!("first find of a fresh mount, {files} files, caches dropped");
    let row = Row::new(what, Unit::Milliseconds, Some(Target::RatioAtMost(0.7)), series);
    session.row(if sizes.drop_caches { row } else { row.note("nothing was dropped") });
    Ok(())
}
