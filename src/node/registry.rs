//! The containers of a store, in files: `STORE/containers/<id>/{config,state,claim}.json`.
//!
//! A container exists from the rename that gives its directory its name, and is gone with the
//! rename that takes it away; what a crash leaves of either is staged or doomed, and swept.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::NodeError;
use super::salvage::{Claim, Damaged, salvage};
use super::state::ContainerState;
use crate::container::config::{ContainerConfig, ContainerId};
use crate::host::remove_tree;
use crate::sys::durable::{self, Existing};

/// The directory of a store that holds its containers.
const CONTAINERS: &str = "containers";

/// A directory that is no container yet.
const STAGED: &str = ".staged";

/// One that is none any more.
const DOOMED: &str = ".doomed";

/// Longest description that is read, in bytes.
const LIMIT_BYTES: u64 = 1 << 20;

const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const CLAIM: &str = "claim.json";

/// The directories of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    directory: PathBuf,
}

impl Places {
    /// Those of the container in `directory`.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Those of the container whose root is mounted at `mountpoint`, if it is one's of the store at
    /// `store`.
    #[must_use]
    pub fn of_root(store: &Path, mountpoint: &Path) -> Option<Self> {
        let directory = mountpoint.parent()?;
        let places = Self::at(directory);
        let known = directory.parent() == Some(&store.join(CONTAINERS));
        (known && places.root() == mountpoint).then_some(places)
    }

    /// `containers/<id>`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where its root is mounted while it runs.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Its private layer: in its own directory, on a disk of its own, or where somebody made one.
    #[must_use]
    pub fn private(&self, config: &ContainerConfig) -> PathBuf {
        match &config.private {
            Some(private) => private.clone(),
            None if config.disk_image => self.on_image(),
            None => self.plain(),
        }
    }

    /// Both places that a private layer of its own can have.
    #[must_use]
    pub fn own_privates(&self) -> [PathBuf; 2] {
        [self.plain(), self.on_image()]
    }

    fn plain(&self) -> PathBuf {
        self.directory.join("private")
    }

    /// Beneath the mountpoint, not at it: while the image is not mounted there is none, which is
    /// something else than an empty one.
    fn on_image(&self) -> PathBuf {
        self.disk().join("private")
    }

    /// Where its disk image is mounted.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// Its disk image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.directory.join("disk.img")
    }

    /// What it sees as `/etc/hosts`.
    #[must_use]
    pub fn hosts(&self) -> PathBuf {
        self.directory.join("etc/hosts")
    }

    /// What it sees as `/etc/hostname`.
    #[must_use]
    pub fn hostname(&self) -> PathBuf {
        self.directory.join("etc/hostname")
    }

    /// What it sees as `/etc/resolv.conf`.
    #[must_use]
    pub fn resolv_conf(&self) -> PathBuf {
        self.directory.join("etc/resolv.conf")
    }

    /// What the runtime and the monitor keep of its present life.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// What its init wrote: the newest file, beside which older ones are.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join("logs/log")
    }
}

/// The registry of one store.
#[derive(Debug)]
pub struct Registry {
    path: PathBuf,
}

/// One container as its files say.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// What it is meant to be.
    pub config: ContainerConfig,
    /// What it is doing.
    pub state: ContainerState,
}

impl Registry {
    /// Opens the registry of the store at `store`, making it if need be.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub fn open(store: &Path) -> Result<Self, NodeError> {
        let path = store.join(CONTAINERS);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(NodeError::system("make", &path)(error))
            }
            _there => Ok(Self { path }),
        }
    }

    /// Where a container keeps what it has.
    #[must_use]
    pub fn places(&self, id: &ContainerId) -> Places {
        Places { directory: self.path.join(id.as_str()) }
    }

    /// Every container; one that cannot be read is there with what can be told of it, and keeps
    /// none of the others.
    ///
    /// # Errors
    /// [`NodeError::System`]; [`NodeError::Newer`], for what a later version wrote is not damage: all
    /// of it would look damaged to an earlier one.
    pub fn list(&self) -> Result<Vec<Result<Recorded, Damaged>>, NodeError> {
        let read = |id: &ContainerId| match self.read(id) {
            Ok(recorded) => Ok(Ok(recorded)),
            Err(error @ NodeError::Newer { .. }) => Err(error),
            Err(error) => Ok(Err(salvage(self, id, &error))),
        };
        self.ids()?.iter().map(read).collect()
    }

    /// The identities of all containers.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub fn ids(&self) -> Result<Vec<ContainerId>, NodeError> {
        let names = self.names()?;
        let id = |name: &OsString| ContainerId::try_from(name.to_str()?.to_owned()).ok();
        Ok(names.iter().filter_map(id).collect())
    }

    fn names(&self) -> Result<Vec<OsString>, NodeError> {
        let system = |error| NodeError::system("list", &self.path)(error);
        let entries = fs::read_dir(&self.path).map_err(system)?;
        entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(system)).collect()
    }

    /// One container.
    ///
    /// # Errors
    /// [`NodeError::Damaged`], [`NodeError::System`].
    pub fn read(&self, id: &ContainerId) -> Result<Recorded, NodeError> {
        let config = self.config(id)?;
        // Written after the configuration was in place, so a crash may have come between.
        let state = match self.state(id) {
            Err(NodeError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                ContainerState::default()
            }
            state => state?,
        };
        Ok(Recorded { config, state })
    }

    /// What a container is meant to be.
    pub(super) fn config(&self, id: &ContainerId) -> Result<ContainerConfig, NodeError> {
        let path = self.places(id).directory().join(CONFIG);
        let config: ContainerConfig = read(&path)?;
        if config.version > crate::container::config::VERSION {
            return Err(NodeError::Newer { path, found: config.version });
        }
        if config.id != *id {
            return Err(NodeError::Misplaced { path, found: config.id });
        }
        Ok(config)
    }

    /// What a container is doing.
    pub(super) fn state(&self, id: &ContainerId) -> Result<ContainerState, NodeError> {
        read(&self.places(id).directory().join(STATE))
    }

    /// What a container has that no other can have, as [`Registry::keep_claim`] wrote it; none if
    /// that cannot be read either.
    pub(super) fn claim(&self, id: &ContainerId) -> Option<Claim> {
        read(&self.places(id).directory().join(CLAIM)).ok()
    }

    /// Writes what a container has that no other can have, for when the rest cannot be read; nothing
    /// if it is written already.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub fn keep_claim(&self, recorded: &Recorded) -> Result<(), NodeError> {
        let (id, claim) = (&recorded.config.id, Claim::of(recorded));
        if self.claim(id).as_ref() == Some(&claim) {
            return Ok(());
        }
        write(self.places(id).directory(), CLAIM, &claim)
    }

    /// Makes a container of its description; durable on return. `fill` puts more into its
    /// directory before it exists.
    ///
    /// # Errors
    /// [`NodeError::System`], and what `fill` answers; nothing is left then.
    pub fn create(
        &self,
        recorded: &Recorded,
        fill: impl FnOnce(&Path) -> Result<(), NodeError>,
    ) -> Result<Places, NodeError> {
        let id = &recorded.config.id;
        let staged = self.path.join(format!("{}{STAGED}", id.as_str()));
        let places = self.places(id);
        let make = || {
            let mut builder = DirBuilder::new();
            builder.mode(0o700);
            for directory in [staged.clone(), staged.join("root"), staged.join("logs")] {
                builder.create(&directory).map_err(NodeError::system("make", &directory))?;
            }
            write(&staged, CONFIG, &recorded.config)?;
            write(&staged, STATE, &recorded.state)?;
            write(&staged, CLAIM, &Claim::of(recorded))?;
            fill(&staged)?;
            self.rename(&staged, places.directory())
        };
        if let Err(error) = make() {
            // The first error is the one that matters; a leftover is swept at the next start.
            let _removed = remove_tree(&staged);
            return Err(error);
        }
        Ok(places)
    }

    /// Takes a container out of the registry; [`Registry::sweep`] removes its files.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub fn doom(&self, id: &ContainerId) -> Result<(), NodeError> {
        let doomed = self.path.join(format!("{}{DOOMED}", id.as_str()));
        self.rename(self.places(id).directory(), &doomed)
    }

    /// Removes what staged and doomed directories hold; `forget` is told of each container that is
    /// gone, where it was or was to be and where it lies now, before its files are removed.
    ///
    /// Only while nobody makes containers: what is staged is swept too. One that cannot be removed
    /// keeps none of the others.
    ///
    /// # Errors
    /// [`NodeError::System`], and what `forget` answers; what is left is swept the next time.
    pub fn sweep(
        &self,
        mut forget: impl FnMut(&Places, &Places) -> Result<(), NodeError>,
    ) -> Result<(), NodeError> {
        let mut first = Ok(());
        for name in self.names()? {
            let Some(text) = name.to_str() else { continue };
            let id = text.strip_suffix(DOOMED).or_else(|| text.strip_suffix(STAGED));
            let Some(id) = id.and_then(|id| ContainerId::try_from(id.to_owned()).ok()) else {
                continue;
            };
            let cleared = self.clear(&id, &self.path.join(&name), &mut forget);
            first = first.and(cleared);
        }
        first
    }

    /// Removes what is left of one container that was doomed, as [`Registry::sweep`] does.
    ///
    /// # Errors
    /// As [`Registry::sweep`].
    pub fn sweep_doomed(
        &self,
        id: &ContainerId,
        mut forget: impl FnMut(&Places, &Places) -> Result<(), NodeError>,
    ) -> Result<(), NodeError> {
        self.clear(id, &self.path.join(format!("{}{DOOMED}", id.as_str())), &mut forget)
    }

    fn clear(
        &self,
        id: &ContainerId,
        path: &Path,
        forget: &mut impl FnMut(&Places, &Places) -> Result<(), NodeError>,
    ) -> Result<(), NodeError> {
        forget(&self.places(id), &Places::at(path))?;
        remove_tree(path).map_err(NodeError::system("remove", path))
    }

    /// Writes what a container is meant to be, whole and durable.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub fn write_config(&self, config: &ContainerConfig) -> Result<(), NodeError> {
        write(self.places(&config.id).directory(), CONFIG, config)
    }

    /// Writes what a container is doing, whole and durable.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub fn write_state(&self, id: &ContainerId, state: &ContainerState) -> Result<(), NodeError> {
        write(self.places(id).directory(), STATE, state)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), NodeError> {
        let rename = || {
            fs::rename(from, to)?;
            File::open(&self.path)?.sync_all()
        };
        rename().map_err(NodeError::system("rename", from))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, NodeError> {
    let read = || {
        let file = File::open(path)?;
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, LIMIT_BYTES), &mut text)?;
        Ok(text)
    };
    let text: String = read().map_err(NodeError::system("read", path))?;
    serde_json::from_str(&text)
        .map_err(|source| NodeError::Damaged { path: path.to_owned(), source })
}

fn write(directory: &Path, name: &str, value: &impl Serialize) -> Result<(), NodeError> {
    let path = || directory.join(name);
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|source| NodeError::Damaged { path: path(), source })?;
    text.push(b'\n');
    let write = || {
        let directory = File::open(directory)?;
        durable::write_file(directory.as_fd(), OsStr::new(name), &text, Existing::Replace)
    };
    write().map_err(NodeError::system("write", &path()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::config::Kind;
    use crate::container::idmap::IdRange;

    fn recorded(name: &str) -> Recorded {
        let id = ContainerId::random().expect("random bytes");
        let name = name.parse().expect("a name");
        Recorded {
            config: ContainerConfig::new(id, name, "debian:12", Kind::System),
            state: ContainerState::default(),
        }
    }

    #[test]
    fn a_container_is_there_whole_or_not_at_all() {
        let store = tempfile::tempdir().expect("a scratch directory");
        let registry = Registry::open(store.path()).expect("made");
        let one = recorded("web1");
        registry.create(&one, |_| Ok(())).expect("made");
        let listed = registry.list().expect("listed").pop().expect("one");
        assert_eq!(listed.expect("whole"), one);
        let failed = registry.create(&recorded("web2"), |_| {
            Err(NodeError::NoContainer { wanted: "x".to_owned(), hint: String::new() })
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(store.path().join(CONTAINERS)).expect("listed").count(), 1);
        registry.doom(&one.config.id).expect("renamed");
        assert!(registry.list().expect("listed").is_empty());
        let mut told = Vec::new();
        registry
            .sweep(|places, _| {
                told.push(places.clone());
                Ok(())
            })
            .expect("swept");
        assert_eq!(told, [registry.places(&one.config.id)]);
        assert_eq!(fs::read_dir(store.path().join(CONTAINERS)).expect("listed").count(), 0);
    }

    #[test]
    fn what_is_damaged_is_told_and_keeps_what_only_it_can_have() {
        let store = tempfile::tempdir().expect("a scratch directory");
        let registry = Registry::open(store.path()).expect("made");
        let mut one = recorded("web1");
        one.state.users = IdRange::new(0x7000_0000, 65_536);
        one.state.addresses = vec!["10.88.0.9".parse().expect("an address")];
        let places = registry.create(&one, |_| Ok(())).expect("made");
        registry.create(&recorded("web2"), |_| Ok(())).expect("made");
        let damaged = || {
            let mut listed = registry.list().expect("listed");
            assert_eq!(listed.len(), 2);
            let at = listed.iter().position(Result::is_err).expect("one is damaged");
            listed.swap_remove(at).expect_err("damaged")
        };
        let break_file = |name| {
            fs::write(places.directory().join(name), b"{\"version\":").expect("written");
        };
        for name in [CONFIG, STATE] {
            break_file(name);
            let found = damaged().recorded;
            assert_eq!(found.config.name, one.config.name);
            assert_eq!(found.config.id, one.config.id);
            assert_eq!(found.state.users, one.state.users);
            assert_eq!(found.state.addresses, one.state.addresses);
            assert!(!found.state.claims_unknown);
        }
        break_file(CLAIM);
        let found = damaged().recorded;
        assert!(found.state.claims_unknown);
        assert!(found.config.name.as_str().starts_with("damaged-"));
    }

    #[test]
    fn the_root_of_a_container_is_told_from_other_mounts() {
        let store = Path::new("/store");
        let places = Places::at(&store.join(CONTAINERS).join("id"));
        assert_eq!(Places::of_root(store, &places.root()), Some(places.clone()));
        for other in
            [Path::new("/mnt"), &places.disk(), places.directory(), &places.root().join("mnt")]
        {
            assert_eq!(Places::of_root(store, other), None, "{}", other.display());
        }
        assert_eq!(Places::of_root(Path::new("/other"), &places.root()), None);
    }

    #[test]
    fn what_a_later_version_wrote_is_no_damage() {
        let store = tempfile::tempdir().expect("a scratch directory");
        let registry = Registry::open(store.path()).expect("made");
        let mut one = recorded("web1");
        registry.create(&one, |_| Ok(())).expect("made");
        one.config.version = 99;
        registry.write_config(&one.config).expect("written");
        assert!(matches!(registry.list(), Err(NodeError::Newer { found: 99, .. })));
    }

    #[test]
    fn the_directory_of_another_container_is_none() {
        let store = tempfile::tempdir().expect("a scratch directory");
        let registry = Registry::open(store.path()).expect("made");
        let (one, two) = (recorded("web1"), recorded("web2"));
        let places = registry.create(&one, |_| Ok(())).expect("made");
        fs::rename(places.directory(), registry.places(&two.config.id).directory()).expect("moved");
        assert!(matches!(registry.read(&two.config.id), Err(NodeError::Misplaced { .. })));
    }
}
