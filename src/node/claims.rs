//! What is about to be: containers that are being made, named or changed, and that no list has yet.
//!
//! A name, a range of users and addresses are chosen beside those of all others, in a moment and
//! under one lock; what follows may take long and holds nobody else up. What was chosen counts from
//! then on, until the container itself shows it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::error::NodeError;
use super::registry::Recorded;

/// Everything that was chosen and is not to be seen yet.
#[derive(Debug, Default)]
pub(super) struct Claims {
    // Held while somebody chooses: no I/O but a look at the host's size.
    pending: Mutex<Vec<Arc<Recorded>>>,
}

/// One container as it will be; nobody else can have what it has until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    recorded: Arc<Recorded>,
    claims: Arc<Claims>,
}

impl Claims {
    /// Has `choose` decide what a container will be, beside all that `known` answers and all that
    /// was chosen before.
    ///
    /// # Errors
    /// What `choose` answers; nothing is claimed then.
    pub(super) fn claim(
        self: &Arc<Self>,
        known: impl FnOnce() -> Vec<Recorded>,
        choose: impl FnOnce(&[Recorded]) -> Result<Recorded, NodeError>,
    ) -> Result<Claim, NodeError> {
        let mut pending = self.pending.lock();
        // Asked for under the lock: a claim is dropped after its container can be seen.
        let mut others = known();
        others.extend(pending.iter().map(|one| Recorded::clone(one)));
        let recorded = Arc::new(choose(&others)?);
        pending.push(Arc::clone(&recorded));
        Ok(Claim { recorded, claims: Arc::clone(self) })
    }
}

impl Claim {
    /// What was chosen.
    pub(super) fn recorded(&self) -> &Recorded {
        &self.recorded
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.pending.lock().retain(|one| !Arc::ptr_eq(one, &self.recorded));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::config::{ContainerConfig, ContainerId, Kind};
    use crate::node::state::ContainerState;

    fn named(name: &str) -> Recorded {
        let id = ContainerId::random().expect("random bytes");
        let config = ContainerConfig::new(id, name.parse().expect("a name"), "t", Kind::System);
        Recorded { config, state: ContainerState::default() }
    }

    #[test]
    fn what_one_has_chosen_the_next_one_sees_until_it_is_dropped() {
        let claims = Arc::new(Claims::default());
        let count = |expected: usize| {
            let seen = |others: &[Recorded]| {
                assert_eq!(others.len(), expected);
                Ok(named("x"))
            };
            claims.claim(|| vec![named("there")], seen).expect("chosen")
        };
        let first = count(1);
        let second = count(2);
        drop(first);
        drop(count(2));
        drop(second);
        drop(count(1));
        let refuse = |_: &[Recorded]| Err(NodeError::Ending);
        assert!(claims.claim(Vec::new, refuse).is_err());
        drop(count(1));
    }
}
