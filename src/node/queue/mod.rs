//! What happens to one container next: a queue of requests, decided without doing anything.
//!
//! The queue knows the phase and what was asked for, admits or refuses each request against the
//! phase in which it will find the container, and hands out one step at a time. Whoever does the
//! step says how it ended. So two clients that race for one container are served one after the
//! other, nothing is started twice, and nothing waits behind a deletion.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::phase::Phase;

/// Requests that may wait for one container: more than anybody has a reason for.
pub const LIMIT: usize = 32;

/// What somebody wants of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// That it runs.
    Start,
    /// That it does not run; `kill`: without asking it first.
    Stop {
        /// Whether its processes are killed at once.
        kill: bool,
    },
    /// That it runs anew.
    Restart {
        /// Whether its processes are killed at once.
        kill: bool,
    },
    /// That it stands still.
    Pause,
    /// That it goes on.
    Resume,
    /// That something about it is changed or copied, whatever it is doing, while nothing else
    /// happens to it.
    Change,
    /// That it is gone; `force`: also if it runs.
    Delete {
        /// Whether a running one is killed first.
        force: bool,
    },
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Put everything together and start the init.
    Start,
    /// End its processes and take down what they used.
    Stop {
        /// Whether they are killed at once.
        kill: bool,
    },
    /// Its init ended by itself: take down what it used.
    Settle,
    /// Make its processes stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// Do what the owner of this ticket brought.
    Change(Ticket),
    /// Remove everything of it.
    Delete,
}

/// One admitted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Why a request is refused, or was dropped from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denial {
    /// It needs a running container.
    #[error("it is not running")]
    NotRunning,
    /// It needs one whose processes do not stand still.
    #[error("it is paused; resume it first")]
    Paused,
    /// It needs one that does not run.
    #[error("it is running; stop it first, or pass --force")]
    Running,
    /// There will be nothing to do it to.
    #[error("it is being deleted")]
    Deleted,
    /// Too many wait already.
    #[error("{LIMIT} requests wait for it already; try again later")]
    Full,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    /// It was done.
    Done,
    /// Nothing had to be done.
    AlreadySo,
    /// A step of it failed; who did the step knows why.
    Failed,
    /// By its turn the container was in a phase that it cannot be done in.
    Denied(Denial),
}

/// How the last step left the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// As was wanted.
    Done,
    /// Not; what can be, was undone.
    Failed,
}

/// The queue of one container.
#[derive(Debug)]
pub struct Queue {
    phase: Phase,
    deleted: bool,
    waiting: VecDeque<(Ticket, Request)>,
    busy: Option<(Option<Ticket>, Step)>,
    /// What the container was before the step that is being done, for one that fails.
    before: Phase,
    /// Its init ended, and nothing was taken down yet.
    ended: bool,
    /// It lost what it stood on: whatever takes it down leaves it failed.
    lost: bool,
    hurry: bool,
    answers: Vec<(Ticket, Ended)>,
    next: u64,
}

/// What a request finds, by the phase the container will be at rest in.
fn admitted(phase: Option<Phase>, request: Request) -> Result<Option<Phase>, Denial> {
    let Some(phase) = phase else { return Err(Denial::Deleted) };
    let phase = at_rest(phase);
    let up = phase.is_up();
    Ok(Some(match request {
        Request::Start if phase == Phase::Paused => return Err(Denial::Paused),
        Request::Start | Request::Restart { .. } => Phase::Running,
        Request::Stop { .. } if up => Phase::Stopped,
        Request::Stop { .. } | Request::Change => phase,
        Request::Pause | Request::Resume if !up => return Err(Denial::NotRunning),
        Request::Pause => Phase::Paused,
        Request::Resume => Phase::Running,
        Request::Delete { force: false } if up => return Err(Denial::Running),
        Request::Delete { .. } => return Ok(None),
    }))
}

/// The phase that one which is passed through leads to.
fn at_rest(phase: Phase) -> Phase {
    match phase {
        Phase::Starting => Phase::Running,
        Phase::Stopping => Phase::Stopped,
        Phase::Created | Phase::Running | Phase::Paused | Phase::Stopped | Phase::Failed => phase,
    }
}

/// The next step of a request, in a phase at rest; none when it is fulfilled.
fn step(phase: Phase, ticket: Ticket, request: Request) -> Option<Step> {
    let up = phase.is_up();
    match request {
        Request::Start => (!up).then_some(Step::Start),
        Request::Stop { kill } => up.then_some(Step::Stop { kill }),
        Request::Restart { kill } if up => Some(Step::Stop { kill }),
        Request::Restart { .. } => Some(Step::Start),
        Request::Pause => (phase == Phase::Running).then_some(Step::Pause),
        Request::Resume => (phase == Phase::Paused).then_some(Step::Resume),
        Request::Change => Some(Step::Change(ticket)),
        Request::Delete { .. } if up => Some(Step::Stop { kill: true }),
        Request::Delete { .. } => Some(Step::Delete),
    }
}

impl Queue {
    /// The queue of a container at rest.
    #[must_use]
    pub fn new(phase: Phase) -> Self {
        Self {
            phase: at_rest(phase),
            deleted: false,
            waiting: VecDeque::new(),
            busy: None,
            before: at_rest(phase),
            ended: false,
            lost: false,
            hurry: false,
            answers: Vec::new(),
            next: 0,
        }
    }

    /// What the container is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the container is gone: the queue has done its duty.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// Whether nothing is being done and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.busy.is_none() && self.waiting.is_empty() && !self.ended
    }

    /// Whether the step that asks processes to end should kill them now: somebody came who does
    /// not want to wait.
    #[must_use]
    pub fn hurry(&self) -> bool {
        self.hurry
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// [`Denial`]: it was not taken in.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, Denial> {
        if self.waiting.len() >= LIMIT {
            return Err(Denial::Full);
        }
        admitted(self.expected(), request)?;
        let kills = matches!(
            request,
            Request::Stop { kill: true }
                | Request::Restart { kill: true }
                | Request::Delete { force: true }
        );
        if kills && matches!(self.busy, Some((_, Step::Stop { .. }))) {
            self.hurry = true;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.push_back((ticket, request));
        Ok(ticket)
    }

    /// The phase in which a request taken in now would find the container; none: deleted.
    fn expected(&self) -> Option<Phase> {
        if self.deleted {
            return None;
        }
        let mut phase = Some(self.phase);
        if self.ended {
            phase = Some(Phase::Stopped);
        }
        for (_, request) in &self.waiting {
            // What is refused by its turn changes nothing.
            phase = admitted(phase, *request).unwrap_or(phase);
        }
        phase
    }

    /// The next step, if none is being done; [`Queue::finished`] must follow.
    pub fn next_step(&mut self) -> Option<Step> {
        if self.busy.is_some() || self.deleted {
            return None;
        }
        if self.ended {
            return Some(self.begin(None, Step::Settle));
        }
        while let Some((ticket, request)) = self.waiting.front().copied() {
            if let Err(denial) = admitted(Some(self.phase), request) {
                self.answer(ticket, Ended::Denied(denial));
                continue;
            }
            match step(self.phase, ticket, request) {
                Some(step) => return Some(self.begin(Some(ticket), step)),
                None => self.answer(ticket, Ended::AlreadySo),
            }
        }
        None
    }

    fn begin(&mut self, ticket: Option<Ticket>, step: Step) -> Step {
        self.before = self.phase;
        self.busy = Some((ticket, step));
        self.hurry = false;
        self.phase = match step {
            Step::Start => Phase::Starting,
            Step::Stop { .. } | Step::Settle => Phase::Stopping,
            Step::Pause | Step::Resume | Step::Change(_) | Step::Delete => self.phase,
        };
        step
    }

    /// Takes the request at the front out, answered.
    fn answer(&mut self, ticket: Ticket, ended: Ended) {
        self.waiting.retain(|(other, _)| *other != ticket);
        self.answers.push((ticket, ended));
    }

    /// Says how the step ended that [`Queue::next_step`] gave.
    ///
    /// Without one it does nothing.
    pub fn finished(&mut self, outcome: Outcome) {
        let Some((ticket, step)) = self.busy.take() else { return };
        let done = outcome == Outcome::Done;
        self.phase = match step {
            Step::Start if done => Phase::Running,
            Step::Start => Phase::Failed,
            Step::Stop { .. } | Step::Settle if done && !self.lost => Phase::Stopped,
            Step::Stop { .. } if done => Phase::Failed,
            Step::Settle => Phase::Failed,
            Step::Pause if done => Phase::Paused,
            Step::Resume if done => Phase::Running,
            Step::Delete if done => {
                self.deleted = true;
                Phase::Stopped
            }
            Step::Stop { .. } | Step::Pause | Step::Resume | Step::Change(_) | Step::Delete => {
                self.before
            }
        };
        let down = match step {
            Step::Stop { .. } => done,
            Step::Start => !done,
            // Tried once: what could not be taken down is tried again by the next start.
            Step::Settle => true,
            Step::Pause | Step::Resume | Step::Change(_) | Step::Delete => false,
        };
        if down {
            (self.ended, self.lost) = (false, false);
        }
        self.hurry = false;
        if let Some(ticket) = ticket {
            let request = self.waiting.front().map(|(_, request)| *request);
            match (request, step) {
                _ if !done => self.answer(ticket, Ended::Failed),
                // Half of it is done: its turn goes on.
                (Some(Request::Restart { .. }), Step::Stop { .. }) => {
                    if let Some(front) = self.waiting.front_mut() {
                        front.1 = Request::Start;
                    }
                }
                (Some(Request::Delete { .. }), Step::Stop { .. }) => {}
                _ => self.answer(ticket, Ended::Done),
            }
        }
        if self.deleted {
            let rest: Vec<Ticket> = self.waiting.drain(..).map(|(ticket, _)| ticket).collect();
            self.answers
                .extend(rest.into_iter().map(|rest| (rest, Ended::Denied(Denial::Deleted))));
        }
    }

    /// Says that the container's init ended by itself.
    ///
    /// While a step ends it this is no news.
    pub fn init_ended(&mut self) {
        let by_step =
            matches!(self.busy, Some((_, Step::Stop { .. } | Step::Settle | Step::Delete)));
        if !by_step && self.phase.is_up() {
            self.ended = true;
        }
    }

    /// Says that the container lost its root: what is left of it is taken down, and it has failed.
    pub fn root_lost(&mut self) {
        self.lost |= self.phase.is_up();
        self.init_ended();
    }

    /// The requests that ended since this was asked last.
    pub fn answers(&mut self) -> Vec<(Ticket, Ended)> {
        std::mem::take(&mut self.answers)
    }
}
