//! What does an import cost beside `tar x`?
//!
//! 800 MB of this host's /usr as one tar archive, warm in the page cache. Rounds, interleaved:
//! `tar x` and syncfs; `mica template import` of the archive into an empty store; the same
//! archive again, under another name; the unpacked directory, whose content the store has by
//! then. Marks: import ≤ 1.2 and again ≤ 0.3 of `tar x`. Every round has directories of its own
//! and nothing is deleted before the end, because ext4 is slow to give out inodes that were
//! freed in the last minutes.
//!
//! `MICA_BENCH_SCRATCH` names the disk; `MICA_BENCH_ROUNDS` the rounds (5).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TREE_BYTES: u64 = 800_000_000;

fn main() {
    let base = std::env::var_os("MICA_BENCH_SCRATCH")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let scratch = base.join(format!("bench-import-{}", std::process::id()));
    fs::create_dir_all(&scratch).expect("a scratch directory can be made");
    let result = std::panic::catch_unwind(|| measure(&scratch));
    // Objects are immutable.
    run(Command::new("chattr").args(["-R", "-f", "-i"]).arg(&scratch).stderr(Stdio::null()));
    fs::remove_dir_all(&scratch).expect("the scratch directory can be removed");
    if result.is_err() {
        std::process::exit(1);
    }
}

fn measure(scratch: &Path) {
    let rounds: usize =
        std::env::var("MICA_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let archive = scratch.join("tree.tar");
    let (files, bytes) = make_archive(&archive, scratch);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    println!(
        "import of {files} files, {} MB; Linux {}, {cores} cores",
        bytes / 1_000_000,
        kernel.trim()
    );
    println!("load before: {}", load.trim());

    let names = ["tar x + syncfs", "import", "import again", "import of the directory"];
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..rounds {
        let (out, store) =
            (scratch.join(format!("out-{round}")), scratch.join(format!("store-{round}")));
        fs::create_dir(&out).expect("a directory can be made");
        warm(&archive);
        times[0].push(timed(|| {
            run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&out));
            run(Command::new("sync").arg("-f").arg(&out));
        }));
        for (number, source) in [&archive, &archive, &out].into_iter().enumerate() {
            warm(&archive);
            times[number + 1].push(timed(|| import(&store, number, source)));
        }
    }
    let base = median(&times[0]);
    println!("{:<24} {:>9} {:>9} {:>9} {:>7}", "", "median", "least", "most", "ratio");
    for (name, times) in names.iter().zip(&times) {
        let (least, most) = (times.iter().min(), times.iter().max());
        let seconds = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64);
        let middle = median(times);
        println!(
            "{name:<24} {:>7.2} s {:>7.2} s {:>7.2} s {:>7.2}",
            middle.as_secs_f64(),
            seconds(least),
            seconds(most),
            middle.as_secs_f64() / base.as_secs_f64()
        );
    }
}

/// The first files of /usr, by name, up to the wanted size.
fn make_archive(archive: &Path, scratch: &Path) -> (usize, u64) {
    let mut list = Vec::new();
    let (mut files, mut bytes) = (0, 0);
    for top in ["lib", "share", "bin", "sbin", "include", "libexec"] {
        collect(&Path::new("/usr").join(top), &mut list, &mut files, &mut bytes);
    }
    let list_path = scratch.join("list");
    fs::write(&list_path, list).expect("the list can be written");
    let mut tar = Command::new("tar");
    tar.args(["--format=posix", "--no-recursion", "--null", "-C", "/usr", "-cf"]).arg(archive);
    run(tar.arg("-T").arg(&list_path));
    (files, bytes)
}

fn collect(path: &Path, list: &mut Vec<u8>, files: &mut usize, bytes: &mut u64) {
    let Ok(metadata) = path.symlink_metadata() else { return };
    if *bytes >= TREE_BYTES {
        return;
    }
    if metadata.is_dir() {
        let Ok(entries) = fs::read_dir(path) else { return };
        let mut names: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        names.sort();
        names.iter().for_each(|name| collect(name, list, files, bytes));
    } else if metadata.is_file() || metadata.is_symlink() {
        let name = path.strip_prefix("/usr").expect("it is below /usr");
        list.extend_from_slice(name.as_os_str().as_encoded_bytes());
        list.push(0);
        *files += 1;
        *bytes += metadata.len();
    }
}

fn warm(archive: &Path) {
    let mut file = fs::File::open(archive).expect("the archive can be opened");
    io::copy(&mut file, &mut io::sink()).expect("the archive can be read");
}

fn import(store: &Path, number: usize, source: &Path) {
    let mut mica = Command::new(env!("CARGO_BIN_EXE_mica"));
    mica.arg("--store").arg(store).args(["template", "import"]);
    run(mica.arg(format!("bench:{number}")).arg(source).stdout(Stdio::null()));
}

fn timed(what: impl FnOnce()) -> Duration {
    io::stdout().flush().expect("output can be written");
    let start = Instant::now();
    what();
    start.elapsed()
}

fn run(command: &mut Command) {
    let status = command.status().expect("the program starts");
    assert!(status.success(), "{command:?}: {status}");
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
