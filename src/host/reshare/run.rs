//! One run: group by group, each file under a lease from before it is read until it is replaced.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use rustix::fs::AtFlags;

use super::apply::{apply, batch};
use super::candidates::{Candidate, Filter, Known, walk};
use super::content::{GaveUp, Leased, Watched, hash, lease};
use super::{Member, Report, RootReport, Wanted, sift};
use crate::catalog::{Catalog, Identity};
use crate::control::Outcome;
use crate::host::error::{HostError, sentence};
use crate::host::roots::{ResharePolicy, RootRecord, Roots};
use crate::host::store::Store;
use crate::layer::Layers;
use crate::layer::template::default_shared_paths;
use crate::object::{ObjectError, ObjectId, ObjectReader, Objects, Put, Staging};
use crate::sys::lease::ignore_lease_breaks;
use crate::sys::process::{allow_descriptors, share_of_descriptors};
use crate::union::upper::Upper;
use crate::union::{ObjectContent, SharedSet};

/// Files under a lease at once, at most; a quarter of the descriptors of this process, if that
/// is less.
const LEASES: NonZeroUsize = NonZeroUsize::new(512).expect("the constant is not zero");
/// How long files wait under their leases for others to be replaced with them: making objects
/// durable takes as long for many as for one.
const DUE: Duration = Duration::from_millis(500);
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
    ignore_lease_breaks();
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
        new: HashSet::new(),
        buffer: Vec::new(),
        since: Instant::now(),
        leases: share_of_descriptors(4, LEASES).get(),
        report,
    };
    let shared = run.all(&reader, sizes);
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
        if !private.exists() {
            note(report, &record.name, format!("{} is not there", private.display()));
            continue;
        }
        match member(layers, record, private) {
            Ok(member) => members.push(member),
            Err(error) => note(report, &record.name, sentence(&error)),
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
    /// Content that one root alone has been found to hold so far.
    pending: HashMap<ObjectId, Vec<Ready>>,
    /// Objects that containers had before this run.
    before: HashSet<ObjectId>,
    /// Objects that this run made.
    new: HashSet<ObjectId>,
    buffer: Vec<u8>,
    /// When nothing was ready last.
    since: Instant,
    leases: usize,
    report: Report,
}

impl Run<'_> {
    fn all(
        &mut self,
        reader: &ObjectReader,
        mut sizes: BTreeMap<u64, Vec<Candidate>>,
    ) -> Result<(), HostError> {
        let mut hashes: HashMap<Identity, ObjectId> = HashMap::new();
        for of_root in &self.remembered {
            hashes.extend(of_root);
        }
        // What wins most comes first.
        while let Some((size, files)) = sizes.pop_last() {
            self.flush_if_due()?;
            let (ready, pending) = (&mut self.ready, &mut self.pending);
            let lost = &mut self.report.skipped.in_use;
            let mut still = || *lost += let_go_of_wanted(ready, pending);
            let sift = sift::Sift { members: self.members, reader, known: &self.known };
            let groups = sift.groups(&hashes, size, files, &mut still);
            for group in groups {
                for file in group {
                    self.flush_if_due()?;
                    if !self.read(file)? {
                        return Ok(());
                    }
                }
                // Nobody else has these.
                self.pending.clear();
            }
        }
        self.flush()
    }

    /// Reads one file, and again after each pause; false if all is to end.
    fn read(&mut self, file: Candidate) -> Result<bool, HostError> {
        let Some(member) = self.members.get(file.root) else { return Ok(true) };
        loop {
            if self.wanted.pace.is_paused() || self.wanted.pace.is_stopped() {
                self.flush()?;
                self.pending.clear();
                if !self.wanted.pace.wait() {
                    return Ok(false);
                }
            }
            let read = lease(&member.upper, file.clone()).and_then(|leased| {
                let (ready, pending) = (&mut self.ready, &mut self.pending);
                let lost = &mut self.report.skipped.in_use;
                let mut still = || *lost += let_go_of_wanted(ready, pending);
                let hashed = hash(&leased, &mut self.buffer, self.wanted.pace, &mut still)?;
                Ok((leased, hashed))
            });
            match read {
                Ok((leased, (id, blocks))) => {
                    self.report.hashed_bytes += file.identity.size;
                    if let Some(learnt) = self.learnt.get_mut(file.root) {
                        learnt.insert(file.identity, id);
                    }
                    let object = ObjectContent { id, size: file.identity.size, blocks };
                    self.found(Ready { leased, object })?;
                    return Ok(true);
                }
                Err(GaveUp::Held) => {}
                Err(why) => {
                    let skipped = &mut self.report.skipped;
                    match why {
                        GaveUp::InUse => skipped.in_use += 1,
                        GaveUp::Changed => skipped.changed += 1,
                        GaveUp::Failed | GaveUp::Held => skipped.unreadable += 1,
                    }
                    return Ok(true);
                }
            }
        }
    }

    /// Decides what becomes of a file whose content is known.
    fn found(&mut self, mut ready: Ready) -> Result<(), HostError> {
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
        let alike = self.pending.entry(id).or_default();
        alike.push(ready);
        let first = alike.first().map(|ready| ready.leased.file.root);
        if alike.iter().any(|ready| Some(ready.leased.file.root) != first) {
            let alike = self.pending.remove(&id).unwrap_or_default();
            self.known.of_roots.entry(size).or_default().insert(id);
            return self.offer(alike);
        }
        self.bound()
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
        let pending: usize = self.pending.values().map(Vec::len).sum();
        if pending >= self.leases / 2 {
            self.pending.clear();
        }
        Ok(())
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
        self.report.skipped.in_use += let_go_of_wanted(&mut self.ready, &mut self.pending);
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
        for (root, mut ready) in by_root {
            let Some(member) = self.members.get(root) else { continue };
            while !ready.is_empty() {
                let chunk: Vec<Ready> = ready.drain(..batch(&ready)).collect();
                let outcomes = if self.wanted.dry_run {
                    vec![Outcome::Replaced; chunk.len()]
                } else {
                    apply(self.store, &self.roots, member, &chunk)?
                };
                for (ready, outcome) in chunk.iter().zip(outcomes) {
                    self.account(member, ready, outcome);
                }
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
        staging.put_reader(&mut Watched { leased, at: 0 }, Some(size))
    }
}

fn is_no_space(error: &ObjectError) -> bool {
    matches!(error, ObjectError::Io { source, .. }
        if source.kind() == std::io::ErrorKind::StorageFull)
}

/// Lets go of leases that a writer waits for; returns how many.
fn let_go_of_wanted(ready: &mut Vec<Ready>, pending: &mut HashMap<ObjectId, Vec<Ready>>) -> u64 {
    let mut lost = 0;
    let mut keep = |ready: &Ready| {
        let holds = ready.leased.lease.holds();
        lost += u64::from(!holds);
        holds
    };
    ready.retain(&mut keep);
    for alike in pending.values_mut() {
        alike.retain(&mut keep);
    }
    lost
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
