//! Names and attributes: warm, first of a fresh mount, and what the mount process holds then.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, RawDir};

use super::contender::{Contenders, FuseOverlay, Overlay, Place, Root, fuse_overlayfs_version};
use super::measure::{Series, Work, interleave, seconds};
use super::report::{Report, Row, Target, Unit};
use super::support::Store;
use super::{Sizes, fixture, machine};

/// `top` joined with every path, ready for the kernel.
fn joined(top: &Path, paths: &[PathBuf]) -> Vec<CString> {
    let path = |path: &PathBuf| {
        CString::new(top.join(path).as_os_str().as_bytes()).expect("no NUL in our names")
    };
    paths.iter().map(path).collect()
}

fn stat_all(paths: &[CString]) {
    for path in paths {
        rustix::fs::stat(path.as_c_str()).expect("the file is there");
    }
}

fn stat_none(paths: &[CString]) {
    for path in paths {
        rustix::fs::stat(path.as_c_str()).expect_err("the file is not there");
    }
}

/// Opens, reads and closes every directory, without looking at what the names stand for.
fn list_all(directories: &[CString]) -> usize {
    let mut names = 0;
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    for dir in directories {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, dir.as_c_str(), flags, Mode::empty());
        let mut entries = RawDir::new(dir.expect("the directory is there"), &mut buffer);
        while let Some(entry) = entries.next() {
            entry.expect("a name");
            names += 1;
        }
    }
    names
}

/// find(1) that has to look at the size of everything.
fn find(top: &Path) {
    let status = Command::new("find")
        .arg(top)
        .args(["-size", "+1000000k"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("find starts").success(), "find failed");
}

/// Rows of a tree that was looked at before.
pub(super) fn warm(sizes: &Sizes, report: &mut Report) {
    let place = Place::new("warm");
    let lower = place.directory("lower");
    let names = fixture::tree(&lower, 0, fixture::packages(sizes.tree_files));
    let store = fixture::store_of(&place.path("store"), &lower);
    let contenders = Contenders::mount(&place, &lower, &store, "tree");
    fixture::settle(&lower);
    let places = contenders.places();
    let files = names.files.len();
    let nanos = |seconds: f64, count: usize| seconds * 1e9 / count as f64;

    let paths: Vec<_> = places.iter().map(|(_, top)| joined(top, &names.files)).collect();
    let each = || places.iter().map(|(name, _)| *name).zip(&paths);
    let works = each()
        .map(|(name, paths)| Work::new(name, || nanos(seconds(|| stat_all(paths)), paths.len())));
    let series = interleave(works.collect(), 2, sizes.rounds);
    let ours = joined(contenders.root.path(), &names.files);
    let note = contenders.root.requests_of(|| stat_all(&ours));
    let what = format!("warm stat of {files} files");
    report.row(&Row::new(what, Unit::Nanoseconds, Target::RatioAtMost(1.05), series).note(note));

    let missing: Vec<PathBuf> =
        names.files.iter().step_by(10).map(|path| path.with_extension("none")).collect();
    let paths: Vec<_> = places.iter().map(|(_, top)| joined(top, &missing)).collect();
    let works =
        places.iter().map(|(name, _)| *name).zip(&paths).map(|(name, paths)| {
            Work::new(name, || nanos(seconds(|| stat_none(paths)), paths.len()))
        });
    let series = interleave(works.collect(), 2, sizes.rounds);
    report.row(&Row::new("warm stat of missing names", Unit::Nanoseconds, Target::None, series));

    let works = places.iter().map(|(name, top)| Work::new(name, || seconds(|| find(top)) * 1e3));
    let series = interleave(works.collect(), 2, sizes.rounds);
    let note = contenders.root.requests_of(|| find(contenders.root.path()));
    let what = format!("warm find, {files} files in {} directories", names.directories.len());
    report.row(&Row::new(what, Unit::Milliseconds, Target::RatioAtMost(0.8), series).note(note));

    let paths: Vec<_> = places.iter().map(|(_, top)| joined(top, &names.directories)).collect();
    let works = places.iter().map(|(name, _)| *name).zip(&paths).map(|(name, paths)| {
        Work::new(name, || {
            let seconds = seconds(|| assert!(list_all(paths) > files, "a name is missing"));
            nanos(seconds, paths.len())
        })
    });
    let series = interleave(works.collect(), 2, sizes.rounds);
    let what = "warm readdir: open, read and close a directory of 10";
    report.row(&Row::new(what, Unit::Nanoseconds, Target::None, series));

    large_directory(sizes, report);
}

/// Listing one directory that holds a hundred names, which is more than opening it.
fn large_directory(sizes: &Sizes, report: &mut Report) {
    let place = Place::new("readdir");
    let lower = place.directory("lower");
    let directories: Vec<PathBuf> =
        (0..100).map(|number| PathBuf::from(format!("usr/lib/many-{number:02}"))).collect();
    for dir in &directories {
        for name in 0..100 {
            let path = dir.join(format!("module-{name:02}.so"));
            fixture::file(&lower, path.to_str().expect("ASCII"), b"");
        }
    }
    let store = fixture::store_of(&place.path("store"), &lower);
    let contenders = Contenders::mount(&place, &lower, &store, "tree");
    let places = contenders.places();
    let paths: Vec<_> = places.iter().map(|(_, top)| joined(top, &directories)).collect();
    let works = places.iter().map(|(name, _)| *name).zip(&paths).map(|(name, paths)| {
        Work::new(name, || {
            let seconds = seconds(|| (0..10).map(|_| list_all(paths)).sum::<usize>());
            seconds * 1e9 / (10 * paths.len()) as f64
        })
    });
    let series = interleave(works.collect(), 2, sizes.rounds);
    let ours = joined(contenders.root.path(), &directories);
    let note = contenders.root.requests_of(|| list_all(&ours));
    let what = "warm readdir: open, read and close a directory of 100";
    report.row(&Row::new(what, Unit::Nanoseconds, Target::RatioAtMost(0.5), series).note(note));
}

/// Finds in mounts that nobody has looked at yet.
struct Fresh<'a> {
    place: &'a Place,
    lowers: [PathBuf; 1],
    store: &'a Store,
}

/// What a find meets.
#[derive(Clone, Copy)]
struct Conditions {
    /// Nothing is in memory.
    cold: bool,
    /// The server runs on another processor than the client.
    elsewhere: bool,
}

impl Conditions {
    fn prepare(self, server: Option<u32>) {
        if let Some(pid) = server.filter(|_| self.elsewhere) {
            machine::pin_process(pid, machine::OTHER);
        }
        if self.cold {
            machine::drop_caches();
        }
    }
}

impl Fresh<'_> {
    fn places(&self) -> (PathBuf, PathBuf) {
        (self.place.directory("private"), self.place.mountpoint("m"))
    }

    fn plain(&self, conditions: Conditions) -> f64 {
        conditions.prepare(None);
        seconds(|| find(&self.lowers[0])) * 1e3
    }

    fn overlayfs(&self, conditions: Conditions) -> f64 {
        let (private, at) = self.places();
        let overlay = Overlay::mount(&self.lowers, &private, &at);
        conditions.prepare(None);
        seconds(|| find(overlay.path())) * 1e3
    }

    fn mica(&self, conditions: Conditions, after: &mut dyn FnMut(&Root)) -> f64 {
        let (private, at) = self.places();
        let root = Root::mount(self.store, "tree", &private, &at);
        conditions.prepare(Some(root.pid()));
        let measured = seconds(|| find(root.path())) * 1e3;
        after(&root);
        measured
    }

    fn fuse_overlayfs(&self, conditions: Conditions, after: &mut dyn FnMut(u32)) -> f64 {
        let (private, at) = self.places();
        let peer = FuseOverlay::mount(&self.lowers, &private, &at).expect("it is installed");
        conditions.prepare(Some(peer.pid()));
        let measured = seconds(|| find(peer.path())) * 1e3;
        after(peer.pid());
        measured
    }

    /// Everybody's find under `conditions`; `ours` and `theirs` look at the servers afterwards.
    fn measure(
        &self,
        conditions: Conditions,
        (warm_ups, rounds): (usize, usize),
        ours: &mut dyn FnMut(&Root),
        theirs: &mut dyn FnMut(u32),
    ) -> Vec<Series> {
        let mut works = vec![
            Work::new("plain", || self.plain(conditions)),
            Work::new("overlayfs", || self.overlayfs(conditions)),
            Work::new("mica", || self.mica(conditions, ours)),
        ];
        if !fuse_overlayfs_version().is_empty() {
            works.push(Work::new("fuse-overlayfs", || self.fuse_overlayfs(conditions, theirs)));
        }
        interleave(works, warm_ups, rounds)
    }
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
        let (dirty, clean) = machine::private_bytes(pid);
        self.all.push(mebibytes(dirty + clean));
        self.dirty.push(mebibytes(dirty));
    }
}

/// Rows of a tree that nobody has looked at since it was mounted.
pub(super) fn first(sizes: &Sizes, report: &mut Report) {
    let place = Place::new("first");
    let lower = place.directory("lower");
    let names = fixture::tree(&lower, 0, fixture::packages(sizes.tree_files));
    let store = fixture::store_of(&place.path("store"), &lower);
    fixture::settle(&lower);
    let files = names.files.len();
    let fresh = Fresh { place: &place, lowers: [lower], store: &store };
    let warm = Conditions { cold: false, elsewhere: false };

    let (mut ours, mut theirs, mut note) = (Memory::default(), Memory::default(), String::new());
    let mut look = |root: &Root| {
        ours.look(root.pid());
        let requests = root.requests().into_iter().map(|(kind, count)| format!("{count} {kind}"));
        note = format!("requests to Mica: {}", requests.collect::<Vec<_>>().join(", "));
    };
    let rounds = (1, sizes.slow_rounds);
    let series = fresh.measure(warm, rounds, &mut look, &mut |pid| theirs.look(pid));
    let what = format!("first find of a fresh mount, {files} files, lower cached");
    let row = Row::new(what, Unit::Milliseconds, Target::RatioAtMost(1.3), series);
    report.row(&row.note(note));

    let memory = |name: &'static str, samples: Vec<f64>| Series { name, samples };
    let mut series = vec![memory("mica", ours.all), memory("mica, dirty pages only", ours.dirty)];
    if !theirs.all.is_empty() {
        series.push(memory("fuse-overlayfs", theirs.all));
    }
    let what = format!("private memory of the mount process after finding {files} files");
    let row = Row::new(what, Unit::Mebibytes, Target::AtMost(8.0), series);
    report.row(&row.beside("fuse-overlayfs").note(
        "smaps_rollup, Private_Dirty + Private_Clean of the only root on the host; clean pages, \
         of the program and of the tree, are shared once there is a second root",
    ));

    if machine::processors() > 1 {
        let elsewhere = Conditions { elsewhere: true, ..warm };
        let series = fresh.measure(elsewhere, rounds, &mut |_| {}, &mut |_| {});
        let what = "first find of a fresh mount, lower cached, servers on another, idle CPU";
        report.row(&Row::new(what, Unit::Milliseconds, Target::None, series));
    }

    let cold = Conditions { cold: sizes.drop_caches, ..warm };
    let series = fresh.measure(cold, (0, sizes.slow_rounds.min(5)), &mut |_| {}, &mut |_| {});
    let what = format!("first find of a fresh mount, {files} files, caches dropped");
    let row = Row::new(what, Unit::Milliseconds, Target::RatioAtMost(0.7), series);
    report.row(&if sizes.drop_caches { row } else { row.note("nothing was dropped") });
}
