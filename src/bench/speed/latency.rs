//! How long single operations take: all of them, not their mean.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::bench::contender::Contenders;
use crate::bench::error::{BenchError, Result};
use crate::bench::fixture;
use crate::bench::measure::quantile;
use crate::bench::results::{Latency, Quantiles};
use crate::bench::session::Session;

/// Files that are opened in turn.
const FILES: usize = 100;
/// Turns of each contender: none has a quiet moment for itself.
const BLOCKS: usize = 20;

type Operation = fn(&Place, usize) -> Result<()>;

const OPERATIONS: [(&str, Operation); 4] = [
    ("stat", |place, at| Ok(fs::symlink_metadata(place.name(at)).map(drop)?)),
    ("read 4 KiB of an open file", |place, at| {
        place.open.read_exact_at(&mut [0; 4096], (at % 16 * 4096).try_into().unwrap_or(0))?;
        Ok(())
    }),
    ("open, read 4 KiB, close", |place, at| {
        File::open(place.name(at))?.read_exact(&mut [0; 4096])?;
        Ok(())
    }),
    ("create, write 4 KiB, unlink", |place, at| {
        let path = place.private.join(format!("new-{at}"));
        File::create_new(&path)?.write_all(&[7; 4096])?;
        Ok(fs::remove_file(path)?)
    }),
];

/// Where a contender's operations go.
struct Place {
    files: Vec<PathBuf>,
    open: File,
    private: PathBuf,
}

impl Place {
    fn new(top: &Path, private: PathBuf) -> Result<Self> {
        fixture::directories(&private)?;
        let big = top.join("usr/lib/big");
        Ok(Self {
            files: (0..FILES).map(|at| top.join(format!("usr/lib/file-{at:03}"))).collect(),
            open: File::open(&big).map_err(BenchError::at("open", big))?,
            private,
        })
    }

    fn name(&self, at: usize) -> &Path {
        &self.files[at % FILES]
    }
}

/// The latency of each operation, of each contender.
pub(super) fn latency(session: &mut Session<'_>) -> Result<()> {
    let place = session.place("latency")?;
    let lower = place.directory("lower")?;
    for at in 0..FILES {
        let content = fixture::noise(4096, fixture::bytes(at));
        fixture::file(&lower, &format!("usr/lib/file-{at:03}"), &content)?;
    }
    fixture::file(&lower, "usr/lib/big", &fixture::noise(16 * 4096, 1))?;
    let lower = session.import(&place, &lower)?;
    let contenders = Contenders::mount(&place, &lower)?;
    let mut places = Vec::new();
    for (name, top) in contenders.places() {
        let private =
            if name == "plain" { place.directory("plain")? } else { top.join("var/tmp/new") };
        places.push((name, Place::new(&top, private)?));
    }
    let each = session.sizes.latencies / BLOCKS;
    for (what, operation) in OPERATIONS {
        let mut samples = vec![Vec::with_capacity(each * BLOCKS); places.len()];
        for block in 0..=BLOCKS {
            for turn in 0..places.len() {
                let one = (block + turn) % places.len();
                for at in 0..each.max(1) {
                    let begun = Instant::now();
                    operation(&places[one].1, at)?;
                    let took = begun.elapsed();
                    // The first block warms up.
                    if block > 0 {
                        samples[one].push(took.as_secs_f64() * 1e9);
                    }
                }
            }
        }
        let contenders = places.iter().zip(&samples).map(|((name, _), samples)| Quantiles {
            name: (*name).to_owned(),
            operations: samples.len(),
            nanoseconds: spread(samples),
        });
        session.latency(Latency { what: what.to_owned(), contenders: contenders.collect() });
    }
    Ok(())
}

/// The parts, in per cent, at which the distribution is kept: enough to draw it.
pub(in crate::bench) fn parts() -> Vec<f64> {
    (0..=99).map(f64::from).chain([99.5, 99.9, 100.0]).collect()
}

fn spread(samples: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    parts().into_iter().map(|part| (part, sorted_quantile(&sorted, part / 100.0))).collect()
}

/// The sample at `part` of many, already sorted.
fn sorted_quantile(sorted: &[f64], part: f64) -> f64 {
    // Of so many samples no interpolation is needed; of few, the exact way is cheap.
    if sorted.len() < 200 {
        return quantile(sorted, part);
    }
    let last = sorted.len() - 1;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the number of samples"
    )]
    let at = (part.clamp(0.0, 1.0) * last as f64).round() as usize;
    sorted[at.min(last)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_kept_with_its_tail() {
        let samples: Vec<f64> = (0..10_000).rev().map(f64::from).collect();
        let spread = spread(&samples);
        assert_eq!(spread.first(), Some(&(0.0, 0.0)));
        assert_eq!(spread.last(), Some(&(100.0, 9999.0)));
        assert!(spread.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }
}
