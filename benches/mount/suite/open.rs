//! Opening: what a round trip to the mount process costs, and what a first write costs.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use super::contender::{Contenders, Place};
use super::measure::{Work, interleave, seconds};
use super::report::{Report, Row, Target, Unit};
use super::support::{Disk, DiskFormat, Succeed};
use super::{Sizes, fixture, machine};

fn open_read_close_all(paths: &[PathBuf]) {
    let mut buffer = [0; 4096];
    for path in paths {
        let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let count = rustix::io::read(file.expect("the file opens"), &mut buffer);
        assert_eq!(count, Ok(4096));
    }
}

/// Opening, reading and closing small shared files over and over.
pub(super) fn open_read_close(sizes: &Sizes, report: &mut Report) {
    let place = Place::new("open");
    let lower = place.directory("lower");
    let names: Vec<String> =
        (0..sizes.small_files).map(|number| format!("lib/small-{number:04}")).collect();
    for (seed, name) in (0..).zip(&names) {
        let content = fixture::noise(4096, seed);
        fixture::file(&lower, &format!("usr/{name}"), &content);
        fixture::file(&lower, &format!("srv/{name}"), &content);
    }
    let store = fixture::store_of(&place.path("store"), &lower);
    let contenders = Contenders::mount(&place, &lower, &store, "tree");
    let below = |top: &Path, dir: &str| -> Vec<PathBuf> {
        names.iter().map(|name| top.join(dir).join(name)).collect()
    };
    let mut files: Vec<_> =
        contenders.places().into_iter().map(|(name, top)| (name, below(&top, "usr"))).collect();
    files.push(("mica, coherent", below(contenders.root.path(), "srv")));

    let measure = |rounds| {
        let works = files.iter().map(|(name, paths)| {
            Work::new(name, || seconds(|| open_read_close_all(paths)) * 1e9 / paths.len() as f64)
        });
        interleave(works.collect(), 2, rounds)
    };
    let series = measure(sizes.rounds);
    let ours = below(contenders.root.path(), "usr");
    let note = contenders.root.requests_of(|| open_read_close_all(&ours));
    let what = "open, read and close a 4 KiB shared file, backing registered, one CPU";
    report.row(&Row::new(what, Unit::Nanoseconds, Target::RatioAtMost(5.0), series).note(note));

    if machine::processors() > 1 {
        contenders.pin_servers(machine::OTHER);
        let series = measure(sizes.slow_rounds);
        let what = "open, read and close a 4 KiB shared file, servers on another, idle CPU";
        report.row(&Row::new(what, Unit::Nanoseconds, Target::None, series));
    }
}

/// Milliseconds that open(2) for writing takes.
fn open_to_write(path: &Path) -> f64 {
    let mut file = None;
    let measured = seconds(|| {
        file = Some(OpenOptions::new().write(true).open(path).expect("the file opens"));
    });
    drop(file);
    measured * 1e3
}

/// The same, and fsync(2).
fn open_and_sync(path: &Path) -> f64 {
    seconds(|| {
        let file = OpenOptions::new().write(true).open(path).expect("the file opens");
        file.sync_all().expect("the disk takes it");
    }) * 1e3
}

/// What a program does that keeps the old file: copy, sync, rename.
fn copy_beside(path: &Path) -> f64 {
    seconds(|| {
        let copy = path.with_extension("new");
        std::fs::copy(path, &copy).expect("the copy is made");
        File::open(&copy).and_then(|file| file.sync_data()).expect("the disk takes it");
        std::fs::rename(&copy, path).expect("the copy takes the name");
    }) * 1e3
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
    fn measure(&self, place: &Place, contenders: &Contenders, report: &mut Report) {
        let plain = place.directory("plain");
        let from = contenders.places()[0].1.join(self.name(0));
        let next = |top: PathBuf, first: usize| {
            let mut number = first;
            move || {
                number += 1;
                top.join(self.name(number - 1))
            }
        };
        let mut works = Vec::new();
        let copy = plain.join("copy");
        std::fs::copy(&from, &copy).expect("the copy is made");
        works.push(Work::new("plain: copy, sync, rename", move || copy_beside(&copy)));
        for (name, top) in contenders.places().into_iter().skip(1) {
            let mut path = next(top.clone(), 0);
            match name {
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
        let series = interleave(works, 1, self.rounds);
        let row = Row::new(&self.what, Unit::Milliseconds, self.target, series);
        report.row(&row.note("each round another file, of which nothing was open"));
    }
}

fn lower_of(place: &Place, sets: &[Set]) -> PathBuf {
    let lower = place.directory("lower");
    for set in sets {
        let bytes = usize::try_from(set.bytes).expect("it fits in memory");
        // Large files are all alike, which the store keeps once; what is copied up is not.
        let shared = set.bytes > 8 << 20;
        for number in 0..set.files() {
            let seed = if shared { 1 } else { u64::try_from(number).expect("small") };
            fixture::file(&lower, &set.name(number), &fixture::noise(bytes, seed));
        }
    }
    lower
}

/// The first write to a shared file, on a file system without reflinks.
pub(super) fn open_for_write(sizes: &Sizes, report: &mut Report) {
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
    let place = Place::new("copyup");
    let lower = lower_of(&place, &sets);
    let store = fixture::store_of(&place.path("store"), &lower);
    let contenders = Contenders::mount(&place, &lower, &store, "tree");
    for set in &sets {
        fixture::settle(&lower);
        set.measure(&place, &contenders, report);
    }
    let requests = contenders.root.requests();
    assert!(requests.get("open").copied().unwrap_or(0) > 0, "Mica was not asked");
}

/// The first write to a large shared file, where the file system has reflinks.
pub(super) fn reflink(sizes: &Sizes, report: &mut Report) {
    let place = Place::new("reflink");
    // Copies without reflinks are made by fuse-overlayfs alone, two for each round.
    let rounds = sizes.slow_rounds.min(3);
    let copies = u64::try_from(2 * (rounds + 1) + 2).expect("small");
    let room = (copies * sizes.reflink_bytes).max(512 << 20);
    let image = place.path("xfs.img");
    let disk = Disk::create(&image, &place.mountpoint("xfs"), DiskFormat::Xfs, room + (64 << 20));
    let on_disk = |name: &str| {
        let path = disk.path().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        path
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
    let lower = on_disk("lower");
    let bytes = usize::try_from(set.bytes).expect("it fits in memory");
    fixture::file(&lower, &set.name(0), &fixture::noise(bytes, 1));
    for number in 1..set.files() {
        std::process::Command::new("cp")
            .args(["--reflink=always"])
            .arg(lower.join(set.name(0)))
            .arg(lower.join(set.name(number)))
            .succeed();
    }
    let store = fixture::store_of(&disk.path().join("store"), &lower);
    {
        let inner = Place::within(disk.path());
        let contenders = Contenders::mount(&inner, &lower, &store, "tree");
        fixture::settle(&lower);
        set.measure(&inner, &contenders, report);
    }
    disk.detach();
}
