//! The queue against what it promises, over random lives.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Event {
    Submit(Request),
    Next,
    Finish(Outcome),
    InitEnds,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let request = prop_oneof![
        Just(Request::Start),
        any::<bool>().prop_map(|kill| Request::Stop { kill }),
        any::<bool>().prop_map(|kill| Request::Restart { kill }),
        Just(Request::Pause),
        Just(Request::Resume),
        Just(Request::Change),
        any::<bool>().prop_map(|force| Request::Delete { force }),
    ];
    let outcome = prop_oneof![4 => Just(Outcome::Done), 1 => Just(Outcome::Failed)];
    let event = prop_oneof![
        4 => request.prop_map(Event::Submit),
        4 => Just(Event::Next),
        4 => outcome.prop_map(Event::Finish),
        1 => Just(Event::InitEnds),
    ];
    proptest::collection::vec(event, 0..120)
}

/// What really exists, as whoever does the steps would see it.
#[derive(Debug, Default, PartialEq)]
struct World {
    processes: bool,
    frozen: bool,
    mounts: bool,
    directory: bool,
}

impl World {
    /// Does a step as the driver would; a failed one leaves nothing half done.
    fn perform(&mut self, step: Step, outcome: Outcome) {
        let done = outcome == Outcome::Done;
        match step {
            Step::Start => {
                assert!(self.directory && !self.processes, "nothing is started twice: {self:?}");
                if done {
                    (self.processes, self.mounts) = (true, true);
                }
            }
            Step::Stop { .. } => {
                if done {
                    *self = Self { directory: true, ..Self::default() };
                }
            }
            Step::Settle => *self = Self { directory: true, ..Self::default() },
            Step::Pause => {
                assert!(self.mounts && !self.frozen, "paused twice: {self:?}");
                self.frozen = done;
            }
            Step::Resume => {
                assert!(self.frozen, "resumed without being paused: {self:?}");
                self.frozen = !done;
            }
            Step::Change(_) => assert!(self.directory, "a deleted container is not changed"),
            Step::Delete => {
                assert!(!self.processes && !self.mounts, "deleted while it runs: {self:?}");
                self.directory = !done;
            }
        }
    }
}

fn live(events: Vec<Event>) {
    let mut queue = Queue::new(Phase::Created);
    let mut world = World { directory: true, ..World::default() };
    let mut open: BTreeSet<Ticket> = BTreeSet::new();
    let mut doing: Option<Step> = None;
    let end = [Event::Next, Event::Finish(Outcome::Done)].repeat(3 * LIMIT);
    for event in events.into_iter().chain(end) {
        match event {
            Event::Submit(request) => {
                if let Ok(ticket) = queue.submit(request) {
                    assert!(open.insert(ticket), "tickets are unique");
                }
            }
            Event::Next => {
                if let Some(step) = queue.next_step() {
                    assert_eq!(doing.replace(step), None, "one step at a time");
                }
            }
            Event::Finish(outcome) => {
                if let Some(step) = doing.take() {
                    world.perform(step, outcome);
                    queue.finished(outcome);
                }
            }
            Event::InitEnds => {
                if world.processes && !world.frozen {
                    world.processes = false;
                    queue.init_ended();
                }
            }
        }
        for (ticket, ended) in queue.answers() {
            assert!(open.remove(&ticket), "answered once: {ended:?}");
        }
        if doing.is_none() && queue.is_idle() {
            assert_eq!(
                world.mounts,
                queue.phase().is_up() && !queue.is_deleted(),
                "{queue:?} {world:?}"
            );
            assert_eq!(world.frozen, queue.phase() == Phase::Paused);
            assert_eq!(world.directory, !queue.is_deleted());
        }
    }
    assert!(open.is_empty(), "everybody was answered");
    assert!(queue.is_deleted() || queue.is_idle());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_life_starts_twice_loses_a_request_or_leaves_anything(events in events()) {
        live(events);
    }
}

/// Submits and does everything until nothing waits.
fn all(queue: &mut Queue, requests: &[Request]) -> Vec<Step> {
    for request in requests {
        queue.submit(*request).expect("admitted");
    }
    let mut steps = Vec::new();
    while let Some(step) = queue.next_step() {
        steps.push(step);
        queue.finished(Outcome::Done);
    }
    steps
}

#[test]
fn two_clients_that_race_to_start_are_both_content_and_it_starts_once() {
    let mut queue = Queue::new(Phase::Stopped);
    assert_eq!(all(&mut queue, &[Request::Start, Request::Start]), [Step::Start]);
    let ended: Vec<Ended> = queue.answers().into_iter().map(|(_, ended)| ended).collect();
    assert_eq!(ended, [Ended::Done, Ended::AlreadySo]);
}

#[test]
fn nothing_gets_behind_a_deletion() {
    let mut queue = Queue::new(Phase::Running);
    assert_eq!(queue.submit(Request::Delete { force: false }), Err(Denial::Running));
    let delete = queue.submit(Request::Delete { force: true }).expect("forced");
    assert_eq!(queue.submit(Request::Start), Err(Denial::Deleted));
    assert_eq!(queue.next_step(), Some(Step::Stop { kill: true }));
    queue.finished(Outcome::Done);
    assert_eq!(queue.next_step(), Some(Step::Delete));
    queue.finished(Outcome::Done);
    assert_eq!(queue.answers(), [(delete, Ended::Done)]);
    assert!(queue.is_deleted());
    assert_eq!(queue.submit(Request::Change), Err(Denial::Deleted));
}

#[test]
fn a_request_is_judged_by_the_phase_that_it_will_find() {
    let mut queue = Queue::new(Phase::Stopped);
    assert_eq!(queue.submit(Request::Pause), Err(Denial::NotRunning));
    queue.submit(Request::Start).expect("admitted");
    let pause = queue.submit(Request::Pause).expect("it will be running");
    assert_eq!(queue.submit(Request::Start), Err(Denial::Paused));
    assert_eq!(queue.next_step(), Some(Step::Start));
    queue.finished(Outcome::Failed);
    assert_eq!(queue.next_step(), None);
    let answers = queue.answers();
    assert!(answers.contains(&(pause, Ended::Denied(Denial::NotRunning))), "{answers:?}");
    assert_eq!(queue.phase(), Phase::Failed);
}

#[test]
fn who_does_not_want_to_wait_hurries_a_stop_that_waits() {
    let mut queue = Queue::new(Phase::Running);
    queue.submit(Request::Stop { kill: false }).expect("admitted");
    assert_eq!(queue.next_step(), Some(Step::Stop { kill: false }));
    assert!(!queue.hurry());
    queue.submit(Request::Stop { kill: true }).expect("admitted");
    assert!(queue.hurry());
    queue.finished(Outcome::Done);
    assert!(!queue.hurry());
    assert_eq!(queue.next_step(), None);
    assert_eq!(queue.phase(), Phase::Stopped);
}

#[test]
fn an_end_during_another_step_is_not_forgotten() {
    let mut queue = Queue::new(Phase::Running);
    queue.submit(Request::Change).expect("admitted");
    assert!(matches!(queue.next_step(), Some(Step::Change(_))));
    queue.init_ended();
    queue.finished(Outcome::Done);
    assert_eq!(queue.next_step(), Some(Step::Settle));
    queue.finished(Outcome::Done);
    assert_eq!(queue.phase(), Phase::Stopped);
    queue.init_ended();
    assert!(queue.is_idle(), "a stopped one cannot end again");
}

#[test]
fn one_that_lost_its_root_has_failed_and_can_be_started_again() {
    let mut queue = Queue::new(Phase::Running);
    queue.root_lost();
    assert_eq!(all(&mut queue, &[]), [Step::Settle]);
    assert_eq!(queue.phase(), Phase::Failed);
    assert_eq!(all(&mut queue, &[Request::Start, Request::Stop { kill: false }]).len(), 2);
    assert_eq!(queue.phase(), Phase::Stopped);
}

#[test]
fn a_queue_is_bounded() {
    let mut queue = Queue::new(Phase::Stopped);
    for _ in 0..LIMIT {
        queue.submit(Request::Change).expect("room");
    }
    assert_eq!(queue.submit(Request::Change), Err(Denial::Full));
}
