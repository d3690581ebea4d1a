//! Bytes: reading shared files, reading and writing private ones.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::contender::{Contenders, Place};
use super::measure::{Work, interleave, seconds};
use super::report::{Report, Row, Target, Unit};
use super::{Sizes, fixture, machine};

/// What cat(1) and cp(1) read and write at once.
const CHUNK: usize = 128 << 10;
const PAGE: usize = 4096;

/// Reads a file from end to end.
fn read(path: &Path, buffer: &mut [u8]) -> u64 {
    let mut file = File::open(path).expect("the file opens");
    let mut bytes = 0;
    loop {
        match file.read(buffer).expect("the file reads") {
            0 => return bytes,
            count => bytes += u64::try_from(count).expect("a count"),
        }
    }
}

/// Page numbers in an order of no order, the same every time.
fn pages(bytes: u64, count: usize) -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(5);
    (0..count).map(|_| random.u64(0..bytes / 4096) * 4096).collect()
}

fn read_pages(path: &Path, offsets: &[u64]) {
    let file = File::open(path).expect("the file opens");
    let mut page = [0; PAGE];
    for offset in offsets {
        file.read_exact_at(&mut page, *offset).expect("the page reads");
    }
}

/// Maps a file and touches every page of it.
fn touch(path: &Path) -> u8 {
    let file = File::open(path).expect("the file opens");
    let map = mica::sys::map::map_readonly(file.as_fd()).expect("the file maps");
    map.iter().step_by(PAGE).fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn writer(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).expect("a private file opens")
}

/// Writes a file from end to end; with `sync`, to the disk.
fn write(path: &Path, bytes: u64, chunk: &[u8], sync: bool) {
    let mut file = writer(path);
    let mut left = bytes;
    while left > 0 {
        file.write_all(chunk).expect("a chunk is written");
        left = left.saturating_sub(u64::try_from(chunk.len()).expect("a length"));
    }
    if sync {
        file.sync_data().expect("the disk takes it");
    }
}

fn write_pages(path: &Path, offsets: &[u64], page: &[u8]) {
    let file = writer(path);
    for offset in offsets {
        file.write_all_at(page, *offset).expect("a page is written");
    }
}

/// Throughput rows.
pub(super) fn content(sizes: &Sizes, report: &mut Report) {
    let place = Place::new("content");
    let lower = place.directory("lower");
    let bytes = sizes.big_bytes;
    let big = fixture::noise(usize::try_from(bytes).expect("it fits in memory"), 3);
    fixture::file(&lower, "usr/lib/big", &big);
    fixture::file(&lower, "srv/big", &big);
    drop(big);
    let store = fixture::store_of(&place.path("store"), &lower);
    let contenders = Contenders::mount(&place, &lower, &store, "tree");
    fixture::settle(&lower);
    if sizes.drop_caches {
        // What was just written lies in other folios than what is read from the disk: the page
        // caches of all contenders shall be filled in the same way, by the warm-up below.
        machine::drop_caches();
    }

    let mut files: Vec<_> = contenders
        .places()
        .into_iter()
        .map(|(name, top)| (name, top.join("usr/lib/big")))
        .collect();
    files.push(("mica, coherent", contenders.root.path().join("srv/big")));
    let megabytes = |bytes: u64, seconds: f64| bytes as f64 / seconds / 1e6;
    let target = Target::RatioAtLeast(0.95);

    let works = files.iter().map(|(name, path)| {
        let mut buffer = vec![0; CHUNK];
        let mut scrap = Vec::new();
        Work::new(name, move || {
            machine::chill(&mut scrap);
            megabytes(bytes, seconds(|| assert_eq!(read(path, &mut buffer), bytes)))
        })
    });
    let series = interleave(works.collect(), 2, sizes.rounds);
    let note = |dir: &str| {
        let path = contenders.root.path().join(dir).join("big");
        contenders.root.requests_of(|| read(&path, &mut [0; CHUNK]))
    };
    let row = Row::new("sequential read, cached", Unit::Megabytes, target, series);
    let row = row.note(note("usr/lib"));
    report.row(&row);
    report.row(&coherent(&row).note(note("srv")));

    let offsets = pages(bytes, sizes.random);
    let random_bytes = u64::try_from(sizes.random * PAGE).expect("a size");
    let works = files.iter().map(|(name, path)| {
        let (offsets, mut scrap) = (&offsets, Vec::new());
        Work::new(name, move || {
            machine::chill(&mut scrap);
            megabytes(random_bytes, seconds(|| read_pages(path, offsets)))
        })
    });
    let series = interleave(works.collect(), 2, sizes.rounds);
    let row = Row::new("random 4 KiB reads, cached", Unit::Megabytes, target, series);
    report.row(&row);
    report.row(&coherent(&row));

    let works = files.iter().map(|(name, path)| {
        let mut scrap = Vec::new();
        Work::new(name, move || {
            machine::chill(&mut scrap);
            megabytes(bytes, seconds(|| touch(path)))
        })
    });
    let series = interleave(works.collect(), 2, sizes.rounds);
    let row = Row::new("mmap, every page touched, cached", Unit::Megabytes, target, series);
    report.row(&row);
    report.row(&coherent(&row));

    if sizes.drop_caches {
        let works = files.iter().map(|(name, path)| {
            let mut buffer = vec![0; CHUNK];
            Work::new(name, move || {
                machine::drop_caches();
                megabytes(bytes, seconds(|| read(path, &mut buffer)))
            })
        });
        let series = interleave(works.collect(), 0, sizes.slow_rounds.min(5));
        let what = "sequential read from the disk, caches dropped";
        report.row(&Row::new(what, Unit::Megabytes, Target::None, series));
    }

    writes(sizes, report, &place, &contenders);
}

/// The row of the coherent mode that belongs to a row of the shared one.
fn coherent(row: &Row) -> Row {
    let keep = ["overlayfs", "mica, coherent"];
    let series = row.series.iter().filter(|series| keep.contains(&series.name)).cloned();
    let what = format!("{}, coherent", row.what);
    Row::new(what, row.unit, row.target, series.collect()).about("mica, coherent")
}

fn writes(sizes: &Sizes, report: &mut Report, place: &Place, contenders: &Contenders) {
    let bytes = sizes.big_bytes / 2;
    let chunk = fixture::noise(CHUNK, 9);
    let mut files = contenders.places();
    files[0].1 = place.directory("plain");
    for (_, path) in &mut files {
        std::fs::create_dir_all(path.join("srv")).expect("a directory");
        path.push("srv/private");
        File::create(&*path).expect("a private file can be made");
        write(path, bytes, &chunk, true);
    }
    let megabytes = |bytes: u64, seconds: f64| bytes as f64 / seconds / 1e6;
    let target = Target::RatioAtLeast(0.95);
    let clean = |path: &Path| writer(path).sync_data().expect("the disk takes it");

    let works = files.iter().map(|(name, path)| {
        Work::new(name, || {
            let took = seconds(|| write(path, bytes, &chunk, false));
            clean(path);
            megabytes(bytes, took)
        })
    });
    let series = interleave(works.collect(), 1, sizes.rounds);
    let ours = &files[2].1;
    let note = contenders.root.requests_of(|| write(ours, bytes, &chunk, false));
    let what = "private sequential write over a file, to the page cache";
    report.row(&Row::new(what, Unit::Megabytes, target, series).note(note));

    let works = files.iter().map(|(name, path)| {
        Work::new(name, || megabytes(bytes, seconds(|| write(path, bytes, &chunk, true))))
    });
    let series = interleave(works.collect(), 1, sizes.slow_rounds);
    let what = "private sequential write over a file, with fdatasync";
    report.row(&Row::new(what, Unit::Megabytes, Target::None, series));

    let offsets = pages(bytes, sizes.random);
    let random_bytes = u64::try_from(sizes.random * PAGE).expect("a size");
    let works = files.iter().map(|(name, path)| {
        Work::new(name, || {
            let took = seconds(|| write_pages(path, &offsets, &chunk[..PAGE]));
            clean(path);
            megabytes(random_bytes, took)
        })
    });
    let series = interleave(works.collect(), 1, sizes.rounds);
    let what = "private random 4 KiB writes over a file, to the page cache";
    report.row(&Row::new(what, Unit::Megabytes, target, series));

    let works = files.iter().map(|(name, path)| {
        Work::new(name, || {
            std::fs::remove_file(path.as_path()).expect("a private file can be removed");
            File::create(path.as_path()).expect("a private file can be made");
            let took = seconds(|| write(path, bytes, &chunk, false));
            clean(path);
            megabytes(bytes, took)
        })
    });
    let series = interleave(works.collect(), 1, sizes.slow_rounds);
    let what = "private sequential write of a new file, to the page cache";
    report.row(&Row::new(what, Unit::Megabytes, target, series));
}
