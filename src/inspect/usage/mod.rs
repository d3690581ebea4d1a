//! What a store costs and whom: on the disk and in memory.
//!
//! Every object is looked at once, and who holds it follows from the layers that name it, so
//! the time grows with the objects and the layers, not with templates times objects. Disk
//! figures are blocks, as du(1) counts them: where a file system shares blocks between files
//! (reflinks) they are counted with each. Nothing is changed but that a missing merged tree is
//! made, as a mount would.

mod cached;
mod files;
mod owners;
mod root;
mod shown;
mod tally;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::{InspectError, Library};
use crate::host::parallel::each;
use crate::host::{RootRecord, sentence};
use crate::layer::{LayerId, Manifest, Stack, StackId, Template, TemplateName};
use files::Files;
use owners::{Reference, StackSum, Sums, add_up};
use root::Gauge;
use tally::Cost;

/// What a store costs. All figures are bytes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Usage {
    /// On the disk.
    pub disk: DiskUsage,
    /// In memory.
    pub memory: MemoryUsage,
    /// Each template, in order of the names.
    pub templates: Vec<TemplateUsage>,
    /// Each registered root, in order of the names.
    pub roots: Vec<RootUsage>,
    /// What could not be read, as sentences. The figures are without it.
    pub damaged: Vec<String>,
}

/// The store on the disk. `exclusive`, `shared`, `unreferenced` and `overhead` add up to
/// `store`, and so do the parts by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskUsage {
    /// Everything in the store's directory, as `du` counts it; private directories that lie in
    /// it are left out.
    pub store_bytes: u64,
    /// Objects, layers, trees and records that one template alone has, with the roots made
    /// from it.
    pub exclusive_bytes: u64,
    /// Objects, layers and trees that several templates have.
    pub shared_bytes: u64,
    /// What nothing refers to: `mica store gc` frees it, unless a running import relies on it.
    pub unreferenced_bytes: u64,
    /// Directories, the index, staging, and what else the store keeps for itself.
    pub overhead_bytes: u64,
    /// By kind: the contents of files.
    pub objects_bytes: u64,
    /// By kind: layer manifests.
    pub layers_bytes: u64,
    /// By kind: merged trees.
    pub trees_bytes: u64,
    /// By kind: template files and the records and logs of roots.
    pub records_bytes: u64,
    /// Private directories of all roots.
    pub private_bytes: u64,
    /// The file system that the store is on, by statfs(2): its size.
    pub file_system_bytes: u64,
    /// What is used of that, by anybody.
    pub file_system_used_bytes: u64,
}

/// Page cache, by cachestat(2) or mincore(2). `objects`, `private`, `cached`, `store` and
/// `remainder` add up to `page_cache`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUsage {
    /// `MemTotal` of /proc/meminfo.
    pub total_bytes: u64,
    /// `Cached` of /proc/meminfo: pages of files, of all programs of this host.
    pub page_cache_bytes: u64,
    /// Pages of objects: one copy, whatever the number of roots.
    pub objects_bytes: u64,
    /// Those of them that several templates have.
    pub objects_shared_bytes: u64,
    /// Pages of private files.
    pub private_bytes: u64,
    /// Pages that roots cache each for itself.
    pub cached_bytes: u64,
    /// Pages of layers, trees, records and the index.
    pub store_bytes: u64,
    /// All other pages: files of the host, tmpfs, and what of Mica's could not be attributed.
    pub remainder_bytes: u64,
    /// The part of `page_cache` that is tmpfs and shared memory (`Shmem`).
    pub shmem_bytes: u64,
}

/// What one template costs.
#[derive(Clone, Debug, Serialize)]
pub struct TemplateUsage {
    /// `name:tag`.
    pub template: TemplateName,
    /// Its stack.
    pub stack_id: String,
    /// Number of layers.
    pub layers: u64,
    /// Number of different objects that its layers refer to, hidden ones too.
    pub objects: u64,
    /// Roots that were made from it. As long as there are any it cannot be deleted.
    pub used_by: Vec<String>,
    /// What its files add up to, each inode once.
    pub apparent_bytes: u64,
    /// Blocks of all it refers to: objects, layers, tree, its own file.
    pub disk_bytes: u64,
    /// The part of `disk` that no other template has, nor a root made from another.
    pub exclusive_bytes: u64,
    /// The part of `disk` that others have too.
    pub shared_bytes: u64,
    /// What `template delete` and `store gc` would give back now: what neither another template
    /// nor any root refers to. 0 while roots use it.
    pub freed_bytes: u64,
    /// Pages of its objects in memory.
    pub resident_bytes: u64,
    /// The part of `resident` that no other template has.
    pub resident_exclusive_bytes: u64,
    /// A layer cannot be read; the figures are without it.
    pub damaged: bool,
}

/// What one root costs.
#[derive(Clone, Debug, Serialize)]
pub struct RootUsage {
    /// Its name.
    pub root: String,
    /// The template it was made from.
    pub template: TemplateName,
    /// Its private directory; null if it is read-only.
    pub private: Option<PathBuf>,
    /// Where it is mounted now.
    pub mountpoint: Option<PathBuf>,
    /// What its files add up to, each inode once; null if its changes cannot be read.
    pub apparent_bytes: Option<u64>,
    /// Blocks of all it refers to: its private directory, its record, and its stack.
    pub disk_bytes: u64,
    /// Blocks of its private directory.
    pub private_bytes: u64,
    /// The part of `disk` that it alone has.
    pub exclusive_bytes: u64,
    /// The part of `disk` that its template or others have too.
    pub shared_bytes: u64,
    /// What unmounting it, removing its private directory, `store forget` and `store gc` would
    /// give back: the same as `exclusive`.
    pub freed_bytes: u64,
    /// Pages of its stack's objects in memory, which all roots of the stack share.
    pub resident_shared_bytes: u64,
    /// Pages of its private files in memory, and of what the private directory says of itself.
    pub resident_private_bytes: u64,
    /// Pages it caches for itself, of files that the kernel knows and that do not pass through;
    /// null if it is not mounted or cannot be asked.
    pub resident_cached_bytes: Option<u64>,
    /// Files asked about for that.
    pub cached_files: u64,
    /// Why something is missing from the figures, as a sentence.
    pub note: Option<String>,
}

impl Library {
    /// Counts what the store costs.
    ///
    /// # Errors
    /// When the store cannot be walked, or a root's record is damaged. Damaged templates and
    /// layers are named in [`Usage::damaged`].
    pub fn usage(&self) -> Result<Usage, InspectError> {
        let mut damaged = Vec::new();
        let (templates, records) = (self.readable_templates(&mut damaged)?, self.records()?);
        let trees = self.trees(&templates, &records, &mut damaged);
        let survey = self.objects().survey()?;
        let mut files = self.files(&records)?;
        let layers = self.layer_costs(&mut files, &mut damaged);

        let families: HashMap<&TemplateName, u32> =
            (0..).zip(&templates).map(|(at, template)| (&template.name, at)).collect();
        let mut references: Vec<Reference<'_>> = (0..)
            .zip(&templates)
            .map(|(family, template)| Reference { stack: &template.stack, family })
            .collect();
        let first_root = number(references.len());
        for (at, record) in (first_root..).zip(&records) {
            let family = families.get(&record.template).copied().unwrap_or(at);
            references.push(Reference { stack: &record.stack, family });
        }
        let referred = crate::host::referred::of_all(self.store()).unwrap_or_else(|error| {
            damaged.push(sentence(&error));
            HashSet::new()
        });
        let mut sums = add_up(&references, &survey.objects, &layers, &files.trees, &referred);
        // A template's own file goes with it, and its directory with the last tag.
        for (at, template) in (0..).zip(&templates) {
            let own = files.templates.get(&template.name).copied().unwrap_or_default();
            *sums.sole.entry(at).or_default() += own;
            *sums.exclusive.entry(at).or_default() += own;
        }

        let gauge = Gauge { library: self, trees: &trees, templates: &templates };
        let gauged = each(&mut records.iter().collect::<Vec<_>>(), |record| gauge.root(record));

        let mut usage = Usage { damaged, ..Usage::default() };
        for (at, (record, mut root)) in (first_root..).zip(records.iter().zip(gauged)) {
            let own = files.roots.get(&record.id.to_string()).copied().unwrap_or_default();
            let stack = sums.stacks.get(&record.stack.id()).copied().unwrap_or_default();
            let family = families.get(&record.template).copied().unwrap_or(at);
            *sums.exclusive.entry(family).or_default() += own;
            let sole = sums.sole.get(&at).copied().unwrap_or_default();
            root.exclusive_bytes = root.private_bytes + own.disk + sole.disk;
            root.freed_bytes = root.exclusive_bytes;
            root.disk_bytes = root.private_bytes + own.disk + stack.cost.disk;
            root.shared_bytes = root.disk_bytes.saturating_sub(root.exclusive_bytes);
            root.resident_shared_bytes = stack.cost.resident;
            usage.disk.private_bytes += root.private_bytes;
            usage.memory.private_bytes += root.resident_private_bytes;
            usage.memory.cached_bytes += root.resident_cached_bytes.unwrap_or(0);
            usage.roots.push(root);
        }
        for (at, template) in (0..).zip(&templates) {
            usage
                .templates
                .push(template_usage(at, template, &trees, &records, &sums, &layers, &files));
        }
        self.totals(&mut usage, &sums, &survey, &files, &layers)?;
        Ok(usage)
    }

    /// The trees of all stacks, made where they are missing.
    fn trees(
        &self,
        templates: &[Template],
        records: &[RootRecord],
        damaged: &mut Vec<String>,
    ) -> HashMap<StackId, Tree> {
        let mut known = HashSet::new();
        let stacks = templates.iter().map(|template| &template.stack);
        let stacks = stacks.chain(records.iter().map(|record| &record.stack));
        let mut stacks: Vec<&Stack> = stacks.filter(|stack| known.insert(*stack)).collect();
        let opened = each(&mut stacks, |stack| {
            let open = || {
                let manifest = self.layers().tree(stack)?;
                Ok::<_, InspectError>(Tree { apparent: shown::tree_bytes(&manifest)?, manifest })
            };
            (stack.id(), open())
        });
        let mut trees = HashMap::new();
        for (id, tree) in opened {
            match tree {
                Ok(tree) => {
                    trees.insert(id, tree);
                }
                Err(error) => damaged.push(format!("stack {id}: {}", sentence(&error))),
            }
        }
        trees
    }

    /// Opens every layer.
    fn layer_costs(
        &self,
        files: &mut Files,
        damaged: &mut Vec<String>,
    ) -> HashMap<LayerId, (Cost, Option<Manifest>)> {
        let open = |(id, cost): (LayerId, Cost)| {
            let manifest = match self.layers().load(&id) {
                Ok(manifest) => Some(manifest),
                Err(error) => {
                    damaged.push(sentence(&error));
                    None
                }
            };
            (id, (cost, manifest))
        };
        std::mem::take(&mut files.layers).into_iter().map(open).collect()
    }

    fn totals(
        &self,
        usage: &mut Usage,
        sums: &Sums,
        survey: &crate::object::Survey,
        files: &Files,
        layers: &HashMap<LayerId, (Cost, Option<Manifest>)>,
    ) -> Result<(), InspectError> {
        let add = |costs: &mut dyn Iterator<Item = Cost>| {
            let mut sum = Cost::default();
            costs.for_each(|cost| sum += cost);
            sum
        };
        let layers = add(&mut layers.values().map(|(cost, _)| *cost));
        let trees = add(&mut files.trees.values().copied());
        let mut records = add(&mut files.templates.values().copied());
        records += add(&mut files.roots.values().copied());
        let objects = add(&mut survey
            .objects
            .iter()
            .map(|object| Cost { disk: object.disk_bytes, resident: object.resident_bytes }));
        let disk = &mut usage.disk;
        disk.objects_bytes = objects.disk;
        disk.layers_bytes = layers.disk;
        disk.trees_bytes = trees.disk;
        disk.records_bytes = records.disk;
        disk.overhead_bytes = files.overhead.disk + survey.rest_disk_bytes;
        disk.store_bytes =
            objects.disk + layers.disk + trees.disk + records.disk + disk.overhead_bytes;
        disk.exclusive_bytes = sums.exclusive.values().map(|cost| cost.disk).sum();
        disk.shared_bytes = sums.shared.disk;
        disk.unreferenced_bytes = sums.unreferenced.disk;
        let space = self.objects().space()?;
        disk.file_system_bytes = space.f_blocks.saturating_mul(space.f_frsize);
        disk.file_system_used_bytes =
            space.f_blocks.saturating_sub(space.f_bfree).saturating_mul(space.f_frsize);

        let memory = &mut usage.memory;
        let info = memory_info().map_err(|source| InspectError::System {
            what: "read /proc/meminfo".to_owned(),
            source,
        })?;
        let line = |name: &str| info.get(name).copied().unwrap_or_default();
        memory.total_bytes = line("MemTotal");
        memory.page_cache_bytes = line("Cached");
        memory.shmem_bytes = line("Shmem");
        memory.objects_bytes = objects.resident;
        memory.objects_shared_bytes = sums.shared.resident;
        memory.store_bytes =
            layers.resident + trees.resident + records.resident + files.overhead.resident;
        let attributed =
            memory.objects_bytes + memory.private_bytes + memory.cached_bytes + memory.store_bytes;
        memory.remainder_bytes = memory.page_cache_bytes.saturating_sub(attributed);
        Ok(())
    }
}

/// A stack's tree and what its files add up to.
struct Tree {
    manifest: Manifest,
    apparent: u64,
}

fn template_usage(
    at: u32,
    template: &Template,
    trees: &HashMap<StackId, Tree>,
    records: &[RootRecord],
    sums: &Sums,
    layers: &HashMap<LayerId, (Cost, Option<Manifest>)>,
    files: &Files,
) -> TemplateUsage {
    let id = template.stack.id();
    // What its family has beyond its stack (roots on an older one) is not the template's.
    let StackSum { cost, exclusive, objects } = sums.stacks.get(&id).copied().unwrap_or_default();
    let own = files.templates.get(&template.name).copied().unwrap_or_default();
    let used_by: Vec<String> = records
        .iter()
        .filter(|record| record.template == template.name)
        .map(|record| record.name.clone())
        .collect();
    let sole = sums.sole.get(&at).copied().unwrap_or_default();
    TemplateUsage {
        template: template.name.clone(),
        stack_id: id.to_string(),
        layers: u64::from(number(template.stack.layers().len())),
        objects,
        apparent_bytes: trees.get(&id).map_or(0, |tree| tree.apparent),
        disk_bytes: cost.disk + own.disk,
        exclusive_bytes: exclusive.disk + own.disk,
        shared_bytes: cost.disk.saturating_sub(exclusive.disk),
        freed_bytes: if used_by.is_empty() { sole.disk } else { 0 },
        resident_bytes: cost.resident,
        resident_exclusive_bytes: exclusive.resident,
        damaged: damaged_stack(&template.stack, layers, trees),
        used_by,
    }
}

fn damaged_stack(
    stack: &Stack,
    layers: &HashMap<LayerId, (Cost, Option<Manifest>)>,
    trees: &HashMap<StackId, Tree>,
) -> bool {
    let readable = |layer: &LayerId| layers.get(layer).is_some_and(|(_, opened)| opened.is_some());
    !trees.contains_key(&stack.id()) || !stack.layers().iter().all(readable)
}

/// The lines of /proc/meminfo, in bytes.
fn memory_info() -> io::Result<HashMap<String, u64>> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let kib: u64 = rest.trim().trim_end_matches(" kB").parse().ok()?;
        Some((name.to_owned(), kib.saturating_mul(1024)))
    };
    Ok(text.lines().filter_map(line).collect())
}

fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
