//! Opening: what a round trip to the mount process costs, and what a first write costs.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::bench::contender::{Contenders, Lower};
use crate::bench::error::{BenchError, Result};
use crate::bench::fixture::{bytes as as_bytes, length};
use crate::bench::measure::{Work, interleave, seconds};
use crate::bench::place::{Place, ReflinkDisk, settle};
use crate::bench::row::{Row, Target, Unit};
use crate::bench::run::{run, tool};
use crate::bench::session::Session;
use crate::bench::{fixture, machine};

fn open_read_close_all(paths: &[PathBuf]) -> Result<()> {
    let mut buffer = [0; 4096];
    for path in paths {
        let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        if rustix::io::read(file, &mut buffer)? != buffer.len() {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok(())
}

/// Opening, reading and closing small shared files over and over.
pub(super) fn open_read_close(session: &mut Session<'_>) -> Result<()> {
    let sizes = session.sizes;
    let place = session.place("open")?;
    let lower = place.directory("lower")?;
    let names: Vec<String> =
        (0..sizes.small_files).map(|number| format!("lib/small-{number:04}")).collect();
    for (seed, name) in (0..).zip(&names) {
        let content = fixture::noise(4096, seed);
        fixture::file(&lower, &format!("usr/{name}"), &content)?;
        fixture::file(&lower, &format!("srv/{name}"), &content)?;
    }
    let lower = session.import(&place, &lower)?;
    let contenders = Contenders::mount(&place, &lower)?;
    let below = |top: &Path, dir: &str| -> Vec<PathBuf> {
        names.iter().map(|name| top.join(dir).join(name)).collect()
    };
    let mut files: Vec<_> =
        contenders.places().into_iter().map(|(name, top)| (name, below(&top, "usr"))).collect();
    files.push(("mica, coherent", below(contenders.root.path(), "srv")));

    let measure = |rounds| {
        let works = files.iter().map(|(name, paths)| {
            let each = paths.len() as f64;
            Work::new(*name, move || Ok(seconds(|| open_read_close_all(paths))? * 1e9 / each))
        });
        interleave(works.collect(), 2, rounds)
    };
    let series = measure(sizes.rounds)?;
    let ours = below(contenders.root.path(), "usr");
    let note = contenders.root.requests_of(|| open_read_close_all(&ours))?;
    let what = "open, read and close a 4 KiB shared file, backing registered, one CPU";
    let target = Some(Target::RatioAtMost(5.0));
    session.row(Row::new(what, Unit::Nanoseconds, target, series).note(note));

    if machine::processors() > 1 {
        contenders.pin_servers(machine::OTHER)?;
        let series = measure(sizes.slow_rounds)?;
        let what = "open, read and close a 4 KiB shared file, servers on another, idle CPU";
        session.row(Row::new(what, Unit::Nanoseconds, None, series));
    }
    Ok(())
}

/// Milliseconds that open(2) for writing takes.
pub(in crate::bench) fn open_to_write(path: &Path) -> Result<f64> {
    let mut file = None;
    let measured = seconds(|| {
        file = Some(OpenOptions::new().write(true).open(path)?);
        Ok(())
    })?;
    drop(file);
    Ok(measured * 1e3)
}

/// The same, and fsync(2).
fn open_and_sync(path: &Path) -> Result<f64> {
    let measured = seconds(|| {
        let file = OpenOptions::new().write(true).open(path)?;
        Ok(file.sync_all()?)
    })?;
    Ok(measured * 1e3)
}

/// What a program does that keeps the old file: copy, sync, rename.
fn copy_beside(path: &Path) -> Result<f64> {
    let measured = seconds(|| {
        let copy = path.with_extension("new");
        std::fs::copy(path, &copy)?;
        File::open(&copy).and_then(|file| file.sync_data())?;
        Ok(std::fs::rename(&copy, path)?)
    })?;
    Ok(measured * 1e3)
}

/// Files of one size, each opened for writing once.
struct Set {
    what: String,
    dir: String,
    bytes: u64,
    rounds: usize,
    target: Target,
}

impl Set {
    fn name(&self, number: usize) -> String {
        format!("usr/lib/{}/{number:03}", self.dir)
    }

    /// Files that are needed: for two contenders of one mount, and for warming up.
    fn files(&self) -> usize {
        2 * (self.rounds + 1)
    }

    /// Opens one more file of each contender for writing.
    fn measure(
        &self,
        place: &Place,
        contenders: &Contenders,
        session: &mut Session<'_>,
    ) -> Result<()> {
        let next = |top: PathBuf, first: usize| {
            let mut number = first;
            move || {
                number += 1;
                top.join(self.name(number - 1))
            }
        };
        let mut works = Vec::new();
        for (name, top) in contenders.places() {
            let mut path = next(top.clone(), 0);
            match name {
                "plain" => {
                    let copy = place.directory("plain")?.join("copy");
                    std::fs::copy(path(), &copy).map_err(BenchError::at("write", &copy))?;
                    works.push(Work::new("plain: copy, sync, rename", move || copy_beside(&copy)));
                }
                "fuse-overlayfs" => {
                    works.push(Work::new("fuse-overlayfs, unsynced", move || {
                        open_to_write(&path())
                    }));
                    let mut path = next(top, self.rounds + 1);
                    works.push(Work::new("fuse-overlayfs and fsync", move || {
                        open_and_sync(&path())
                    }));
                }
                name => works.push(Work::new(name, move || open_to_write(&path()))),
            }
        }
        let series = interleave(works, 1, self.rounds)?;
        let row = Row::new(&self.what, Unit::Milliseconds, Some(self.target), series);
        session.row(row.note("each round another file, of which nothing was open"));
        Ok(())
    }
}

fn lower_of(place: &Place, sets: &[Set]) -> Result<PathBuf> {
    let lower = place.directory("lower")?;
    for set in sets {
        // Large files are all alike, which the store keeps once; what is copied up is not.
        let shared = set.bytes > 8 << 20;
        for number in 0..set.files() {
            let seed = if shared { 1 } else { as_bytes(number) };
            fixture::file(&lower, &set.name(number), &fixture::noise(length(set.bytes), seed))?;
        }
    }
    Ok(lower)
}

/// The first write to a shared file, on a file system without reflinks.
pub(super) fn open_for_write(session: &mut Session<'_>) -> Result<()> {
    let sizes = session.sizes;
    let set = |what: &str, dir: &str, bytes, rounds, target| Set {
        what: format!("open for write of a shared file, durable: {what}"),
        dir: dir.to_owned(),
        bytes,
        rounds,
        target,
    };
    let (many, few) = (sizes.rounds * 2, sizes.slow_rounds.min(4));
    let large = format!("{} MiB", sizes.copy_bytes >> 20);
    let sets = [
        set("4 KiB", "small", 4 << 10, many, Target::AtMost(0.3)),
        set("1 MiB", "medium", 1 << 20, many, Target::AtMost(1.0)),
        set(&large, "large", sizes.copy_bytes, few, Target::RatioAtMost(1.0)),
    ];
    let place = session.place("copyup")?;
    let lower = lower_of(&place, &sets)?;
    let lower = session.import(&place, &lower)?;
    let contenders = Contenders::mount(&place, &lower)?;
    for set in &sets {
        settle(place.top())?;
        set.measure(&place, &contenders, session)?;
    }
    Ok(())
}

/// The first write to a large shared file, where the file system has reflinks.
pub(super) fn reflink(session: &mut Session<'_>) -> Result<()> {
    let sizes = session.sizes;
    let place = session.place("reflink")?;
    // Copies without reflinks are made by fuse-overlayfs alone, two for each round.
    let rounds = sizes.slow_rounds.min(3);
    let copies = as_bytes(2 * (rounds + 1) + 2);
    let disk = match ReflinkDisk::new(&place, copies * sizes.reflink_bytes + (64 << 20)) {
        Ok(disk) => disk,
        Err(error) => {
            let why = crate::host::sentence(&error);
            session.skip("open for write with reflinks", format!("no xfs in a file here: {why}"));
            return Ok(());
        }
    };
    let set = Set {
        what: format!(
            "open for write of a shared file, durable: {} MiB, xfs with reflinks",
            sizes.reflink_bytes >> 20
        ),
        dir: "huge".to_owned(),
        bytes: sizes.reflink_bytes,
        rounds,
        target: Target::AtMost(5.0),
    };
    let inner = Place::new(disk.path(), "inner")?;
    let lower = inner.directory("lower")?;
    fixture::file(&lower, &set.name(0), &fixture::noise(length(set.bytes), 1))?;
    for number in 1..set.files() {
        let (from, to) = (lower.join(set.name(0)), lower.join(set.name(number)));
        run(tool("cp").arg("--reflink=always").arg(from).arg(to))?;
    }
    let lower = Lower::import(&inner, &lower, &session.settings.program)?;
    let contenders = Contenders::mount(&inner, &lower)?;
    settle(inner.top())?;
    set.measure(&inner, &contenders, session)
}
