//! The daemon, its command line, and what its processes take.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Scratch, Succeed, again_until};

/// The template of everything here.
pub(crate) const TEMPLATE: &str = "debian-sys:12";

/// Which `mica` is measured.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("MICA_BENCH_PROGRAM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mica")), PathBuf::from)
}

/// A store and its daemon. Dropping it ends both.
pub(crate) struct Node {
    store: PathBuf,
    /// The memory group of the daemon, its monitors and its mount processes.
    group: Option<PathBuf>,
}

impl Node {
    pub(crate) fn start(scratch: &Scratch, tar: &Path) -> Self {
        Command::new("ip").args(["link", "set", "lo", "up"]).succeed();
        let group = Path::new("/sys/fs/cgroup/memory");
        let group = group.join(format!("mica-bench-{}", std::process::id()));
        // Without such a hierarchy the kernel's part is not told.
        let group = fs::create_dir(&group).ok().map(|()| group);
        let node = Self { store: scratch.path().join("store"), group };
        node.mica().args(["template", "import", TEMPLATE]).arg(tar).succeed();
        node.mica().args(["template", "warm", TEMPLATE]).succeed();
        node.start_daemon();
        node
    }

    pub(crate) fn mica(&self) -> Command {
        let mut command = Command::new(program());
        command.env("MICA_STORE", &self.store).stdin(Stdio::null());
        command
    }

    /// `mica` with these words, which must succeed.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        self.mica().args(words).succeed()
    }

    pub(crate) fn start_daemon(&self) {
        let mut command = Command::new("sh");
        command.arg("-c").arg("[ -z \"$GROUP\" ] || echo 0 > \"$GROUP/cgroup.procs\"; exec \"$@\"");
        command.arg("sh").arg(program()).args(["node", "start"]);
        command.env("MICA_STORE", &self.store);
        command.env("GROUP", self.group.clone().unwrap_or_default()).succeed();
    }

    pub(crate) fn daemon(&self) -> u32 {
        let pid = fs::read_to_string(self.store.join("node/lock")).expect("a daemon ran");
        pid.trim().parse().expect("a number")
    }

    /// Ends the daemon as a crash would.
    pub(crate) fn kill_daemon(&self) {
        let pid = self.daemon();
        Command::new("kill").args(["-KILL", &pid.to_string()]).succeed();
        again_until("the daemon is gone", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        });
    }

    /// The processes of this store whose words have `verb`.
    pub(crate) fn processes(&self, verb: &str) -> Vec<u32> {
        let store = self.store.to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").expect("proc is mounted").flatten();
        let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
        let ours = |pid: &u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains(&store) && words.contains(verb)
        };
        entries.filter_map(pid).filter(ours).collect()
    }

    /// Bytes of kernel memory of the daemon's group: what its processes and its mounts take there.
    pub(crate) fn kernel_bytes(&self) -> Option<u64> {
        let file = self.group.as_ref()?.join("memory.kmem.usage_in_bytes");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for words in [&["delete", "--all", "--force"][..], &["node", "stop", "--containers"]] {
            let done = self.mica().args(words).capture();
            if !done.status.success() && std::thread::panicking() {
                eprintln!("{words:?}: {}", String::from_utf8_lossy(&done.stderr));
            }
        }
        if let Some(group) = &self.group {
            again_until("the group is empty", || fs::remove_dir(group).is_ok());
        }
    }
}

/// A field of a process's smaps_rollup or status, in bytes.
pub(crate) fn memory(pid: u32, file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
