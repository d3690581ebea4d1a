//! Running programs and showing all they said when one fails.

use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// Held while a program is being started.
///
/// Until it executes, a new process has every descriptor of this one: files that another thread of
/// the test closes meanwhile stay open, their locks held, and what is being written cannot be
/// executed. With one start at a time, none is half done when the next one is.
static STARTING: Mutex<()> = Mutex::new(());

/// Does `work` while no program is being started: nobody else gets a descriptor of it.
///
/// For files that are written to be executed and locks that are given up by closing. `work` itself
/// must start nothing.
pub(crate) fn while_nobody_starts<T>(work: impl FnOnce() -> T) -> T {
    let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// The `mica` program that cargo built for this test.
pub(crate) fn mica() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mica"));
    command.stdin(Stdio::null()).env_remove("MICA_STORE");
    command
}

/// Fails the test at once, with the reason, unless it runs as root with /dev/fuse.
///
/// These journeys mount file systems; where that is impossible they must be red, not skipped.
pub(crate) fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts file systems: run it as root");
    assert!(std::path::Path::new("/dev/fuse").exists(), "this test needs /dev/fuse");
}

/// Runs a command that has to succeed, or has to fail.
pub(crate) trait Succeed {
    /// Runs it and returns its standard output; panics with everything it said if it failed.
    fn succeed(&mut self) -> String;

    /// Runs what looks for differences and returns its standard output; panics unless it ended
    /// with 0 or 1, which say whether there are any.
    fn answer(&mut self) -> String;

    /// Runs it and returns its standard error; panics if it succeeded or was killed.
    fn refuse(&mut self) -> String;

    /// Runs it without judging, keeping standard output and error.
    fn capture(&mut self) -> Output;

    /// Starts it, when no other program is being started.
    fn start(&mut self) -> Child;
}

impl Succeed for Command {
    fn succeed(&mut self) -> String {
        let output = self.capture();
        assert!(output.status.success(), "{}", told(self, &output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn answer(&mut self) -> String {
        let output = self.capture();
        let answered = output.status.code().is_some_and(|code| code < 2);
        assert!(answered, "{}", told(self, &output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn refuse(&mut self) -> String {
        let output = self.capture();
        let refused = output.status.code().is_some_and(|code| code != 0);
        assert!(refused, "should have been refused: {}", told(self, &output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn capture(&mut self) -> Output {
        self.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match self.start().wait_with_output() {
            Ok(output) => output,
            Err(error) => panic!("cannot hear {self:?}: {error}"),
        }
    }

    fn start(&mut self) -> Child {
        match while_nobody_starts(|| self.spawn()) {
            Ok(child) => child,
            Err(error) => panic!("cannot start {self:?}: {error}"),
        }
    }
}

fn told(command: &Command, output: &Output) -> String {
    format!(
        "{command:?}: {}\n--- stdout\n{}--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )
}
