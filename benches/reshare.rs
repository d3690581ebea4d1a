//! How fast are private files brought back together, beside reading and hashing them alone?
//!
//! Twenty containers hold the same 20 files of 16 MiB, or the same 2,000 files of 64 KiB, each its own
//! copy. Timed in turn: reading and BLAKE3 of all bytes on one thread (what no re-share can do without),
//! and `mica store reshare --all` at rest; with the files in the page cache, and from the disk, where an
//! upgrade of a week ago is. The mark is 70 % of the former's rate. Then what it won, as the file system
//! counts it.
//!
//! `-- --quick` takes a tenth of the files; `MICA_BENCH_SCRATCH` names the disk. Needs root.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const CONTAINERS: usize = 20;
const ROUNDS: usize = 3;

/// What each container holds: so many files of so many bytes.
const HELD: [(&str, usize, usize); 2] = [("16 MiB", 20, 16 << 20), ("64 KiB", 2000, 64 << 10)];

/// Where the files are when they are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    InMemory,
    OnDisk,
}

fn main() {
    let share = if std::env::args().any(|argument| argument == "--quick") { 10 } else { 1 };
    let base = std::env::var_os("MICA_BENCH_SCRATCH")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let kernel = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("Linux {}, {cores} cores", kernel.release().to_string_lossy());
    println!(
        "| files of | in | read and hashed | shared | of the former, mark 70 % | left, of one container's worth |"
    );
    println!("|---|---|---|---|---|---|");
    for _ in 0..ROUNDS {
        for (what, count, len) in HELD {
            for held in [Held::InMemory, Held::OnDisk] {
                let scratch = base.join(format!("bench-reshare-{}", std::process::id()));
                fs::create_dir_all(&scratch).expect("a scratch directory can be made");
                let result = std::panic::catch_unwind(|| {
                    measure(&scratch, what, count / share, len, held);
                });
                let mutable = ["-R", "-f", "-i"];
                Command::new("chattr").args(mutable).arg(&scratch).status().expect("chattr");
                fs::remove_dir_all(&scratch).expect("the scratch directory can be removed");
                if result.is_err() {
                    std::process::exit(1);
                }
            }
        }
    }
}

fn measure(scratch: &Path, what: &str, count: usize, len: usize, held: Held) {
    let store = scratch.join("store");
    let source = scratch.join("source");
    fs::create_dir_all(source.join("usr/lib")).expect("made");
    fs::write(source.join("usr/lib/file"), b"x").expect("written");
    mica(&store, &["template", "import", "base", path(&source)]);
    let mut files = Vec::new();
    for container in 0..CONTAINERS {
        let private = scratch.join(format!("private{container}"));
        let mountpoint = scratch.join(format!("root{container}"));
        mica(&store, &["mount", "base", path(&mountpoint), "--private", path(&private)]);
        for number in 0..count {
            let mut content = vec![0; len];
            fastrand::Rng::with_seed(number as u64).fill(&mut content);
            fs::write(mountpoint.join(format!("usr/lib/new{number}")), content).expect("written");
            files.push(private.join(format!("upper/usr/lib/new{number}")));
        }
        mica(&store, &["umount", path(&mountpoint)]);
    }
    rustix::fs::syncfs(File::open(scratch).expect("there")).expect("synced");
    let bytes: u64 = files.iter().map(|file| fs::metadata(file).expect("there").len()).sum();
    // The first time what is not in memory is brought there.
    read_and_hash(&files);
    let put = || {
        if held == Held::OnDisk {
            files.iter().for_each(|file| forget(file))
        }
    };
    put();
    let alone = read_and_hash(&files);
    put();
    let before = used(scratch);
    let start = Instant::now();
    let told = mica(&store, &["store", "reshare", "--all", "--json"]);
    let shared = start.elapsed();
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["files"], files.len(), "all are shared: {told}");
    rustix::fs::syncfs(File::open(scratch).expect("there")).expect("synced");
    let won = before.saturating_sub(used(scratch));
    let one = bytes / CONTAINERS as u64;
    println!(
        "| {what} | {} | {} | {} | {:.0} % | {:.3} |",
        if held == Held::InMemory { "memory" } else { "the disk" },
        rate(bytes, alone),
        rate(bytes, shared),
        100.0 * alone.as_secs_f64() / shared.as_secs_f64(),
        (bytes as f64 - one as f64 - won as f64) / one as f64,
    );
}

/// Takes a file that is on the disk out of the page cache.
fn forget(file: &Path) {
    let file = File::open(file).expect("there");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
}

fn read_and_hash(files: &[PathBuf]) -> Duration {
    let mut buffer = vec![0; 1 << 20];
    let start = Instant::now();
    for file in files {
        let mut file = File::open(file).expect("there");
        let mut hasher = blake3::Hasher::new();
        loop {
            let read = file.read(&mut buffer).expect("read");
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        std::hint::black_box(hasher.finalize());
    }
    start.elapsed()
}

fn mica(store: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mica"));
    let output = command.env("MICA_STORE", store).args(arguments).output().expect("mica starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the scratch directory has a plain name")
}

fn used(path: &Path) -> u64 {
    let told = rustix::fs::statvfs(path).expect("there");
    (told.f_blocks - told.f_bfree) * told.f_frsize
}

fn rate(bytes: u64, time: Duration) -> String {
    format!("{:.2} GB/s", bytes as f64 / time.as_secs_f64() / 1e9)
}
