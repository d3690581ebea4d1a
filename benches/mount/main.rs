//! What does a root cost beside kernel overlayfs, a plain directory and fuse-overlayfs?
//!
//! Answers every row of the table in docs/PERFORMANCE.md, with all peers in turns in one run.
//!
//! ```text
//! cargo bench --bench mount                   all rows, about ten minutes, 5 GiB of disk
//! cargo bench --bench mount -- --quick        the same rows, smaller
//! cargo bench --bench mount -- --only first   the sections whose name holds "first"
//!     --json FILE      where the figures go     --scratch DIR    on the disk to measure
//!     --nice N         priority of everything measured (setpriority(2); -20 is the highest)
//! ```
//!
//! Needs root. Drops the machine's page cache. Runs in a mount and a process namespace of its
//! own, so that mounts, loop devices and processes end with it, however it ends.

mod suite;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use mica::sys::signal::Termination;
use rustix::process::{Pid, Signal, kill_process};
use suite::{Settings, Sizes};

/// Says to the program that it is in its own namespaces, and where its scratch directory is.
const INSIDE: &str = "MICA_BENCH_INSIDE";

fn main() -> ExitCode {
    let settings = match settings() {
        Ok(settings) => settings,
        Err(reason) => {
            eprintln!("mount: {reason}");
            return ExitCode::from(2);
        }
    };
    if std::env::var_os(INSIDE).is_some() {
        suite::run(&settings);
        return ExitCode::SUCCESS;
    }
    match isolated(&settings.scratch) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mount: {error}");
            ExitCode::FAILURE
        }
    }
}

fn settings() -> Result<Settings, String> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut settings = Settings {
        // Without --bench it is `cargo test --benches` that calls: see that it works.
        sizes: Sizes::TINY,
        only: None,
        json: target.join("mount-bench.json"),
        scratch: target,
        nice: 0,
    };
    let mut arguments = std::env::args().skip(1);
    let mut sizes = None;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--bench" => settings.sizes = Sizes::FULL,
            "--quick" => sizes = Some(Sizes::QUICK),
            "--tiny" => sizes = Some(Sizes::TINY),
            "--only" => settings.only = Some(value()?),
            "--json" => settings.json = absolute(&value()?)?,
            "--scratch" => settings.scratch = absolute(&value()?)?,
            "--nice" => settings.nice = value()?.parse().map_err(|_| "--nice takes a number")?,
            _ => return Err(format!("no such option: {argument}; see benches/mount/main.rs")),
        }
    }
    settings.sizes = sizes.unwrap_or(settings.sizes);
    if !rustix::process::geteuid().is_root() {
        return Err("mounting needs root; run it as root".to_owned());
    }
    Ok(settings)
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{path}: {error}"))
}

/// Runs this program again in namespaces of its own, and removes its scratch directory.
fn isolated(base: &Path) -> std::io::Result<ExitCode> {
    sweep(base);
    let termination = Termination::block()?;
    let scratch = base.join(format!("mount-bench-{}", std::process::id()));
    std::fs::create_dir_all(scratch.join("tmp"))?;
    // The shell is the first process of the namespace and reaps what is left to it. /tmp is
    // where the guards put mountpoints.
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", r#"mount --bind "$0/tmp" /tmp && "$@"; exit $?"#])
        .arg(&scratch)
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, &scratch)
        .env("MICA_TEST_SCRATCH", &scratch)
        .stdin(Stdio::null())
        .spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    std::thread::spawn(move || {
        if termination.wait().is_ok()
            && let Some(pid) = pid
        {
            // It fails only when there is nothing left to end.
            let _killed = kill_process(pid, Signal::KILL);
        }
    });
    let status = child.wait()?;
    remove(&scratch);
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Removes what a run left that was killed outright.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("mount-bench-"));
        if owner
            .is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
        {
            remove(&entry.path());
        }
    }
}

/// Removes a scratch directory; objects in it are immutable files.
fn remove(scratch: &Path) {
    let cleared = Command::new("chattr").args(["-R", "-f", "-i"]).arg(scratch).status();
    if let Err(error) = cleared.and_then(|_| std::fs::remove_dir_all(scratch)) {
        eprintln!("mount: cannot remove {}: {error}", scratch.display());
    }
}
