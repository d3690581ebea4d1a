//! The command line: one file for each verb, and the only place that prints.
//!
//! Owns the grammar, what a person reads, and exit statuses. Must never know system calls:
//! it asks `host` and `doctor`. Nothing here survives the process.

mod arguments;
mod background;
mod bench;
mod commit;
mod container;
mod demo;
mod diff;
mod doctor;
mod explore;
mod info;
mod layer;
mod mistakes;
mod mount;
mod mount_helper;
mod node;
mod output;
mod patch;
mod progress;
mod reference;
mod revert;
mod store;
mod template;
mod umount;
mod why;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use arguments::{Arguments, Verb};
use output::Output;

/// What was asked for is done, and the answer is that something differs or is damaged.
const FOUND: u8 = 1;

/// A failure that Mica told about; mistakes in the grammar end so too.
const FAILED: u8 = 2;

/// What a shell reports of a program that a closed pipe ended.
const BROKEN_PIPE: u8 = 141;

/// Runs `mica` with these arguments, the program's own name first.
///
/// Called as `mount.fuse.mica` or `mount.mica` it is mount(8)'s helper.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let program = arguments.first().and_then(|path| Path::new(path).file_name());
    if program.is_some_and(|name| mount_helper::NAMES.iter().any(|helper| name == *helper)) {
        return mount_helper::run(&arguments);
    }
    if let Some(done) = background::run(&arguments) {
        return report(done);
    }
    report(dispatch(mistakes::parse(&arguments)))
}

/// Tells a failure and chooses the exit status.
fn report(done: Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        let pipe = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
        if pipe.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            // The reader had enough; that is no news to anybody.
            return ExitCode::from(BROKEN_PIPE);
        }
        output::complain(&crate::host::sentence(error.as_ref()));
        ExitCode::from(FAILED)
    })
}

fn dispatch(arguments: Arguments) -> Result<ExitCode> {
    let output = Output::new(arguments.quiet);
    let store = arguments.store;
    match arguments.verb {
        Verb::Template(verb) => template::run(verb, &store, &output),
        Verb::Layer(verb) => layer::run(verb, &store, &output),
        Verb::Mount(wanted) => mount::run(*wanted, &store, &output),
        Verb::Umount(wanted) => umount::run(&wanted, &store, &output),
        Verb::Create(wanted) => container::create::create(&wanted, &store, output),
        Verb::Run(wanted) => container::create::run(&wanted, &store, output),
        Verb::Start(wanted) => container::lifecycle::start(&wanted, &store, output),
        Verb::Stop(wanted) => container::lifecycle::stop(&wanted, &store, output),
        Verb::Restart(wanted) => container::lifecycle::restart(&wanted, &store, output),
        Verb::Pause(wanted) => container::lifecycle::pause(&wanted, &store, output),
        Verb::Resume(wanted) => container::lifecycle::resume(&wanted, &store, output),
        Verb::Enter(wanted) => container::exec::enter(&wanted, &store),
        Verb::Exec(wanted) => container::exec::exec(&wanted, &store),
        Verb::Console(wanted) => container::exec::console(&wanted, &store, output),
        Verb::Logs(wanted) => container::logs::logs(&wanted, &store),
        Verb::Ps(wanted) => container::ps::run(&wanted, &store, output),
        Verb::Top(wanted) => container::top::run(&wanted, &store, output),
        Verb::Set(wanted) => container::set::run(&wanted, &store, output),
        Verb::Rename(wanted) => container::lifecycle::rename(&wanted, &store, output),
        Verb::Copy(wanted) => container::lifecycle::copy(&wanted, &store, output),
        Verb::Delete(wanted) => container::lifecycle::delete(&wanted, &store, output),
        Verb::Events(json) => container::logs::events(json, &store, output),
        Verb::Node(verb) => node::run(&verb, &store, output),
        Verb::Info(wanted) => info::run(&wanted, &store, &output),
        Verb::Diff(wanted) => diff::run(&wanted, &store, &output),
        Verb::Why(wanted) => why::run(&wanted, &store, &output),
        Verb::Commit(wanted) => commit::run(&wanted, &store, &output),
        Verb::Revert(wanted) => revert::run(&wanted, &store, &output),
        Verb::Store(verb) => store::run(verb, &store, &output),
        Verb::Explore(wanted) => {
            explore::container(&wanted, &store)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Doctor(wanted) => doctor::run(&wanted, &store, &output),
        Verb::Demo(wanted) => demo::run(&wanted, &output),
        Verb::Bench(wanted) => bench::run_bench(&wanted, &store, &output),
        Verb::Completions { shell } => done(reference::completions(shell, output)),
        Verb::Man { dir } => done(reference::man(&dir, output)),
    }
}

fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

/// Sends what the modules log to standard error: warnings, or what MICA_LOG asks for.
fn log_to_stderr() {
    log_to_stderr_from("warn");
}

/// What is logged: what RUST_LOG or MICA_LOG asks for, or everything from `level` on.
fn filter(level: &str) -> tracing_subscriber::EnvFilter {
    use tracing_subscriber::EnvFilter;
    let asked = EnvFilter::try_from_env("MICA_LOG").or_else(|_| EnvFilter::try_from_default_env());
    asked.unwrap_or_else(|_| EnvFilter::new(level))
}

/// The daemon logs to standard error too, which is a file of bounded size in the background.
fn log_to_file() {
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter("info"))
        .with_writer(|| crate::host::log::LogWriter)
        .with_ansi(false)
        .try_init();
    // It fails only if logging was started already, which is as good.
    drop(started);
}

/// Sends what the modules log to standard error, from `level` on or what is asked for.
fn log_to_stderr_from(level: &str) {
    let filter = filter(level);
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
    // It fails only if logging was started already, which is as good.
    drop(started);
}
