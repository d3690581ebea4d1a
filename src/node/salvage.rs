//! What is known of a container whose description cannot be read.
//!
//! One damaged directory is nobody else's fault: the daemon starts, shows it as damaged and leaves it
//! alone until it is mended or deleted. What it has that no other may get, its users and addresses,
//! is in `claim.json` once more: written where they change, read for this alone.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::NodeError;
use super::phase::Phase;
use super::registry::{Recorded, Registry};
use super::state::ContainerState;
use crate::container::config::{ContainerConfig, ContainerId, ContainerName, Kind};
use crate::container::idmap::IdRange;

/// What only one container can have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    name: ContainerName,
    template: String,
    /// A private directory made by hand.
    #[serde(default)]
    private: Option<PathBuf>,
    #[serde(default)]
    users: Option<IdRange>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
}

impl Claim {
    /// What `recorded` has.
    pub(super) fn of(recorded: &Recorded) -> Self {
        let Recorded { config, state } = recorded;
        Self {
            name: config.name.clone(),
            template: config.template.clone(),
            private: config.private.clone(),
            users: state.users,
            addresses: state.addresses.clone(),
        }
    }
}

/// A container that is there, and what keeps it from being used.
#[derive(Debug)]
pub struct Damaged {
    /// As much of it as can be told, failed.
    pub recorded: Box<Recorded>,
    /// What is wrong, in a sentence.
    pub reason: String,
}

/// As much of the container `id` as can be told, which cannot be read for `error`.
pub(super) fn salvage(registry: &Registry, id: &ContainerId, error: &NodeError) -> Damaged {
    let (claim, state) = (registry.claim(id), registry.state(id).ok());
    let config = registry.config(id).unwrap_or_else(|_| {
        let mut bare = ContainerConfig::new(id.clone(), stand_in(id), "-", Kind::System);
        bare.created_ms = 0;
        bare.disk_image = registry.places(id).image().exists();
        if let Some(claim) = &claim {
            bare.name.clone_from(&claim.name);
            bare.template.clone_from(&claim.template);
            bare.private.clone_from(&claim.private);
        }
        bare
    });
    let reason = crate::host::sentence(error);
    let known = claim.map(|claim| (claim.users, claim.addresses));
    let known = known.or_else(|| state.map(|state| (state.users, state.addresses)));
    let claims_unknown = known.is_none();
    let (users, addresses) = known.unwrap_or_default();
    let state = ContainerState {
        phase: Phase::Failed,
        failure: Some(reason.clone()),
        users,
        addresses,
        claims_unknown,
        ..ContainerState::default()
    };
    Damaged { recorded: Box::new(Recorded { config, state }), reason }
}

/// What a container is called whose name cannot be told, or is another's by now.
pub(super) fn stand_in(id: &ContainerId) -> ContainerName {
    format!("damaged-{}", id.short()).parse().expect("an identity has digits alone")
}
