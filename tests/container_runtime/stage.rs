//! A store with a Debian root, and containers on it that leave nothing behind.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use mica::container::bundle::{Bundle, Created, Exit, Observed};
use mica::container::cgroup::{Cgroup, Delegation, Layout};
use mica::container::config::{ContainerConfig, ContainerId, Kind, RuntimeChoice, Volume};
use mica::container::idmap::IdRange;
use mica::container::log;
use mica::container::runtime::{self, ExecRequest, Runtime, RuntimeError};
use mica::container::spec::{CgroupPlace, Inputs, NetworkNamespace, write_bundle};
use mica::sys::namespace::Process;

use crate::support::{
    MountOptions, Mounted, PATIENCE, Scratch, Store, Succeed, debian, require_root,
};

/// Runs each function for the embedded runtime and for runc, as tests of those names.
macro_rules! with_both {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[test] fn $name() { super::$name(crate::stage::EMBEDDED); })+
        }
        mod runc {
            $(#[test] fn $name() { super::$name(crate::stage::RUNC); })+
        }
    };
}
pub(crate) use with_both;

pub(crate) const EMBEDDED: &str = "embedded";
pub(crate) const RUNC: &str = "runc";

/// What the template `podman` has.
pub(crate) const PODMAN: &str = "systemd-sysv,dbus,podman,runc,busybox-static";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A store with the template `debian`.
pub(crate) struct Ground {
    pub(crate) store: Store,
    pub(crate) scratch: Scratch,
    /// Nobody else's: the host's cgroups are shared by runs that each count processes from one.
    number: u64,
}

impl Ground {
    /// Adds the template `podman` or `docker`, which only their own tests need.
    fn import(&self, template: &str) {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.store.mica(["template", "show", template]).capture().status.success() {
            return;
        }
        let packages = match template {
            "docker" => "systemd-sysv,dbus,docker.io,runc,iptables,busybox-static,iproute2",
            _ => PODMAN,
        };
        self.store.import(template, &debian(template, packages));
    }
}

fn delegation(config: &ContainerConfig) -> Delegation {
    if config.nesting { Delegation::Nesting } else { Delegation::Held }
}

/// The one that every test of this program shares, as long as one needs it.
pub(crate) fn ground() -> Arc<Ground> {
    static SHARED: Mutex<Weak<Ground>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(ground) = shared.upgrade() {
        return ground;
    }
    require_root();
    let scratch = Scratch::new("container-runtime");
    let store = Store::at(&scratch.directory("store"));
    store.import(
        "debian",
        &debian("system", "systemd-sysv,dbus,iproute2,python3-minimal,procps,iputils-ping"),
    );
    let ground = Arc::new(Ground { store, scratch, number: fastrand::u64(..) });
    *shared = Arc::downgrade(&ground);
    ground
}

/// What is different about a container.
pub(crate) struct Wish<'a> {
    pub(crate) kind: Kind,
    pub(crate) settings: &'a [(&'a str, &'a str)],
    pub(crate) command: &'a [&'a str],
    pub(crate) files: Vec<Volume>,
    pub(crate) network: NetworkNamespace,
    pub(crate) template: &'a str,
}

impl<'a> Wish<'a> {
    pub(crate) fn application(command: &'a [&'a str]) -> Self {
        Self {
            kind: Kind::Application,
            settings: &[],
            command,
            files: Vec::new(),
            network: NetworkNamespace::Own,
            template: "debian",
        }
    }

    pub(crate) fn system() -> Self {
        Self { kind: Kind::System, ..Self::application(&[]) }
    }

    pub(crate) fn with(mut self, settings: &'a [(&'a str, &'a str)]) -> Self {
        self.settings = settings;
        self
    }
}

/// A container. Dropping it removes every trace.
pub(crate) struct Cell {
    pub(crate) config: ContainerConfig,
    pub(crate) bundle: Bundle,
    pub(crate) runtime: Box<dyn Runtime>,
    pub(crate) cgroup: Cgroup,
    pub(crate) range: Option<IdRange>,
    pub(crate) log: PathBuf,
    pub(crate) root: Mounted,
    pub(crate) directory: PathBuf,
    _ground: Arc<Ground>,
}

impl Cell {
    /// Prepared, not created.
    pub(crate) fn prepare(runtime: &str, wish: Wish<'_>) -> Self {
        let ground = ground();
        if wish.template != "debian" {
            ground.import(wish.template);
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cell{number}");
        let directory = ground.scratch.directory(&name);
        let mountpoint = ground.scratch.mountpoint(&name);
        let private = directory.join("private");
        let options = MountOptions::private(&private);
        let root = ground.store.mount(wish.template, &mountpoint, &options);
        let id = ContainerId::random().unwrap();
        let mut config = ContainerConfig::new(id, name.parse().unwrap(), wish.template, wish.kind);
        config.set("runtime", runtime).unwrap();
        config.command = wish.command.iter().map(|word| (*word).to_owned()).collect();
        for (key, value) in wish.settings {
            config.set(key, value).unwrap();
        }
        assert_eq!(config.check(), []);
        let of_host =
            config.privileged || config.userns == mica::container::config::UserNamespace::Host;
        let offset = u32::try_from(number).unwrap() * 65_536;
        let range = (!of_host).then(|| IdRange::new(0x4000_0000 + offset, 65_536).unwrap());
        let layout = Layout::detect().unwrap();
        let path = format!("mica-test-{:016x}/{name}", ground.number).parse().unwrap();
        let cgroup = Cgroup::create(&layout, path).unwrap();
        if let Some(range) = range {
            cgroup.delegate(range.first(), range.first(), delegation(&config)).unwrap();
        }
        let log = directory.join("log");
        let inputs = Inputs {
            config: &config,
            root: root.path(),
            range,
            cgroup: &CgroupPlace::of(&layout, &cgroup),
            network: wish.network,
            files: &wish.files,
            log: &log,
        };
        let bundle = write_bundle(&directory.join("bundle"), &inputs).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_mica"));
        let runtime = runtime::open(&config.runtime, program).unwrap();
        Self { config, bundle, runtime, cgroup, range, log, root, directory, _ground: ground }
    }

    /// Created and started.
    pub(crate) fn start(runtime: &str, wish: Wish<'_>) -> Self {
        let cell = Self::prepare(runtime, wish);
        cell.create();
        cell.runtime.start(&cell.bundle).unwrap();
        cell
    }

    pub(crate) fn create(&self) -> Created {
        self.make_cgroup();
        self.runtime.create(&self.bundle).unwrap_or_else(|error| panic!("create: {error}"))
    }

    pub(crate) fn make_cgroup(&self) {
        // What an earlier life made in it is in the way of a runtime's device rules.
        self.cgroup.remove().unwrap();
        let layout = Layout::detect().unwrap();
        let cgroup = Cgroup::create(&layout, self.cgroup.path().clone()).unwrap();
        if let Some(range) = self.range {
            cgroup.delegate(range.first(), range.first(), delegation(&self.config)).unwrap();
        }
    }

    /// The init.
    pub(crate) fn init(&self) -> Created {
        let observed = self.bundle.observe().unwrap();
        let Observed::Running { created, watched: true } = observed else {
            panic!("not running: {observed:?}; its log:\n{}", self.output())
        };
        created
    }

    /// How it ended, once it has.
    pub(crate) fn exit(&self) -> Exit {
        if let Observed::Running { created, .. } = self.bundle.observe().unwrap()
            && let Ok(init) = Process::open(created.pid, created.start_ticks)
        {
            wait_for(&init);
        }
        let observed = self.bundle.observe().unwrap();
        let Observed::Exited(exit) = observed else { panic!("no exit but {observed:?}") };
        exit
    }

    /// Everything in the log.
    pub(crate) fn output(&self) -> String {
        let mut text = Vec::new();
        for file in log::files(&self.log, self.config.logs) {
            for line in fs::read(file).unwrap_or_default().split(|byte| *byte == b'\n') {
                let Some(line) = log::parse(line) else { continue };
                text.extend(&line.text);
                if line.whole {
                    text.push(b'\n');
                }
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Runs a command; its status, output and errors.
    pub(crate) fn exec_with(&self, request: &ExecRequest, input: &str) -> (i32, String, String) {
        let exec = self.runtime.exec(&self.bundle, request).unwrap();
        let mut child = exec.child;
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// Runs a shell script as root inside.
    pub(crate) fn shell(&self, script: &str) -> (i32, String, String) {
        let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        self.exec_with(&ExecRequest { args, ..ExecRequest::default() }, "")
    }

    /// The same, which has to succeed; its output without the last line's end.
    pub(crate) fn run(&self, script: &str) -> String {
        let (status, output, errors) = self.shell(script);
        assert_eq!(status, 0, "{script}: {output}{errors}");
        output.trim_end().to_owned()
    }

    pub(crate) fn delete(&self) -> Result<(), RuntimeError> {
        self.runtime.delete(&self.bundle, true)
    }

    pub(crate) fn is_embedded(&self) -> bool {
        self.config.runtime == RuntimeChoice::Embedded
    }
}

/// Waits until a process has ended.
pub(crate) fn wait_for(process: &Process) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let patience = rustix::time::Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "it does not end");
}

impl Drop for Cell {
    fn drop(&mut self) {
        let deleted = self.delete();
        let killed = self.cgroup.kill_all();
        let removed = self.cgroup.remove().and_then(|()| self.cgroup.remove_empty_parents());
        if !std::thread::panicking() {
            deleted.unwrap();
            killed.unwrap();
            removed.unwrap();
        } else {
            eprintln!("the container said:\n{}", self.output());
        }
    }
}

/// A program of the host, its output.
pub(crate) fn host(program: &str, args: &[&str]) -> String {
    Command::new(program).args(args).stdin(Stdio::null()).succeed()
}
