//! Why something could not be looked at, in sentences for a person.

use std::io;

use crate::host::roots::RootError;
use crate::host::{HostError, StoreError};
use crate::layer::import::PatternError;
use crate::layer::{BuildError, LayerPath, LayersError, ManifestError, MergeError, PathError};
use crate::object::ObjectError;
use crate::private::PrivateError;
use crate::union::UnionError;
use crate::union::upper::UpperError;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The store, its names or its roots.
    #[error(transparent)]
    Host(Box<HostError>),
    /// A layer, tree or template.
    #[error(transparent)]
    Layers(#[from] LayersError),
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The content of a file.
    #[error("cannot read {path}")]
    Content {
        /// The file, printable.
        path: String,
        /// What is wrong with its object.
        source: ObjectError,
    },
    /// A private directory.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// An entry of a private directory cannot be read.
    #[error("cannot look at {path} in the private directory: {source}")]
    Upper {
        /// Where it is in the root.
        path: LayerPath,
        /// Why.
        source: UnionError,
    },
    /// A path cannot be reverted, or not like this.
    #[error("{reason}")]
    Revert {
        /// Why, and what to do.
        reason: String,
    },
    /// A root has nothing of its own.
    #[error("root {root:?} is read-only: it has no private directory and so no changes")]
    ReadOnly {
        /// Its name.
        root: String,
    },
    /// What was given is no path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A word means nothing here.
    #[error("no {what} is called {word:?}{hint}")]
    Unknown {
        /// What it could have been: "template or layer".
        what: String,
        /// The word.
        word: String,
        /// The nearest name, as the end of a clause.
        hint: String,
    },
    /// The first digits of a digest fit several things.
    #[error("{word:?} fits {}; give more digits", candidates.join(", "))]
    Ambiguous {
        /// The digits.
        word: String,
        /// What they fit: "layer 6b1f…".
        candidates: Vec<String>,
    },
    /// Nothing lies at a path.
    #[error("{whole} has no {path}{hint}")]
    NoPath {
        /// What was looked into.
        whole: String,
        /// The path, printable.
        path: String,
        /// The nearest name beside it, as the end of a clause.
        hint: String,
    },
    /// What lies at a path is not what is needed.
    #[error("{path} of {whole} is {found}, not {needed}")]
    NotThat {
        /// What was looked into.
        whole: String,
        /// The path, printable.
        path: String,
        /// What lies there.
        found: &'static str,
        /// What is needed.
        needed: &'static str,
    },
    /// A layer does not fit on those below it.
    #[error("the layer cannot be merged with those below it")]
    Merge {
        /// Why.
        source: MergeError,
    },
    /// A tree to compare with cannot be made.
    #[error("an empty layer cannot be made")]
    Build(#[source] BuildError),
    /// A pattern that cannot be used.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Symbolic links that lead nowhere but to themselves.
    #[error("too many symbolic links on the way to {path} in {whole}")]
    Links {
        /// What was looked into.
        whole: String,
        /// The path, printable.
        path: String,
    },
    /// The system refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was being done, and to what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl From<HostError> for InspectError {
    fn from(error: HostError) -> Self {
        Self::Host(Box::new(error))
    }
}

impl From<StoreError> for InspectError {
    fn from(error: StoreError) -> Self {
        HostError::from(error).into()
    }
}

impl From<RootError> for InspectError {
    fn from(error: RootError) -> Self {
        HostError::from(error).into()
    }
}

impl InspectError {
    pub(super) fn upper(path: &LayerPath, source: impl Into<UnionError>) -> Self {
        Self::Upper { path: path.clone(), source: source.into() }
    }
}

impl From<UpperError> for InspectError {
    fn from(error: UpperError) -> Self {
        match error {
            UpperError::Private(error) => error.into(),
            UpperError::Layers(error) => error.into(),
            UpperError::Entry { path, source } => Self::Upper { path, source },
        }
    }
}
