//! How long do questions about a large store take?
//!
//! 100 templates of 100,000 files each, which share 95 % of their contents, and 1,000 roots at
//! rest with 300 changes each. Each question is asked by a process of its own, whose whole life is
//! timed; the mark is 50 ms for `who-has`, from a warm page cache. The first question after the
//! index was lost, which makes it again, is timed too.
//!
//! `-- --quick` asks a store of a hundredth of that; `MICA_BENCH_SCRATCH` names the disk.

#[path = "support/synthetic.rs"]
mod synthetic;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use synthetic::{Sizes, Synthetic, content, path};

const FULL: Sizes = Sizes { templates: 100, files: 100_000, roots: 1000, changes: 300 };
const QUICK: Sizes = Sizes { templates: 10, files: 10_000, roots: 100, changes: 30 };
const ROUNDS: usize = 21;
const MARK: Duration = Duration::from_millis(50);

fn main() {
    let sizes = if std::env::args().any(|argument| argument == "--quick") { QUICK } else { FULL };
    let base = std::env::var_os("MICA_BENCH_SCRATCH")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let scratch = base.join(format!("bench-inspect-{}", std::process::id()));
    fs::create_dir_all(&scratch).expect("a scratch directory can be made");
    let result = std::panic::catch_unwind(|| measure(&scratch, sizes));
    fs::remove_dir_all(&scratch).expect("the scratch directory can be removed");
    if result.is_err() {
        std::process::exit(1);
    }
}

fn measure(scratch: &Path, sizes: Sizes) {
    let kernel = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = kernel.release().to_string_lossy();
    println!("Linux {kernel}, {cores} cores, {sizes:?}");
    let start = Instant::now();
    let made = Synthetic::make(scratch, sizes);
    rustix::fs::syncfs(fs::File::open(scratch).expect("there")).expect("synced");
    println!("made in {:.0?}; load {}", start.elapsed(), load());
    let bench = Bench { store: &made.store };

    let library = path(7);
    let shared = content(0, 8).to_string();
    let own = content(3, 23).to_string();
    let everywhere = mica::object::ObjectId::of(b"3 everywhere").to_string();
    let one = mica::object::ObjectId::of(b"4 of 7").to_string();
    bench.once("who-has, no index", &["store", "who-has", &library]);
    bench.once("who-has --scan, all private files", &["store", "who-has", "--scan", &library]);
    for (what, arguments) in [
        ("a path, 6 contents, all roots", ["store", "who-has", library.as_str()]),
        ("a content that all have", ["store", "who-has", &shared]),
        ("a content of few templates", ["store", "who-has", &own]),
        ("a private file of all roots", ["store", "who-has", &everywhere]),
        ("a private file of one root", ["store", "who-has", &one]),
        (
            "a path that roots changed beside",
            ["store", "who-has", "/etc/package2/part20/file-1000.conf"],
        ),
        ("nobody's content", ["store", "who-has", &"0".repeat(64)]),
    ] {
        bench.rounds(what, &arguments, Some(MARK));
    }
    bench.rounds("versions of libssl*", &["store", "who-has", "--versions", "libssl*"], None);
    bench.rounds("store df", &["store", "df"], None);
    bench.rounds("template diff", &["template", "diff", "--stat", "debian:1", "debian:2"], None);
    bench.rounds("diff of a root", &["diff", "root5"], None);
    let start = Instant::now();
    fs::remove_dir_all(made.store.join("index")).expect("there is one");
    println!("(the index is deleted in {:.0?})", start.elapsed());
    bench.once("who-has, index lost", &["store", "who-has", &library]);
    println!("load {}", load());
}

struct Bench<'a> {
    store: &'a Path,
}

impl Bench<'_> {
    /// Runs it once, and returns how long that took and the processor time it used.
    fn run(&self, arguments: &[&str]) -> (Duration, Duration) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mica"));
        command.env("MICA_STORE", self.store).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let before = processor_time();
        let start = Instant::now();
        let output = command.output().expect("mica runs");
        let elapsed = start.elapsed();
        assert!(
            output.status.code().is_some_and(|code| code < 2),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        (elapsed, processor_time().saturating_sub(before))
    }

    fn once(&self, what: &str, arguments: &[&str]) {
        let (wall, processor) = self.run(arguments);
        println!("{what:<40} {:>9.1} ms once, {:.1} ms of processor", ms(wall), ms(processor));
    }

    fn rounds(&self, what: &str, arguments: &[&str], mark: Option<Duration>) {
        self.run(arguments);
        let mut times: Vec<(Duration, Duration)> = Vec::new();
        let start = Instant::now();
        while times.len() < ROUNDS && (times.len() < 3 || start.elapsed().as_secs() < 20) {
            times.push(self.run(arguments));
        }
        let mut wall: Vec<Duration> = times.iter().map(|(wall, _)| *wall).collect();
        wall.sort_unstable();
        // Counted in ticks of 10 ms: only the mean says something.
        let processor = times.iter().map(|(_, time)| time.as_secs_f64()).sum::<f64>() * 1000.0;
        let processor = processor / times.len() as f64;
        let median = wall[wall.len() / 2];
        let verdict = match mark {
            Some(mark) if median <= mark => ", reached",
            Some(_) => ", missed",
            None => "",
        };
        println!(
            "{what:<40} {:>9.1} ms ({:.1} to {:.1}), {:.1} ms of processor{verdict}",
            ms(median),
            ms(wall[0]),
            ms(wall[wall.len() - 1]),
            processor,
        );
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What the processes that this one waited for have used.
fn processor_time() -> Duration {
    // Fields 16 and 17 of proc_pid_stat(5), in ticks; the name before may hold blanks.
    let stat = fs::read_to_string("/proc/self/stat").expect("proc is mounted");
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64((ticks(13) + ticks(14)) as f64 / per_second as f64)
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
