//! Immutable objects, named by the digest of their content.
//!
//! Knows nothing of paths, layers or FUSE. After a crash every published object is whole; a
//! staged one is removed by the next sweep. Format: docs/FORMAT.md, "Store".

mod id;

pub use id::{Digest, DigestError, ObjectId};
