//! What can go wrong on a host, in sentences for a person.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::commit::CommitError;
use super::options::OptionError;
use super::place::Precious;
use super::roots::RootError;
use super::store::StoreError;
use crate::control::ControlError;
use crate::fuse::MountError;
use crate::layer::export::ExportError;
use crate::layer::import::ImportError;
use crate::layer::store::LayersError;
use crate::layer::{LayerPath, ManifestError, TemplateName, TemplateNameError};
use crate::object::ObjectError;
use crate::private::PrivateError;
use crate::union::UnionError;
use crate::union::upper::UpperError;

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
    /// A private layer.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The merged view of a root.
    #[error(transparent)]
    Union(#[from] UnionError),
    /// The kernel's side of a mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A source to import.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// What was found in a source, or became of it.
    #[error("cannot import {source_name}")]
    ImportOf {
        /// The source, as it was named.
        source_name: String,
        /// Why.
        source: ImportError,
    },
    /// A mount process.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A mount option.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A text that can be no template's name.
    #[error(transparent)]
    TemplateName(#[from] TemplateNameError),
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
    /// Two scrubs at once would read everything twice.
    #[error("the store at {0} is being scrubbed already; wait for that, or interrupt it")]
    ScrubRuns(PathBuf),
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
    /// Only root mounts.
    #[error("mounting a root needs root; run it with sudo")]
    NotRoot,
    /// The kernel's FUSE device is not there.
    #[error(
        "there is no /dev/fuse; load the kernel's module (modprobe fuse), or pass the device to \
         this container"
    )]
    NoFuse,
    /// Something else lies where the kernel's FUSE device should.
    #[error(
        "/dev/fuse is not the kernel's FUSE device; make it that (character device 10:229), or \
         pass the device to this container"
    )]
    NotFuse,
    /// The kernel's FUSE device cannot be used.
    #[error("cannot use /dev/fuse: {0}; allow this container the device (character device 10:229)")]
    FuseDenied(#[source] io::Error),
    /// A root is mounted there already.
    #[error(
        "a root of {template:?} is mounted at {path} already; unmount it first, or name another place"
    )]
    MountpointTaken {
        /// The place.
        path: PathBuf,
        /// What is mounted there, as the mount table names it.
        template: OsString,
    },
    /// Mounting would hide files.
    #[error("the mountpoint {path} is not empty; name an empty or a new directory")]
    MountpointNotEmpty {
        /// The place.
        path: PathBuf,
    },
    /// Something dead that is not Mica's is mounted there.
    #[error("a dead {fs_type} mount lies at {path}; unmount it first (umount -l {path})")]
    MountpointDead {
        /// The place.
        path: PathBuf,
        /// Its file system type.
        fs_type: String,
    },
    /// Something else was mounted over the root.
    #[error("a {fs_type} file system is mounted over {path}; unmount that first")]
    MountpointCovered {
        /// The place.
        path: PathBuf,
        /// The type of what covers it.
        fs_type: String,
    },
    /// Somebody uses the root.
    #[error(
        "{path} is in use{users}; end that, or pass --lazy to let it go with its last user",
        users = if users.is_empty() { String::new() } else { format!(" by {}", users.join(", ")) }
    )]
    MountpointBusy {
        /// The place.
        path: PathBuf,
        /// Some of who uses it.
        users: Vec<String>,
    },
    /// Nothing of Mica's is mounted there.
    #[error("{wanted:?} is not mounted")]
    NotMounted {
        /// What was asked for.
        wanted: String,
    },
    /// The private directory would vanish under its own root.
    #[error(
        "the private directory {private} lies inside the mountpoint {mountpoint}; name another one"
    )]
    PrivateInside {
        /// The private directory.
        private: PathBuf,
        /// The mountpoint.
        mountpoint: PathBuf,
    },
    /// The private directory's root is mounted elsewhere.
    #[error(
        "the private directory {private} is in use: root {name:?} is mounted at {mountpoint}; \
         unmount that first"
    )]
    PrivateInUse {
        /// The private directory.
        private: PathBuf,
        /// Its root.
        name: String,
        /// Where that is mounted.
        mountpoint: PathBuf,
    },
    /// A root stays with the template it was made from.
    #[error(
        "the private directory {private} belongs to root {name:?} of template {bound}; mount it \
         with {bound}, or name a new directory for {wanted}"
    )]
    OtherTemplate {
        /// The private directory.
        private: PathBuf,
        /// Its root.
        name: String,
        /// The template it was made from.
        bound: TemplateName,
        /// The template asked for.
        wanted: String,
    },
    /// A path of a root cannot be reverted.
    #[error("cannot revert all of {path}: {source}")]
    Revert {
        /// The path.
        path: LayerPath,
        /// Why not.
        source: UnionError,
    },
    /// Which objects a root refers to cannot be told.
    #[error(
        "{path} is damaged: it holds lines that are no reference to an object; put it back from a \
         backup, or take those lines out, which gives up the files that refer to them"
    )]
    References {
        /// The log.
        path: PathBuf,
    },
    /// A private directory cannot be looked into.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// A root cannot be made a template.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A template cannot be written out.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Nothing may be written there.
    #[error("cannot export to {path}: {why}; name another place")]
    ExportPlace {
        /// The place.
        path: PathBuf,
        /// Why not.
        why: Precious,
    },
    /// Something has the name that an export is to get.
    #[error("{path} exists already; name another place, or pass --replace")]
    ExportExists {
        /// The name.
        path: PathBuf,
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
    /// What became of the source `name`; one that the user ended needs no name.
    pub(super) fn import_of(name: &Path) -> impl FnOnce(ImportError) -> Self {
        let standard_input = name == Path::new("-");
        let source_name =
            if standard_input { "standard input".into() } else { name.display().to_string() };
        move |source| {
            let cancelled = matches!(source, ImportError::Cancelled);
            if cancelled { Self::Import(source) } else { Self::ImportOf { source_name, source } }
        }
    }

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
