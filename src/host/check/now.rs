//! Judging what was found by what there is at the end: templates and roots come and go beside a
//! check, and a collection takes along what they alone had.

use std::collections::HashSet;

use super::{Check, Finding};
use crate::host::error::HostError;
use crate::host::roots::Roots;
use crate::host::store::Store;
use crate::layer::{LayerId, Stack, StackId};
use crate::object::Verdict;

/// What counts at a moment.
struct Now {
    stacks: HashSet<StackId>,
    layers: HashSet<LayerId>,
    roots: HashSet<String>,
}

impl Now {
    fn of<'a>(stacks: impl Iterator<Item = &'a Stack>, roots: HashSet<String>) -> Self {
        let (mut ids, mut layers) = (HashSet::new(), HashSet::new());
        for stack in stacks {
            ids.insert(stack.id());
            layers.extend(stack.layers());
        }
        Self { stacks: ids, layers, roots }
    }
}

impl Check<'_> {
    /// Leaves out what concerns only what is gone by now, or is well again: a finding tells of the
    /// store as it is.
    ///
    /// # Errors
    /// What keeps the store from being looked at.
    pub(super) fn judge_by_now(&mut self, store: &Store) -> Result<(), HostError> {
        if self.checked.findings.is_empty() && self.of_stacks.is_empty() {
            return Ok(());
        }
        let listed = self.layers.templates().list()?;
        let records: Vec<_> = Roots::open(store)?.list_each()?.into_iter().flatten().collect();
        let templates = listed.iter().filter_map(|listed| listed.template.as_ref().ok());
        let stacks = templates.map(|template| &template.stack);
        let now = Now::of(
            stacks.chain(records.iter().map(|record| &record.stack)),
            records.iter().map(|record| record.name.clone()).collect(),
        );
        let of_stacks = std::mem::take(&mut self.of_stacks);
        let of_stacks = of_stacks.into_iter().filter(|(stack, _)| now.stacks.contains(stack));
        self.checked.findings.extend(of_stacks.map(|(_, finding)| finding));
        let mut left = Vec::new();
        for finding in std::mem::take(&mut self.checked.findings) {
            if self.still_holds(&finding, &now)? {
                left.push(finding);
            }
        }
        self.checked.findings = left;
        Ok(())
    }

    fn still_holds(&self, finding: &Finding, now: &Now) -> Result<bool, HostError> {
        Ok(match finding {
            Finding::Unusable { layer: Some(layer), .. } => {
                now.layers.contains(layer) && self.layers.load_verified(layer).is_err()
            }
            Finding::Missing { object, layer } => {
                now.layers.contains(layer) && !self.objects.contains(object)?
            }
            Finding::Altered { object, layer } => {
                now.layers.contains(layer)
                    && !matches!(self.objects.verify(object)?, Verdict::Whole { .. })
            }
            Finding::LostReference { root, object, .. } => {
                now.roots.contains(root) && !self.objects.contains(object)?
            }
            Finding::PrivateDamaged { root, .. } | Finding::PrivateGone { root, .. } => {
                now.roots.contains(root)
            }
            Finding::Unusable { layer: None, .. } | Finding::Derived { .. } => true,
        })
    }
}
