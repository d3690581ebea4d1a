//! Importing a tree, beside unpacking the same archive.

use std::fs::File;
use std::path::Path;

use crate::bench::contender::Stock;
use crate::bench::error::{BenchError, Result};
use crate::bench::fixture;
use crate::bench::measure::{Work, interleave, seconds};
use crate::bench::place::{remove_tree, settle};
use crate::bench::row::{Row, Target, Unit};
use crate::bench::run::{run, tool};
use crate::bench::session::Session;

/// Makes a tree of `bytes` with sizes as in a distribution: half of the files below 4 KiB, most
/// bytes in few large ones. Returns how many there are.
fn distribution(top: &Path, bytes: u64) -> Result<u64> {
    let mut random = fastrand::Rng::with_seed(11);
    let (mut left, mut number) = (bytes, 0);
    while left > 0 {
        // 2^7 to 2^23 bytes, the middle at 2^12.
        let exponent = 12.0 + (random.f64() + random.f64() + random.f64() - 1.5) * 7.4;
        let size = exponent.exp2().min(left as f64).max(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive and far below 2^53"
        )]
        let size = size as usize;
        let path =
            format!("usr/share/p{:03}/d{:02}/file-{number:05}", number / 200, number / 10 % 20);
        fixture::file(top, &path, &fixture::noise(size, number))?;
        left = left.saturating_sub(fixture::bytes(size));
        number += 1;
    }
    Ok(number)
}

/// Import rows.
pub(super) fn import(session: &mut Session<'_>) -> Result<()> {
    // Nobody waits for one processor here.
    session.everywhere.restore()?;
    let sizes = session.sizes;
    let place = session.place("import")?;
    let program = session.settings.program.clone();
    let tree = place.directory("tree")?;
    let files = distribution(&tree, sizes.import_bytes)?;
    let archive = place.path("tree.tar");
    run(tool("tar").arg("-cf").arg(&archive).arg("-C").arg(&tree).arg("."))?;
    settle(&tree)?;
    // Both read it from the page cache.
    let mut file = File::open(&archive).map_err(BenchError::at("open", &archive))?;
    std::io::copy(&mut file, &mut std::io::sink())?;

    let unpack = || {
        let dir = place.directory("unpacked")?;
        let took = seconds(|| {
            run(tool("tar").arg("-xf").arg(&archive).arg("-C").arg(&dir))?;
            settle(&dir)
        })?;
        remove_tree(&dir)?;
        settle(&tree)?;
        Ok(took * 1e3)
    };
    // The whole command each time, as tar is.
    let import = |source: &Path| {
        let stock = Stock::at(place.path("store"), &program);
        let took = seconds(|| run(stock.mica(["template", "import", "tree"]).arg(source)))?;
        remove_tree(stock.path())?;
        settle(&tree)?;
        Ok(took * 1e3)
    };
    let kept = Stock::at(place.path("kept"), &program);
    kept.import("tree", &archive, None)?;
    let again = |source: &Path| {
        let mut command = kept.mica(["template", "import", "tree", "--replace"]);
        Ok(seconds(|| run(command.arg(source)))? * 1e3)
    };
    let base = "tar x and syncfs";
    let works = vec![
        Work::new(base, unpack),
        Work::new("mica", || import(&archive)),
        Work::new("mica, again", || again(&archive)),
        Work::new("mica, of the directory", || import(&tree)),
        Work::new("mica, directory again", || again(&tree)),
    ];
    let series = interleave(works, 1, sizes.slow_rounds.min(5))?;
    let what =
        format!("import of {} MiB, {files} files, from a tar archive", sizes.import_bytes >> 20);
    let of = |ours: &str, most: f64, what: String| {
        let keep = |name: &str| name == base || name == ours;
        let series = series.iter().filter(|series| keep(&series.name)).cloned().collect();
        let target = Some(Target::RatioAtMost(most));
        Row::new(what, Unit::Milliseconds, target, series).about(ours).beside(base)
    };
    let directory = "import of the same tree from its directory";
    for row in [
        of("mica", 1.2, what.clone()),
        of("mica, again", 0.3, format!("{what}, again")),
        of("mica, of the directory", 1.2, directory.to_owned()),
        of("mica, directory again", 0.3, format!("{directory}, again")),
    ] {
        session.row(row);
    }
    Ok(())
}
