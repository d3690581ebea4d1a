//! Paths inside a layer.
//!
//! A [`LayerPath`] is relative to the layer's root and cannot leave it.

use std::fmt;

use super::name::{FileName, NameError};

/// A relative path of checked names; empty for the root. Holds no `.` and no `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LayerPath(Vec<FileName>);

/// Why some bytes are no path inside a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A `..` component, which could leave the layer.
    #[error("path \"{0}\" holds \"..\"")]
    Parent(String),
    /// A component that no file can be called.
    #[error("no file can have the path \"{path}\"")]
    Name {
        /// The whole path, printable.
        path: String,
        /// The broken rule.
        source: NameError,
    },
}

impl LayerPath {
    /// The root of a layer.
    pub fn root() -> Self {
        Self::default()
    }

    /// Reads a path as archives write it: leading `/`, `./`, and doubled or trailing slashes
    /// are dropped.
    ///
    /// # Errors
    /// [`PathError::Parent`] for any `..`; [`PathError::Name`] for a name no file can have.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        let printable = || bytes.escape_ascii().to_string();
        let mut names = Vec::new();
        for part in bytes.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(PathError::Parent(printable())),
                name => names.push(
                    FileName::new(name)
                        .map_err(|source| PathError::Name { path: printable(), source })?,
                ),
            }
        }
        Ok(Self(names))
    }

    /// The path made of `names`, outermost first.
    pub fn from_names(names: Vec<FileName>) -> Self {
        Self(names)
    }

    /// The components, outermost first.
    pub fn names(&self) -> &[FileName] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The last component; none for the root.
    pub fn file_name(&self) -> Option<&FileName> {
        self.0.last()
    }

    /// The path without its last component; none for the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, parents) = self.0.split_last()?;
        Some(Self(parents.to_vec()))
    }

    /// This path with one more component.
    #[must_use]
    pub fn join(&self, name: FileName) -> Self {
        let mut names = self.0.clone();
        names.push(name);
        Self(names)
    }

    /// Makes this the path of what is called `name` in the directory that it was the path of.
    pub fn push(&mut self, name: FileName) {
        self.0.push(name);
    }

    /// Makes this the path of its directory; the root stays.
    pub fn pop(&mut self) {
        self.0.pop();
    }

    /// The bytes, components separated by `/`, without a leading slash; empty for the root.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().map(FileName::as_bytes).collect::<Vec<_>>().join(&b'/')
    }
}

impl fmt::Debug for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"/{}\"", self.to_bytes().escape_ascii())
    }
}

impl fmt::Display for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_spellings_of_one_path_are_equal() {
        let plain = LayerPath::parse(b"usr/bin/env").expect("plain");
        for spelling in [&b"/usr/bin/env"[..], b"./usr//bin/./env", b"usr/bin/env/"] {
            assert_eq!(LayerPath::parse(spelling).expect("spelling"), plain);
        }
        assert_eq!(plain.to_bytes(), b"usr/bin/env");
        assert!(LayerPath::parse(b"./").expect("root").is_root());
    }

    #[test]
    fn a_path_cannot_leave_the_layer() {
        for bad in [&b".."[..], b"a/../b", b"/../etc/passwd", b"a/.."] {
            assert!(matches!(LayerPath::parse(bad), Err(PathError::Parent(_))));
        }
        assert!(matches!(LayerPath::parse(b"a\0b"), Err(PathError::Name { .. })));
    }
}
