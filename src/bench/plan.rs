//! What a run will take: seconds, disk, memory. It does not begin where that would not do.

use super::error::{BenchError, Result};
use super::machine::meminfo;
use super::place::{Taken, room};
use super::settings::{Part, Settings};
use super::{growth, memory, savings, speed};
use crate::host::{Access, Store, templates};
use crate::layer::Layers;

/// What this host's own programs take at most.
const HOST_TEMPLATE: Taken = Taken { bytes: 160 << 20, inodes: 4000 };

/// Copies of a template on the disk at the same time, in whatever form, besides full copies:
/// as a directory, in stores, changed, and in a file with reflinks.
const FORMS: u64 = 7;

/// The order of the parts: the memory part uses the full copies that the savings part changes.
pub(super) const ORDER: [Part; 4] = [Part::Memory, Part::Savings, Part::Speed, Part::Growth];

/// The steps of a run: names and planned seconds.
pub(super) fn steps(settings: &Settings) -> Vec<(String, f64)> {
    let sizes = settings.scale.sizes();
    let mut steps = vec![("templates".to_owned(), 5.0)];
    for part in ORDER.into_iter().filter(|part| settings.parts.contains(part)) {
        steps.extend(match part {
            Part::Savings => savings::steps(settings.containers, sizes.roots),
            Part::Memory => memory::steps(settings.containers),
            Part::Speed => speed::steps(settings.only.as_deref()),
            Part::Growth => growth::steps(),
        });
    }
    steps
}

/// What the templates take, before they are written out.
fn templates(settings: &Settings) -> Result<Taken> {
    let mut most = Taken::default();
    for name in &settings.templates {
        let store = Store::open(&settings.store, Access::Read)?;
        let layers = Layers::open(store.path())?;
        let template = templates::find(&layers, name)?;
        let tree = layers.tree(&template.stack)?;
        let inodes = u64::from(tree.len());
        let bytes: u64 = tree.objects().map(|object| object.size.next_multiple_of(4096)).sum();
        // A directory or link may take a block too.
        most.bytes = most.bytes.max(bytes + bytes / 8 + inodes * 512);
        most.inodes = most.inodes.max(inodes);
    }
    Ok(if settings.templates.is_empty() { HOST_TEMPLATE } else { most })
}

/// What the run takes at its largest.
fn disk(settings: &Settings, template: Taken) -> Taken {
    let sizes = settings.scale.sizes();
    let of_tree = |files: usize| u64::try_from(files).unwrap_or(u64::MAX);
    let parts = settings.parts.iter().map(|part| match part {
        Part::Savings | Part::Memory => Taken {
            bytes: template.bytes * FORMS,
            inodes: template.inodes * FORMS + u64::from(sizes.roots) * 24,
        },
        Part::Speed => Taken {
            bytes: (sizes.big_bytes * 7)
                .max(sizes.copy_bytes * 20)
                .max(sizes.reflink_bytes * 12)
                .max(sizes.import_bytes * 5)
                .max(template.bytes * 5)
                + of_tree(sizes.tree_files) * 4096 * 3,
            inodes: of_tree(sizes.tree_files) * 3 + template.inodes * 4,
        },
        Part::Growth => Taken {
            bytes: of_tree(sizes.growth_files) * 600 + sizes.growth_bytes * 30,
            inodes: of_tree(sizes.growth_files) * 5 / 4,
        },
    });
    let mut all = parts.fold(Taken::default(), |most, part| Taken {
        bytes: most.bytes.max(part.bytes),
        inodes: most.inodes.max(part.inodes),
    });
    // The templates as directories, all the time.
    all.bytes += template.bytes * 2 + (64 << 20);
    all.inodes += template.inodes * 2 + 1000;
    all
}

/// Refuses a run that would fill the disk or the memory.
///
/// # Errors
/// [`BenchError::Disk`], [`BenchError::Memory`]; those of a template that cannot be read.
pub(super) fn check(settings: &Settings) -> Result<()> {
    memory::check(&settings.workloads)?;
    let wanted = disk(settings, templates(settings)?);
    let (free, _) = room(&settings.dir)?;
    if free.bytes < wanted.bytes || free.inodes < wanted.inodes {
        return Err(BenchError::Disk {
            dir: settings.dir.clone(),
            bytes: wanted.bytes,
            bytes_free: free.bytes,
            inodes: wanted.inodes,
            inodes_free: free.inodes,
        });
    }
    let containers =
        if settings.parts.contains(&Part::Memory) { memory::need(settings.containers) } else { 0 };
    // What caches and files under way take anyhow.
    let bytes = containers + (512 << 20);
    let bytes_free = meminfo("MemAvailable");
    if bytes_free < bytes {
        return Err(BenchError::Memory { bytes, bytes_free });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::settings::Scale;

    #[test]
    fn larger_scales_need_more_disk() {
        let settings = |scale| Settings {
            parts: Part::ALL.to_vec(),
            containers: 20,
            templates: vec![],
            workloads: vec![],
            scale,
            only: None,
            store: "/nowhere".into(),
            dir: "/nowhere".into(),
            program: "/nowhere".into(),
        };
        let need = |scale| disk(&settings(scale), HOST_TEMPLATE).bytes;
        assert!(need(Scale::Tiny) < need(Scale::Standard));
        assert!(need(Scale::Standard) < need(Scale::Full));
        let names: Vec<String> =
            steps(&settings(Scale::Quick)).into_iter().map(|one| one.0).collect();
        assert!(names.iter().any(|name| name.starts_with("memory")), "{names:?}");
    }
}
