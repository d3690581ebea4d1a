//! What can go wrong with containers, in sentences for a person.

use std::io;
use std::path::{Path, PathBuf};

use super::phase::Phase;
use super::queue::Denial;
use super::registry::Recorded;
use crate::container::cgroup::{CgroupError, OverCommitted};
use crate::container::config::{ContainerId, ContainerName, KeyError, NameError, Problem};
use crate::container::network::NetworkError;
use crate::container::passwd::UserError;
use crate::container::runtime::RuntimeError;
use crate::container::spec::SpecError;
use crate::host::launch::LaunchError;
use crate::host::{HostError, RootError, StoreError, sentence};
use crate::inspect::InspectError;

/// Why something asked of the daemon was not done.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The host's side of it.
    #[error(transparent)]
    Host(Box<HostError>),
    /// A mount process.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A text that can be no container's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A setting.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A configuration that cannot work.
    #[error("this container cannot work: {0}")]
    Problem(Problem),
    /// More than one reason.
    #[error("there are {} reasons against it:{}", reasons.len(), listed(reasons))]
    Several {
        /// All of them.
        reasons: Vec<NodeError>,
    },
    /// Where its private files are is no matter of a setting any more.
    #[error(
        "whether the private files of {name} are in an image was decided when it was created; \
         create another container with disk-image=yes, or without"
    )]
    DiskImageFixed {
        /// The container.
        name: ContainerName,
    },
    /// An image that would have to be smaller.
    #[error(
        "the disk image of {name} has {now} and cannot shrink; `mica copy {name} NAME limits.disk={wanted}` makes a \
         container of it with a smaller one"
    )]
    DiskShrinks {
        /// The container.
        name: ContainerName,
        /// What it has.
        now: String,
        /// What was wanted.
        wanted: String,
    },
    /// An image that this host lets nobody resize in use.
    #[error("{source}; stop {name} and set limits.disk again, or leave it as it is")]
    DiskImage {
        /// The container.
        name: ContainerName,
        /// Why.
        source: Box<HostError>,
    },
    /// No container goes by that name.
    #[error("there is no container {wanted:?}{hint}; `mica ps -a` shows those there are")]
    NoContainer {
        /// What was asked for.
        wanted: String,
        /// The nearest name there is, as the end of a clause.
        hint: String,
    },
    /// Several identities begin so.
    #[error("{wanted:?} may mean {first} or {second}; give more digits, or a name")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// One of them.
        first: ContainerName,
        /// Another.
        second: ContainerName,
    },
    /// The name is in use.
    #[error("a container is named {name:?} already; choose another name, or delete that one (mica delete {name})", name = name.as_str())]
    NameTaken {
        /// The name.
        name: ContainerName,
    },
    /// A port of the host leads to another container, or will when that runs.
    #[error(
        "port {port} of the host is published by {holder} already; publish another one, or take it back there \
         (mica set {holder} port=)"
    )]
    PortTaken {
        /// The host's end of it.
        port: String,
        /// Whose.
        holder: ContainerName,
    },
    /// The phase of the container does not allow it.
    #[error("{name}: {denial}")]
    Denied {
        /// The container.
        name: ContainerName,
        /// Why.
        denial: Denial,
    },
    /// Nothing says what to run.
    #[error(
        "{template} has no /sbin/init and no command of its own: name one after \"--\", or pass --system for an init elsewhere"
    )]
    NothingToRun {
        /// The template.
        template: String,
    },
    /// More is promised than there is.
    #[error(transparent)]
    OverCommitted(#[from] OverCommitted),
    /// The kernel's groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A container's processes.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A description that a runtime would not take.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A user inside, its password or its key.
    #[error(transparent)]
    User(#[from] UserError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A template cannot be looked into.
    #[error(transparent)]
    Inspect(Box<InspectError>),
    /// The name and the template in each other's place.
    #[error(
        "{template} is a template: the container's name comes first (mica create {name} {template})"
    )]
    Swapped {
        /// What stands in the template's place.
        name: String,
        /// What stands in the name's place.
        template: String,
    },
    /// The range of users is another's.
    #[error(
        "that range of users overlaps the one of {name}; leave userns=auto, or choose another one"
    )]
    UsersTaken {
        /// Whose.
        name: ContainerName,
    },
    /// Every range of users is taken.
    #[error(
        "no range of users is left; delete a container, or name a range with userns=FIRST:COUNT"
    )]
    NoUsersLeft,
    /// Another store has this one's addresses.
    #[error(
        "10.{}.0.0/16, the range of this store's containers, was taken by the store at {} while no daemon of \
         this one ran since the host's start; delete the containers of one of the two and its node/network.json",
        88 + range,
        other.display()
    )]
    RangeTaken {
        /// Its number.
        range: u8,
        /// Who has it.
        other: PathBuf,
    },
    /// Every range of addresses is another store's.
    #[error("the stores of this host have all ranges of addresses; delete one of them")]
    NoRangeLeft,
    /// It has to be down for that.
    #[error("{name} is {phase}; stop it first")]
    NotDown {
        /// The container.
        name: ContainerName,
        /// What it is doing.
        phase: Phase,
    },
    /// A name that processes in it may have read.
    #[error(
        "{name} is running, and goes on calling itself so until its next start; pass --force to rename it now"
    )]
    RunningRename {
        /// The container.
        name: ContainerName,
    },
    /// It has to run for that.
    #[error("{name} is {phase}; {remedy}")]
    NotRunning {
        /// The container.
        name: ContainerName,
        /// What it is doing.
        phase: Phase,
        /// What to do.
        remedy: &'static str,
    },
    /// The step failed, and its sentence was told to who asked first.
    #[error("{name}: {reason}")]
    Step {
        /// The container.
        name: ContainerName,
        /// Why.
        reason: String,
    },
    /// The daemon is ending.
    #[error("the daemon is ending; start it again with `mica node start`")]
    Ending,
    /// Another daemon has the store.
    #[error("a daemon runs for the store at {store} already (process {pid})")]
    AlreadyRuns {
        /// The store.
        store: PathBuf,
        /// The process.
        pid: String,
    },
    /// A description is not what Mica wrote.
    #[error(
        "{path} is damaged: {source}; put it back from a backup and start the daemon anew, or delete the container (mica delete --force)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A description was written by a newer version.
    #[error(
        "{path} has version {found}, which this version of Mica does not know; use a newer one"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A description lies in the directory of another container.
    #[error(
        "{path} describes the container {found}, whose directory this is not; put its own back from a backup and \
         start the daemon anew, or delete the container (mica delete --force)"
    )]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// Which container it describes.
        found: ContainerId,
    },
    /// The container is there, and what it is meant to be cannot be read.
    #[error("{name} cannot be used: {reason}")]
    Unreadable {
        /// The container.
        name: ContainerName,
        /// Why.
        reason: String,
    },
    /// Users and addresses of a damaged container are not known, so any might be its.
    #[error(
        "which users and addresses the damaged container {name} has cannot be told, so none are handed out by \
         themselves; mend it (mica info {name} says what is wrong), delete it (mica delete --force {name}), or name \
         them: userns=FIRST:COUNT, ip=ADDRESS"
    )]
    ClaimsUnknown {
        /// The damaged one.
        name: ContainerName,
    },
    /// The system refused.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// One line for each.
fn listed(reasons: &[NodeError]) -> String {
    reasons.iter().map(|reason| format!("\n- {}", sentence(reason))).collect()
}

impl NodeError {
    /// What a shell would answer, if the container's command is why it cannot start: 126 or 127.
    #[must_use]
    pub fn command_status(&self) -> Option<u8> {
        if let Self::Spec(SpecError::Command(error)) = self {
            Some(error.status())
        } else if let Self::Runtime(error) = self {
            error.command_status()
        } else {
            None
        }
    }

    /// Refuses to hand out what a damaged one of `others` may have.
    pub(super) fn unless_known<'a>(
        others: impl IntoIterator<Item = &'a Recorded>,
    ) -> Result<(), Self> {
        match others.into_iter().find(|other| other.state.claims_unknown) {
            Some(other) => Err(Self::ClaimsUnknown { name: other.config.name.clone() }),
            None => Ok(()),
        }
    }

    /// For `map_err`: that a template cannot be looked into.
    pub(super) fn inspect(error: InspectError) -> Self {
        Self::Inspect(Box::new(error))
    }

    /// For `map_err`: that `what` could not be done to `path`.
    pub fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::System { what, path, source }
    }
}

impl From<HostError> for NodeError {
    fn from(error: HostError) -> Self {
        Self::Host(Box::new(error))
    }
}

impl From<RootError> for NodeError {
    fn from(error: RootError) -> Self {
        HostError::from(error).into()
    }
}

impl From<StoreError> for NodeError {
    fn from(error: StoreError) -> Self {
        HostError::from(error).into()
    }
}
