//! Full copies of a template: what everybody has without a file system that shares.

use std::path::{Path, PathBuf};

use super::error::Result;
use super::place::{Place, room, settle};
use super::results::DiskPoint;
use super::run::{run, tool};
use super::template::Prepared;

/// Copies of one template, made by `cp -a`.
#[derive(Debug)]
pub(super) struct Copies {
    /// Removes them at the end.
    _place: Place,
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
        Ok(Self { _place: place, all, points })
    }

    /// Where they are.
    pub(super) fn all(&self) -> &[PathBuf] {
        &self.all
    }
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
