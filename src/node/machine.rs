//! One container's own task: it feeds the queue, has the driver do the steps, and answers.
//!
//! Everything about a container changes here and nowhere else, one thing after the other. What
//! blocks runs beside it, and its end comes back as a command. What the container was about to do
//! is on disk before it is begun.

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use tokio::sync::{mpsc, oneshot, watch};

use super::driver::{Driver, Hurry, Life, Seen};
use super::error::NodeError;
use super::event::{EventKind, Events};
use super::health::{self, Health};
use super::phase::Phase;
use super::queue::{Ended, Outcome, Queue, Request, Step, Ticket};
use super::registry::{Recorded, Registry};
use super::restart;
use super::state::{Exit, now_ms};
use crate::container::config::ContainerId;
use crate::sys::readiness::awaited;

/// What everybody may see of a container at any time.
#[derive(Debug, Clone)]
pub struct View {
    /// What it is meant to be, and what its files say.
    pub recorded: Recorded,
    /// What it is doing now.
    pub phase: Phase,
    /// Its init, as the host numbers it, while it is up.
    pub init: Option<u32>,
    /// What its health check says.
    pub health: Option<Health>,
    /// Whether it lost its root and is being taken down.
    pub degraded: bool,
    /// Whether nobody keeps its output any more, nor sees how its init ends.
    pub unwatched: bool,
    /// Why its description cannot be read, if it cannot.
    pub damage: Option<Arc<str>>,
    /// Whether the container is gone.
    pub deleted: bool,
}

/// What a change makes of a container; `None`: its description stays.
pub type Changed = (Option<Box<Recorded>>, Box<dyn Any + Send>);

/// A change, done while nothing else happens to the container.
pub type Change =
    Box<dyn FnOnce(&Driver, &Recorded, Phase) -> Result<Changed, NodeError> + Send + 'static>;

/// A change that waits for its turn, and who waits for its answer.
type Waiting = (Option<Change>, Reply<Box<dyn Any + Send>>);

type Reply<T> = oneshot::Sender<Result<T, NodeError>>;

enum Command {
    Ask(Request, Reply<Ended>),
    /// A stop that nobody wants for its own sake: the host goes down.
    ShutDown(Reply<Ended>),
    Change(Change, Reply<Box<dyn Any + Send>>),
    Finished(Finished),
    InitEnded {
        life: u64,
    },
    RootLost {
        life: u64,
    },
    MonitorLost {
        life: u64,
    },
    RestartDue {
        life: u64,
    },
    Health {
        life: u64,
        health: Health,
    },
}

/// How a step came out.
enum Finished {
    Started(Result<Life, NodeError>),
    Ended(Result<Option<Exit>, NodeError>),
    Frozen(Result<(), NodeError>),
    Changed(Result<Changed, NodeError>),
    Deleted(Result<(), NodeError>),
}

/// The way to a container's task.
#[derive(Debug, Clone)]
pub struct Handle {
    id: ContainerId,
    commands: mpsc::UnboundedSender<Command>,
    view: watch::Receiver<Arc<View>>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a command")
    }
}

impl Handle {
    /// Which container.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// What there is to see now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Asks for something and waits until it is done.
    ///
    /// # Errors
    /// [`NodeError::Denied`], and why a step of it failed.
    pub async fn ask(&self, request: Request) -> Result<Ended, NodeError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Ask(request, reply)).map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    /// Stops the container and still wants it to run.
    ///
    /// # Errors
    /// As [`Handle::ask`].
    pub async fn shut_down(&self) -> Result<Ended, NodeError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::ShutDown(reply)).map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    /// Has something about the container changed while nothing else happens to it.
    ///
    /// # Errors
    /// What the change answers.
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Driver, &Recorded, Phase) -> Result<(Option<Recorded>, T), NodeError>
        + Send
        + 'static,
    ) -> Result<T, NodeError> {
        let (reply, answer) = oneshot::channel();
        let change: Change = Box::new(move |driver, recorded, phase| {
            let (recorded, answer) = change(driver, recorded, phase)?;
            Ok((recorded.map(Box::new), Box::new(answer) as Box<dyn Any + Send>))
        });
        self.commands.send(Command::Change(change, reply)).map_err(|_| self.gone())?;
        let answer = answer.await.map_err(|_| self.gone())??;
        Ok(*answer.downcast::<T>().expect("the change's own answer"))
    }

    /// Waits until `done` of what there is to see; returns what was seen then, and `None` if the
    /// container is gone.
    pub async fn until(&self, done: impl FnMut(&Arc<View>) -> bool) -> Option<Arc<View>> {
        let mut view = self.view.clone();
        view.wait_for(done).await.ok().map(|view| Arc::clone(&view))
    }

    fn gone(&self) -> NodeError {
        NodeError::Denied {
            name: self.view().recorded.config.name.clone(),
            denial: super::queue::Denial::Deleted,
        }
    }
}

/// A container's task.
pub struct Machine {
    recorded: Recorded,
    queue: Queue,
    driver: Arc<Driver>,
    registry: Arc<Registry>,
    events: Events,
    asked: HashMap<Ticket, (Request, Reply<Ended>)>,
    changes: HashMap<Ticket, Waiting>,
    /// Why the step that just ended failed, for who asked for it.
    failure: Option<NodeError>,
    /// Counts starts, so that news of an earlier life is told from that of this one.
    life: u64,
    init: Option<u32>,
    health: Option<Health>,
    degraded: bool,
    unwatched: bool,
    /// Why its description cannot be read: then it is deleted, or left alone.
    damage: Option<Arc<str>>,
    /// Starts in a row by the restart policy.
    tries: u32,
    hurry: Arc<Hurry>,
    /// Whether it is stopped with the host, and wanted to run for all that.
    shutting_down: bool,
    commands: mpsc::UnboundedReceiver<Command>,
    own: mpsc::WeakUnboundedSender<Command>,
    view: watch::Sender<Arc<View>>,
}

impl Machine {
    /// Begins the task of a container; `found` is what still runs of it, or why it cannot be used.
    #[must_use]
    pub fn begin(
        recorded: Recorded,
        found: Result<Option<Seen>, String>,
        driver: Arc<Driver>,
        registry: Arc<Registry>,
        events: Events,
    ) -> Handle {
        let (sender, commands) = mpsc::unbounded_channel();
        let (found, damage) = match found {
            Ok(found) => (found, None),
            Err(damage) => (None, Some(damage)),
        };
        let phase = match &found {
            Some(seen) if seen.frozen => Phase::Paused,
            Some(_) => Phase::Running,
            None => recorded.state.phase,
        };
        let id = recorded.config.id.clone();
        let view = View {
            recorded: recorded.clone(),
            phase,
            init: None,
            health: None,
            degraded: false,
            unwatched: false,
            damage: None,
            deleted: false,
        };
        let (view, seen) = watch::channel(Arc::new(view));
        let mut machine = Self {
            recorded,
            queue: Queue::new(phase),
            driver,
            registry,
            events,
            asked: HashMap::new(),
            changes: HashMap::new(),
            failure: None,
            life: 0,
            init: None,
            health: None,
            degraded: false,
            unwatched: false,
            damage: damage.map(Arc::from),
            tries: 0,
            hurry: Arc::new(Hurry::default()),
            shutting_down: false,
            commands,
            own: sender.downgrade(),
            view,
        };
        if let Some(found) = found {
            machine.alive(found.life);
            machine.tell(EventKind::Adopted, "");
        }
        machine.show();
        tokio::spawn(machine.run());
        Handle { id, commands: sender, view: seen }
    }

    async fn run(mut self) {
        loop {
            self.advance();
            self.show();
            if self.queue.is_deleted() {
                return;
            }
            let Some(command) = self.commands.recv().await else { return };
            self.take(command);
        }
    }

    fn tell(&self, kind: EventKind, detail: impl Into<String>) {
        self.events.tell(&self.recorded.config, kind, detail);
    }

    /// Lets everybody see what there is.
    fn show(&self) {
        self.view.send_replace(Arc::new(View {
            recorded: self.recorded.clone(),
            phase: self.queue.phase(),
            init: self.init,
            health: self.health,
            degraded: self.degraded,
            unwatched: self.unwatched && self.queue.phase().is_up(),
            damage: self.damage.clone(),
            deleted: self.queue.is_deleted(),
        }));
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Ask(request, reply) => self.admit(request, reply),
            Command::ShutDown(reply) => {
                let wanted = self.recorded.state.wanted;
                self.admit(Request::Stop { kill: false }, reply);
                self.shutting_down = wanted;
            }
            Command::Change(_, reply) if self.damage.is_some() => {
                // Who asked may be gone; there is nobody else to tell.
                let _told = reply.send(Err(self.unreadable()));
            }
            Command::Change(change, reply) => match self.queue.submit(Request::Change) {
                Ok(ticket) => {
                    self.changes.insert(ticket, (Some(change), reply));
                }
                Err(denial) => {
                    // Who asked may be gone; there is nobody else to tell.
                    let _told = reply.send(Err(self.denied(denial)));
                }
            },
            Command::Finished(finished) => self.finish(finished),
            Command::InitEnded { life } if life == self.life => self.queue.init_ended(),
            Command::RootLost { life } if life == self.life && self.queue.phase().is_up() => {
                // A stop unmounts the root, which is no loss.
                if self.queue.phase() != Phase::Stopping {
                    self.degraded = true;
                    self.tell(EventKind::RootLost, "its mount process ended");
                    self.queue.root_lost();
                }
            }
            Command::MonitorLost { life } if life == self.life && self.queue.phase().is_up() => {
                self.lose_monitor();
            }
            Command::RestartDue { life } if life == self.life && self.recorded.state.wanted => {
                self.recorded.state.restarts = self.recorded.state.restarts.saturating_add(1);
                // A queue that is full, or of a deleted container, needs no restart.
                let _ticket = self.queue.submit(Request::Start);
            }
            Command::Health { life, health } if life == self.life => {
                if self.health != Some(health) {
                    self.health = Some(health);
                    match health {
                        Health::Healthy => self.tell(EventKind::Healthy, ""),
                        Health::Unhealthy => self.tell(EventKind::Unhealthy, ""),
                        Health::Starting => {}
                    }
                }
            }
            // News of a life that is over.
            Command::InitEnded { .. }
            | Command::RootLost { .. }
            | Command::MonitorLost { .. }
            | Command::RestartDue { .. }
            | Command::Health { .. } => {}
        }
    }

    fn admit(&mut self, request: Request, reply: Reply<Ended>) {
        if self.damage.is_some() && request != (Request::Delete { force: true }) {
            // Who asked may be gone; there is nobody else to tell.
            let _told = reply.send(Err(self.unreadable()));
            return;
        }
        match self.queue.submit(request) {
            Ok(ticket) => {
                match request {
                    Request::Start | Request::Restart { .. } => {
                        self.recorded.state.wanted = true;
                        self.recorded.state.restarts = 0;
                        self.tries = 0;
                    }
                    Request::Stop { .. } | Request::Delete { .. } => {
                        self.recorded.state.wanted = false;
                        if !self.queue.phase().is_up() {
                            self.persist();
                        }
                    }
                    Request::Pause | Request::Resume | Request::Change => {}
                }
                if self.queue.hurry() {
                    self.hurry.now();
                }
                self.asked.insert(ticket, (request, reply));
            }
            Err(denial) => {
                // Who asked may be gone; there is nobody else to tell.
                let _told = reply.send(Err(self.denied(denial)));
            }
        }
    }

    fn denied(&self, denial: super::queue::Denial) -> NodeError {
        NodeError::Denied { name: self.recorded.config.name.clone(), denial }
    }

    fn unreadable(&self) -> NodeError {
        NodeError::Unreadable {
            name: self.recorded.config.name.clone(),
            reason: self.damage.as_deref().unwrap_or_default().to_owned(),
        }
    }

    /// Begins the next step if none is under way, and answers what has ended.
    fn advance(&mut self) {
        if let Some(step) = self.queue.next_step() {
            self.begin_step(step);
        }
        for (ticket, ended) in self.queue.answers() {
            let failure = |machine: &mut Self| match ended {
                Ended::Denied(denial) => Some(machine.denied(denial)),
                Ended::Failed => Some(machine.failure.take().unwrap_or(NodeError::Ending)),
                Ended::Done | Ended::AlreadySo => None,
            };
            // Whoever asked may have gone away meanwhile.
            if let Some((_, reply)) = self.asked.remove(&ticket) {
                let answer = failure(self).map_or(Ok(ended), Err);
                let _told = reply.send(answer);
            } else if let Some((_, reply)) = self.changes.remove(&ticket)
                && let Some(error) = failure(self)
            {
                let _told = reply.send(Err(error));
            }
        }
    }

    /// What is written before a step is begun, so that a crash finds what was under way.
    fn persist(&mut self) {
        if self.damage.is_some() {
            // Somebody may mend what is there.
            return;
        }
        self.recorded.state.phase = self.queue.phase();
        if let Err(error) =
            self.registry.write_state(&self.recorded.config.id, &self.recorded.state)
        {
            tracing::error!(container = %self.recorded.config.name, %error, "its state is not kept");
        }
    }

    fn begin_step(&mut self, step: Step) {
        self.failure = None;
        let driver = Arc::clone(&self.driver);
        let mut recorded = self.recorded.clone();
        recorded.state.phase = self.queue.phase();
        self.recorded.state.phase = recorded.state.phase;
        match step {
            Step::Start => {
                self.recorded.state.boot_id = Some(driver.boot_id().to_owned());
                self.recorded.state.failure = None;
                recorded.state = self.recorded.state.clone();
                self.spawn(move |registry| {
                    let written = registry.write_state(&recorded.config.id, &recorded.state);
                    Finished::Started(written.and_then(|()| driver.start(&recorded)))
                });
            }
            Step::Stop { .. } | Step::Settle => {
                self.hurry = Arc::new(Hurry::default());
                let hurry = Arc::clone(&self.hurry);
                self.spawn(move |registry| {
                    let written = registry.write_state(&recorded.config.id, &recorded.state);
                    if let Err(error) = written {
                        // A full disk keeps nobody from stopping.
                        tracing::warn!(container = %recorded.config.name, %error, "its state is not kept");
                    }
                    Finished::Ended(match step {
                        Step::Stop { kill } => driver.stop(&recorded, kill, &hurry),
                        Step::Settle | Step::Start | Step::Pause | Step::Resume | Step::Change(_) | Step::Delete => driver.settle(&recorded),
                    })
                });
            }
            Step::Pause | Step::Resume => {
                let freeze = step == Step::Pause;
                self.spawn(move |_| Finished::Frozen(driver.freeze(&recorded, freeze)));
            }
            Step::Change(ticket) => {
                let change = self.changes.get_mut(&ticket).and_then(|(change, _)| change.take());
                let phase = self.queue.phase();
                self.spawn(move |_| {
                    let Some(change) = change else {
                        return Finished::Changed(Err(NodeError::Ending));
                    };
                    Finished::Changed(change(&driver, &recorded, phase))
                });
            }
            Step::Delete => self.spawn(move |_| Finished::Deleted(driver.delete(&recorded))),
        }
    }

    /// Does what blocks beside this task.
    fn spawn(&self, work: impl FnOnce(&Registry) -> Finished + Send + 'static) {
        let Some(own) = self.own.upgrade() else { return };
        let registry = Arc::clone(&self.registry);
        tokio::task::spawn_blocking(move || {
            // The machine waits for this message, so it is there to take it.
            let _sent = own.send(Command::Finished(work(&registry)));
        });
    }

    fn finish(&mut self, finished: Finished) {
        match finished {
            Finished::Started(Ok(life)) => {
                self.queue.finished(Outcome::Done);
                self.recorded.state.started_ms = Some(now_ms());
                self.recorded.state.exit = None;
                self.alive(life);
                self.persist();
                self.tell(EventKind::Started, "");
            }
            Finished::Started(Err(error)) => {
                self.queue.finished(Outcome::Failed);
                let reason = crate::host::sentence(&error);
                self.recorded.state.failure = Some(reason.clone());
                self.failure = Some(error);
                self.dead();
                self.persist();
                self.tell(EventKind::Failed, reason);
                self.plan_restart(true);
            }
            Finished::Ended(Ok(exit)) => self.ended(exit),
            Finished::Ended(Err(error)) => {
                let settled = self.queue.phase() == Phase::Stopping;
                self.queue.finished(Outcome::Failed);
                self.recorded.state.failure = Some(crate::host::sentence(&error));
                tracing::warn!(container = %self.recorded.config.name, settled, error = %crate::host::sentence(&error), "it could not be taken down");
                self.failure = Some(error);
                self.persist();
            }
            Finished::Frozen(done) => {
                let outcome = if done.is_ok() { Outcome::Done } else { Outcome::Failed };
                self.queue.finished(outcome);
                self.failure = done.err();
                self.persist();
                if outcome == Outcome::Done {
                    let paused = self.queue.phase() == Phase::Paused;
                    self.tell(if paused { EventKind::Paused } else { EventKind::Resumed }, "");
                }
            }
            Finished::Changed(Ok((recorded, answer))) => {
                self.queue.finished(Outcome::Done);
                if let Some(recorded) = recorded {
                    // The state is this task's own; a change may only add to what was allocated.
                    self.recorded.config = recorded.config;
                    self.recorded.state.addresses = recorded.state.addresses;
                    self.recorded.state.users = recorded.state.users;
                    self.persist();
                }
                for (ticket, _) in self.queue.answers() {
                    if let Some((_, reply)) = self.changes.remove(&ticket) {
                        self.show();
                        // Whoever asked may have gone away meanwhile.
                        let _told = reply.send(Ok(answer));
                        return;
                    }
                }
            }
            Finished::Changed(Err(error)) => {
                self.failure = Some(error);
                self.queue.finished(Outcome::Failed);
            }
            Finished::Deleted(done) => {
                let outcome = if done.is_ok() { Outcome::Done } else { Outcome::Failed };
                self.queue.finished(outcome);
                self.failure = done.err();
                if outcome == Outcome::Done {
                    self.tell(EventKind::Deleted, "");
                }
            }
        }
    }

    /// Everything of a life is taken down.
    fn ended(&mut self, exit: Option<Exit>) {
        let by_itself = self.recorded.state.wanted;
        self.queue.finished(Outcome::Done);
        let lost = self.degraded;
        self.recorded.state.failure =
            lost.then(|| "its mount process ended; start it again".to_owned());
        let ran_ms = now_ms().saturating_sub(self.recorded.state.started_ms.unwrap_or_default());
        if Duration::from_millis(ran_ms) >= restart::RECOVERED {
            self.tries = 0;
        }
        let out_of_memory = exit.as_ref().is_some_and(|exit| exit.out_of_memory);
        let status = exit.as_ref().map_or(0, |exit| exit.status);
        self.recorded.state.exit = exit;
        self.dead();
        self.recorded.state.wanted |= self.shutting_down;
        self.persist();
        if out_of_memory {
            self.tell(EventKind::OutOfMemory, "");
        }
        let kind = if by_itself { EventKind::Ended } else { EventKind::Stopped };
        self.tell(kind, format!("status {status}"));
        if by_itself {
            self.plan_restart(lost || out_of_memory || status != 0);
        }
    }

    /// Starts it again later, if its policy says so and nobody asked for anything else.
    fn plan_restart(&mut self, failed: bool) {
        if !self.recorded.state.wanted || !self.queue.is_idle() {
            return;
        }
        let Some(wait) = restart::wait(self.recorded.config.restart, failed, self.tries) else {
            return;
        };
        self.tries = self.tries.saturating_add(1);
        self.tell(EventKind::Restarting, format!("in {}", humantime::format_duration(wait)));
        let (own, life) = (self.own.clone(), self.life);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            if let Some(own) = own.upgrade() {
                // A machine that ended has nothing to restart.
                let _sent = own.send(Command::RestartDue { life });
            }
        });
    }

    fn dead(&mut self) {
        self.life += 1;
        self.init = None;
        self.health = None;
        self.degraded = false;
    }

    /// Watches a container that runs.
    fn alive(&mut self, life: Life) {
        self.life += 1;
        self.init = Some(life.init);
        self.degraded = false;
        self.unwatched = false;
        let number = self.life;
        match life.monitor_ended {
            Some(monitor) => self.watch_monitor(monitor, &life.init_ended, number),
            None => self.lose_monitor(),
        }
        self.watch(life.init_ended, Command::InitEnded { life: number });
        if let Some(mount) = life.mount_ended {
            self.watch(mount, Command::RootLost { life: number });
        }
        if self.recorded.config.health.is_some() {
            self.health = Some(Health::Starting);
            let (own, driver) = (self.own.clone(), Arc::clone(&self.driver));
            let report = move |health| {
                let sent = own
                    .upgrade()
                    .map(|own| own.send(Command::Health { life: number, health }).is_ok());
                sent == Some(true)
            };
            health::watch(driver, self.view.subscribe(), report);
        }
    }

    fn lose_monitor(&mut self) {
        self.unwatched = true;
        let lost = "its monitor was killed: its output is not kept any more, and how it ends will not be known";
        self.tell(EventKind::MonitorLost, lost);
    }

    /// Sends a command to itself once the monitor has ended before the init did.
    fn watch_monitor(&self, monitor: OwnedFd, init: &OwnedFd, life: u64) {
        let init = match init.try_clone() {
            Ok(init) => init,
            Err(error) => return tracing::error!(%error, "a monitor cannot be watched"),
        };
        let own = self.own.clone();
        tokio::spawn(async move {
            ended(monitor).await;
            // In its own time it ends after the init, which can be seen by then.
            if !has_ended(&init)
                && let Some(own) = own.upgrade()
            {
                // A machine that ended needs no news.
                let _sent = own.send(Command::MonitorLost { life });
            }
        });
    }

    /// Sends a command to itself once the process behind a pidfd has ended.
    fn watch(&self, process: OwnedFd, news: Command) {
        let own = self.own.clone();
        tokio::spawn(async move {
            ended(process).await;
            if let Some(own) = own.upgrade() {
                // A machine that ended needs no news.
                let _sent = own.send(news);
            }
        });
    }
}

/// Waits until the process behind a pidfd has ended; one that cannot be waited for has.
async fn ended(process: OwnedFd) {
    match awaited(process) {
        // Readable means ended, and stays so; a watch that cannot wait says so at once.
        Ok(process) => drop(process.readable().await),
        Err(error) => tracing::error!(%error, "a process cannot be watched"),
    }
}

/// Whether the process behind a pidfd has ended.
fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
}
