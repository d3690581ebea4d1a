//! Doing what the queue decided: the one place with side effects.
//!
//! Every step is written so that it may be cut short anywhere: what takes down is idempotent and
//! needs nothing but the container's description, and what puts together takes down first what an
//! earlier attempt left. Blocks; never called from the event loop itself.

mod children;
pub(in crate::node) mod disk;
mod hurry;
mod limits;
mod mount;
mod network;
mod processes;
mod ranges;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub use hurry::Hurry;
pub use limits::{allotted, promised};

use self::children::Children;
use self::processes::Processes;
use super::crash::here;
use super::error::NodeError;
use super::phase::Phase;
use super::reasons::Reasons;
use super::registry::{Places, Recorded, Registry};
use super::state::Exit;
use crate::container::cgroup::{
    Cgroup, GroupPath, Guarantee, Layout, Usage, Weight, protect_parent, weights,
};
use crate::container::config::{ContainerConfig, ContainerId, Kind};
use crate::host::{Store, reserve};

/// The group above those of all containers, of all stores.
const GROUP: &str = "mica";

/// How long a machine may take to shut down.
const SYSTEM_PATIENCE: Duration = Duration::from_secs(60);

/// How long a command may take to end when asked.
const APPLICATION_PATIENCE: Duration = Duration::from_secs(10);

/// A setting that does not hold on this host, and why.
pub type Note = (&'static str, String);

/// A container that runs.
#[derive(Debug)]
pub struct Life {
    /// Its init, as this process numbers it.
    pub init: u32,
    /// Readable once that has ended.
    pub init_ended: OwnedFd,
    /// Readable once its mount process has ended.
    pub mount_ended: Option<OwnedFd>,
    /// Readable once the process that watches it has ended, which it does after the init; none if it
    /// was killed before.
    pub monitor_ended: Option<OwnedFd>,
}

/// A container that was found running.
#[derive(Debug)]
pub struct Seen {
    /// It.
    pub life: Life,
    /// Whether its processes stand still.
    pub frozen: bool,
}

/// Does things to containers.
#[derive(Debug)]
pub struct Driver {
    store: Arc<Store>,
    program: PathBuf,
    registry: Arc<Registry>,
    boot_id: String,
    layout: Layout,
    network: network::Connections,
    /// What this process started, to be reaped.
    children: Children,
    /// What those that are up are meant to be: how strong each is depends on all.
    up: Mutex<BTreeMap<ContainerId, ContainerConfig>>,
    /// What of a container's settings does not hold here, and why.
    shortfalls: Mutex<HashMap<ContainerId, Vec<Note>>>,
    /// Who wants the streams of a container from its first moment.
    listeners: processes::Listeners,
}

impl Driver {
    /// A driver for the containers of `store`, which starts `program`, this program's own file.
    ///
    /// # Errors
    /// [`NodeError::System`], and what the host's cgroups answer.
    pub fn new(
        store: Arc<Store>,
        program: PathBuf,
        registry: Arc<Registry>,
    ) -> Result<Self, NodeError> {
        let file = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(file).map_err(NodeError::system("read", file))?;
        let network = network::Connections::new(&store)?;
        Ok(Self {
            store,
            program,
            registry,
            boot_id: boot_id.trim().to_owned(),
            layout: Layout::detect()?,
            network,
            children: Children::default(),
            up: Mutex::default(),
            shortfalls: Mutex::default(),
            listeners: processes::Listeners::default(),
        })
    }

    /// Which boot of the host this is.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The containers' addresses and ports.
    #[must_use]
    pub fn network(&self) -> &network::Connections {
        &self.network
    }

    /// Where a container keeps what it has.
    #[must_use]
    pub fn places(&self, recorded: &Recorded) -> Places {
        self.registry.places(&recorded.config.id)
    }

    /// Writes what a container is doing.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub fn keep(&self, recorded: &Recorded) -> Result<(), NodeError> {
        self.registry.write_state(&recorded.config.id, &recorded.state)
    }

    /// Where a container's changes are.
    #[must_use]
    pub fn private(&self, recorded: &Recorded) -> PathBuf {
        self.places(recorded).private(&recorded.config)
    }

    /// The groups of a container.
    ///
    /// # Errors
    /// None in practice: an identity is a good name.
    pub fn group(&self, recorded: &Recorded) -> Result<Cgroup, NodeError> {
        let path: GroupPath = format!("{GROUP}/{}", recorded.config.id.as_str()).parse()?;
        Ok(Cgroup::open(&self.layout, path))
    }

    /// Puts a container together and starts its init.
    ///
    /// # Errors
    /// Why it cannot run; nothing of it is left then.
    pub fn start(&self, recorded: &Recorded) -> Result<Life, NodeError> {
        here("start-written");
        self.refuse_taken_ports(recorded)?;
        // What a crash, or a step that failed, left of an earlier life.
        self.take_down(recorded)?;
        self.put_together(recorded).inspect_err(|_| {
            if let Err(error) = self.take_down(recorded) {
                tracing::warn!(container = %recorded.config.name, error = %crate::host::sentence(&error), "something is left of a failed start");
            }
        })
    }

    /// Refuses to start a container whose ports somebody has by now. Changes nothing.
    ///
    /// # Errors
    /// Every port that is taken, and by whom.
    pub fn refuse_taken_ports(&self, recorded: &Recorded) -> Result<(), NodeError> {
        let config = &recorded.config;
        let mut reasons = Reasons::default();
        let mut free = Vec::new();
        for port in &config.network.ports {
            match self.network.publisher(port, &config.id) {
                Some(other) => {
                    let holder = self.registry.config(&other)?.name;
                    reasons.extend([NodeError::PortTaken { port: port.on_host(), holder }]);
                }
                None => free.push(*port),
            }
        }
        reasons.extend(self.network.unpublishable(config, &free));
        reasons.refuse()
    }

    fn put_together(&self, recorded: &Recorded) -> Result<Life, NodeError> {
        let places = self.places(recorded);
        let mount_ended = self.mount(recorded)?;
        here("start-mounted");
        let group = Cgroup::create(&self.layout, self.group(recorded)?.path().clone())?;
        if !recorded.config.privileged {
            group.hold_to_devices(&recorded.config.devices)?;
        }
        self.limit(recorded, &group)?;
        here("start-grouped");
        let Processes { init, monitor } = self.create_processes(recorded, &places, &group)?;
        here("start-created");
        self.network.connect(recorded, &places, init)?;
        here("start-connected");
        // Before it goes: what ends at once has no number any more.
        let init_ended = watch(init)?;
        let monitor_ended = monitor.and_then(|monitor| watch(monitor).ok());
        self.start_processes(recorded, &places)?;
        let life = Life { init, init_ended, mount_ended: Some(mount_ended), monitor_ended };
        here("start-started");
        Ok(life)
    }

    /// Whether processes of a container are there, whatever its files say.
    pub fn lingers(&self, recorded: &Recorded) -> bool {
        let processes = self.group(recorded).and_then(|group| Ok(group.processes()?));
        processes.is_ok_and(|processes| !processes.is_empty())
    }

    /// A container that was running when the last daemon ended, if it still is: nothing is
    /// started, nothing is ended.
    ///
    /// # Errors
    /// Why that cannot be told.
    pub fn adopt(&self, recorded: &Recorded) -> Result<Option<Seen>, NodeError> {
        let same_boot = recorded.state.boot_id.as_deref() == Some(self.boot_id());
        if !same_boot {
            return Ok(None);
        }
        let Some(processes) = self.find_processes(recorded)? else { return Ok(None) };
        let Processes { init, monitor } = processes;
        let Some(mount_ended) = self.find_mount(recorded)? else { return Ok(None) };
        let group = self.group(recorded)?;
        let mut frozen = group.is_frozen()?;
        if frozen && recorded.state.phase == Phase::Running {
            // It stood still for a moment, in which the last daemon was killed.
            group.thaw()?;
            frozen = false;
        }
        // It runs: that a limit cannot be set anew is no reason to end it.
        if let Err(error) = self.limit(recorded, &group) {
            let error = crate::host::sentence(&error);
            tracing::error!(container = %recorded.config.name, error, "its limits are not as set");
        }
        let monitor_ended = monitor.and_then(|monitor| watch(monitor).ok());
        let init_ended = watch(init)?;
        let life = Life { init, init_ended, mount_ended: Some(mount_ended), monitor_ended };
        Ok(Some(Seen { life, frozen }))
    }

    /// Ends a container: asks its init, unless `kill`, waits for it as long as it may take, and
    /// takes down what it used. Answers how the init ended.
    ///
    /// # Errors
    /// What could not be taken down; the rest is.
    pub fn stop(
        &self,
        recorded: &Recorded,
        kill: bool,
        hurry: &Hurry,
    ) -> Result<Option<Exit>, NodeError> {
        if !kill && let Some(init) = self.find_init(recorded)? {
            let ended = watch(init)?;
            let config = &recorded.config;
            let patience = match (config.stop_timeout_s, config.kind) {
                (Some(seconds), _) => Duration::from_secs(seconds),
                (None, Kind::System) => SYSTEM_PATIENCE,
                (None, Kind::Application) => APPLICATION_PATIENCE,
            };
            self.ask_to_end(recorded)?;
            here("stop-asked");
            // Who stands still cannot end.
            self.group(recorded)?.thaw()?;
            if hurry.wait(&ended, patience) == hurry::Waited::Impatient {
                tracing::warn!(container = %config.name, "it did not end when asked, and is killed");
            }
        }
        here("stop-ended");
        self.take_down(recorded)
    }

    /// Takes down what a container used whose init ended by itself. Answers how it ended.
    ///
    /// # Errors
    /// As [`Driver::stop`].
    pub fn settle(&self, recorded: &Recorded) -> Result<Option<Exit>, NodeError> {
        self.take_down(recorded)
    }

    /// Kills what is left of a container and removes everything that is not its own for good;
    /// gone already is fine.
    ///
    /// # Errors
    /// The first thing that could not be done; the rest was tried all the same.
    pub fn take_down(&self, recorded: &Recorded) -> Result<Option<Exit>, NodeError> {
        let places = self.places(recorded);
        let group = self.group(recorded)?;
        let mut first = None;
        let mut tried = |done: Result<(), NodeError>| {
            if let Err(error) = done {
                first.get_or_insert(error);
            }
        };
        let killed_for_memory = group.usage().ok().and_then(|usage| usage.oom_kills).unwrap_or(0);
        tried(group.kill_all().map_err(NodeError::from));
        tried(group.remove_made().map_err(NodeError::from));
        let exit = self.end_processes(recorded, &places);
        let exit = exit.unwrap_or_else(|error| {
            tried(Err(error));
            None
        });
        here("down-killed");
        tried(self.network.disconnect(recorded, &places));
        here("down-disconnected");
        tried(group.remove().map_err(NodeError::from));
        tried(group.remove_empty_parents().map_err(NodeError::from));
        here("down-ungrouped");
        tried(self.unmount(recorded));
        here("down-unmounted");
        tried(remove(&places.run()));
        self.shortfalls.lock().remove(&recorded.config.id);
        if self.up.lock().remove(&recorded.config.id).is_some() {
            // Groups of others may go at this very moment; nobody's stop fails for that.
            if let Err(error) = self.weigh() {
                tracing::debug!(%error, "the weights stay as they were");
            }
        }
        match first {
            Some(error) => Err(error),
            None => Ok(exit.map(|exit| Exit {
                out_of_memory: exit.out_of_memory || killed_for_memory > 0,
                ..exit
            })),
        }
    }

    /// Makes a container's processes stand still, or go on.
    ///
    /// # Errors
    /// What its groups answer.
    pub fn freeze(&self, recorded: &Recorded, freeze: bool) -> Result<(), NodeError> {
        let group = self.group(recorded)?;
        Ok(if freeze { group.freeze() } else { group.thaw() }?)
    }

    /// Makes a running container's processes stand still for a moment.
    ///
    /// # Errors
    /// What its groups answer; they go on then.
    pub fn stand_still<'a>(&'a self, recorded: &'a Recorded) -> Result<StandStill<'a>, NodeError> {
        let still = StandStill { driver: self, recorded, over: false };
        self.freeze(recorded, true)?;
        Ok(still)
    }

    /// Lets a container follow a change of its settings: a running one in everything, one that is
    /// down in what it has on the disk. Answers what does not hold, with the key that it is about.
    ///
    /// # Errors
    /// What the kernel refuses; everything is as it was then.
    pub fn follow(
        &self,
        before: &Recorded,
        changed: &Recorded,
        phase: Phase,
    ) -> Result<Vec<Note>, NodeError> {
        if !phase.is_up() {
            return self.grow_disk(changed, false).map(|()| Vec::new());
        }
        let group = self.group(changed)?;
        let back = |driver: &Self| {
            // What was refused is the answer; the old limits did hold before.
            if let Err(error) = driver.limit(before, &group) {
                tracing::warn!(container = %before.config.name, %error, "limits are not as they were");
            }
        };
        let mut notes = self.limit(changed, &group).inspect_err(|_| back(self))?;
        let init = self.find_init(changed)?;
        match self.network.follow(changed, &self.places(changed), init) {
            Ok(more) => notes.extend(more),
            Err(error) => {
                back(self);
                return Err(error);
            }
        }
        self.shortfalls.lock().insert(changed.config.id.clone(), notes.clone());
        Ok(notes)
    }

    /// Holds a container's groups to its limits. Answers what does not hold.
    fn limit(&self, recorded: &Recorded, group: &Cgroup) -> Result<Vec<Note>, NodeError> {
        self.up.lock().insert(recorded.config.id.clone(), recorded.config.clone());
        let short = group.apply(&allotted(&recorded.config, &self.store)?)?;
        let mut notes: Vec<Note> = short.into_iter().map(|short| (short.key, short.why)).collect();
        notes.extend(self.limit_disk(recorded)?.map(|why| ("limits.disk", why)));
        self.shortfalls.lock().insert(recorded.config.id.clone(), notes.clone());
        if let Err(error) = self.weigh() {
            tracing::warn!(%error, "the weights stay as they were");
        }
        Ok(notes)
    }

    /// Gives every container that is up its weight beside all others: what is guaranteed to one is
    /// a matter of the weights of all.
    fn weigh(&self) -> Result<(), NodeError> {
        let up = self.up.lock();
        let mut asked = Vec::new();
        let mut promises = Guarantee::default();
        for config in up.values() {
            let promised = promised(config)?;
            promises.cpu_thousandths += promised.cpu_thousandths;
            promises.memory_bytes = promises.memory_bytes.saturating_add(promised.memory_bytes);
            asked.push((Weight::from(config.priority), promised.cpu_thousandths));
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let processors = u64::try_from(processors).unwrap_or(u64::MAX).saturating_mul(1000);
        for (id, weight) in up.keys().zip(weights(&asked, processors)) {
            let path: GroupPath = format!("{GROUP}/{}", id.as_str()).parse()?;
            let group = Cgroup::open(&self.layout, path);
            // One that is being taken down needs none.
            if group.exists() {
                group.set_cpu_weight(weight)?;
            }
        }
        if !up.is_empty() {
            protect_parent(&self.layout, &GROUP.parse()?, promises)?;
        }
        Ok(())
    }

    /// Settings of a container that this host does not hold, or holds in part, and why.
    #[must_use]
    pub fn shortfalls(&self, recorded: &Recorded) -> Vec<Note> {
        self.shortfalls.lock().get(&recorded.config.id).cloned().unwrap_or_default()
    }

    /// Bytes that a container's own files take on disk; none where that cannot be told.
    #[must_use]
    pub fn disk_bytes(&self, recorded: &Recorded) -> Option<u64> {
        crate::host::footprint::disk_bytes(&self.private(recorded)).ok()
    }

    /// What a container uses.
    ///
    /// # Errors
    /// What its groups answer.
    pub fn usage(&self, recorded: &Recorded) -> Result<Usage, NodeError> {
        Ok(self.group(recorded)?.usage()?)
    }

    /// Removes a container that is down, with its own private layer.
    ///
    /// # Errors
    /// What keeps it from being taken down, or out of the registry: it is as it was then. What cannot
    /// be removed after that is swept when the daemon starts the next time.
    pub fn delete(&self, recorded: &Recorded) -> Result<(), NodeError> {
        here("delete-begun");
        self.take_down(recorded)?;
        self.lift_disk_limit(recorded);
        self.registry.doom(&recorded.config.id)?;
        here("delete-doomed");
        let id = &recorded.config.id;
        if let Err(error) = self.registry.sweep_doomed(id, |places, now| self.forget(places, now)) {
            let error = crate::host::sentence(&error);
            tracing::warn!(container = %recorded.config.name, error, "something of it is left");
        }
        Ok(())
    }

    /// Removes what containers left that are none any more, or never came to be. Only before any
    /// is made.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub fn sweep(&self) -> Result<(), NodeError> {
        self.registry.sweep(|places, now| self.forget(places, now))
    }

    /// Lets go of what a container that is gone had outside its directory.
    fn forget(&self, places: &Places, now: &Places) -> Result<(), NodeError> {
        for private in places.own_privates() {
            reserve::release(&self.store, &private)?;
        }
        disk::leave(now);
        here("delete-released");
        Ok(())
    }
}

/// A container whose processes stand still until this is dropped.
#[derive(Debug)]
pub struct StandStill<'a> {
    driver: &'a Driver,
    recorded: &'a Recorded,
    over: bool,
}

impl StandStill<'_> {
    /// Lets them go on.
    ///
    /// # Errors
    /// What its groups answer.
    pub fn end(mut self) -> Result<(), NodeError> {
        self.over = true;
        self.driver.freeze(self.recorded, false)
    }
}

impl Drop for StandStill<'_> {
    fn drop(&mut self) {
        if !self.over
            && let Err(error) = self.driver.freeze(self.recorded, false)
        {
            tracing::error!(container = %self.recorded.config.name, %error, "it still stands still; resume it");
        }
    }
}

/// A descriptor that tells when a process ends.
fn watch(pid: u32) -> Result<OwnedFd, NodeError> {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let opened = process
        .map_or(Err(rustix::io::Errno::SRCH), |process| pidfd_open(process, PidfdFlags::empty()));
    opened
        .map_err(io::Error::from)
        .map_err(NodeError::system("watch", &PathBuf::from(format!("/proc/{pid}"))))
}

fn remove(directory: &Path) -> Result<(), NodeError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NodeError::system("remove", directory)(error))
        }
        _gone => Ok(()),
    }
}
