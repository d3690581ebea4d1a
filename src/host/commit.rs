//! Making a template of a root: its changes become one more layer on its stack.
//!
//! A root at rest is locked; a mounted one is frozen for the moment in which names and metadata
//! are read. Content is put into the store before that, and again only where it changed. The
//! template's name is the last thing to be written, as for an import.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::OFlags;

use super::error::HostError;
use super::import::record_in_catalog;
use super::roots::RootRecord;
use super::store::Store;
use crate::control::{Client, ControlError};
use crate::layer::store::LayersError;
use crate::layer::template::default_shared_paths;
use crate::layer::{
    BuildError, LayerPath, Layers, NewContent, Provenance, RunConfig, Template, TemplateKind,
    TemplateName,
};
use crate::object::{ObjectError, ObjectReader, Objects, Put, Staging};
use crate::private::{PrivateError, PrivateLayer};
use crate::sys::durable::sync_file_system;
use crate::sys::sparse::{MOST_HOLE_BYTES, hole_bytes};
use crate::sys::{inode, lease};
use crate::union::UnionError;
use crate::union::upper::layer::{Contents, to_layer};
use crate::union::upper::{Bytes, Entry, Upper, UpperError};

/// How often a file that is open for writing is read before it is given up as restless.
const ATTEMPTS: u32 = 3;
/// Files changed later than this before they were first read are read again: times have the
/// grain of the host's clock.
const SETTLED: Duration = Duration::from_secs(2);
/// How often a frozen root is told that it is still needed so.
const KEEP_FROZEN: Duration = Duration::from_secs(5);

/// Why a root cannot be made a template.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The caller stopped it.
    #[error("the commit was cancelled")]
    Cancelled,
    /// The private directory, or the tree below.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// Its lock.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// What the root shows cannot be a layer.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The store.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The mount process.
    #[error("cannot freeze the root: {0}")]
    Control(#[from] ControlError),
    /// Files that are nearly all hole, and longer than anybody wants to wait.
    #[error(
        "{path} has {} GiB of holes; of all files together at most {} GiB are hashed: remove it, \
         or make it shorter, and commit again", .bytes >> 30, MOST_HOLE_BYTES >> 30
    )]
    Holes {
        /// The file.
        path: LayerPath,
        /// Bytes of holes in it.
        bytes: u64,
    },
    /// Somebody writes all the time.
    #[error(
        "{} while it was read, by somebody who has it open for writing; \
         end that or pause it, and commit again", written(.0)
    )]
    Restless(Vec<LayerPath>),
}

fn written(paths: &[LayerPath]) -> String {
    let shown: Vec<String> = paths.iter().take(10).map(ToString::to_string).collect();
    let more = paths.len().saturating_sub(shown.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let were = if paths.len() == 1 { "was" } else { "were" };
    format!("{}{more} {were} written to", shown.join(", "))
}

/// What to make a template of.
pub struct CommitRequest<'a> {
    /// What the store knows of the root.
    pub record: Option<&'a RootRecord>,
    /// Its private directory.
    pub private: &'a Path,
    /// The new template.
    pub name: TemplateName,
    /// Whether an existing name may move.
    pub replace: bool,
    /// Stops the commit when set.
    pub cancel: &'a AtomicBool,
}

/// What a commit made.
#[derive(Clone, Debug)]
pub struct CommitReport {
    /// The template.
    pub template: Template,
    /// Whether there was anything to put on the stack.
    pub changed: bool,
    /// Objects that were not in the store before.
    pub new_objects: u64,
    /// Their length together.
    pub new_bytes: u64,
    /// How long a mounted root was frozen.
    pub frozen: Option<Duration>,
}

/// Makes a template of a root.
///
/// # Errors
/// [`LayersError::TemplateExists`] unless the name may move; [`HostError::Commit`].
pub fn commit(store: &Store, request: &CommitRequest<'_>) -> Result<CommitReport, HostError> {
    // A writer that comes while a read lease is tried would end this process otherwise.
    lease::ignore_lease_breaks();
    let _store = store.share()?;
    let objects = Objects::open(store.path())?;
    objects.sweep_staging()?;
    let reader = ObjectReader::open(store.path())?;
    let layers = Layers::open(store.path())?;
    if !request.replace {
        match layers.templates().get(&request.name) {
            Err(LayersError::NoTemplate(_)) => {}
            _there => return Err(LayersError::TemplateExists(request.name.clone()).into()),
        }
    }
    let staging = objects.begin()?;
    let upper = Upper::open(request.private, &layers).map_err(CommitError::from)?;
    let below = upper.stack().clone();
    for layer in below.layers() {
        layers.pin(staging.dir(), layer)?;
    }
    let mut contents = Stored {
        staging: &staging,
        reader: &reader,
        cancel: request.cancel,
        known: HashMap::new(),
        holes: HashMap::new(),
        hole_bytes: 0,
        restless: Vec::new(),
        frozen: None,
        asked: Instant::now(),
        still: false,
    };
    let (manifest, frozen) = match request.record.and_then(RootRecord::living) {
        Some(client) => frozen_layer(&upper, &mut contents, client, request.record)?,
        None => {
            // Nobody mounts it meanwhile.
            let _lock = PrivateLayer::open(request.private, &below).map_err(CommitError::from)?;
            contents.still = true;
            (to_layer(&upper, &mut contents)?, None)
        }
    };
    if !contents.restless.is_empty() {
        return Err(CommitError::Restless(contents.restless).into());
    }
    let published = staging.publish()?;
    let changed = manifest.is_some();
    let stack = match manifest {
        Some(manifest) => below.extended(layers.publish(staging.dir(), manifest)?),
        None => below,
    };
    layers.tree(&stack)?;
    record_in_catalog(store, &stack);
    let base = request.record.and_then(|record| layers.templates().get(&record.template).ok());
    let (config, shared_paths) = match base {
        Some(base) => (base.config, base.shared_paths),
        None => (RunConfig::default(), default_shared_paths()),
    };
    let source = match request.record {
        Some(record) => format!("root {} of {}", record.name, record.template),
        None => format!("private directory {}", request.private.display()),
    };
    let template = Template {
        name: request.name.clone(),
        kind: TemplateKind::Os,
        provenance: Provenance::now(source, Some(format!("mica-stack:{}", stack.id()))),
        stack,
        config,
        shared_paths,
    };
    layers.templates().put(&template, request.replace)?;
    staging.finish()?;
    let (new_objects, new_bytes) = (published.objects, published.bytes);
    Ok(CommitReport { template, changed, new_objects, new_bytes, frozen })
}

/// The layer of a mounted root, and how long it stood still for it.
fn frozen_layer(
    upper: &Upper,
    contents: &mut Stored<'_>,
    mut client: Client,
    record: Option<&RootRecord>,
) -> Result<(Option<Vec<u8>>, Option<Duration>), CommitError> {
    // What mappings of cached files hold goes to the private directory.
    if let Some(mount) = record.and_then(|record| record.mount.as_ref())
        && let Err(error) = sync_file_system(&mount.mountpoint)
    {
        tracing::warn!(%error, "what is mapped and not synced may be missing");
    }
    // A rehearsal: most content is in the store before anybody has to wait.
    match to_layer(upper, contents) {
        Ok(_) => {}
        Err(
            error @ (CommitError::Cancelled | CommitError::Object(_) | CommitError::Holes { .. }),
        ) => return Err(error),
        // Names come and go while it is not frozen.
        Err(error) => tracing::debug!(%error, "the rehearsal of a commit ended early"),
    }
    contents.restless.clear();
    client.freeze()?;
    let began = Instant::now();
    contents.still = true;
    contents.asked = began;
    contents.frozen = Some(client);
    let manifest = to_layer(upper, contents)?;
    if let Some(mut client) = contents.frozen.take() {
        client.thaw()?;
    }
    Ok((manifest, Some(began.elapsed())))
}

/// Puts private content into the store, each version once.
struct Stored<'a> {
    staging: &'a Staging,
    reader: &'a ObjectReader,
    cancel: &'a AtomicBool,
    /// What was read of each host inode.
    known: HashMap<u64, (Version, Put)>,
    /// Bytes of holes in each host inode that has some, and in all of them.
    holes: HashMap<u64, u64>,
    hole_bytes: u64,
    restless: Vec<LayerPath>,
    frozen: Option<Client>,
    /// When the mount process was last spoken to.
    asked: Instant,
    /// Only who has a file open for writing can change anything now.
    still: bool,
}

/// What tells one version of a file from the next.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
}

impl Version {
    fn of(file: &OwnedFd) -> Result<Self, UnionError> {
        let status = inode::status(file)?;
        Ok(Self { size: status.size, mtime: status.mtime, ctime: status.ctime })
    }

    /// Whether a later change would show in the times.
    fn is_settled(&self) -> bool {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.ctime.0).unwrap_or(0));
        now.checked_sub(changed).is_some_and(|age| age >= SETTLED)
    }
}

impl Contents for Stored<'_> {
    type Error = CommitError;

    fn content(
        &mut self,
        path: &LayerPath,
        entry: &Entry,
        bytes: &Bytes,
    ) -> Result<NewContent, CommitError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(CommitError::Cancelled);
        }
        self.keep_frozen()?;
        let put = match bytes {
            Bytes::Object { id, size, data_blocks } if entry.marks.object.is_none() => {
                return Ok(NewContent::Regular {
                    object: *id,
                    size: *size,
                    data_blocks: *data_blocks,
                });
            }
            Bytes::Object { id, size, .. } => {
                let object = self.reader.open_object(id)?;
                self.put(object.as_fd(), *size)?
            }
            Bytes::Private => self.private(path, entry)?,
        };
        Ok(NewContent::Regular {
            object: put.id,
            size: put.len_bytes,
            data_blocks: put.data_blocks,
        })
    }
}

impl Stored<'_> {
    /// Puts content into the store, unless the commit is cancelled meanwhile.
    fn put(&self, file: BorrowedFd<'_>, len: u64) -> Result<Put, CommitError> {
        let proceed = || !self.cancel.load(Ordering::Relaxed);
        let put = self.staging.put_file_while(file, len, &proceed);
        if proceed() { Ok(put?) } else { Err(CommitError::Cancelled) }
    }

    /// Refuses what would take longer to hash than anybody waits.
    fn check_holes(&mut self, path: &LayerPath, entry: &Entry) -> Result<(), CommitError> {
        let inode::Status { ino, size, blocks, .. } = entry.status;
        let bytes = hole_bytes(size, blocks.saturating_mul(512));
        if bytes == 0 {
            return Ok(());
        }
        let before = self.holes.insert(ino, bytes).unwrap_or(0);
        self.hole_bytes = self.hole_bytes.saturating_sub(before).saturating_add(bytes);
        if self.hole_bytes > MOST_HOLE_BYTES {
            return Err(CommitError::Holes { path: path.clone(), bytes });
        }
        Ok(())
    }

    fn keep_frozen(&mut self) -> Result<(), CommitError> {
        if let Some(client) = self.frozen.as_mut().filter(|_| self.asked.elapsed() >= KEEP_FROZEN) {
            client.status()?;
            self.asked = Instant::now();
        }
        Ok(())
    }

    /// Stores a private file as it is now.
    ///
    /// Where a lease proves that nobody can write, one reading is the truth. Else it is read
    /// until two readings in a row are the same, with the same times around them.
    fn private(&mut self, path: &LayerPath, entry: &Entry) -> Result<Put, CommitError> {
        self.check_holes(path, entry)?;
        let fail = |source: UnionError| UpperError::at(path, source);
        let open = inode::reopen(&entry.fd, OFlags::RDONLY | OFlags::NOATIME);
        let file = open.map_err(|errno| fail(errno.into()))?;
        let unwritten = lease::nobody_can_write(&file);
        let before = Version::of(&file).map_err(fail)?;
        if unwritten
            && let Some((version, put)) = self.known.get(&entry.status.ino)
            && *version == before
        {
            return Ok(*put);
        }
        let settled = before.is_settled();
        let mut put = self.put(file.as_fd(), before.size)?;
        if self.still && unwritten {
            return Ok(put);
        }
        let after = Version::of(&file).map_err(fail)?;
        if !self.still {
            // Proved before and unchanged since, it need not be read when the root stands still.
            if unwritten && settled && before == after {
                self.known.insert(entry.status.ino, (before, put));
            }
            return Ok(put);
        }
        let mut version = before;
        for _ in 0..ATTEMPTS {
            self.keep_frozen()?;
            let now = Version::of(&file).map_err(fail)?;
            let again = self.put(file.as_fd(), now.size)?;
            let after = Version::of(&file).map_err(fail)?;
            if again.id == put.id && now == version && after == version {
                return Ok(put);
            }
            (put, version) = (again, now);
        }
        self.restless.push(path.clone());
        Ok(put)
    }
}
