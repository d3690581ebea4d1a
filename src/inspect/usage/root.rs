//! What one root takes for itself.

use std::collections::HashMap;

use super::super::Library;
use super::super::upper::Upper;
use super::cached::{Counted, Mounted};
use super::tally::{self, Seen};
use super::{RootUsage, Tree, shown};
use crate::control::Status;
use crate::host::{RootRecord, mount_table, sentence};
use crate::layer::template::default_shared_paths;
use crate::layer::{StackId, Template};
use crate::union::SharedSet;

/// Measures single roots.
pub(super) struct Gauge<'a> {
    pub(super) library: &'a Library,
    pub(super) trees: &'a HashMap<StackId, Tree>,
    pub(super) templates: &'a [Template],
}

impl Gauge<'_> {
    /// What `record`'s root takes for itself. What cannot be measured is said in its note.
    pub(super) fn root(&self, record: &RootRecord) -> RootUsage {
        let mut client = record.living();
        let status = client.as_mut().and_then(|client| client.status().ok());
        let mut root = RootUsage {
            root: record.name.clone(),
            template: record.template.clone(),
            private: record.private.clone(),
            mountpoint: status.as_ref().map(|status| status.mountpoint.clone()),
            apparent_bytes: None,
            disk_bytes: 0,
            private_bytes: 0,
            exclusive_bytes: 0,
            shared_bytes: 0,
            freed_bytes: 0,
            resident_shared_bytes: 0,
            resident_private_bytes: 0,
            resident_cached_bytes: None,
            cached_files: 0,
            note: None,
        };
        let tree = self.trees.get(&record.stack.id());
        let mut upper = None;
        if let Some(private) = &record.private {
            match tally::of_all(private, &mut Seen::new(), &mut |_, _| {}) {
                Ok(cost) => {
                    root.private_bytes = cost.disk;
                    root.resident_private_bytes = cost.resident;
                }
                Err(error) => root.note = Some(format!("{}: {error}", private.display())),
            }
            match Upper::open(private, self.library.layers()) {
                Ok(opened) => upper = Some(opened),
                Err(error) => root.note = Some(sentence(&error)),
            }
        }
        let shown = match (&upper, &record.private, tree) {
            (Some(upper), _, Some(tree)) => match shown::root_bytes(upper, tree.apparent) {
                Ok(bytes) => Some(bytes),
                Err(error) => {
                    root.note = Some(sentence(&error));
                    None
                }
            },
            (None, None, Some(tree)) => Some(tree.apparent),
            _ => None,
        };
        root.apparent_bytes = shown;
        let (Some(status), Some(tree)) = (status, tree) else { return root };
        match self.cached(record, &status, tree, upper.as_ref()) {
            Ok(counted) => {
                root.resident_cached_bytes = Some(counted.bytes);
                root.cached_files = counted.files;
                if counted.refused > 0 {
                    root.note = Some(format!(
                        "{} files of its cache could not be asked about",
                        counted.refused
                    ));
                }
            }
            Err(reason) => root.note = Some(reason),
        }
        root
    }

    /// The pages that a mounted root caches for itself; otherwise why they cannot be counted.
    fn cached(
        &self,
        record: &RootRecord,
        status: &Status,
        tree: &Tree,
        upper: Option<&Upper>,
    ) -> Result<Counted, String> {
        let here = mount_table::at(&status.mountpoint).map_err(|error| error.to_string())?;
        if !here.is_some_and(|mount| mount.is_mica()) {
            return Err(format!(
                "{} is not mounted in this mount namespace, so its own cache is not counted",
                status.mountpoint.display()
            ));
        }
        let template = self.templates.iter().find(|template| template.name == record.template);
        let patterns = status.shared_paths.clone().unwrap_or_else(|| {
            template.map_or_else(default_shared_paths, |template| template.shared_paths.clone())
        });
        let shared = SharedSet::resolve(&tree.manifest, &patterns);
        let shared = shared.map_err(|error| error.to_string())?;
        let mounted = Mounted {
            mountpoint: &status.mountpoint,
            tree: &tree.manifest,
            upper,
            shared: status.passthrough.then_some(&shared),
        };
        mounted.count().map_err(|error| format!("{}: {error}", status.mountpoint.display()))
    }
}
