//! More of a place than the pile itself keeps: read where it lies.

use crate::layer::{Metadata, Timestamp};
use crate::object::ObjectId;

use super::{PlaceId, Source, Strata, Version};
use crate::inspect::changes::{Change, ChangeKind};
use crate::inspect::text::printable;
use crate::inspect::{InspectError, Kind};

/// What is known of one place, as a layer leaves it; of what it took away, what was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What it is.
    pub kind: Kind,
    /// Mode, owner and time.
    pub metadata: Metadata,
    /// Bytes of content, or of a symlink's target.
    pub size: u64,
    /// The layer that it comes from.
    pub layer: usize,
    /// Where a symlink points to, printable; empty for anything else.
    pub target: String,
    /// What else is to be said, for a person.
    pub remark: Option<String>,
}

impl Strata {
    /// What is at a place as `layer` leaves it.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn facts(&self, place: PlaceId, layer: usize) -> Result<Option<Facts>, InspectError> {
        let Some(version) = self.at(place, layer) else { return Ok(None) };
        if let Some((view, node)) = self.node_of(version.source)? {
            let (mode, uid, gid, mtime) = (node.mode, node.uid, node.gid, node.mtime);
            return Ok(Some(Facts {
                kind: version.kind,
                metadata: Metadata { mode, uid, gid, mtime },
                size: version.size,
                layer: self.home(version),
                target: printable(view.target(&node)?),
                remark: None,
            }));
        }
        let Some(change) = self.change(version.source) else { return Ok(None) };
        let side = change.new.as_ref().or(change.old.as_ref());
        let unknown = Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default() };
        Ok(Some(Facts {
            kind: version.kind,
            metadata: side.map_or(unknown, |side| side.metadata),
            size: version.size,
            layer: self.home(version),
            target: String::new(),
            remark: remark(change),
        }))
    }

    /// The layer whose record a version is: of what is gone, not the layer that took it away.
    fn home(&self, version: &Version) -> usize {
        match version.source {
            Source::Manifest { layer, .. } => layer,
            Source::Change(_) => version.layer,
        }
    }

    /// What two versions have in common if they are hard links of each other.
    pub(super) fn identity(&self, version: &Version) -> (usize, u64) {
        match version.source {
            Source::Manifest { layer, ino } => (layer, u64::from(ino.get())),
            Source::Change(_) => {
                let host_ino = self.change(version.source).map_or(0, |change| change.host_ino);
                (version.layer, host_ino)
            }
        }
    }

    pub(super) fn change(&self, source: Source) -> Option<&Change> {
        let Source::Change(index) = source else { return None };
        self.private.as_ref()?.changes.iter().nth(index)
    }

    /// The content of a version, if it is an object of the store.
    pub(super) fn object(&self, source: Source) -> Result<Option<ObjectId>, InspectError> {
        match source {
            Source::Manifest { .. } => Ok(self.node_of(source)?.and_then(|(_, node)| node.object)),
            Source::Change(_) => Ok(self.change(source).and_then(|change| change.object)),
        }
    }
}

fn remark(change: &Change) -> Option<String> {
    let at = |path: &crate::layer::LayerPath| format!("/{}", printable(&path.to_bytes()));
    match &change.kind {
        ChangeKind::Moved { from, .. } => Some(format!("was {}", at(from))),
        ChangeKind::Added { link_to: Some(name) } => Some(format!("another name of {}", at(name))),
        ChangeKind::Damaged(reason) => Some(printable(reason.as_bytes())),
        ChangeKind::Metadata => Some(format!("other {}", change.differences.words().join(", "))),
        ChangeKind::Added { link_to: None }
        | ChangeKind::Content
        | ChangeKind::Removed
        | ChangeKind::Opaque
        | ChangeKind::Replaced => None,
    }
}
