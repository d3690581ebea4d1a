//! Finding files by what they are, as find(1) does.

use crate::layer::LayerPath;
use crate::layer::import::Excludes;

use super::{InspectError, Kind, Node, Step, View};

/// What a file has to be to be found; without any demand every file is.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    name: Option<Excludes>,
    path: Option<Excludes>,
    /// One of these kinds; any, if there are none.
    pub kinds: Vec<Kind>,
    /// A regular file of more than so many bytes.
    pub larger: Option<u64>,
    /// A file that runs as its owner or its group (set-id bits).
    pub setuid: bool,
    /// A file with capabilities of its own.
    pub capabilities: bool,
    /// From the layer with this number, 1 the lowest.
    pub layer: Option<u32>,
}

impl Filter {
    /// Demands a last component that the pattern fits (`*`, `?`, `[…]`).
    ///
    /// # Errors
    /// [`InspectError::Pattern`] for a pattern that cannot be used.
    pub fn name(mut self, pattern: &[u8]) -> Result<Self, InspectError> {
        self.name = Some(Excludes::new([pattern])?);
        Ok(self)
    }

    /// Demands a path that the pattern fits; wildcards fit slashes too.
    ///
    /// # Errors
    /// As [`Filter::name`].
    pub fn path(mut self, pattern: &[u8]) -> Result<Self, InspectError> {
        let anchored = [b"/", pattern.strip_prefix(b"/").unwrap_or(pattern)].concat();
        self.path = Some(Excludes::new([anchored])?);
        Ok(self)
    }

    /// Whether a file fits.
    fn fits(&self, view: &View, path: &[u8], node: &Node) -> Result<bool, InspectError> {
        let last = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let set_id = node.kind.is_regular() && node.mode & 0o6000 != 0;
        Ok(self.name.as_ref().is_none_or(|name| name.matches(last))
            && self.path.as_ref().is_none_or(|pattern| pattern.matches(path))
            && (self.kinds.is_empty() || self.kinds.contains(&node.kind))
            && self.larger.is_none_or(|bytes| node.kind.is_regular() && node.size > bytes)
            && (!self.setuid || set_id)
            && self.layer.is_none_or(|number| node.number() == Some(number))
            && (!self.capabilities || view.has_capabilities(node)?))
    }
}

impl View {
    /// Hands every file below `from` that fits to `take`, in byte order of each directory's
    /// names; `from` itself too, unless it is the root.
    ///
    /// # Errors
    /// [`InspectError::NoPath`], [`InspectError::Manifest`] for damage, and what `take` says.
    pub fn files<E: From<InspectError>>(
        &self,
        from: &LayerPath,
        filter: &Filter,
        mut take: impl FnMut(&[u8], &Node) -> Result<(), E>,
    ) -> Result<(), E> {
        self.walk(from, |path, node| {
            if !path.is_empty() && filter.fits(self, path, node)? {
                take(path, node)?;
            }
            Ok(Step::Into)
        })
    }
}
