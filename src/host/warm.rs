//! Reading a template's objects into the page cache before anybody needs them.
//!
//! The kernel bills a page to the group of whoever touches it first, and leaves it there. Who
//! warms a template takes that bill, so no container pays for what all of them share.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Advice;
use serde::Serialize;

use super::error::HostError;
use super::store::Store;
use crate::layer::{Layers, TemplateName};
use crate::object::{ObjectFile, ObjectId, ObjectReader};
use crate::sys::cache;

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Warmed {
    /// Objects of the templates, each once.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of those, what the page cache held already, in whole pages.
    pub cached_before_bytes: u64,
}

/// Read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Reads every object of the templates `names` that is not wholly cached, from end to end, in
/// this very thread: the pages are charged to its group. Ends early when `cancel` is set.
///
/// # Errors
/// A template that is not there, an object that is missing, what reading one answers.
pub fn warm(
    store: &Store,
    names: &[TemplateName],
    cancel: &AtomicBool,
) -> Result<Warmed, HostError> {
    // No collection takes an object away meanwhile.
    let _store = store.share()?;
    let layers = Layers::open(store.path())?;
    let reader = ObjectReader::open(store.path())?;
    let mut seen: HashSet<ObjectId> = HashSet::new();
    let mut warmed = Warmed::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    for name in names {
        let tree = layers.tree(&layers.templates().get(name)?.stack)?;
        for object in tree.objects() {
            if cancel.load(Ordering::Relaxed) {
                return Ok(warmed);
            }
            if !seen.insert(object.id) {
                continue;
            }
            let file = reader.open_object(&object.id)?;
            let read = HostError::system::<std::io::Error>("read object", object.id.to_string());
            warmed.cached_before_bytes += touch(&file, object.size, &mut buffer).map_err(read)?;
            warmed.objects += 1;
            warmed.bytes += object.size;
        }
    }
    Ok(warmed)
}

/// Reads a file unless all of it is cached; how much was.
fn touch(file: &ObjectFile, size: u64, buffer: &mut [u8]) -> std::io::Result<u64> {
    let cached = cache::resident_bytes(file.as_fd())?.min(size);
    if cached < size {
        // Larger requests to the disk.
        rustix::fs::fadvise(file.as_fd(), 0, None, Advice::Sequential)?;
        let mut offset = 0;
        while offset < size {
            let count = file.read_at(buffer, offset)?;
            if count == 0 {
                break;
            }
            offset += u64::try_from(count).unwrap_or(u64::MAX);
        }
    }
    Ok(cached)
}
