//! How long does it take to collect a million objects, and in how much memory?
//!
//! One store of a million immutable objects of one block each: half of them belong to ten
//! templates, nobody refers to the others. `mica store gc --dry-run` (marking, and looking at what
//! would go), then `mica store gc`, each a process of its own whose whole life is timed and whose
//! largest resident size is read. Peer: `rm -rf` of as many files of the same size from the same
//! 256 directories, which have no immutable flag to lose.
//!
//! `-- --quick` collects a hundredth of that; `MICA_BENCH_SCRATCH` names the disk.

#[path = "support/synthetic.rs"]
mod synthetic;

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mica::object::ObjectId;
use mica::sys::flags::set_immutable;
use synthetic::{Sizes, Synthetic};

const FULL: u64 = 1_000_000;
const QUICK: u64 = 10_000;
const TEMPLATES: u64 = 10;
const MARK: Duration = Duration::from_secs(30);

fn main() {
    let objects = if std::env::args().any(|argument| argument == "--quick") { QUICK } else { FULL };
    let base = std::env::var_os("MICA_BENCH_SCRATCH")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let scratch = base.join(format!("bench-collect-{}", std::process::id()));
    fs::create_dir_all(&scratch).expect("a scratch directory can be made");
    let result = std::panic::catch_unwind(|| measure(&scratch, objects));
    let unlocked = Command::new("chattr").args(["-R", "-f", "-i"]).arg(&scratch).status();
    // A file that is gone already is none of its concern.
    unlocked.expect("chattr runs");
    fs::remove_dir_all(&scratch).expect("the scratch directory can be removed");
    if result.is_err() {
        std::process::exit(1);
    }
}

fn measure(scratch: &Path, objects: u64) {
    let kernel = rustix::system::uname();
    println!("Linux {}, {objects} objects", kernel.release().to_string_lossy());
    let start = Instant::now();
    // A twentieth of each template's files is its own.
    let files = objects / 2 * 20 / (19 + TEMPLATES);
    let sizes = Sizes { templates: TEMPLATES, files, roots: 0, changes: 0 };
    let made = Synthetic::make(scratch, sizes);
    let alive = fill(&made.store.join("objects"));
    let peer = scratch.join("peer");
    for number in alive..objects {
        let hex = ObjectId::of(format!("nobody's {number}").as_bytes()).to_string();
        write_object(&made.store.join("objects").join(&hex[..2]), &hex[2..], true);
        write_object(&peer.join(&hex[..2]), &hex[2..], false);
    }
    let dead = objects - alive;
    sync(scratch);
    println!("made in {:.0?}: {alive} alive, {dead} dead", start.elapsed());

    collect(&made.store, "marked and counted", &["store", "gc", "--dry-run", "--json"], dead);
    let took = collect(&made.store, "marked and swept", &["store", "gc", "--json"], dead);
    sync(scratch);
    let start = Instant::now();
    let removed = Command::new("rm").arg("-rf").arg(&peer).status().expect("rm runs");
    assert!(removed.success());
    println!("{:<24} {:>7.2} s", "rm -rf of the dead", start.elapsed().as_secs_f64());
    if objects == FULL {
        let verdict = if took <= MARK { "reached" } else { "missed" };
        println!("the mark of {} s is {verdict}", MARK.as_secs());
    }
}

/// Runs `mica`, prints what it cost, and checks what it counted.
fn collect(store: &Path, what: &str, arguments: &[&str], dead: u64) -> Duration {
    let start = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mica"));
    command.args(arguments).env("MICA_STORE", store);
    let output = command.stdin(Stdio::null()).output().expect("mica runs");
    let took = start.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(answer["objects"], dead, "{answer}");
    println!("{what:<24} {:>7.2} s, largest resident {}", took.as_secs_f64(), largest_resident());
    took
}

/// Gives every object a block of data and the immutable flag; answers how many there are.
fn fill(objects: &Path) -> u64 {
    let mut filled = 0;
    for directory in fs::read_dir(objects).expect("listed") {
        let directory = directory.expect("listed").path();
        for name in fs::read_dir(&directory).expect("listed") {
            let name = name.expect("listed").file_name();
            write_object(&directory, name.to_str().expect("a digest"), true);
            filled += 1;
        }
    }
    filled
}

fn write_object(directory: &Path, name: &str, immutable: bool) {
    if !directory.exists() {
        fs::create_dir_all(directory).expect("a directory");
    }
    let path = directory.join(name);
    fs::write(&path, [7; 512]).expect("written");
    if immutable {
        let file = fs::File::open(&path).expect("opened");
        let _flagged = set_immutable(file.as_fd(), true).expect("flagged, or refused by the host");
    }
}

fn sync(scratch: &Path) {
    rustix::fs::syncfs(fs::File::open(scratch).expect("there")).expect("synced");
}

/// The largest resident size of the children so far: nothing but `mica` has run.
fn largest_resident() -> String {
    format!("{:.1} MiB", mica::sys::process::largest_child_bytes() as f64 / (1 << 20) as f64)
}
