//! Importing a tree, beside unpacking the same archive.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::contender::Place;
use super::measure::{Work, interleave, seconds};
use super::report::{Report, Row, Target, Unit};
use super::support::{Store, Succeed};
use super::{Sizes, fixture, machine};

/// Makes a tree of `bytes` with sizes as in a distribution: half of the files below 4 KiB, most
/// bytes in few large ones.
fn distribution(top: &Path, bytes: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(11);
    let (mut left, mut number) = (bytes, 0);
    while left > 0 {
        // 2^7 to 2^23 bytes, the middle at 2^12.
        let exponent = 12.0 + (random.f64() + random.f64() + random.f64() - 1.5) * 7.4;
        let size = exponent.exp2().min(left as f64).max(1.0);
        // Positive and far below 2^53.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let size = size as usize;
        let path =
            format!("usr/share/p{:03}/d{:02}/file-{number:05}", number / 200, number / 10 % 20);
        fixture::file(top, &path, &fixture::noise(size, number));
        left = left.saturating_sub(u64::try_from(size).expect("a size"));
        number += 1;
    }
    usize::try_from(number).expect("a count")
}

/// Removes a directory that may hold immutable objects.
fn remove(dir: &Path) {
    Command::new("chattr").args(["-R", "-f", "-i"]).arg(dir).output().expect("chattr starts");
    fs::remove_dir_all(dir).expect("it can be removed");
}

/// Import rows.
pub(super) fn import(sizes: &Sizes, report: &mut Report) {
    // Nobody waits for one processor here.
    machine::unpin_self();
    let place = Place::new("import");
    let tree = place.directory("tree");
    let files = distribution(&tree, sizes.import_bytes);
    let archive = place.path("tree.tar");
    Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&tree).arg(".").succeed();
    fixture::settle(&tree);
    // Both read it from the page cache.
    let read = |path: &Path| {
        let mut file = File::open(path).expect("the archive opens");
        std::io::copy(&mut file, &mut std::io::sink()).expect("the archive reads");
    };
    read(&archive);

    let unpack = || {
        let dir = place.directory("unpacked");
        let took = seconds(|| {
            Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&dir).succeed();
            fixture::settle(&dir);
        });
        remove(&dir);
        fixture::settle(&tree);
        took * 1e3
    };
    let import = |source: &Path| {
        let path = place.path("store");
        let store = Store::at(&path);
        let took = seconds(|| store.import("tree", source));
        remove(&path);
        fixture::settle(&tree);
        took * 1e3
    };
    let kept = Store::at(&place.path("kept"));
    kept.import("tree", &archive);
    let again = |source: &Path| {
        seconds(|| {
            kept.mica(["template", "import", "tree", "--replace"]).arg(source).succeed();
        }) * 1e3
    };
    let base = "tar x and syncfs";
    let works = vec![
        Work::new(base, unpack),
        Work::new("mica", || import(&archive)),
        Work::new("mica, again", || again(&archive)),
        Work::new("mica, of the directory", || import(&tree)),
        Work::new("mica, directory again", || again(&tree)),
    ];
    let series = interleave(works, 1, sizes.slow_rounds.min(5));
    let what =
        format!("import of {} MiB, {files} files, from a tar archive", sizes.import_bytes >> 20);
    let of = |ours: &'static str, target, what: String| {
        let keep = |name: &str| name == base || name == ours;
        let series = series.iter().filter(|series| keep(series.name)).cloned().collect();
        Row::new(what, Unit::Milliseconds, target, series).about(ours).beside(base)
    };
    report.row(&of("mica", Target::RatioAtMost(1.2), what.clone()));
    report.row(&of("mica, again", Target::RatioAtMost(0.3), format!("{what}, again")));
    let what = "import of the same tree from its directory";
    report.row(&of("mica, of the directory", Target::RatioAtMost(1.2), what.to_owned()));
    let what = format!("{what}, again");
    report.row(&of("mica, directory again", Target::RatioAtMost(0.3), what));
    machine::pin_self(machine::CLIENT);
}
