//! The `mica` command, and mount(8)'s helper `mount.fuse.mica`.

fn main() -> std::process::ExitCode {
    mica::cli::run(std::env::args_os())
}
