//! One run: group by group, each file under a lease from before it is read until it is replaced.
//!
//! Readers hash ([`super::readers`]) while this thread decides, makes objects, and has files replaced
//! many at a time: what a replacement costs is waiting for the disk, and a disk takes as long for
//! one as for thousands.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use rustix::fs::AtFlags;

use super::apply::apply;
use super::candidates::{Candidate, Filter, Known, walk};
use super::content::{GaveUp, Leased, Watched};
use super::keeper::Keeper;
use super::readers::{self, Done, Reader, Task};
use super::{Member, Report, RootReport, Wanted, sift};
use crate::catalog::{Catalog, Identity};
use crate::control::Outcome;
use crate::host::error::{HostError, sentence};
use crate::host::roots::{ResharePolicy, RootRecord, Roots};
use crate::host::store::Store;
use crate::layer::Layers;
use crate::layer::template::default_shared_paths;
use crate::object::{ObjectError, ObjectId, ObjectReader, Objects, Put, Staging};
use crate::sys::lease::notice_lease_breaks;
use crate::sys::process::{allow_descriptors, share_of_descriptors};
use crate::union::upper::Upper;
use crate::union::{ObjectContent, SharedSet};

/// Files under a lease at once, at most; a quarter of the descriptors of this process, if that
/// is less: each takes another one while it is replaced.
const LEASES: NonZeroUsize = NonZeroUsize::new(8192).expect("the constant is not zero");
/// The same where others are to be left alone.
const POLITE_LEASES: NonZeroUsize = NonZeroUsize::new(512).expect("the constant is not zero");
/// How long files wait under their leases for others to be replaced with them.
const DUE: Duration = Duration::from_secs(1);
/// Longer files are copied as a stream, which ends as soon as a writer waits.
const STREAMED_BYTES: u64 = 64 << 20;

/// A file whose object is in the store, or will be before it is replaced.
pub(super) struct Ready {
    pub(super) leased: Leased,
    pub(super) object: ObjectContent,
}

/// Shares what the roots hold alike.
///
/// # Errors
/// What keeps the store from being used; trouble of a root is in its report. What was replaced
/// until then stays replaced, and a second run does the rest.
pub fn reshare(store: &Store, wanted: &Wanted<'_>) -> Result<Report, HostError> {
    // A writer that comes while a lease is held would end this process otherwise.
    notice_lease_breaks();
    allow_descriptors();
    let began = Instant::now();
    let _store = store.share()?;
    let objects = Objects::open(store.path())?;
    objects.sweep_staging()?;
    let reader = ObjectReader::open(store.path())?;
    let layers = Layers::open(store.path())?;
    let mut report = Report { dry_run: wanted.dry_run, ..Report::default() };
    let members = members(&layers, wanted, &mut report);
    let filter = Filter { exclude: &wanted.exclude, least_age: wanted.least_age };
    let mut found = Vec::new();
    for (at, member) in members.iter().enumerate() {
        if let Err(error) = walk(at, member, &filter, &mut report.skipped, &mut found) {
            note(&mut report, &member.record.name, sentence(&error));
        }
        if !wanted.pace.wait() {
            report.interrupted = true;
            return Ok(report);
        }
    }
    // Before the first look at what there is: nothing that is found is collected from here on.
    let staging = if wanted.dry_run { None } else { Some(objects.begin()?) };
    let (sizes, known) = sift::by_size(store, &layers, &reader, found)?;
    let before = known.of_roots.values().flatten().copied().collect();
    let leases = if wanted.pace.is_limited() {
        share_of_descriptors(8, POLITE_LEASES)
    } else {
        share_of_descriptors(4, LEASES)
    };
    let mut run = Run {
        before,
        store,
        roots: Roots::open(store)?,
        members: &members,
        wanted,
        known,
        staging,
        remembered: remembered(store, &members),
        learnt: vec![HashMap::new(); members.len()],
        ready: Vec::new(),
        pending: HashMap::new(),
        waiting: 0,
        new: HashSet::new(),
        since: Instant::now(),
        leases: leases.get(),
        report,
    };
    let keeper = Keeper::default();
    let shared = std::thread::scope(|scope| {
        scope.spawn(|| keeper.run());
        // Also if this panics: nobody would end then.
        let _over = keeper.ended_with();
        let (ask, tasks) = channel::unbounded();
        let (tell, done) = channel::unbounded();
        for _ in 0..readers::count(wanted.pace) {
            let (tasks, done) = (tasks.clone(), tell.clone());
            let (members, pace, keeper) = (&members[..], wanted.pace, &keeper);
            let reader = Reader { members, pace, keeper, tasks, done };
            scope.spawn(move || reader.run());
        }
        drop((tasks, tell));
        run.all(Source { reader: &reader, sizes }, &ask, &done)
    });
    run.ready.clear();
    run.pending.clear();
    if let Some(staging) = run.staging.take() {
        staging.finish()?;
    }
    run.remember(store);
    shared?;
    let mut report = run.report;
    report.interrupted |= wanted.pace.is_stopped();
    report.milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

fn note(report: &mut Report, root: &str, sentence: String) {
    let notes = &mut report.roots.entry(root.to_owned()).or_default().notes;
    if !notes.contains(&sentence) {
        notes.push(sentence);
    }
}

/// Opens the roots that may take part.
fn members(layers: &Layers, wanted: &Wanted<'_>, report: &mut Report) -> Vec<Member> {
    let mut members = Vec::new();
    for record in &wanted.roots {
        let Some(private) = record.private.clone() else { continue };
        if record.reshare == ResharePolicy::Off {
            continue;
        }
        let open = || {
            if !private.exists() {
                return Err(format!("{} is not there", private.display()));
            }
            member(layers, record, private.clone()).map_err(|error| sentence(&error))
        };
        let opened = match open() {
            // Its process may be on its way to a mount, and makes the directory: it answers once
            // that is whole.
            Err(_) if record.living().is_some_and(|mut process| process.status().is_ok()) => open(),
            opened => opened,
        };
        match opened {
            Ok(member) => members.push(member),
            Err(reason) => note(report, &record.name, reason),
        }
    }
    members
}

fn member(
    layers: &Layers,
    record: &RootRecord,
    private: std::path::PathBuf,
) -> Result<Member, HostError> {
    let upper = Upper::open(&private, layers)?;
    // What is opened shared there now, or would be.
    let live = record.living().and_then(|mut client| client.status().ok()?.shared_paths);
    let patterns = live.unwrap_or_else(|| {
        let template = layers.templates().get(&record.template);
        template.map_or_else(|_| default_shared_paths(), |template| template.shared_paths)
    });
    let shared = SharedSet::resolve(upper.tree(), &patterns)?;
    let (record, policy) = (record.clone(), record.reshare);
    Ok(Member { record, private, policy, upper, shared, patterns })
}

/// What files were hashed to by earlier runs.
fn remembered(store: &Store, members: &[Member]) -> Vec<HashMap<Identity, ObjectId>> {
    let session = Catalog::open(store.path()).ok().and_then(|catalog| catalog.session());
    let hashes = |member: &Member| {
        let known = session.as_ref().map(|session| session.hashes(&member.record.key()));
        known.and_then(Result::ok).unwrap_or_default()
    };
    members.iter().map(hashes).collect()
}

struct Run<'a> {
    store: &'a Store,
    roots: Roots,
    members: &'a [Member],
    wanted: &'a Wanted<'a>,
    known: Known,
    /// None in a dry run.
    staging: Option<Staging>,
    remembered: Vec<HashMap<Identity, ObjectId>>,
    /// By root: what files hashed to in this run.
    learnt: Vec<HashMap<Identity, ObjectId>>,
    ready: Vec<Ready>,
    /// Content that one root alone has been found to hold so far, by the number of its group.
    pending: HashMap<u64, HashMap<ObjectId, Vec<Ready>>>,
    /// How many files that are.
    waiting: usize,
    /// Objects that containers had before this run.
    before: HashSet<ObjectId>,
    /// Objects that this run made.
    new: HashSet<ObjectId>,
    /// When nothing was ready last.
    since: Instant,
    leases: usize,
    report: Report,
}

/// What is to be read, in this order: what wins most comes first.
struct Source<'a> {
    reader: &'a ObjectReader,
    sizes: BTreeMap<u64, Vec<Candidate>>,
}

/// Files that readers have, and those that come next.
#[derive(Default)]
struct Queue {
    next: std::collections::VecDeque<Task>,
    groups: u64,
    /// By group: files that have not been read yet.
    left: HashMap<u64, usize>,
    /// Files that readers have.
    away: usize,
}

impl Queue {
    fn add(&mut self, group: Vec<Candidate>) {
        let number = self.groups;
        self.groups += 1;
        self.left.insert(number, group.len());
        self.next.extend(group.into_iter().map(|file| Task { file, group: number }));
    }

    /// Notes that a file of `group` was read; true if it was the last.
    fn is_last(&mut self, group: u64) -> bool {
        let Some(left) = self.left.get_mut(&group) else { return false };
        *left = left.saturating_sub(1);
        let last = *left == 0;
        if last {
            self.left.remove(&group);
        }
        last
    }
}

impl Run<'_> {
    fn all(
        &mut self,
        mut source: Source<'_>,
        ask: &Sender<Task>,
        done: &Receiver<Done>,
    ) -> Result<(), HostError> {
        let mut hashes: HashMap<Identity, ObjectId> = HashMap::new();
        for of_root in &self.remembered {
            hashes.extend(of_root);
        }
        // As many as are read while a batch is replaced.
        let most = if self.wanted.pace.is_limited() { 2 } else { (self.leases / 4).max(1) };
        let mut queue = Queue::default();
        loop {
            let held = self.wanted.pace.is_paused() || self.wanted.pace.is_stopped();
            while !held && queue.away < most && self.fill(&mut queue, &mut source, &hashes) {
                let Some(task) = queue.next.pop_front() else { break };
                // Readers end after this does.
                if ask.send(task).is_ok() {
                    queue.away += 1;
                }
            }
            if queue.away == 0 {
                self.flush()?;
                if !held {
                    return Ok(());
                }
                // Nobody waits for what is not held any more.
                self.pending.clear();
                self.waiting = 0;
                if !self.wanted.pace.wait() {
                    return Ok(());
                }
                continue;
            }
            match done.recv_timeout(DUE / 4) {
                Ok(done) => self.take(done, &mut queue)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
            self.flush_if_due()?;
        }
    }

    /// Sees to it that something comes next; false if nothing does.
    fn fill(
        &mut self,
        queue: &mut Queue,
        source: &mut Source<'_>,
        hashes: &HashMap<Identity, ObjectId>,
    ) -> bool {
        while queue.next.is_empty() {
            let Some((size, files)) = source.sizes.pop_last() else { return false };
            let sift =
                sift::Sift { members: self.members, reader: source.reader, known: &self.known };
            for group in sift.groups(hashes, size, files) {
                queue.add(group);
            }
        }
        true
    }

    /// Takes in what a reader has read; what it was told not to is read again later.
    fn take(&mut self, done: Done, queue: &mut Queue) -> Result<(), HostError> {
        queue.away -= 1;
        let Done { task, read } = done;
        let group = task.group;
        match read {
            Ok((leased, id, blocks)) => {
                let file = &leased.file;
                self.report.hashed_bytes += file.identity.size;
                if let Some(learnt) = self.learnt.get_mut(file.root) {
                    learnt.insert(file.identity, id);
                }
                let object = ObjectContent { id, size: file.identity.size, blocks };
                self.found(group, Ready { leased, object })?;
            }
            Err(GaveUp::Held) => {
                queue.next.push_front(task);
                return Ok(());
            }
            Err(GaveUp::InUse) => self.report.skipped.in_use += 1,
            Err(GaveUp::Changed) => self.report.skipped.changed += 1,
            Err(GaveUp::Failed) => self.report.skipped.unreadable += 1,
        }
        if queue.is_last(group) {
            // Nobody else has these.
            let gone = self.pending.remove(&group).unwrap_or_default();
            let gone: usize = gone.values().map(Vec::len).sum();
            self.waiting = self.waiting.saturating_sub(gone);
        }
        Ok(())
    }

    /// Decides what becomes of a file whose content is known.
    fn found(&mut self, group: u64, mut ready: Ready) -> Result<(), HostError> {
        let (id, size) = (ready.object.id, ready.object.size);
        let of_template = self.known.of_templates.get(&size).and_then(|known| known.get(&id));
        if let Some(blocks) = of_template {
            ready.object.blocks = *blocks;
            return self.offer(vec![ready]);
        }
        if !ready.leased.file.among_roots {
            return Ok(());
        }
        if self.known.has_root(size, &id) {
            return self.offer(vec![ready]);
        }
        let pending = self.pending.entry(group).or_default();
        let alike = pending.entry(id).or_default();
        alike.push(ready);
        let first = alike.first().map(|ready| ready.leased.file.root);
        if alike.iter().any(|ready| Some(ready.leased.file.root) != first) {
            let alike = pending.remove(&id).unwrap_or_default();
            self.waiting = self.waiting.saturating_sub(alike.len() - 1);
            self.known.of_roots.entry(size).or_default().insert(id);
            return self.offer(alike);
        }
        self.wait_for_its_like();
        Ok(())
    }

    /// Takes in files of one content, whose object is made if the store does not have it.
    fn offer(&mut self, alike: Vec<Ready>) -> Result<(), HostError> {
        for ready in &alike {
            if self.has_object(ready)? {
                self.ready.extend(alike);
                return self.bound();
            }
        }
        // Every one of them is wanted by a writer.
        self.report.skipped.in_use += u64::try_from(alike.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// Sees to it that the object of a file is in the store and stays there; false if the file
    /// did not keep still for that.
    fn has_object(&mut self, ready: &Ready) -> Result<bool, HostError> {
        let ObjectContent { id, size, blocks } = ready.object;
        if self.new.contains(&id) {
            return Ok(true);
        }
        let there = match &self.staging {
            Some(staging) => staging.pin(&id)?,
            // A dry run.
            None => self.known.has_template(size, &id) || self.before.contains(&id),
        };
        if there {
            return Ok(true);
        }
        if let Some(staging) = &self.staging {
            let put = match put(staging, &ready.leased) {
                Err(error) if is_no_space(&error) && !self.ready.is_empty() => {
                    // What is replaced now makes room.
                    self.flush()?;
                    let Some(staging) = &self.staging else { return Ok(false) };
                    put(staging, &ready.leased)
                }
                put => put,
            };
            match put {
                Ok(put) if put.id == id && ready.leased.lease.holds() => {}
                Ok(_) | Err(ObjectError::Source(_)) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        self.new.insert(id);
        self.report.new_objects += 1;
        self.report.new_bytes += size;
        let data = signed(blocks.saturating_mul(512));
        self.report.disk_bytes -= data;
        self.report.memory_bytes -= data;
        Ok(true)
    }

    /// Keeps the number of leases within bounds.
    fn bound(&mut self) -> Result<(), HostError> {
        if self.ready.len() >= self.leases / 2 {
            self.flush()?;
        }
        Ok(())
    }

    /// Takes in a file that may find its like later, and lets go of all of them when they are too
    /// many: the next run finds what this one misses by it.
    fn wait_for_its_like(&mut self) {
        self.waiting += 1;
        if self.waiting >= self.leases / 4 {
            self.pending.clear();
            self.waiting = 0;
        }
    }

    /// Replaces everything that is ready, if that has waited long enough.
    fn flush_if_due(&mut self) -> Result<(), HostError> {
        if self.ready.is_empty() {
            self.since = Instant::now();
        } else if self.since.elapsed() >= DUE {
            return self.flush();
        }
        Ok(())
    }

    /// Replaces everything that is ready.
    fn flush(&mut self) -> Result<(), HostError> {
        self.report.skipped.in_use += let_go_of_wanted(&mut self.ready);
        let mut by_root: BTreeMap<usize, Vec<Ready>> = BTreeMap::new();
        for ready in self.ready.drain(..) {
            by_root.entry(ready.leased.file.root).or_default().push(ready);
        }
        if by_root.is_empty() {
            return Ok(());
        }
        if let Some(staging) = &self.staging {
            // Whole and durable before anything refers to it.
            staging.publish()?;
        }
        let outcomes = if self.wanted.dry_run {
            let all = |ready: &Vec<Ready>| vec![Outcome::Replaced; ready.len()];
            by_root.iter().map(|(root, ready)| (*root, all(ready))).collect()
        } else {
            let threads = readers::count(self.wanted.pace);
            apply(self.store, &self.roots, self.members, &by_root, threads)?
        };
        for (root, outcomes) in outcomes {
            let (Some(member), Some(ready)) = (self.members.get(root), by_root.get(&root)) else {
                continue;
            };
            for (ready, outcome) in ready.iter().zip(outcomes) {
                self.account(member, ready, outcome);
            }
        }
        Ok(())
    }

    fn account(&mut self, member: &Member, ready: &Ready, outcome: Outcome) {
        let (report, file) = (&mut self.report, &ready.leased.file);
        match outcome {
            Outcome::Replaced => {
                let path = file.path.as_ref();
                let left = rustix::fs::statat(
                    member.upper.view().upper(),
                    path,
                    AtFlags::SYMLINK_NOFOLLOW,
                );
                let left = if self.wanted.dry_run {
                    0
                } else {
                    let blocks = left.map_or(0, |left| left.st_blocks);
                    u64::try_from(blocks).unwrap_or(0).saturating_mul(512)
                };
                let won = file.disk_bytes.saturating_sub(left);
                let of_root: &mut RootReport =
                    report.roots.entry(member.record.name.clone()).or_default();
                of_root.files += 1;
                of_root.disk_bytes += won;
                of_root.memory_bytes += ready.leased.resident_bytes;
                report.files += 1;
                report.disk_bytes += signed(won);
                report.memory_bytes += signed(ready.leased.resident_bytes);
                if let Some(learnt) = self.learnt.get_mut(file.root) {
                    learnt.remove(&file.identity);
                }
            }
            Outcome::InUse => report.skipped.in_use += 1,
            Outcome::Changed => report.skipped.changed += 1,
            Outcome::Linked => report.skipped.linked += 1,
            Outcome::Failed { reason } => note(report, &member.record.name, reason),
        }
    }

    /// Remembers what files hashed to, those that are as they were.
    fn remember(&mut self, store: &Store) {
        let Some(session) = Catalog::open(store.path()).ok().and_then(|catalog| catalog.session())
        else {
            return;
        };
        for ((member, learnt), known) in
            self.members.iter().zip(&mut self.learnt).zip(&self.remembered)
        {
            if learnt.is_empty() {
                continue;
            }
            // A file has one row: what it hashed to in another state is of no use.
            let inodes: HashSet<u64> = learnt.keys().map(|identity| identity.ino).collect();
            let kept = known.iter().filter(|(identity, _)| !inodes.contains(&identity.ino));
            learnt.extend(kept.map(|(identity, id)| (*identity, *id)));
            if session.remember_hashes(&member.record.key(), learnt).is_err() {
                return;
            }
        }
    }
}

fn put(staging: &Staging, leased: &Leased) -> Result<Put, ObjectError> {
    use std::os::fd::AsFd;
    let size = leased.file.identity.size;
    if size <= STREAMED_BYTES {
        staging.put_file(leased.lease.as_fd(), size)
    } else {
        let mut watched = Watched::new(leased).map_err(ObjectError::Source)?;
        staging.put_sparse(&mut watched, Some(size))
    }
}

fn is_no_space(error: &ObjectError) -> bool {
    matches!(error, ObjectError::Io { source, .. }
        if source.kind() == std::io::ErrorKind::StorageFull)
}

/// Leaves out files whose lease a writer wanted back; returns how many.
fn let_go_of_wanted(ready: &mut Vec<Ready>) -> u64 {
    let mut lost = 0;
    let mut keep = |ready: &Ready| {
        let holds = ready.leased.lease.holds();
        lost += u64::from(!holds);
        holds
    };
    ready.retain(&mut keep);
    lost
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
