//! Running the programs that are measured, or that make what is measured.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::error::{BenchError, Result};

/// Where programs of the host are, whatever PATH says.
const DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// As much of what a failed program said as goes into a sentence.
const SAID: usize = 400;

/// A program of the host, with nothing on its standard streams.
pub(super) fn tool(name: &str) -> Command {
    let path = DIRECTORIES.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
    let mut command = Command::new(path.unwrap_or_else(|| name.into()));
    command.stdin(Stdio::null()).env("PATH", DIRECTORIES.join(":")).env("LC_ALL", "C.UTF-8");
    command
}

/// Whether the host has a program.
pub(super) fn has(name: &str) -> bool {
    DIRECTORIES.iter().any(|dir| Path::new(dir).join(name).is_file())
}

/// A program inside a root, by chroot.
pub(super) fn inside(root: &Path, program: &[&str]) -> Command {
    let mut command = tool("chroot");
    command.arg(root).args(program).env_clear();
    command.env("PATH", DIRECTORIES.join(":")).env("HOME", "/root").env("LC_ALL", "C.UTF-8");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Whether a root has a program, where programs are.
pub(super) fn has_inside(root: &Path, name: &str) -> bool {
    let found = |dir: &&str| {
        let path = root.join(dir.trim_start_matches('/')).join(name);
        std::fs::symlink_metadata(path).is_ok()
    };
    DIRECTORIES.iter().any(found)
}

/// Runs it to its end; returns what it said.
///
/// # Errors
/// [`BenchError::Program`] unless it succeeds.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let words = std::iter::once(command_name(command));
    let words = words.chain(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    let program = words.collect::<Vec<_>>().join(" ");
    let failed = |status: String, said: String| BenchError::Program { program, status, said };
    // No handle is kept open for a child that lives on in the background.
    let Output { status, stdout, stderr } = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => return Err(failed("it cannot be started".to_owned(), error.to_string())),
    };
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr);
    let said: Vec<char> = said.trim().chars().collect();
    let end = said.len().saturating_sub(SAID);
    Err(failed(status.to_string(), said[end..].iter().collect()))
}

fn command_name(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Runs it to its end with all it says thrown away: for what is timed.
///
/// # Errors
/// [`BenchError::Program`] unless it succeeds.
pub(super) fn silently(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        // Once more, to hear why.
        _failed => run(command.stdout(Stdio::piped()).stderr(Stdio::piped())).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_told_with_what_it_said() {
        let error = run(tool("sh").args(["-c", "echo why >&2; exit 3"])).expect_err("it fails");
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("why"), "{text}");
        assert_eq!(run(tool("echo").arg("said")).expect("it runs"), "said\n");
        assert!(run(&mut tool("no-such-program")).is_err());
    }
}
