//! Layers: immutable trees of names over objects, their merge, and templates.
//!
//! Owns the manifest format, merging a stack into one tree, what a template is, import and
//! export. Knows nothing of mounts. After a crash a layer, tree or template is there as a
//! whole or not at all; trees are derived and may be lost at any time.

pub mod builder;
pub mod checkout;
mod derived;
pub mod export;
pub mod import;
pub mod manifest;
pub mod merge;
pub mod name;
pub mod node;
pub mod path;
pub mod stack;
pub mod store;
pub mod template;
pub mod templates;
mod trail;

pub use builder::{LayerBuilder, NodeId};
pub use derived::Derived;
pub use manifest::{
    Entry, EntryKind, FileKind, Inode, Manifest, ManifestError, Metadata, ObjectRef, Origin,
    Timestamp, TreeIno,
};
pub use merge::{MergeError, merge};
pub use name::{FileName, NameError};
pub use node::{BuildError, NewContent, NewNode, NewXattr, read_node};
pub use path::{LayerPath, PathError};
pub use stack::{LayerId, Stack, StackId};
pub use store::{Layers, LayersError, Stored};
pub use template::{
    Provenance, RunConfig, Template, TemplateKind, TemplateName, TemplateNameError,
    default_shared_paths,
};
pub use templates::{ListedTemplate, Templates};
