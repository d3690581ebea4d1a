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

/// One sentence from an error and its causes; a cause that the text before already tells
/// is not told twice.
#[must_use]
pub fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        cause = error.source();
    }
    without_numbers(&text)
}

/// Takes out the "(os error 13)" that the standard library adds: the words before it say it.
fn without_numbers(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        clean.push_str(before);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once_and_without_numbers() {
        let source = io::Error::from_raw_os_error(libc::EACCES);
        let error = HostError::System { what: "read", path: "/x".into(), source };
        assert_eq!(sentence(&error), "cannot read /x: Permission denied");
        let source = io::Error::from_raw_os_error(libc::ENOSPC);
        let error = ObjectError::Io { action: "write", path: "/y".into(), source };
        let error = HostError::from(error);
        assert_eq!(sentence(&error), "cannot write /y: No space left on device");
    }
}
