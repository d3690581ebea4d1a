//! Runs one history on two worlds, finds where they part, and shortens what leads there.
//!
//! After each step the answers and the places that it named are compared; the whole trees every
//! [`TREE_EVERY`] steps, at the end, and after a last remount.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::compare::{Comparer, Difference, Tolerance, equal};
use crate::generate::{Census, Generator, Profile};
use crate::operation::{Access, Operation, Place, RenameHow, Step, Target, Text, Time, Who};
use crate::world::{Answer, HANDLES, Identity, Kind, LISTINGS, Look, MAPS, Outcome, World};

/// Bytes of a page, which a mapping shows or refuses whole.
const PAGE: usize = 4096;

/// The whole trees are compared after this many steps.
const TREE_EVERY: usize = 64;

/// Longest time to spend on shortening one history.
const SHORTEN_FOR: Duration = Duration::from_secs(120);

/// Steps of a history that could not be shortened further to print, the last ones.
const REPORTED: usize = 100;

/// Two worlds that begin equal, and what holds them up. Dropped in this order.
pub(crate) struct Pair {
    /// The plain directory.
    pub(crate) reference: Box<dyn World>,
    /// What is tested.
    pub(crate) subject: Box<dyn World>,
    /// The mounts and directories beneath.
    pub(crate) stage: Box<dyn Stage>,
}

/// What holds a pair up.
pub(crate) trait Stage {
    /// Unmounts and mounts the subject again. Nothing is open in it.
    fn remount(&mut self);

    /// Directories whose files the subject opens in the shared way: a descriptor opened for
    /// reading before the first write keeps the old content (docs/SEMANTICS.md, "Two ways to open").
    fn shared_directories(&self) -> Vec<Place> {
        Vec::new()
    }

    /// What the subject is known to do otherwise.
    fn tolerance(&self) -> Tolerance {
        Tolerance::default()
    }
}

/// Where two worlds parted.
#[derive(Clone, Debug)]
pub(crate) struct Parting {
    /// Steps done, the last one included.
    pub(crate) steps: usize,
    /// How.
    pub(crate) difference: Difference,
}

/// What a failed exploration leaves: its history and where it went wrong.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) history: Vec<Step>,
    pub(crate) parting: Parting,
}

/// Makes and runs `steps` random steps. Answers the number of steps that succeeded.
pub(crate) fn explore(
    pair: &mut Pair,
    seed: u64,
    steps: usize,
    profile: Profile,
) -> Result<usize, Box<Failure>> {
    let mut generator = Generator::new(seed, profile);
    let mut history = Vec::new();
    let result = (|| {
        let mut run = Run::begin(pair)?;
        while history.len() < steps {
            let step = generator.step(&run.census);
            history.push(step);
            run.step(&history[history.len() - 1])?;
            if history.len().is_multiple_of(TREE_EVERY) {
                run.trees()?;
            }
        }
        run.end()?;
        Ok(run.succeeded)
    })();
    result.map_err(|difference| {
        let parting = Parting { steps: history.len(), difference };
        Box::new(Failure { history, parting })
    })
}

/// Runs a given history.
pub(crate) fn replay(pair: &mut Pair, history: &[Step]) -> Result<(), Parting> {
    let mut done = 0;
    let result = (|| {
        let mut run = Run::begin(pair)?;
        for step in history {
            done += 1;
            run.step(step)?;
        }
        run.trees()?;
        run.end()
    })();
    result.map_err(|difference| Parting { steps: done, difference })
}

/// Shortens a failing history as long as what is left still fails on a fresh pair: first to its
/// last few steps, then by leaving out ever smaller parts.
pub(crate) fn shorten(failure: &Failure, fresh: &mut dyn FnMut() -> Pair) -> Failure {
    let deadline = Instant::now() + SHORTEN_FOR;
    let mut best = failure.clone();
    best.history.truncate(best.parting.steps);
    let mut last = 1;
    while last < best.history.len() {
        let candidate = &best.history[best.history.len() - last..];
        if let Err(parting) = replay(&mut fresh(), candidate) {
            best = Failure { history: candidate[..parting.steps].to_vec(), parting };
            break;
        }
        last *= 3;
    }
    let mut chunk = best.history.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < best.history.len() {
            if Instant::now() > deadline {
                return best;
            }
            let mut candidate = best.history.clone();
            candidate.drain(at..(at + chunk).min(best.history.len()));
            match replay(&mut fresh(), &candidate) {
                Err(parting) => {
                    candidate.truncate(parting.steps);
                    best = Failure { history: candidate, parting };
                }
                Ok(()) => at += chunk,
            }
        }
        chunk /= 2;
    }
    best
}

/// The history and its end, for a person.
pub(crate) fn report(failure: &Failure) -> String {
    let mut text = String::new();
    let skipped = failure.history.len().saturating_sub(REPORTED);
    if skipped > 0 {
        writeln!(text, "({skipped} steps before these)").expect("a string takes everything");
    }
    for (index, step) in failure.history.iter().enumerate().skip(skipped) {
        writeln!(text, "{:4}  {:?} {:03o} {:?}", index + 1, step.who, step.umask, step.operation)
            .expect("a string takes everything");
    }
    let Difference { kind, what } = &failure.parting.difference;
    write!(text, "parted after {} steps, {kind}: {what}", failure.parting.steps)
        .expect("a string takes everything");
    text
}

/// A directory listing in progress: what it must show, and what has been named meanwhile.
#[derive(Clone, Debug)]
struct Watch {
    at_start: BTreeSet<Vec<u8>>,
    touched: BTreeSet<Vec<u8>>,
}

struct Run<'a> {
    pair: &'a mut Pair,
    comparer: Comparer,
    census: Census,
    watches: [Option<Watch>; LISTINGS],
    /// Last names that symlinks pointed at: a file may be made through one.
    pointed_at: BTreeSet<Vec<u8>>,
    /// Files of the template that are opened in the shared way, with their content.
    shared: HashMap<Identity, Vec<u8>>,
    /// Content that a read-only handle may go on showing.
    old_content: [Option<Vec<u8>>; HANDLES],
    old_maps: [Option<Vec<u8>>; MAPS],
    succeeded: usize,
}

impl<'a> Run<'a> {
    fn begin(pair: &'a mut Pair) -> Result<Self, Difference> {
        let comparer = Comparer::new(pair.stage.tolerance());
        let mut run = Self {
            pair,
            comparer,
            census: Census::new(),
            watches: Default::default(),
            pointed_at: BTreeSet::new(),
            shared: HashMap::new(),
            old_content: Default::default(),
            old_maps: Default::default(),
            succeeded: 0,
        };
        let all = run.trees()?;
        for directory in run.pair.stage.shared_directories() {
            for (place, kind) in &all {
                if *kind == Kind::Regular && place.is_under(&directory) {
                    let seen = run.pair.reference.observe(place, Look::Content);
                    let (seen, identity) = seen.expect("it was just compared");
                    run.shared.insert(identity, seen.content.unwrap_or_default());
                }
            }
        }
        Ok(run)
    }

    fn trees(&mut self) -> Result<BTreeMap<Place, Kind>, Difference> {
        let Pair { reference, subject, .. } = &mut *self.pair;
        let all = self.comparer.tree(reference.as_mut(), subject.as_mut())?;
        self.census.replace(&all);
        Ok(all)
    }

    fn end(&mut self) -> Result<(), Difference> {
        self.trees()?;
        self.remount()
    }

    fn remount(&mut self) -> Result<(), Difference> {
        self.pair.reference.close_all();
        self.pair.subject.close_all();
        self.pair.stage.remount();
        self.watches = Default::default();
        self.old_content = Default::default();
        self.old_maps = Default::default();
        self.trees()?;
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), Difference> {
        if step.operation == Operation::Remount {
            self.census.record(&step.operation);
            return self.remount();
        }
        if self.reads_old_content(&step.operation) {
            return Ok(());
        }
        if self.is_ambiguous(&step.operation) {
            return Ok(());
        }
        let lazy = self.lazily(step);
        let step = lazy.as_ref().unwrap_or(step);
        let wanted = self.pair.reference.apply(step);
        let found = self.pair.subject.apply(step);
        if let Ok(Answer::Broken(rule)) = &wanted {
            panic!("the reference itself breaks a rule: {rule}");
        }
        self.judge(&step.operation, &wanted, &found)?;
        if wanted.is_ok() {
            self.succeeded += 1;
            self.census.record(&step.operation);
        }
        self.watch(&step.operation, &wanted);
        self.wash(&step.operation, &wanted);
        self.look_at_touched(step)
    }

    /// ext4 stamps the source directory of a whiteout rename that fails; nobody has to.
    fn wash(&mut self, operation: &Operation, outcome: &Outcome) {
        if let (Operation::Rename { from, how: RenameHow::Whiteout, .. }, Err(_)) =
            (operation, outcome)
        {
            let modify = Time::At(1_234_567_890, 0);
            let step = as_root(Operation::SetTimes {
                target: Target::Name(from.parent()),
                access: Time::Keep,
                modify,
                follow: true,
            });
            let (wanted, found) =
                (self.pair.reference.apply(&step), self.pair.subject.apply(&step));
            assert_eq!(wanted, found, "{step:?}");
        }
    }

    /// Whether a step would spread what a shared reader still sees; that is no difference to
    /// find but one to keep out of the worlds.
    fn reads_old_content(&mut self, operation: &Operation) -> bool {
        if self.shared.is_empty() {
            return false;
        }
        let old = |slot: &usize| self.old_content[*slot].is_some();
        match operation {
            Operation::CopyRange { from: Target::Handle(slot), .. } if old(slot) => true,
            // The open for writing renumbers the file that was just opened for reading.
            Operation::CopyRange { from, to, .. } => {
                let from = identity(self.pair.reference.as_mut(), from);
                from.is_some() && from == identity(self.pair.reference.as_mut(), to)
            }
            Operation::Reopen { from, .. } => old(from),
            _ => false,
        }
    }

    /// What to do instead where a mapping is written back later than the kernel would.
    fn lazily(&self, step: &Step) -> Option<Step> {
        if !self.pair.stage.tolerance().lazy_maps {
            return None;
        }
        let operation = match &step.operation {
            Operation::MapPoke { map, offset, fill, .. } => {
                Operation::MapPoke { map: *map, offset: *offset, fill: *fill, sync: true }
            }
            Operation::SetXattr { name, target, .. } if name.0 == b"security.capability" => {
                Operation::Holes { target: target.clone() }
            }
            _ => return None,
        };
        Some(Step { operation, ..step.clone() })
    }

    /// A chown that names nobody, of a file that has capabilities or is open for writing, looks
    /// to a FUSE server like a write (docs/SEMANTICS.md).
    fn is_ambiguous(&mut self, operation: &Operation) -> bool {
        let Operation::Chown { target, uid: None, gid: None, .. } = operation else {
            return false;
        };
        let get = Operation::GetXattr {
            target: target.clone(),
            name: Text::new(b"security.capability"),
            room: 0,
        };
        let reference = self.pair.reference.as_mut();
        let file = identity(reference, target);
        let open = (0..HANDLES).any(|slot| file.is_some() && reference.identity(slot) == file);
        // A link that is followed is not looked through here.
        let unseen = matches!(target, Target::Name(place) if self.is_symlink(place));
        open || self.census.has_maps() || unseen || self.pair.reference.apply(&as_root(get)).is_ok()
    }

    fn is_symlink(&mut self, place: &Place) -> bool {
        let seen = self.pair.reference.observe(place, Look::Stat);
        seen.is_ok_and(|(seen, _)| seen.kind == Kind::Symlink)
    }

    fn judge(
        &mut self,
        operation: &Operation,
        wanted: &Outcome,
        found: &Outcome,
    ) -> Result<(), Difference> {
        match (wanted, found) {
            (Ok(Answer::Listed(wanted)), Ok(Answer::Listed(found))) => {
                let Operation::ListRest { slot } = operation else {
                    panic!("only a listing lists");
                };
                let watch = self.watches[*slot].take().expect("an open listing is watched");
                watch.judge(wanted).unwrap_or_else(|why| panic!("the reference itself: {why}"));
                watch.judge(found).map_err(|why| Difference::new("listing", why))
            }
            (Ok(Answer::Seen(wanted)), Ok(Answer::Seen(found))) => {
                let Operation::Inspect { slot } = operation else {
                    panic!("only an inspection sees");
                };
                let mut wanted = wanted.clone();
                if let Some(old) = &self.old_content[*slot]
                    && found.content.as_ref() == Some(old)
                {
                    wanted.content.clone_from(&found.content);
                    (wanted.size, wanted.mtime) = (found.size, found.mtime);
                }
                equal(&Place::new(format!("handle {slot}")), &wanted, found)
            }
            (Ok(Answer::Bytes(wanted)), Ok(Answer::Bytes(found))) => {
                if wanted == found || self.is_old(operation, found) {
                    return Ok(());
                }
                let at = wanted.iter().zip(found).position(|(a, b)| a != b);
                let what = format!(
                    "{operation:?}: reference {} bytes, subject {}, first difference at {at:?}",
                    wanted.len(),
                    found.len()
                );
                Err(Difference::new("bytes", what))
            }
            (Ok(_), Ok(Answer::Broken(rule))) => {
                Err(Difference::new("rule", format!("{operation:?}: {rule}")))
            }
            (Ok(wanted), Ok(found)) if wanted == found => Ok(()),
            (Err(wanted), Err(found)) if wanted == found => Ok(()),
            // The file was cut, or grew, behind a mapping that keeps the old content and its end.
            (Err(Errno::FAULT), Ok(Answer::Bytes(found))) if self.is_old(operation, found) => {
                Ok(())
            }
            (Ok(Answer::Bytes(wanted)), Err(Errno::FAULT))
                if self.ends_before(operation, wanted.len()) =>
            {
                Ok(())
            }
            (Ok(wanted), Ok(found)) => {
                let what = format!("{operation:?}: reference {wanted:?}, subject {found:?}");
                Err(Difference::new("answer", what))
            }
            (wanted, found) => {
                let short = |outcome: &Outcome| match outcome {
                    Ok(_) => "succeeds".to_owned(),
                    Err(errno) => errno.to_string(),
                };
                let (wanted, found) = (short(wanted), short(found));
                let what = format!("{operation:?}: reference {wanted}, subject {found}");
                Err(Difference::new("errno", what))
            }
        }
    }

    /// Whether a read shows what a shared reader may go on showing.
    fn is_old(&self, operation: &Operation, found: &[u8]) -> bool {
        let (old, offset) = match operation {
            Operation::Read { target: Target::Handle(slot), offset, .. } => {
                (&self.old_content[*slot], usize::try_from(*offset).unwrap_or(usize::MAX))
            }
            Operation::MapPeek { map, offset, .. } => (&self.old_maps[*map], *offset),
            _ => return false,
        };
        let Some(old) = old else { return false };
        let start = offset.min(old.len());
        let known = found.len().min(old.len() - start);
        // A mapping shows zeros behind the end of the file.
        old[start..start + known] == found[..known] && found[known..].iter().all(|&b| b == 0)
    }

    /// Whether a peek of `len` bytes runs past the last page that a mapping's old content has.
    fn ends_before(&self, operation: &Operation, len: usize) -> bool {
        let Operation::MapPeek { map, offset, .. } = operation else { return false };
        let old = self.old_maps[*map].as_ref();
        old.is_some_and(|old| offset + len > old.len().next_multiple_of(PAGE))
    }

    /// Keeps the books of listings and of shared readers.
    fn watch(&mut self, operation: &Operation, outcome: &Outcome) {
        if let Operation::Symlink { target, .. } = operation {
            let name = target.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            self.pointed_at.insert(name.to_vec());
        }
        for watch in self.watches.iter_mut().flatten() {
            watch.touched.extend(self.pointed_at.iter().cloned());
            watch.touched.extend(operation.places().iter().map(|place| place.name().to_vec()));
            if let Ok(Answer::Names(names)) = outcome {
                watch.touched.extend(names.keys().cloned());
            }
        }
        match operation {
            Operation::OpenListing { slot, place } => {
                self.watches[*slot] = None;
                if outcome.is_ok() {
                    let names = self.pair.reference.names(place).unwrap_or_default();
                    let at_start = names.into_keys().collect();
                    let touched = self.pointed_at.clone();
                    self.watches[*slot] = Some(Watch { at_start, touched });
                }
            }
            Operation::ListRest { slot } => self.watches[*slot] = None,
            Operation::Open { slot, access, .. } | Operation::Reopen { slot, access, .. } => {
                self.old_content[*slot] = None;
                if outcome.is_ok() && *access == Access::Read {
                    self.old_content[*slot] = self.still_shared(*slot);
                }
            }
            Operation::Close { slot } => self.old_content[*slot] = None,
            Operation::Map { map, slot, .. } => {
                self.old_maps[*map] =
                    if outcome.is_ok() { self.old_content[*slot].clone() } else { None };
            }
            _ => {}
        }
    }

    /// The template's content, when that is still the content of the file open in `slot`.
    fn still_shared(&mut self, slot: usize) -> Option<Vec<u8>> {
        let identity = self.pair.reference.identity(slot)?;
        let original = self.shared.get(&identity)?;
        match self.pair.reference.apply(&as_root(Operation::Inspect { slot })) {
            Ok(Answer::Seen(seen)) if seen.content.as_ref() == Some(original) => seen.content,
            _ => None,
        }
    }

    fn look_at_touched(&mut self, step: &Step) -> Result<(), Difference> {
        // The closeness depends on the step alone, so that a shortened history looks alike.
        let mut hasher = DefaultHasher::new();
        format!("{step:?}").hash(&mut hasher);
        let look = match hasher.finish() % 4 {
            0 | 1 => Look::Stat,
            2 => Look::Xattrs,
            _ => Look::Content,
        };
        let Pair { reference, subject, .. } = &mut *self.pair;
        for place in step.operation.places() {
            for place in [place.clone(), place.parent()] {
                let kind =
                    self.comparer.place(reference.as_mut(), subject.as_mut(), &place, look)?;
                self.census.set(&place, kind);
            }
        }
        if let Some(slot) = handle_of(&step.operation)
            && look == Look::Content
        {
            let inspect = Operation::Inspect { slot };
            let wanted = self.pair.reference.apply(&as_root(inspect.clone()));
            let found = self.pair.subject.apply(&as_root(inspect.clone()));
            self.judge(&inspect, &wanted, &found)?;
        }
        Ok(())
    }
}

impl Watch {
    /// A name that was there all the time is listed once; one that never was is not.
    fn judge(&self, listed: &[Vec<u8>]) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for name in listed {
            let text = name.escape_ascii();
            if !seen.insert(name) && !self.touched.contains(name) {
                return Err(format!("\"{text}\" was listed twice"));
            }
            if !self.at_start.contains(name) && !self.touched.contains(name) {
                return Err(format!("\"{text}\" was listed and never was there"));
            }
        }
        let untouched = self.at_start.difference(&self.touched);
        match untouched.into_iter().find(|name| !seen.contains(name)) {
            Some(name) => Err(format!("\"{}\" was not listed", name.escape_ascii())),
            None => Ok(()),
        }
    }
}

fn identity(world: &mut dyn World, target: &Target) -> Option<Identity> {
    match target {
        Target::Name(place) => world.identity_at(place),
        Target::Handle(slot) => world.identity(*slot),
    }
}

fn as_root(operation: Operation) -> Step {
    Step { who: Who::Root, umask: 0o022, operation }
}

fn handle_of(operation: &Operation) -> Option<usize> {
    use Operation as O;
    match operation {
        O::Write { target, .. }
        | O::Truncate { target, .. }
        | O::Allocate { target, .. }
        | O::MapWrite { target, .. }
        | O::CopyRange { to: target, .. }
        | O::Chmod { target, .. }
        | O::Chown { target, .. }
        | O::SetTimes { target, .. }
        | O::SetXattr { target, .. }
        | O::RemoveXattr { target, .. } => match target {
            Target::Handle(slot) => Some(*slot),
            Target::Name(_) => None,
        },
        O::Open { slot, .. } | O::Reopen { slot, .. } => Some(*slot),
        _ => None,
    }
}
