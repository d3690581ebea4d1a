//! What the files of a store take, but for objects: each is looked at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::hash::Hash;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::super::{InspectError, Library};
use super::tally::{self, Cost, Seen};
use crate::host::RootRecord;
use crate::layer::{LayerId, StackId, TemplateName};

impl Library {
    /// What every file of the store takes but those in `objects/`.
    pub(super) fn files(&self, records: &[RootRecord]) -> Result<Files, InspectError> {
        let mut files = Files::default();
        let top = self.store().path();
        let fail =
            |source| InspectError::System { what: format!("look at {}", top.display()), source };
        let mut seen = Seen::new();
        for record in records {
            // Counted with its root, also if it lies in the store.
            if let Some(metadata) = record.private.as_ref().and_then(|path| fs::metadata(path).ok())
            {
                seen.insert((metadata.dev(), metadata.ino()));
            }
        }
        let mut parts: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(top).map_err(fail)? {
            parts.push(entry.map_err(fail)?.path());
        }
        // A layer that a running import holds has a second name in staging/.
        parts.sort_by_key(|path| path.file_name().is_none_or(|name| name != "layers"));
        files.overhead += tally::of_one(top, &mut seen).map_err(fail)?;
        for part in parts {
            let name = part.file_name().map(|name| name.to_string_lossy().into_owned());
            match name.as_deref() {
                Some("objects") => {}
                Some("layers") => {
                    files.named(&part, &mut seen, |files| &mut files.layers).map_err(fail)?
                }
                Some("trees") => {
                    files.named(&part, &mut seen, |files| &mut files.trees).map_err(fail)?
                }
                Some("templates") => files.templates(&part, &mut seen).map_err(fail)?,
                Some("roots") => files.roots(&part, &mut seen).map_err(fail)?,
                _ => {
                    files.overhead +=
                        tally::of_all(&part, &mut seen, &mut |_, _| {}).map_err(fail)?
                }
            }
        }
        Ok(files)
    }
}

/// What the files of a store take, but for objects.
#[derive(Default)]
pub(super) struct Files {
    pub(super) layers: HashMap<LayerId, Cost>,
    pub(super) trees: HashMap<StackId, Cost>,
    pub(super) templates: HashMap<TemplateName, Cost>,
    /// By the identity of the root: its record, socket and logs.
    pub(super) roots: BTreeMap<String, Cost>,
    pub(super) overhead: Cost,
}

impl Files {
    /// Counts a directory of files that are named by digests.
    fn named<Id: FromStr + Hash + Eq>(
        &mut self,
        path: &Path,
        seen: &mut Seen,
        map: impl Fn(&mut Self) -> &mut HashMap<Id, Cost>,
    ) -> io::Result<()> {
        let mut found = Vec::new();
        tally::of_all(path, seen, &mut |path, cost| found.push((path.to_owned(), cost)))?;
        for (path, cost) in found {
            let name = path.file_name().and_then(|name| name.to_str());
            match name.and_then(|name| name.parse::<Id>().ok()) {
                Some(id) => *map(self).entry(id).or_default() += cost,
                None => self.overhead += cost,
            }
        }
        Ok(())
    }

    /// Counts `templates/`: a directory of one tag is that template's.
    fn templates(&mut self, path: &Path, seen: &mut Seen) -> io::Result<()> {
        let mut directories: HashMap<PathBuf, Cost> = HashMap::new();
        let mut tags: HashMap<PathBuf, Vec<Option<TemplateName>>> = HashMap::new();
        let mut found = Vec::new();
        tally::of_all(path, seen, &mut |path, cost| found.push((path.to_owned(), cost)))?;
        for (file, cost) in found {
            let Ok(below) = file.strip_prefix(path) else { continue };
            let mut parts = below.iter().map(|part| part.to_str().unwrap_or_default());
            match (parts.next(), parts.next(), parts.next()) {
                (Some(_), None, None) => {
                    directories.insert(file, cost);
                }
                (Some(name), Some(tag), None) => {
                    let named = tag.strip_suffix(".json");
                    let named = named.and_then(|tag| TemplateName::new(name, tag).ok());
                    match &named {
                        Some(name) => *self.templates.entry(name.clone()).or_default() += cost,
                        None => self.overhead += cost,
                    }
                    let dir = file.parent().unwrap_or(path).to_owned();
                    tags.entry(dir).or_default().push(named);
                }
                _ => self.overhead += cost,
            }
        }
        for (dir, cost) in directories {
            match tags.get(&dir).map(Vec::as_slice) {
                Some([Some(only)]) => *self.templates.entry(only.clone()).or_default() += cost,
                _ => self.overhead += cost,
            }
        }
        Ok(())
    }

    /// Counts `roots/`: what `store forget` removes of each root.
    fn roots(&mut self, path: &Path, seen: &mut Seen) -> io::Result<()> {
        let mut found = Vec::new();
        tally::of_all(path, seen, &mut |path, cost| found.push((path.to_owned(), cost)))?;
        for (file, cost) in found {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            match name.rsplit_once('.') {
                Some((id, "json" | "sock" | "log")) if file != path => {
                    *self.roots.entry(id.to_owned()).or_default() += cost;
                }
                _ => self.overhead += cost,
            }
        }
        // Of a root that was forgotten nobody takes the log away.
        let known: HashSet<String> = self
            .roots
            .keys()
            .filter(|id| path.join(format!("{id}.json")).exists())
            .cloned()
            .collect();
        let overhead = &mut self.overhead;
        self.roots.retain(|id, cost| {
            let keep = known.contains(id);
            if !keep {
                *overhead += *cost;
            }
            keep
        });
        Ok(())
    }
}
