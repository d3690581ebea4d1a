//! Programs that are killed at every single step, by strace(1).

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::Succeed;

/// What changes a private directory or a store.
const CALLS: [&str; 21] = [
    "renameat",
    "renameat2",
    "unlinkat",
    "linkat",
    "mknodat",
    "mkdirat",
    "symlinkat",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "ftruncate",
    "fchmod",
    "fchmodat",
    "fchownat",
    "utimensat",
    "fsync",
    "fdatasync",
    "syncfs",
    "pwrite64",
    "write",
];

/// Where a process is killed: when it is about to make a call of a kind for the n-th time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    kind: usize,
    at: usize,
}

impl Step {
    /// Calls `run` with each step that there is; that tells whether the process came through.
    /// Returns how many there were.
    pub(crate) fn each(every: usize, mut run: impl FnMut(Self) -> bool) -> usize {
        let mut steps = 0;
        for kind in 0..CALLS.len() {
            // Not always the first of a kind.
            let mut at = 1 + steps % every;
            while !run(Self { kind, at }) {
                at += every;
                steps += 1;
            }
        }
        steps
    }

    /// strace, told to kill there.
    pub(crate) fn strace(self) -> Command {
        let (call, at) = (CALLS[self.kind], self.at);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-e"]).arg(format!("trace={call}"));
        strace.arg("-e").arg(format!("inject={call}:signal=SIGKILL:when={at}"));
        strace
    }

    /// Runs `command` up to this step; true if it came to an end before, and that well.
    pub(crate) fn cut(self, command: &Command) -> bool {
        let mut strace = self.strace();
        strace.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => strace.env(name, value),
                None => strace.env_remove(name),
            };
        }
        let ended = strace.capture();
        if ended.status.signal() == Some(9) {
            return false;
        }
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        true
    }
}
