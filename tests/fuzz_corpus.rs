//! The fuzz cases as ordinary tests: every corpus file, then fresh mutations and fresh noise.
//!
//! The seed is printed; `MICA_TEST_SEED` sets it. A failing input is kept below the
//! build directory and named; fixed, it belongs into the corpus.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

#[path = "../fuzz/cases/manifest_reader.rs"]
mod manifest_reader;
#[path = "../fuzz/cases/oci_import.rs"]
mod oci_import;
#[path = "../fuzz/cases/operations.rs"]
mod operations;
mod support;
#[path = "../fuzz/cases/tar_import.rs"]
mod tar_import;
#[path = "../fuzz/cases/unmounted.rs"]
mod unmounted;
#[path = "../fuzz/cases/upper_format.rs"]
mod upper_format;

fn rounds(ci: u32) -> u32 {
    match std::env::var("MICA_TEST_COUNTS").as_deref() {
        Ok("long") => ci.saturating_mul(100),
        Ok("quick") => ci / 10,
        _ => ci,
    }
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .expect("the corpus is there")
        .map(|entry| entry.expect("entry").path())
        .map(|path| (path.clone(), std::fs::read(path).expect("read")))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", dir.display());
    files
}

/// A change such as damage and hostility make: bits, bytes, words, lengths, splices.
fn mutate(random: &mut fastrand::Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..random.usize(1..5) {
        let len = bytes.len();
        if len == 0 {
            bytes.push(random.u8(..));
            continue;
        }
        let at = random.usize(..len);
        match random.u8(..9) {
            0 => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes[at] = random.u8(..),
            2 | 3 => {
                // A small or an extreme number where numbers lie.
                let at = at & !3;
                let value = match random.u8(..4) {
                    0 => random.u32(..64),
                    1 => u32::MAX - random.u32(..4),
                    2 => u32::try_from(len).unwrap_or(u32::MAX).wrapping_sub(random.u32(..64)),
                    _ => random.u32(..),
                };
                for (to, from) in bytes.iter_mut().skip(at).zip(value.to_le_bytes()) {
                    *to = from;
                }
            }
            4 => bytes.truncate(at),
            5 => bytes.extend(std::iter::repeat_n(random.u8(..), random.usize(1..64))),
            6 => {
                let from = random.usize(..len);
                let run = random.usize(..64).min(len - from.max(at));
                bytes.copy_within(from..from + run, at);
            }
            7 if !other.is_empty() => {
                let from = random.usize(..other.len());
                let run = random.usize(..64).min(other.len() - from).min(len - at);
                bytes[at..at + run].copy_from_slice(&other[from..from + run]);
            }
            _ => {
                let end = (at + random.usize(..64)).min(len);
                bytes.drain(at..end);
            }
        }
    }
}

/// Runs `case` on the corpus of `target`, on `count` mutations of it, and on noise.
fn fuzz(target: &str, count: u32, case: impl Fn(&[u8])) {
    let seed = support::seed();
    let run = |name: &str, bytes: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(bytes))) {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}.failed"));
            std::fs::write(&kept, bytes).expect("kept");
            println!("{target}: {name} with seed {seed} failed; kept as {}", kept.display());
            resume_unwind(panic);
        }
    };
    let corpus = corpus(target);
    for (path, bytes) in &corpus {
        run(&path.display().to_string(), bytes);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..rounds(count) {
        let mut bytes = match random.u8(..8) {
            0 => {
                let mut noise = vec![0; random.usize(..2048)];
                random.fill(&mut noise);
                noise
            }
            _ => corpus[random.usize(..corpus.len())].1.clone(),
        };
        let other = random.usize(..corpus.len());
        mutate(&mut random, &mut bytes, &corpus[other].1);
        run(&format!("round {round}"), &bytes);
    }
}

#[test]
fn any_bytes_as_a_manifest_give_an_error_or_a_value() {
    fuzz("manifest_reader", 20_000, manifest_reader::run);
}

#[test]
fn any_bytes_as_a_tree_archive_give_an_error_or_a_layer() {
    fuzz("tar_import", 4_000, tar_import::run);
}

#[test]
fn any_bytes_as_an_image_give_an_error_or_layers() {
    fuzz("oci_import", 1_000, oci_import::run);
}

/// Needs root: a private layer carries trusted attributes.
#[test]
fn any_bytes_as_operations_leave_a_root_that_reads_the_same_when_reopened() {
    fuzz("operations", 1_000, operations::run);
}

/// Needs root: marks are trusted attributes, and whiteouts are devices.
#[test]
fn any_bytes_as_a_private_directory_give_an_error_or_a_root() {
    fuzz("upper_format", 400, upper_format::run);
}
