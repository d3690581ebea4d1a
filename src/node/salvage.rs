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
    let claim = claim.map(|claim| (claim.users, claim.addresses));
    let (users, addresses, claims_unknown) =
        both(claim, state.map(|state| (state.users, state.addresses)));
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

/// What one can have alone: its users and addresses.
type Held = (Option<IdRange>, Vec<IpAddr>);

/// What either record says that a container has, and whether that may not be all: one of them may be
/// older, and nobody is to get what the other says.
fn both(claim: Option<Held>, state: Option<Held>) -> (Option<IdRange>, Vec<IpAddr>, bool) {
    match (claim, state) {
        (None, None) => (None, Vec::new(), true),
        (Some((users, addresses)), None) | (None, Some((users, addresses))) => {
            (users, addresses, false)
        }
        (Some((claimed, mut addresses)), Some((users, more))) => {
            let unlike = claimed.is_some() && users.is_some() && claimed != users;
            for address in more {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            (users.or(claimed), addresses, unlike)
        }
    }
}

/// What a container is called whose name cannot be told, or is another's by now.
pub(super) fn stand_in(id: &ContainerId) -> ContainerName {
    format!("damaged-{}", id.short()).parse().expect("an identity has digits alone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_either_record_says_is_nobody_elses() {
        let held = |first: u32, address: &str| {
            let users = IdRange::new(first, 65_536);
            Some((users, vec![address.parse().expect("an address")]))
        };
        let (old, new) = (held(1_000_000, "10.88.0.2"), held(2_000_000, "10.88.0.3"));
        assert_eq!(both(None, None), (None, Vec::new(), true));
        for (claim, state) in [(&old, &None), (&None, &old), (&old, &old)] {
            let (users, addresses, unknown) = both(claim.clone(), state.clone());
            assert_eq!(
                (users, addresses, unknown),
                (old.clone().unwrap().0, old.clone().unwrap().1, false)
            );
        }
        let (_, addresses, unknown) = both(old, new);
        assert_eq!((addresses.len(), unknown), (2, true));
    }
}
