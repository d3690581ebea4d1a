//! Full copies of a template: what everybody has without a file system that shares.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{BenchError, Result};
use super::place::{Place, room, settle, walk};
use super::results::DiskPoint;
use super::run::{run, tool};
use super::template::Prepared;

/// Copies of one template, made by `cp -a`.
#[derive(Debug)]
pub(super) struct Copies {
    /// Removes them at the end.
    place: Place,
    all: Vec<PathBuf>,
    /// What so many of them took on the disk when they were just made.
    pub(super) points: Vec<DiskPoint>,
}

impl Copies {
    /// As many copies as `wanted`, or as leave at least as much room again and `spare` bytes.
    pub(super) fn make(
        place: Place,
        template: &Prepared,
        wanted: u32,
        spare: u64,
        look: &dyn Fn(u32) -> Result<Option<DiskPoint>>,
    ) -> Result<Self> {
        let count = fitting(&place, template, wanted, spare)?;
        let (mut all, mut points) = (Vec::new(), Vec::new());
        for number in 1..=count {
            let copy = place.path("copy");
            run(tool("cp").arg("-a").arg("--reflink=never").arg(&template.tree).arg(&copy))?;
            all.push(copy);
            points.extend(look(number)?);
        }
        settle(place.top())?;
        Ok(Self { place, all, points })
    }

    /// Makes them what they were: without what was made in them, with what was changed or removed.
    pub(super) fn restore(&self, template: &Prepared) -> Result<()> {
        for copy in &self.all {
            restore(&template.tree, copy)?;
        }
        settle(self.place.top())
    }

    /// Where they are.
    pub(super) fn all(&self) -> &[PathBuf] {
        &self.all
    }
}

/// Makes `copy` what `tree` is, by names, kinds, sizes and times; `cp -a` keeps the times.
fn restore(tree: &Path, copy: &Path) -> Result<()> {
    let look = |path: &Path| fs::symlink_metadata(path).ok();
    let differs = |one: &fs::Metadata, other: &fs::Metadata| {
        let same_kind = one.file_type() == other.file_type();
        let same_file = one.len() == other.len() && one.modified().ok() == other.modified().ok();
        !same_kind || one.is_file() && !same_file
    };
    let mut gone = Vec::new();
    walk(copy, &mut |path, metadata| {
        let of_tree = path.strip_prefix(copy).ok().and_then(|name| look(&tree.join(name)));
        if of_tree.is_none_or(|of_tree| differs(metadata, &of_tree)) {
            gone.push((path.to_owned(), metadata.is_dir()));
        }
        Ok(())
    })?;
    // What lies in a directory comes after it.
    for (path, is_directory) in gone.into_iter().rev() {
        let removed = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(BenchError::at("remove", path))?;
    }
    let mut missing: Vec<PathBuf> = Vec::new();
    walk(tree, &mut |path, _| {
        if let Ok(name) = path.strip_prefix(tree)
            && look(&copy.join(name)).is_none()
            && !missing.iter().any(|above| name.starts_with(above))
        {
            missing.push(name.to_owned());
        }
        Ok(())
    })?;
    for name in missing {
        let (from, to) = (tree.join(&name), copy.join(&name));
        run(tool("cp").arg("-a").arg("--reflink=never").arg(from).arg(to))?;
    }
    Ok(())
}

/// How many copies the disk of `place` takes, at least one and at most `wanted`, when as
/// much room stays free as they take, and `spare` bytes.
fn fitting(place: &Place, template: &Prepared, wanted: u32, spare: u64) -> Result<u32> {
    let (free, _) = room(place.top())?;
    let bytes = free.bytes.saturating_sub(spare) / 2 / template.taken.bytes.max(1);
    let inodes = free.inodes / 2 / template.taken.inodes.max(1);
    Ok(u32::try_from(bytes.min(inodes)).unwrap_or(u32::MAX).clamp(1, wanted.max(1)))
}

/// Clones a tree on a file system that shares blocks between files.
pub(super) fn reflinked(tree: &Path, copy: &Path) -> Result<()> {
    run(tool("cp").arg("-a").arg("--reflink=always").arg(tree).arg(copy)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_becomes_what_it_was() {
        let base = tempfile::tempdir_in("/var/tmp").expect("a scratch directory");
        let (tree, copy) = (base.path().join("tree"), base.path().join("copy"));
        fs::create_dir_all(tree.join("a/b")).expect("made");
        for name in ["a/kept", "a/b/changed", "a/removed", "a/b/other"] {
            fs::write(tree.join(name), name).expect("written");
        }
        run(tool("cp").arg("-a").arg(&tree).arg(&copy)).expect("copied");
        fs::write(copy.join("a/b/changed"), "something else").expect("written");
        fs::remove_file(copy.join("a/removed")).expect("removed");
        fs::remove_file(copy.join("a/b/other")).expect("removed");
        fs::create_dir_all(copy.join("a/b/other/new/deep")).expect("made");
        fs::write(copy.join("a/b/other/new/file"), "new").expect("written");
        restore(&tree, &copy).expect("restored");
        run(tool("diff").arg("-r").arg(&tree).arg(&copy)).expect("no difference");
        assert_eq!(fs::read(copy.join("a/b/other")).expect("a file again"), b"a/b/other");
    }
}
