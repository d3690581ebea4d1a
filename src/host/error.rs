//! What can go wrong on a host, in sentences for a person.

use std::io;
use std::path::PathBuf;

use super::options::OptionError;
use super::roots::RootError;
use super::store::StoreError;
use crate::control::ControlError;
use crate::layer::store::LayersError;
use crate::layer::{ManifestError, TemplateName};
use crate::object::ObjectError;

/// Why something asked of the host was not done.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A root, or the registry of roots.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A layer, tree or template.
    #[error(transparent)]
    Layers(#[from] LayersError),
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A mount process.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A mount option.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// No template has the name.
    #[error("there is no template {wanted:?}{hint}; `mica template list` shows those there are")]
    NoTemplate {
        /// What was asked for.
        wanted: String,
        /// The nearest name there is, as the end of a clause.
        hint: String,
    },
    /// Roots need the template's name to be mounted again.
    #[error(
        "template {name} is used by {count} root{s} ({roots}); unmount and forget {them} first \
         (mica umount, mica store forget)",
        count = roots.len(),
        s = if roots.len() == 1 { "" } else { "s" },
        them = if roots.len() == 1 { "it" } else { "them" },
        roots = roots.join(", ")
    )]
    TemplateInUse {
        /// The template.
        name: TemplateName,
        /// The names of the roots.
        roots: Vec<String>,
    },
    /// Mounted roots need the store.
    #[error("the store at {store} serves mounted roots ({roots}); unmount them first", roots = roots.join(", "))]
    StoreInUse {
        /// The store.
        store: PathBuf,
        /// The names of the roots.
        roots: Vec<String>,
    },
    /// A mounted root cannot be forgotten.
    #[error("root {name:?} is mounted at {mountpoint}; unmount it first (mica umount {name})")]
    RootMounted {
        /// The root.
        name: String,
        /// Where.
        mountpoint: PathBuf,
    },
    /// A root whose changes are still there is not forgotten by accident.
    #[error(
        "the private directory {private} of root {name:?} still exists; delete it first, or pass \
         --force to let the store collect what it refers to"
    )]
    RootKept {
        /// The root.
        name: String,
        /// Its private directory.
        private: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl HostError {
    /// Makes a [`HostError::System`] of what the system said.
    pub(super) fn system<E: Into<io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::System { what, path, source: source.into() }
    }
}
