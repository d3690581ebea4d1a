//! A store, its daemon, and the question whether anything is left of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::support::{Scratch, Store, Succeed, again_until, debian, require_root, unmount_beneath};

/// The template that tests use: a Debian with systemd and a little Python.
pub(crate) const TEMPLATE: &str = "debian-sys:12";

/// A store with a Debian template, and the daemon that has it.
pub(crate) struct Stage {
    pub(crate) store: Store,
    // Goes last: what is still mounted then is unmounted.
    _scratch: Scratch,
    /// Whether the daemon has a network namespace of its own.
    alone: bool,
}

impl Stage {
    /// One whose containers have no network.
    pub(crate) fn new(name: &str) -> Self {
        Self::make(name, false)
    }

    /// One whose daemon lives in a network namespace of its own.
    pub(crate) fn with_network(name: &str) -> Self {
        Self::make(name, true)
    }

    fn make(name: &str, alone: bool) -> Self {
        require_root();
        let scratch = Scratch::new(name);
        let store = Store::at(&scratch.directory("store"));
        stock(store.path());
        let stage = Self { store, _scratch: scratch, alone };
        stage.start_daemon(&[]);
        stage
    }

    /// Starts the daemon, with these variables of the environment.
    pub(crate) fn start_daemon(&self, environment: &[(&str, &str)]) {
        let mica = env!("CARGO_BIN_EXE_mica");
        let mut command = if self.alone {
            let mut command = Command::new("unshare");
            command.args(["--net", mica]);
            command
        } else {
            Command::new(mica)
        };
        command.env("MICA_STORE", self.store.path()).args(["node", "start"]);
        command.envs(environment.iter().copied()).succeed();
    }

    /// Takes from this store's containers what the host's going down would take: the daemon, every
    /// process, every mount. Then starts the daemon under another boot of the host than its files
    /// name.
    pub(crate) fn reboot(&self) {
        let inits: Vec<u64> = self
            .mica(["ps", "-q"])
            .lines()
            .filter_map(|name| self.info(name)["pid"].as_u64())
            .collect();
        self.kill_daemon();
        let store = self.store.path().to_string_lossy().into_owned();
        let own = processes().into_iter().filter(|(_, words)| words.contains(&store));
        let all = own.map(|(pid, _)| u64::from(pid)).chain(inits);
        for pid in all.filter(|pid| *pid != u64::from(std::process::id())) {
            // One may have ended with another.
            let _killed = Command::new("kill").args(["-KILL", &pid.to_string()]).capture();
            self.await_end_of(u32::try_from(pid).expect("a pid"));
        }
        unmount_beneath(self.store.path());
        // Who was started in this boot was so in an earlier one.
        let containers = fs::read_dir(self.store.path().join("containers")).expect("listed");
        for container in containers {
            let file = container.expect("listed").path().join("state.json");
            let text = fs::read(&file).expect("a state");
            let mut state: Value = serde_json::from_slice(&text).expect("JSON");
            assert!(state["boot_id"].is_string(), "{state}");
            state["boot_id"] = "an earlier boot".into();
            fs::write(&file, state.to_string()).expect("written");
        }
        self.start_daemon(&[]);
    }

    /// `mica` with these words at a terminal: whenever it has said the first of a step, the second
    /// is typed. Answers its status and all that it said.
    pub(crate) fn at_terminal(&self, words: &str, steps: &[(&str, &str)]) -> (i32, String) {
        let (mica, store) = (env!("CARGO_BIN_EXE_mica"), self.store.path().display());
        let line = format!("{mica} --store {store} {words}");
        let mut child = Command::new("script")
            .args(["-qefc", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .start();
        let mut typed = child.stdin.take().expect("a pipe");
        let mut out = child.stdout.take().expect("a pipe");
        let (mut said, mut from) = (String::new(), 0);
        let mut steps = steps.iter();
        let mut step = steps.next();
        let mut piece = [0; 4096];
        loop {
            while let Some((wanted, answer)) = step
                && let Some(at) = said[from..].find(wanted)
            {
                from += at + wanted.len();
                typed.write_all(answer.as_bytes()).expect("it listens");
                step = steps.next();
            }
            match out.read(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(count) => said.push_str(&String::from_utf8_lossy(&piece[..count])),
            }
        }
        assert!(step.is_none(), "{words}: waited for {step:?} in {said:?}");
        let status = child.wait().expect("ours").code().expect("it was not killed");
        (status, said)
    }

    /// The daemon's process.
    pub(crate) fn daemon(&self) -> u32 {
        let pid = fs::read_to_string(self.store.path().join("node/lock")).expect("a daemon ran");
        pid.trim().parse().expect("a number")
    }

    /// Ends the daemon as a crash would, and waits until it is gone.
    pub(crate) fn kill_daemon(&self) {
        let pid = self.daemon();
        Command::new("kill").args(["-KILL", &pid.to_string()]).succeed();
        self.await_end_of(pid);
    }

    pub(crate) fn await_end_of(&self, pid: u32) {
        again_until("a process ends", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie is nobody's any more: the test's own init reaps it some time.
            stat.is_empty() || stat.contains(") Z ")
        });
    }

    /// `mica` with these words, which must succeed; answers what it printed.
    pub(crate) fn mica<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String {
        self.store.mica(words).succeed()
    }

    /// `mica` with these words, which must fail; answers what it complained of.
    pub(crate) fn refused<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String {
        self.store.mica(words).refuse()
    }

    /// `mica` with these words, whatever becomes of it.
    pub(crate) fn ask<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Output {
        self.store.mica(words).stdin(Stdio::null()).capture()
    }

    /// Makes a container without a network that runs a command.
    pub(crate) fn create(&self, name: &str, settings: &[&str], command: &[&str]) {
        let mut words = vec!["create", name, TEMPLATE, "network=none"];
        words.extend(settings);
        words.push("--");
        words.extend(command);
        self.mica(words);
    }

    /// What `info --json` says of a container.
    pub(crate) fn info(&self, name: &str) -> Value {
        serde_json::from_str(&self.mica(["info", "--json", name])).expect("JSON")
    }

    /// Waits until `info` of a container satisfies `done`.
    pub(crate) fn await_info(
        &self,
        name: &str,
        what: &str,
        done: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut seen = Value::Null;
        again_until(what, || {
            seen = self.info(name);
            done(&seen)
        });
        seen
    }

    pub(crate) fn phase(&self, name: &str) -> String {
        self.info(name)["phase"].as_str().expect("a phase").to_owned()
    }

    /// Everything that exists because of this store's containers, in words.
    pub(crate) fn left(&self) -> Vec<String> {
        let store = self.store.path().to_string_lossy().into_owned();
        let mut left = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
        left.extend(
            mounts.lines().filter(|line| line.contains(&store)).map(|line| format!("mount {line}")),
        );
        for id in self.known_ids() {
            let mut find = Command::new("find");
            find.args(["/sys/fs/cgroup", "-ignore_readdir_race", "-name", &id, "-type", "d"]);
            let found = find.capture();
            let found = String::from_utf8_lossy(&found.stdout).into_owned();
            left.extend(found.lines().map(|line| format!("cgroup {line}")));
        }
        for (pid, words) in processes() {
            if words.contains(&store) && pid != self.daemon() {
                left.push(format!("process {pid} {words}"));
            }
        }
        for part in ["containers", "roots"] {
            let names = fs::read_dir(self.store.path().join(part)).expect("a part of the store");
            for entry in names {
                let name = entry.expect("listed").file_name().to_string_lossy().into_owned();
                if part == "containers" || name.ends_with(".json") || name.ends_with(".sock") {
                    left.push(format!("{part}/{name}"));
                }
            }
        }
        left
    }

    /// The identities that the daemon's log ever told of.
    fn known_ids(&self) -> Vec<String> {
        let names = fs::read_dir(self.store.path().join("containers"));
        let mut ids: Vec<String> = names
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .map(|name| name.split('.').next().unwrap_or_default().to_owned())
            .collect();
        let kept = fs::read_to_string(self.ids_file()).unwrap_or_default();
        ids.extend(kept.lines().map(str::to_owned));
        ids.sort();
        ids.dedup();
        ids.retain(|id| !id.is_empty());
        fs::write(self.ids_file(), ids.join("\n")).expect("written");
        ids
    }

    fn ids_file(&self) -> PathBuf {
        self.store.path().parent().unwrap_or(Path::new("/")).join("ids")
    }

    /// Remembers which containers there are, for [`Stage::left`].
    pub(crate) fn remember(&self) {
        drop(self.known_ids());
    }

    /// Fails unless nothing is left.
    pub(crate) fn assert_nothing_left(&self, when: &str) {
        let mut left = Vec::new();
        again_until(&format!("nothing is left {when}"), || {
            left = self.left();
            left.is_empty() || left.iter().all(|line| !line.starts_with("process"))
        });
        assert!(left.is_empty(), "{when}: {left:#?}");
    }
}

/// Fills a store with the template: from one that was made once since the program was, whose objects
/// are linked, not copied.
fn stock(store: &Path) {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (stocked, part) = (base.join("supervisor-store"), base.join("supervisor-store.part"));
    let lock = File::create(base.join("supervisor-store.lock")).expect("a lock can be made");
    flock(&lock, FlockOperation::LockExclusive).expect("it is ours in the end");
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let mica = changed(Path::new(env!("CARGO_BIN_EXE_mica")));
    if changed(&stocked.join("stocked")) < mica {
        for old in [&stocked, &part] {
            if old.exists() {
                fs::remove_dir_all(old).expect("nobody uses it");
            }
        }
        let root =
            debian("system", "systemd-sysv,dbus,iproute2,python3-minimal,procps,iputils-ping");
        Store::at(&part).import(TEMPLATE, &root);
        // What is immutable is not linked to either.
        Command::new("chattr").args(["-R", "-f", "-i"]).arg(&part).succeed();
        fs::write(part.join("stocked"), b"").expect("written");
        fs::rename(&part, &stocked).expect("nothing is there");
    }
    for entry in fs::read_dir(&stocked).expect("it is there") {
        let entry = entry.expect("listed");
        let how = if entry.file_name() == "objects" { "-al" } else { "-a" };
        Command::new("cp").arg(how).arg(entry.path()).arg(store).succeed();
    }
    Command::new("chmod").arg("--reference").arg(&stocked).arg(store).succeed();
}

/// Every process with its words.
pub(crate) fn processes() -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").expect("proc is mounted");
    let process = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&words).replace('\0', " ")))
    };
    entries.filter_map(|entry| process(entry.ok()?)).collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.store.path().join("node/log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(40);
            eprintln!("the daemon's log ends:\n{}", lines[last..].join("\n"));
        }
        // Where it meets other daemons, if it has a network of its own.
        let namespace = fs::metadata(format!("/proc/{}/ns/net", self.daemon()));
        // A daemon takes its containers down best; one may have to be started for that.
        for words in [
            &["node", "start"][..],
            &["delete", "--all", "--force"],
            &["node", "stop", "--containers"],
        ] {
            let done = self.store.mica(words.iter().copied()).capture();
            if !done.status.success() && words != ["delete", "--all", "--force"] {
                eprintln!("{words:?}: {}", String::from_utf8_lossy(&done.stderr));
            }
        }
        if let (true, Ok(namespace)) = (self.alone, namespace) {
            let met = format!("/run/mica/network-{}", namespace.ino());
            // Not there unless a container had a network.
            let _removed = fs::remove_dir_all(met);
        }
        let store = self.store.path().to_string_lossy().into_owned();
        for (pid, words) in processes() {
            if words.contains(&store) && pid != std::process::id() {
                eprintln!("killed: {pid} {words}");
                let _killed = Command::new("kill").args(["-KILL", &pid.to_string()]).capture();
            }
        }
    }
}
