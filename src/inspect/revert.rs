//! What a revert would do, and why it may not be done.

use super::changes::{Change, ChangeKind, Changes};
use super::upper::Found;
use super::{Container, InspectError};
use crate::layer::{FileKind, LayerPath};

/// What is to be reverted, in the order in which it is done.
#[derive(Clone, Debug, Default)]
pub struct RevertPlan {
    /// The paths that were named, those that something was moved to first.
    pub paths: Vec<LayerPath>,
    /// Every change that goes.
    pub changes: Vec<(LayerPath, Change)>,
    /// Paths that are the template's already.
    pub unchanged: Vec<LayerPath>,
}

impl Container {
    /// Plans to revert `paths`.
    ///
    /// # Errors
    /// [`InspectError::Revert`] for one half of a move, and what lies in something that is not the
    /// template's; [`InspectError::NoPath`].
    pub fn plan_revert(&self, paths: &[LayerPath]) -> Result<RevertPlan, InspectError> {
        let changes = Changes::of(&self.upper)?;
        let covers =
            |path: &LayerPath| paths.iter().any(|named| path.names().starts_with(named.names()));
        let mut plan = RevertPlan::default();
        // Where something was moved to, and from where.
        let (mut moved, mut left) = (Vec::new(), Vec::new());
        for change in changes.iter() {
            let path = changes.path(change);
            if let ChangeKind::Moved { from, .. } = &change.kind {
                if covers(&path) != covers(from) && !self.has_more_names(change)? {
                    return Err(InspectError::Revert {
                        reason: format!("{path} was moved from {from}; name both, or neither"),
                    });
                }
                moved.push(path.clone());
                left.push(from.clone());
            }
            self.check_above(paths, &path, change)?;
            if covers(&path) {
                plan.changes.push((path, change.clone()));
            }
        }
        for path in paths {
            let mut changed = plan.changes.iter().map(|(changed, _)| changed).chain(&left);
            let touched = changed.any(|changed| changed.names().starts_with(path.names()));
            if touched {
                plan.paths.push(path.clone());
            } else if self.upper.tree().resolve(path)?.is_some() {
                plan.unchanged.push(path.clone());
            } else if let Found::Private(entry) = self.upper.resolve(path)?
                && entry.is_placed()
            {
                let reason = format!("{path} is a place for a mount of the container's, and stays");
                return Err(InspectError::Revert { reason });
            } else {
                return Err(self.no_path(path));
            }
        }
        // Once nothing stands for a moved directory any more, it comes back as itself.
        plan.paths.sort_by_key(|path| !moved.iter().any(|to| to.names().starts_with(path.names())));
        Ok(plan)
    }

    /// Refuses a path below something that is not the template's directory.
    fn check_above(
        &self,
        paths: &[LayerPath],
        at: &LayerPath,
        change: &Change,
    ) -> Result<(), InspectError> {
        let word = match &change.kind {
            ChangeKind::Removed => "was removed",
            ChangeKind::Opaque | ChangeKind::Replaced => "is not the template's any more",
            ChangeKind::Moved { .. } => "was moved there",
            ChangeKind::Added { .. }
            | ChangeKind::Content
            | ChangeKind::Metadata
            | ChangeKind::Damaged(_) => return Ok(()),
        };
        let below = |path: &&LayerPath| {
            path.names().len() > at.names().len() && path.names().starts_with(at.names())
        };
        let named = paths.iter().any(|path| at.names().starts_with(path.names()));
        match paths.iter().find(below) {
            Some(path) if !named => Err(InspectError::Revert {
                reason: format!("{path} cannot be reverted alone, for {at} {word}; revert {at}"),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a change is of a file with several names in the template. Each of those comes back
    /// by itself.
    fn has_more_names(&self, change: &Change) -> Result<bool, InspectError> {
        let Some(origin) = change.origin else { return Ok(false) };
        let inode = self.upper.tree().inode(origin)?;
        Ok(inode.kind != FileKind::Directory && inode.nlink > 1)
    }
}
