//! Bytes: reading shared files, reading and writing private ones.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::bench::contender::Contenders;
use crate::bench::error::{BenchError, Result};
use crate::bench::fixture::{bytes as as_bytes, length};
use crate::bench::measure::{Work, interleave, seconds};
use crate::bench::place::{Place, settle};
use crate::bench::row::{Row, Target, Unit};
use crate::bench::session::Session;
use crate::bench::{fixture, machine};
use crate::object::ObjectId;
use crate::sys::cache::resident_bytes;

/// What cat(1) and cp(1) read and write at once.
const CHUNK: usize = 128 << 10;
const PAGE: usize = 4096;

/// Reads a file from end to end.
fn read(path: &Path, buffer: &mut [u8]) -> Result<u64> {
    let mut file = File::open(path).map_err(BenchError::at("open", path))?;
    let mut bytes = 0;
    loop {
        match file.read(buffer)? {
            0 => return Ok(bytes),
            count => bytes += as_bytes(count),
        }
    }
}

/// Page numbers in an order of no order, the same every time.
fn pages(bytes: u64, count: usize) -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(5);
    (0..count).map(|_| random.u64(0..bytes / 4096) * 4096).collect()
}

fn read_pages(path: &Path, offsets: &[u64]) -> Result<()> {
    let file = File::open(path)?;
    let mut page = [0; PAGE];
    for offset in offsets {
        file.read_exact_at(&mut page, *offset)?;
    }
    Ok(())
}

/// Maps a file and touches every page of it.
fn touch(path: &Path) -> Result<u8> {
    let file = File::open(path)?;
    let map = crate::sys::map::map_readonly(file.as_fd())?;
    Ok(map.iter().step_by(PAGE).fold(0, |sum: u8, byte| sum.wrapping_add(*byte)))
}

fn writer(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).open(path).map_err(BenchError::at("open", path))
}

/// Writes a file from end to end; with `sync`, to the disk.
fn write(path: &Path, bytes: u64, chunk: &[u8], sync: bool) -> Result<()> {
    let mut file = writer(path)?;
    let mut left = bytes;
    while left > 0 {
        file.write_all(chunk)?;
        left = left.saturating_sub(as_bytes(chunk.len()));
    }
    if sync {
        file.sync_data()?;
    }
    Ok(())
}

fn write_pages(path: &Path, offsets: &[u64], page: &[u8]) -> Result<()> {
    let file = writer(path)?;
    for offset in offsets {
        file.write_all_at(page, *offset)?;
    }
    Ok(())
}

fn clean(path: &Path) -> Result<()> {
    Ok(writer(path)?.sync_data()?)
}

fn megabytes(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e6
}

/// Throughput rows.
pub(super) fn content(session: &mut Session<'_>) -> Result<()> {
    let sizes = session.sizes;
    let place = session.place("content")?;
    let lower = place.directory("lower")?;
    let bytes = sizes.big_bytes;
    let big = fixture::noise(length(bytes), 3);
    fixture::file(&lower, "usr/lib/big", &big)?;
    fixture::file(&lower, "srv/big", &big)?;
    let object = ObjectId::of(&big).to_string();
    drop(big);
    let lower = session.import(&place, &lower)?;
    let (fan_out, rest) = object.split_at(2);
    let object = lower.stock.path().join("objects").join(fan_out).join(rest);
    let contenders = Contenders::mount(&place, &lower)?;
    settle(place.top())?;
    if sizes.drop_caches {
        // What was just written lies in other folios than what is read from the disk: the page
        // caches of all contenders shall be filled in the same way, by the warm-up below.
        machine::drop_caches()?;
    }

    let mut files: Vec<_> = contenders
        .places()
        .into_iter()
        .map(|(name, top)| (name, top.join("usr/lib/big")))
        .collect();
    files.push(("mica, coherent", contenders.root.path().join("srv/big")));
    // Overlayfs reads the plain directory's pages; what passes through reads the object's.
    let holders: Vec<&Path> = files
        .iter()
        .filter(|(name, _)| !matches!(*name, "overlayfs" | "mica"))
        .map(|(_, path)| path.as_path())
        .chain([object.as_path()])
        .collect();
    let target = Some(Target::RatioAtLeast(0.95));

    let works = files.iter().map(|(name, path)| {
        let mut buffer = vec![0; CHUNK];
        let mut scrap = Vec::new();
        Work::new(*name, move || {
            machine::chill(&mut scrap);
            Ok(megabytes(bytes, seconds(|| read(path, &mut buffer))?))
        })
    });
    let series = interleave(works.collect(), 2, sizes.rounds)?;
    let cached = all_cached(&holders, bytes)?;
    let note = |dir: &str| {
        let path = contenders.root.path().join(dir).join("big");
        contenders.root.requests_of(|| read(&path, &mut [0; CHUNK]))
    };
    let row = Row::new("sequential read, cached", Unit::Megabytes, target, series).note(cached);
    let coherent_row = coherent(&row).note(note("srv")?);
    session.row(row.note(note("usr/lib")?));
    session.row(coherent_row);

    let offsets = pages(bytes, sizes.random);
    let random_bytes = as_bytes(sizes.random * PAGE);
    let works = files.iter().map(|(name, path)| {
        let (offsets, mut scrap) = (&offsets, Vec::new());
        Work::new(*name, move || {
            machine::chill(&mut scrap);
            Ok(megabytes(random_bytes, seconds(|| read_pages(path, offsets))?))
        })
    });
    let series = interleave(works.collect(), 2, sizes.rounds)?;
    let row = Row::new("random 4 KiB reads, cached", Unit::Megabytes, target, series);
    let row = row.note(all_cached(&holders, bytes)?);
    session.row(row.clone());
    session.row(coherent(&row));

    let works = files.iter().map(|(name, path)| {
        let mut scrap = Vec::new();
        Work::new(*name, move || {
            machine::chill(&mut scrap);
            Ok(megabytes(bytes, seconds(|| touch(path))?))
        })
    });
    let series = interleave(works.collect(), 2, sizes.rounds)?;
    let row = Row::new("mmap, every page touched, cached", Unit::Megabytes, target, series);
    let row = row.note(all_cached(&holders, bytes)?);
    session.row(row.clone());
    session.row(coherent(&row));

    if sizes.drop_caches {
        let left = std::cell::Cell::new(0);
        let works = files.iter().map(|(name, path)| {
            let mut buffer = vec![0; CHUNK];
            let (holders, left) = (&holders, &left);
            Work::new(*name, move || {
                machine::drop_caches()?;
                left.set(resident(holders)?.into_iter().fold(left.get(), u64::max));
                Ok(megabytes(bytes, seconds(|| read(path, &mut buffer))?))
            })
        });
        let series = interleave(works.collect(), 0, sizes.slow_rounds.min(5))?;
        let what = "sequential read from the disk, caches dropped";
        let row = Row::new(what, Unit::Megabytes, None, series);
        let left = left.get();
        session
            .row(row.note(format!("cachestat before: at most {left} bytes of a file in memory")));
    }
    writes(session, &place, &contenders)
}

/// Looks how much of the files is in memory, and says so: others may have taken some away.
fn all_cached(files: &[&Path], bytes: u64) -> Result<String> {
    let least = resident(files)?.into_iter().min().unwrap_or_default();
    let part = 100.0 * least as f64 / bytes.max(1) as f64;
    Ok(format!("cachestat afterwards: {:.1} % or more of each file in memory", part.min(100.0)))
}

/// Bytes of each file that are in memory.
fn resident(files: &[&Path]) -> Result<Vec<u64>> {
    files.iter().map(|path| Ok(resident_bytes(File::open(path)?.as_fd())?)).collect()
}

/// The row of the coherent mode that belongs to a row of the shared one.
fn coherent(row: &Row) -> Row {
    let keep = ["overlayfs", "mica, coherent"];
    let series = row.contenders.iter().filter(|one| keep.contains(&one.name.as_str())).cloned();
    let what = format!("{}, coherent", row.what);
    Row::new(what, row.unit, row.target, series.collect()).about("mica, coherent")
}

fn writes(session: &mut Session<'_>, place: &Place, contenders: &Contenders) -> Result<()> {
    let sizes = session.sizes;
    let bytes = sizes.big_bytes / 2;
    let chunk = fixture::noise(CHUNK, 9);
    let mut files: Vec<(&str, PathBuf)> = contenders.places();
    files[0].1 = place.directory("plain")?;
    for (_, path) in &mut files {
        fixture::directories(&path.join("srv"))?;
        path.push("srv/private");
        File::create(&*path).map_err(BenchError::at("make", path.as_path()))?;
        write(path, bytes, &chunk, true)?;
    }
    let target = Some(Target::RatioAtLeast(0.95));

    let works = files.iter().map(|(name, path)| {
        Work::new(*name, || {
            let took = seconds(|| write(path, bytes, &chunk, false))?;
            clean(path)?;
            Ok(megabytes(bytes, took))
        })
    });
    let series = interleave(works.collect(), 1, sizes.rounds)?;
    let ours = &files[2].1;
    let note = contenders.root.requests_of(|| write(ours, bytes, &chunk, false))?;
    let what = "private sequential write over a file, to the page cache";
    session.row(Row::new(what, Unit::Megabytes, target, series).note(note));

    let works = files.iter().map(|(name, path)| {
        Work::new(*name, || Ok(megabytes(bytes, seconds(|| write(path, bytes, &chunk, true))?)))
    });
    let series = interleave(works.collect(), 1, sizes.slow_rounds)?;
    let what = "private sequential write over a file, with fdatasync";
    session.row(Row::new(what, Unit::Megabytes, None, series));

    let offsets = pages(bytes, sizes.random);
    let random_bytes = as_bytes(sizes.random * PAGE);
    let works = files.iter().map(|(name, path)| {
        Work::new(*name, || {
            let took = seconds(|| write_pages(path, &offsets, &chunk[..PAGE]))?;
            clean(path)?;
            Ok(megabytes(random_bytes, took))
        })
    });
    let series = interleave(works.collect(), 1, sizes.rounds)?;
    let what = "private random 4 KiB writes over a file, to the page cache";
    session.row(Row::new(what, Unit::Megabytes, target, series));

    let works = files.iter().map(|(name, path)| {
        Work::new(*name, || {
            std::fs::remove_file(path.as_path())?;
            File::create(path.as_path())?;
            let took = seconds(|| write(path, bytes, &chunk, false))?;
            clean(path)?;
            Ok(megabytes(bytes, took))
        })
    });
    let series = interleave(works.collect(), 1, sizes.slow_rounds)?;
    let what = "private sequential write of a new file, to the page cache";
    session.row(Row::new(what, Unit::Megabytes, target, series));
    Ok(())
}
