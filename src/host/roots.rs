//! The registry of roots: `STORE/roots/<id>.json`, one record for each.
//!
//! A record is written before its mount process uses the store and counts as a reference
//! to its stack, so that nothing it needs is collected or deleted under it. A record with
//! a private directory stays until it is forgotten; one without goes with its mount.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::mount_table;
use super::parallel::each;
use super::store::{ROOTS, Store, StoreError};
use crate::catalog::RootKey;
use crate::control::{Client, ControlError, Socket};
use crate::layer::{Stack, StackId, TemplateName};
use crate::sys::durable::{self, Existing};

/// The format of a record.
const FORMAT: u32 = 1;

/// Longest name of a root, in bytes: it also names files.
const NAME_LIMIT: usize = 64;

/// Room for most records.
const RECORD_BYTES: usize = 4096;

/// Why a root cannot be registered, found or read.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The store itself is the trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refused.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record is not what Mica wrote.
    #[error(
        "{path} is damaged: {source}; put it back from a backup, or remove it once nothing \
         needs that root any more"
    )]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A record was written by a newer version.
    #[error("{path} has format {found}, which this version of Mica does not know; use a newer one")]
    Version {
        /// The record.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Nothing goes by that name.
    #[error("no root is named, mounted at or kept in {wanted:?}{hint}")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// The nearest name there is, as the end of a clause.
        hint: String,
    },
    /// A name that could not be used in a file name or on a command line.
    #[error(
        "{0:?} cannot name a root: use letters, digits, '.', '_' and '-', up to {NAME_LIMIT} of \
         them, a letter or a digit first"
    )]
    Name(String),
    /// Another root has the name.
    #[error("another root is named {name:?} ({place}); choose a name with --name")]
    NameTaken {
        /// The name.
        name: String,
        /// Where the other one is.
        place: String,
    },
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// The identity of a record: 16 hexadecimal digits, drawn at random.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RootId(String);

impl RootId {
    fn draw() -> io::Result<Self> {
        let mut bytes = [0; 8];
        rustix::io::retry_on_intr(|| {
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        })?;
        Ok(Self(format!("{:016x}", u64::from_be_bytes(bytes))))
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the store knows of one root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRecord {
    pub(super) format: u32,
    /// Names the record's files.
    pub id: RootId,
    /// What people call it.
    pub name: String,
    /// The template it was made from; its tag may point elsewhere by now.
    pub template: TemplateName,
    /// The stack it is bound to.
    pub stack: Stack,
    /// Where its changes are kept; `None` on a read-only root.
    pub private: Option<PathBuf>,
    /// When it was first mounted, in seconds since 1970.
    pub created: u64,
    /// The stack that the template was last seen to have moved to, so that this is said once.
    #[serde(default)]
    pub moved_to: Option<StackId>,
    /// What its private files may be shared with.
    #[serde(default)]
    pub reshare: ResharePolicy,
    /// Its mount, if it has one; a crash leaves this behind.
    #[serde(default)]
    pub mount: Option<MountRecord>,
}

/// With whom a root shares what it changed, once that is the same elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResharePolicy {
    /// With nobody: its private files are left alone.
    Off,
    /// With templates: what equals the content of one.
    Templates,
    /// Also with other containers: what is world-readable in the template's shared paths.
    #[default]
    All,
}

/// The part of a record that a mount process adds and takes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The mount process, in the pid namespace it started in.
    pub pid: u32,
    /// Its control socket.
    pub socket: PathBuf,
}

/// A new root, before the registry gave it an identity.
#[derive(Debug, Clone)]
pub struct NewRoot {
    /// The name asked for; otherwise one is made of where it lies.
    pub name: Option<String>,
    /// The template.
    pub template: TemplateName,
    /// The template's present stack.
    pub stack: Stack,
    /// Where its changes go, an absolute path.
    pub private: Option<PathBuf>,
    /// Where it will be mounted, an absolute path.
    pub mountpoint: PathBuf,
}

impl RootRecord {
    /// The eight bytes that the registry names it by.
    #[must_use]
    pub fn key(&self) -> RootKey {
        u64::from_str_radix(&self.id.0, 16).unwrap_or_default().to_be_bytes()
    }

    /// Whether a process serves this root now, and the way to talk to it.
    ///
    /// Connecting tells: a pid can be reused, a listening socket cannot.
    #[must_use]
    pub fn living(&self) -> Option<Client> {
        self.mount.as_ref().and_then(|mount| Client::connect(&mount.socket).ok())
    }

    /// Where to find it, for a sentence.
    #[must_use]
    pub fn place(&self) -> String {
        match (&self.private, &self.mount) {
            (Some(private), _) => format!("private directory {}", private.display()),
            (None, Some(mount)) => format!("mounted read-only at {}", mount.mountpoint.display()),
            (None, None) => "read-only, not mounted".to_owned(),
        }
    }
}

/// The registry of one store.
#[derive(Debug)]
pub struct Roots {
    path: PathBuf,
    dir: File,
}

/// The registry, locked: nobody else changes a record or deletes a template meanwhile.
#[derive(Debug)]
pub struct LockedRoots<'a> {
    roots: &'a Roots,
    _lock: OwnedFd,
}

impl Roots {
    /// Opens the registry of `store`, making it if need be.
    ///
    /// # Errors
    /// [`RootError::System`].
    pub fn open(store: &Store) -> Result<Self, RootError> {
        let path = store.path().join(ROOTS);
        let made = match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        let dir = made.and_then(|()| File::open(&path)).map_err(system("open", &path))?;
        Ok(Self { path, dir })
    }

    /// Waits for the registry and locks it.
    ///
    /// # Errors
    /// [`RootError::System`].
    pub fn lock(&self) -> Result<LockedRoots<'_>, RootError> {
        let lock = || {
            let dir = File::open(&self.path)?;
            rustix::io::retry_on_intr(|| rustix::fs::flock(&dir, FlockOperation::LockExclusive))?;
            Ok(OwnedFd::from(dir))
        };
        let lock = lock().map_err(system("lock", &self.path))?;
        Ok(LockedRoots { roots: self, _lock: lock })
    }

    /// Every record, sorted by name.
    ///
    /// # Errors
    /// [`RootError::Damaged`] rather than a list without the damaged record: what it refers
    /// to would pass for garbage.
    pub fn list(&self) -> Result<Vec<RootRecord>, RootError> {
        let mut records = self.list_each()?.into_iter().collect::<Result<Vec<_>, _>>()?;
        records.sort_by(|one, two| (&one.name, &one.id).cmp(&(&two.name, &two.id)));
        Ok(records)
    }

    /// As [`Roots::list`], in no order; each that cannot be read is an error of its own.
    ///
    /// # Errors
    /// [`RootError::System`] if the directory cannot be listed.
    pub fn list_each(&self) -> Result<Vec<Result<RootRecord, RootError>>, RootError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(system("list", &self.path))? {
            let name = entry.map_err(system("list", &self.path))?.file_name();
            let is_record = Path::new(&name).extension() == Some(OsStr::new("json"));
            if is_record && !durable::is_staged(&name) {
                names.push(name);
            }
        }
        // A thousand of them take longer than most questions that are asked of them.
        let records = each(&mut names, |name| self.read(name).transpose());
        Ok(records.into_iter().flatten().collect())
    }

    /// The record in the file `name`; none if it is gone.
    fn read(&self, name: &OsStr) -> Result<Option<RootRecord>, RootError> {
        let path = || self.path.join(name);
        let read = || {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.dir, name, flags, Mode::empty())?;
            let mut text = Vec::with_capacity(RECORD_BYTES);
            while rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text))? > 0 {
                text.reserve(RECORD_BYTES / 2);
            }
            Ok(text)
        };
        match rustix::io::retry_on_intr(read) {
            Ok(text) => parse(&text, path).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(system("read", &path())(errno.into())),
        }
    }

    /// The record that `wanted` means: a name, an identity, a mountpoint or a private
    /// directory.
    ///
    /// # Errors
    /// [`RootError::Unknown`], with the nearest name.
    pub fn find(&self, wanted: &OsStr) -> Result<RootRecord, RootError> {
        let records = self.list()?;
        let text = wanted.to_str();
        let path = mount_table::canonical(Path::new(wanted)).ok();
        let by_name = |record: &&RootRecord| {
            text.is_some_and(|text| record.name == text || record.id.0 == text)
        };
        let by_place = |record: &&RootRecord| {
            let mountpoint = record.mount.as_ref().map(|mount| &mount.mountpoint);
            path.is_some() && (mountpoint == path.as_ref() || record.private == path)
        };
        // A living mount before a dead one that had the same place.
        let found = records.iter().find(by_name).or_else(|| {
            let mut there = records.iter().filter(by_place);
            let first = there.next()?;
            let mut all = std::iter::once(first).chain(there);
            Some(all.find(|record| record.living().is_some()).unwrap_or(first))
        });
        if let Some(record) = found {
            return Ok(record.clone());
        }
        let wanted = wanted.to_string_lossy().into_owned();
        let hint = super::nearest(&wanted, records.iter().map(|record| record.name.as_str()))
            .map_or_else(String::new, |name| format!("; did you mean {name:?}?"));
        Err(RootError::Unknown { wanted, hint })
    }

    /// The record as it is now; none if it was forgotten.
    ///
    /// # Errors
    /// As [`Roots::list`].
    pub fn reread(&self, record: &RootRecord) -> Result<Option<RootRecord>, RootError> {
        self.read(&Self::record_name(&record.id))
    }

    /// The record as it is now, if it still tells of this very mount of the root.
    ///
    /// # Errors
    /// As [`Roots::list`].
    pub fn current(&self, record: &RootRecord) -> Result<Option<RootRecord>, RootError> {
        let found = self.read(&Self::record_name(&record.id))?;
        Ok(found.filter(|found| found.mount == record.mount))
    }

    fn record_name(id: &RootId) -> OsString {
        format!("{id}.json").into()
    }

    /// The file in the registry that lists the objects a root refers to.
    pub(super) fn references_name(id: &RootId) -> String {
        format!("{id}.refs")
    }

    /// The registry's directory.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    fn socket_path(&self, id: &RootId) -> PathBuf {
        self.path.join(format!("{id}.sock"))
    }

    /// Where a mount process of this root writes its log.
    #[must_use]
    pub fn log_path(&self, id: &RootId) -> PathBuf {
        self.path.join(format!("{id}.log"))
    }
}

impl LockedRoots<'_> {
    /// Registers a root and binds its control socket; the record says it is being mounted.
    ///
    /// # Errors
    /// [`RootError::Name`], [`RootError::NameTaken`], [`RootError::System`].
    pub fn register(&self, new: NewRoot) -> Result<(RootRecord, Socket), RootError> {
        let records = self.roots.list()?;
        let name = match new.name {
            Some(name) => {
                check_name(&name, &records)?;
                name
            }
            None => free_name(new.private.as_deref().unwrap_or(&new.mountpoint), &records),
        };
        let id = RootId::draw().map_err(system("draw an identity in", &self.roots.path))?;
        let created = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let mut record = RootRecord {
            format: FORMAT,
            id,
            name,
            template: new.template,
            stack: new.stack,
            private: new.private,
            created,
            moved_to: None,
            reshare: ResharePolicy::default(),
            mount: None,
        };
        let socket = self.attach(&mut record, new.mountpoint)?;
        Ok((record, socket))
    }

    /// Gives a known root another name; the caller writes the record.
    ///
    /// # Errors
    /// [`RootError::Name`], [`RootError::NameTaken`].
    pub fn rename(&self, record: &mut RootRecord, name: &str) -> Result<(), RootError> {
        if record.name != name {
            check_name(name, &self.roots.list()?)?;
            name.clone_into(&mut record.name);
        }
        Ok(())
    }

    /// Says what private files of a root may be shared with from now on.
    ///
    /// # Errors
    /// As [`Roots::list`] and [`LockedRoots::write`].
    pub fn set_reshare(
        &self,
        record: &RootRecord,
        reshare: ResharePolicy,
    ) -> Result<(), RootError> {
        match self.roots.reread(record)? {
            Some(now) => self.write(&RootRecord { reshare, ..now }),
            None => Ok(()),
        }
    }

    /// Binds the control socket of a known root and writes that it is being mounted.
    ///
    /// # Errors
    /// [`ControlError::AlreadyServed`] when it is mounted already, [`RootError::System`].
    pub fn attach(
        &self,
        record: &mut RootRecord,
        mountpoint: PathBuf,
    ) -> Result<Socket, RootError> {
        let path = self.roots.socket_path(&record.id);
        let socket = Socket::bind(&path)?;
        record.mount = Some(MountRecord { mountpoint, pid: std::process::id(), socket: path });
        self.write(record)?;
        Ok(socket)
    }

    /// Takes the mount away from a record; one without a private directory goes altogether.
    ///
    /// # Errors
    /// [`RootError::System`].
    pub fn detach(&self, record: &RootRecord) -> Result<(), RootError> {
        if record.private.is_none() {
            return self.remove(record);
        }
        self.write(&RootRecord { mount: None, ..record.clone() })
    }

    /// Writes a record, whole and durable.
    ///
    /// # Errors
    /// [`RootError::System`].
    pub fn write(&self, record: &RootRecord) -> Result<(), RootError> {
        let name = Roots::record_name(&record.id);
        let path = || self.roots.path.join(&name);
        let mut text = serde_json::to_vec_pretty(record)
            .map_err(|source| RootError::Damaged { path: path(), source })?;
        text.push(b'\n');
        durable::write_file(self.roots.dir.as_fd(), &name, &text, Existing::Replace)
            .map_err(|source| RootError::System { what: "write", path: path(), source })
    }

    /// Removes a record and what a dead mount process left beside it; logs stay for reading.
    ///
    /// # Errors
    /// [`RootError::System`].
    pub fn remove(&self, record: &RootRecord) -> Result<(), RootError> {
        let paths = [
            self.roots.path.join(Roots::record_name(&record.id)),
            self.roots.socket_path(&record.id),
            self.roots.log_path(&record.id),
            self.roots.path.join(Roots::references_name(&record.id)),
        ];
        for path in paths {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(system("remove", &path)(error));
                }
                _gone => {}
            }
        }
        rustix::fs::fsync(&self.roots.dir)
            .map_err(|errno| system("make durable", &self.roots.path)(errno.into()))
    }

    /// Removes the records of read-only roots whose mount process died.
    ///
    /// # Errors
    /// As [`Roots::list`] and [`LockedRoots::remove`].
    pub fn prune(&self) -> Result<(), RootError> {
        for record in self.roots.list()? {
            if record.private.is_none() && record.living().is_none() {
                self.remove(&record)?;
            }
        }
        Ok(())
    }
}

/// Reads a record; `path` tells where it is.
fn parse(text: &[u8], path: impl Fn() -> PathBuf) -> Result<RootRecord, RootError> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    match serde_json::from_slice::<RootRecord>(text) {
        Ok(record) if record.format == FORMAT => Ok(record),
        // Another format may have anything else in it.
        read => match serde_json::from_slice::<Versioned>(text) {
            Ok(Versioned { format }) if format != FORMAT => {
                Err(RootError::Version { path: path(), found: format })
            }
            Ok(_) => read.map_err(|source| RootError::Damaged { path: path(), source }),
            Err(source) => Err(RootError::Damaged { path: path(), source }),
        },
    }
}

/// Whether a new root may have this name.
fn check_name(name: &str, records: &[RootRecord]) -> Result<(), RootError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !starts_well || name.len() > NAME_LIMIT || !name.bytes().all(allowed) {
        return Err(RootError::Name(name.to_owned()));
    }
    match records.iter().find(|record| record.name == name) {
        Some(other) => Err(RootError::NameTaken { name: name.to_owned(), place: other.place() }),
        None => Ok(()),
    }
}

/// A name made of the last component of where a root lies, that no other root has.
fn free_name(place: &Path, records: &[RootRecord]) -> String {
    // "private" says nothing: /srv/web1/private is web1's.
    let mut parts = place.iter().rev().filter_map(OsStr::to_str);
    let base = parts.find(|part| *part != "private" && *part != "/").unwrap_or("root");
    let mut base: String = base
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .collect();
    // Room for the number.
    base.truncate(NAME_LIMIT - 12);
    let base = base.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let base = if base.is_empty() { "root" } else { base };
    let taken = |name: &str| records.iter().any(|record| record.name == name);
    if !taken(base) {
        return base.to_owned();
    }
    (2_u64..).map(|n| format!("{base}-{n}")).find(|name| !taken(name)).unwrap_or_default()
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootError {
    let path = path.to_owned();
    move |source| RootError::System { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::LayerId;
    use crate::object::Digest;

    fn scratch() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let store = Store::open_or_create(&dir.path().join("store")).expect("made");
        let roots = Roots::open(&store).expect("made");
        (dir, roots)
    }

    fn new_root(private: Option<&str>, mountpoint: &str) -> NewRoot {
        NewRoot {
            name: None,
            template: "debian:12".parse().expect("a template name"),
            stack: Stack::new(vec![LayerId::new(Digest::of(b"layer"))]),
            private: private.map(PathBuf::from),
            mountpoint: mountpoint.into(),
        }
    }

    #[test]
    fn a_root_is_found_by_name_identity_and_place_and_survives_its_mount() {
        let (_dir, roots) = scratch();
        let locked = roots.lock().expect("locks");
        let (record, socket) =
            locked.register(new_root(Some("/srv/web1"), "/mnt/web1")).expect("registered");
        assert_eq!(record.name, "web1");
        for wanted in ["web1", &record.id.0] {
            assert_eq!(roots.find(OsStr::new(wanted)).expect("found"), record);
        }
        assert!(record.living().is_some());
        drop(socket);
        assert!(record.living().is_none());
        locked.detach(&record).expect("written");
        let left = roots.find(OsStr::new("web1")).expect("stays");
        assert_eq!((left.mount, left.private), (None, record.private));
    }

    #[test]
    fn a_read_only_root_goes_with_its_mount_and_with_its_process() {
        let (_dir, roots) = scratch();
        let locked = roots.lock().expect("locks");
        let (one, socket) = locked.register(new_root(None, "/mnt/ro")).expect("registered");
        let (_two, _alive) = locked.register(new_root(None, "/mnt/ro")).expect("registered");
        locked.prune().expect("pruned");
        assert_eq!(roots.list().expect("listed").len(), 2);
        // As after a kill -9: the socket file stays, nobody listens.
        std::mem::forget(socket);
        locked.detach(&one).expect("removed");
        let names: Vec<String> =
            roots.list().expect("listed").into_iter().map(|record| record.name).collect();
        assert_eq!(names, ["ro-2"]);
    }

    #[test]
    fn names_are_unique_and_fit_files_and_command_lines() {
        let (_dir, roots) = scratch();
        let locked = roots.lock().expect("locks");
        let mut kept = Vec::new();
        for (private, expected) in [
            ("/srv/a b", "a-b"),
            ("/srv/a b/private", "a-b-2"),
            ("/srv/.hidden", "hidden"),
            ("/", "root"),
        ] {
            let (record, socket) =
                locked.register(new_root(Some(private), "/mnt/x")).expect("registered");
            assert_eq!(record.name, expected);
            kept.push(socket);
        }
        let taken = NewRoot { name: Some("a-b".to_owned()), ..new_root(None, "/mnt/y") };
        assert!(matches!(locked.register(taken), Err(RootError::NameTaken { .. })));
        for name in ["", "-x", "a/b", "..", &"x".repeat(65)] {
            let wrong = NewRoot { name: Some(name.to_owned()), ..new_root(None, "/mnt/y") };
            assert!(matches!(locked.register(wrong), Err(RootError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn a_damaged_or_newer_record_is_an_error_and_never_left_out() {
        let (_dir, roots) = scratch();
        let path = roots.path.join("00.json");
        fs::write(&path, b"{\"format\":1,").expect("written");
        assert!(matches!(roots.list(), Err(RootError::Damaged { .. })));
        fs::write(&path, b"{\"format\":9,\"new\":true}").expect("written");
        assert!(matches!(roots.list(), Err(RootError::Version { found: 9, .. })));
        fs::remove_file(&path).expect("removed");
        assert!(roots.list().expect("empty").is_empty());
    }

    #[test]
    fn an_unknown_root_is_answered_with_the_nearest_name() {
        let (_dir, roots) = scratch();
        let locked = roots.lock().expect("locks");
        let (_record, _socket) =
            locked.register(new_root(Some("/srv/web1"), "/mnt/web1")).expect("registered");
        let unknown = roots.find(OsStr::new("wbe1")).expect_err("no such root");
        assert!(unknown.to_string().ends_with("did you mean \"web1\"?"), "{unknown}");
        let far = roots.find(OsStr::new("postgres")).expect_err("no such root");
        assert!(!far.to_string().contains("did you mean"), "{far}");
    }
}
