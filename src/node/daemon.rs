//! All containers of a store, while one daemon has them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::claims::Claims;
use super::create::{self, Wanted};
use super::driver::{Driver, Seen};
use super::error::NodeError;
use super::event::{EventKind, Events};
use super::life::Lock;
use super::machine::{Handle, Machine};
use super::phase::Phase;
use super::queue::{Ended, Request};
use super::registry::{Recorded, Registry};
use super::salvage::{self, Damaged};
use super::sharing::Sharing;
use super::target::{self, Known};
use crate::container::config::{ContainerConfig, ContainerId, ContainerName, RestartPolicy};
use crate::host::store::StoreLock;
use crate::host::{Store, reserve};

/// Containers that are started at the same time when the daemon starts: more would only wait for each
/// other.
const AT_ONCE: usize = 8;

/// One setting that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDone {
    /// What Mica calls it.
    pub key: String,
    /// What it is now, as `set` takes it; none if that is nothing, or one of several.
    #[serde(default)]
    pub value: Option<String>,
    /// Whether a running container follows already.
    pub live: bool,
    /// What a person should know: a limit that this host does not hold, or holds in part.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The containers of one store.
#[derive(Debug)]
pub struct Node {
    registry: Arc<Registry>,
    driver: Arc<Driver>,
    events: Events,
    containers: RwLock<BTreeMap<ContainerId, Handle>>,
    claims: Arc<Claims>,
    sharing: Sharing,
    began: Instant,
    _store: StoreLock,
    _alone: Lock,
}

/// Does what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // A panic goes on where it would have gone.
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Work is never aborted, and the runtime outlives whoever waits.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

impl Node {
    /// Takes the store at `path`, finds what runs of its containers, and starts those that shall
    /// run: by their restart policy those that ended meanwhile; after a boot those with autostart or
    /// `restart=always`. `alone` is called once no other daemon can have the store.
    ///
    /// # Errors
    /// [`NodeError::AlreadyRuns`], and why the containers cannot be read.
    pub async fn open(
        path: &Path,
        program: PathBuf,
        alone: impl FnOnce(&Path) + Send + 'static,
    ) -> Result<Arc<Self>, NodeError> {
        let path = path.to_owned();
        let (node, found) = blocking(move || {
            let store = Store::open_or_create(&path)?;
            let lock = Lock::take(store.path())?;
            alone(store.path());
            let shared = store.share()?;
            let registry = Arc::new(Registry::open(store.path())?);
            let driver = Arc::new(Driver::new(Arc::new(store), program, Arc::clone(&registry))?);
            // What cannot be removed keeps nobody from the containers that there are.
            if let Err(error) = driver.sweep() {
                tracing::error!(error = %crate::host::sentence(&error), "leftovers stay");
            }
            let found = registry.list()?;
            let sharing = Sharing::begin(driver.store().path())?;
            let node = Self {
                registry,
                driver,
                events: Events::default(),
                containers: RwLock::new(BTreeMap::new()),
                claims: Arc::default(),
                sharing,
                began: Instant::now(),
                _store: shared,
                _alone: lock,
            };
            Ok::<_, NodeError>((Arc::new(node), found))
        })
        .await?;
        node.reconcile(found).await;
        super::alert::watch(&node);
        Ok(node)
    }

    /// Makes what runs and what is written one, after the daemon was away.
    async fn reconcile(self: &Arc<Self>, found: Vec<Result<Recorded, Damaged>>) {
        let mut starting = Vec::new();
        let mut damaged = Vec::new();
        let found: Vec<Recorded> =
            found.into_iter().filter_map(|one| one.map_err(|one| damaged.push(one)).ok()).collect();
        self.name_apart(&found, &mut damaged);
        let adopting = found.into_iter().map(|mut recorded| {
            let driver = Arc::clone(&self.driver);
            let node = Arc::clone(self);
            tokio::task::spawn_blocking(move || {
                node.keep_claim(&recorded);
                if let Err(error) = driver.mount_disk(&recorded) {
                    let error = crate::host::sentence(&error);
                    tracing::warn!(container = %recorded.config.name, error, "its disk is not there");
                }
                let seen = match recorded.state.phase {
                    // A stop that was cut short is finished, a start that was is undone.
                    Phase::Running | Phase::Paused => driver.adopt(&recorded),
                    Phase::Created | Phase::Starting | Phase::Stopping | Phase::Stopped | Phase::Failed => Ok(None),
                };
                let seen = seen.unwrap_or_else(|error| {
                    let error = crate::host::sentence(&error);
                    tracing::warn!(container = %recorded.config.name, error, "it cannot be adopted");
                    None
                });
                let mut begin = false;
                if seen.is_none() {
                    begin = ended_without_us(&driver, &mut recorded);
                    let boot = Some(driver.boot_id());
                    if !begin && recorded.state.boot_id.as_deref() != boot {
                        // It was looked at in this boot; who is started says so itself.
                        recorded.state.boot_id = boot.map(str::to_owned);
                        if let Err(error) = driver.keep(&recorded) {
                            let error = crate::host::sentence(&error);
                            tracing::warn!(container = %recorded.config.name, error, "its state is not kept");
                        }
                    }
                }
                (recorded, seen, begin)
            })
        });
        let mut all = Vec::new();
        for adopted in adopting.collect::<Vec<_>>() {
            // A panic was told already.
            all.extend(adopted.await.ok());
        }
        let mut running: Vec<_> = all
            .iter()
            .filter(|(_, seen, _)| seen.is_some())
            .map(|(recorded, _, _)| (recorded.clone(), self.driver.places(recorded)))
            .collect();
        let driver = Arc::clone(&self.driver);
        let maybe: Vec<Recorded> = damaged.iter().map(|one| (*one.recorded).clone()).collect();
        let adopt = move || {
            // Its processes go on, with the addresses that it has, until somebody mends or deletes it.
            let lingering = maybe
                .into_iter()
                .filter(|one| !one.state.addresses.is_empty() && driver.lingers(one));
            running.extend(lingering.map(|one| (one.clone(), driver.places(&one))));
            driver.network().adopt(&running)
        };
        if let Err(error) = blocking(adopt).await {
            tracing::error!(error = %crate::host::sentence(&error), "the network is not as it should be");
        }
        for Damaged { recorded, reason } in damaged {
            tracing::error!(container = %recorded.config.name, reason, "it is damaged, and left alone");
            self.enter(*recorded, Err(reason));
        }
        for (recorded, seen, begin) in all {
            let handle = self.enter(recorded, Ok(seen));
            if begin {
                starting.push(handle);
            }
        }
        tokio::spawn(start_in_order(starting));
    }

    /// Gives those damaged ones other names whose own another container has meanwhile.
    fn name_apart(&self, whole: &[Recorded], damaged: &mut [Damaged]) {
        for one in damaged {
            let config = &mut one.recorded.config;
            if whole.iter().any(|other| other.config.name == config.name) {
                config.name = salvage::stand_in(&config.id);
            }
        }
    }

    fn enter(&self, recorded: Recorded, seen: Result<Option<Seen>, String>) -> Handle {
        let id = recorded.config.id.clone();
        let handle = Machine::begin(
            recorded,
            seen,
            Arc::clone(&self.driver),
            Arc::clone(&self.registry),
            self.events.clone(),
        );
        self.containers.write().insert(id, handle.clone());
        handle
    }

    /// What does things; for what needs no queue.
    #[must_use]
    pub fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// What happens.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// What brings containers back together in the background.
    #[must_use]
    pub fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// When this daemon began.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Every container, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Handle> {
        let mut all: Vec<Handle> = self.containers.read().values().cloned().collect();
        all.retain(|handle| !handle.view().deleted);
        all.sort_by_cached_key(|handle| handle.view().recorded.config.name.clone());
        all
    }

    /// Lets containers go on that stood still for a copy, which is none now: for the end of the
    /// daemon, which they outlive.
    pub fn let_go_on(&self) {
        for handle in self.all() {
            let view = handle.view();
            if view.phase != Phase::Running {
                continue;
            }
            if let Err(error) = self.driver.freeze(&view.recorded, false) {
                let name = &view.recorded.config.name;
                tracing::error!(container = %name, %error, "it may stand still; resume it");
            }
        }
    }

    fn known(&self) -> Vec<Known> {
        let known = |handle: &Handle| {
            let config = handle.view().recorded.config.clone();
            Known { id: config.id, name: config.name, labels: config.labels }
        };
        self.all().iter().map(known).collect()
    }

    /// The container that a word means.
    ///
    /// # Errors
    /// [`NodeError::NoContainer`], [`NodeError::Ambiguous`].
    pub fn find(&self, word: &str) -> Result<Handle, NodeError> {
        self.handle(&target::one(&self.known(), word)?, word)
    }

    /// The containers that words mean.
    ///
    /// # Errors
    /// As [`target::resolve`].
    pub fn resolve(&self, words: &[String]) -> Result<Vec<Handle>, NodeError> {
        let ids = target::resolve(&self.known(), words)?;
        ids.iter().map(|id| self.handle(id, id.as_str())).collect()
    }

    /// Writes what a container has that no other can have; the next daemon does where this fails.
    fn keep_claim(&self, recorded: &Recorded) {
        if let Err(error) = self.registry.keep_claim(recorded) {
            let name = &recorded.config.name;
            tracing::warn!(container = %name, %error, "what only it can have is not kept twice");
        }
    }

    fn handle(&self, id: &ContainerId, word: &str) -> Result<Handle, NodeError> {
        self.containers
            .read()
            .get(id)
            .cloned()
            .ok_or_else(|| NodeError::NoContainer { wanted: word.to_owned(), hint: String::new() })
    }

    fn recorded(&self) -> Vec<Recorded> {
        self.all().iter().map(|handle| handle.view().recorded.clone()).collect()
    }

    /// Makes a container.
    ///
    /// # Errors
    /// Every reason why it cannot be; nothing of it is left then.
    pub async fn create(self: &Arc<Self>, wanted: Wanted) -> Result<Handle, NodeError> {
        let node = Arc::clone(self);
        let make = move || {
            let known = || node.recorded();
            create::create(&node.driver, &node.registry, &node.claims, known, &wanted)
        };
        let made = blocking(make).await?;
        let config = &made.recorded().config;
        self.events.tell(config, EventKind::Created, config.template.clone());
        Ok(self.enter(made.recorded().clone(), Ok(None)))
    }

    /// Makes a container of another one, with settings of its own; one that runs stands still while it is
    /// copied.
    ///
    /// # Errors
    /// As [`Node::create`].
    pub async fn copy(
        self: &Arc<Self>,
        from: &Handle,
        name: &str,
        settings: Vec<(String, String)>,
    ) -> Result<Handle, NodeError> {
        let name: ContainerName = name.parse()?;
        let node = Arc::clone(self);
        let copy = move |driver: &Driver, recorded: &Recorded, phase| {
            let known = || node.recorded();
            let from = (recorded, phase);
            let wanted = (name, settings.as_slice());
            let made = create::copy(driver, &node.registry, &node.claims, known, from, wanted)?;
            Ok((None, made))
        };
        let made = from.change(copy).await?;
        self.events.tell(&made.recorded().config, EventKind::Created, "a copy");
        Ok(self.enter(made.recorded().clone(), Ok(None)))
    }

    /// Asks a container for something, and waits until it is done.
    ///
    /// # Errors
    /// [`NodeError::Denied`], and why it failed.
    pub async fn ask(&self, handle: &Handle, request: Request) -> Result<Ended, NodeError> {
        let view = handle.view();
        if matches!(request, Request::Start | Request::Restart { .. }) && !view.phase.is_up() {
            // Before anything is begun: it is no failed container that cannot be started now.
            let driver = Arc::clone(&self.driver);
            blocking(move || driver.refuse_taken_ports(&view.recorded)).await?;
        }
        let done = handle.ask(request).await?;
        if handle.view().deleted {
            self.containers.write().remove(handle.id());
        }
        Ok(done)
    }

    /// Changes settings of a container, live where it runs and the setting can; all or none.
    ///
    /// # Errors
    /// Every reason why the result cannot be, and what the kernel refuses; everything is as it was
    /// then.
    pub async fn set(
        self: &Arc<Self>,
        handle: &Handle,
        settings: Vec<(String, String)>,
    ) -> Result<Vec<SetDone>, NodeError> {
        let node = Arc::clone(self);
        let (done, _claim) = handle
            .change(move |driver, recorded, phase| {
                let intended = create::intended(driver, recorded, &settings);
                let choose = |others: &[Recorded]| {
                    create::changed(driver, (recorded, phase), intended, others)
                };
                let claim = node.claims.claim(|| node.recorded(), choose)?;
                let changed = claim.recorded();
                let notes = driver.follow(recorded, changed, phase)?;
                if let Err(error) = node.registry.write_config(&changed.config) {
                    // What is not kept does not hold either.
                    driver.follow(changed, recorded, phase)?;
                    return Err(error);
                }
                node.keep_claim(changed);
                driver.allow_sharing(changed)?;
                let mut done: Vec<SetDone> = Vec::new();
                for (name, _) in &settings {
                    let mut scratch = recorded.config.clone();
                    // It was set a moment ago; this only asks for its own name.
                    let Ok(key) = scratch.set(name, "") else { continue };
                    if done.iter().all(|done| done.key != key.name) {
                        let notes = notes.iter().filter(|(about, _)| *about == key.name);
                        let notes = notes.map(|(_, note)| note.clone()).collect();
                        let live = key.live || !phase.is_up();
                        let value = now(&changed.config, key.name);
                        done.push(SetDone { key: key.name.to_owned(), value, live, notes });
                    }
                }
                // The claim goes with the answer: by then everybody sees the change.
                Ok((Some(changed.clone()), (done, claim)))
            })
            .await?;
        let keys: Vec<&str> = done.iter().map(|done| done.key.as_str()).collect();
        self.events.tell(&handle.view().recorded.config, EventKind::Set, keys.join(", "));
        Ok(done)
    }

    /// Gives a container another name; `force`: also while it runs.
    ///
    /// # Errors
    /// [`NodeError::NameTaken`], [`NodeError::NotDown`].
    pub async fn rename(
        self: &Arc<Self>,
        handle: &Handle,
        name: &str,
        force: bool,
    ) -> Result<(), NodeError> {
        let name: ContainerName = name.parse()?;
        let node = Arc::clone(self);
        let _claim = handle
            .change(move |driver, recorded, phase| {
                if phase.is_up() && !force {
                    return Err(NodeError::RunningRename { name: recorded.config.name.clone() });
                }
                let choose = |others: &[Recorded]| {
                    let mut changed = recorded.clone();
                    changed.config.name = name;
                    create::named(&changed.config, others)?;
                    Ok(changed)
                };
                let claim = node.claims.claim(|| node.recorded(), choose)?;
                let changed = claim.recorded();
                let private = driver.private(recorded);
                reserve::rename(driver.store(), &private, changed.config.name.as_str())?;
                if let Err(error) = node.registry.write_config(&changed.config) {
                    reserve::rename(driver.store(), &private, recorded.config.name.as_str())?;
                    return Err(error);
                }
                node.keep_claim(changed);
                Ok((Some(changed.clone()), claim))
            })
            .await?;
        self.events.tell(&handle.view().recorded.config, EventKind::Renamed, "");
        Ok(())
    }

    /// Stops every container that runs, those that start first last; what somebody wants to run
    /// runs again when the daemon starts after a boot.
    pub async fn stop_all(&self) {
        let mut up: Vec<Handle> = self.all();
        up.retain(|handle| handle.view().phase.is_up());
        for (_, group) in by_priority(up) {
            let stops: Vec<_> = group
                .into_iter()
                .map(|handle| tokio::spawn(async move { handle.shut_down().await }))
                .collect();
            for stop in stops {
                // A panic was told already.
                if let Ok(Err(error)) = stop.await {
                    let error = crate::host::sentence(&error);
                    tracing::warn!(error, "a container did not stop");
                }
            }
        }
    }
}

/// What a setting is, whichever of its names it goes by.
fn now(config: &ContainerConfig, key: &str) -> Option<String> {
    // The same limit in other units.
    let key = if key == "limits.cpu.percent" { "limits.cpu" } else { key };
    config.get(key).ok().flatten()
}

/// Containers that start and stop together, those that stop first first.
fn by_priority(all: Vec<Handle>) -> BTreeMap<i32, Vec<Handle>> {
    let mut groups: BTreeMap<i32, Vec<Handle>> = BTreeMap::new();
    for handle in all {
        let priority = handle.view().recorded.config.boot_priority;
        groups.entry(priority).or_default().push(handle);
    }
    groups
}

/// Starts containers, those of a higher priority first: the next ones once all of these run or have
/// failed, so many at a time.
async fn start_in_order(all: Vec<Handle>) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    for (_, group) in by_priority(all).into_iter().rev() {
        let mut starting = JoinSet::new();
        for handle in group {
            let turns = Arc::clone(&turns);
            starting.spawn(async move {
                // It is never closed; without a turn everything starts at once.
                let _turn = turns.acquire().await;
                if let Err(error) = handle.ask(Request::Start).await {
                    let error = crate::host::sentence(&error);
                    tracing::warn!(container = %handle.id(), error, "it could not be started again");
                }
            });
        }
        // A panic was told already.
        while starting.join_next().await.is_some() {}
    }
}

/// A container that was up when the daemon last wrote, or may have been, and is not now: what is
/// left of it goes. Answers whether it shall be started.
fn ended_without_us(driver: &Driver, recorded: &mut Recorded) -> bool {
    let state = &mut recorded.state;
    let was_up = state.phase.is_up();
    let booted = state.boot_id.as_deref() != Some(driver.boot_id());
    if was_up {
        let started = state.phase == Phase::Starting;
        let exit = driver.take_down(recorded);
        let state = &mut recorded.state;
        state.phase = if started { Phase::Failed } else { Phase::Stopped };
        match exit {
            Ok(exit) => state.exit = exit.or(state.exit.take()),
            Err(error) => {
                let error = crate::host::sentence(&error);
                tracing::warn!(container = %recorded.config.name, error, "something of it is left");
            }
        }
        if started {
            recorded.state.failure =
                Some("the daemon ended while it was being started; start it again".to_owned());
        }
    }
    let (config, state) = (&recorded.config, &recorded.state);
    let failed = state.exit.as_ref().is_none_or(|exit| exit.status != 0);
    let by_policy = match config.restart {
        RestartPolicy::No => false,
        RestartPolicy::OnFailure { .. } => was_up && failed,
        RestartPolicy::Always => true,
    };
    if booted {
        config.autostart || state.wanted && by_policy
    } else {
        was_up && state.wanted && by_policy
    }
}
