//! Whether a root still is what it was made from.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Compares names, kinds, modes, link targets and contents under two directories.
///
/// # Errors
/// At the first difference, naming it; and whatever `proceed` says.
pub(super) fn same(one: &Path, other: &Path, proceed: &dyn Fn() -> Result<()>) -> Result<()> {
    proceed()?;
    let look = |path: &Path| {
        fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))
    };
    let differ = || format!("{} and {} differ", one.display(), other.display());
    let (left, right) = (look(one)?, look(other)?);
    ensure!(left.mode() == right.mode(), "{} in kind or mode", differ());
    if left.is_dir() {
        let names = listed(one)?;
        ensure!(names == listed(other)?, "{} in their names", differ());
        for name in names {
            same(&one.join(&name), &other.join(&name), proceed)?;
        }
    } else if left.is_symlink() {
        ensure!(fs::read_link(one)? == fs::read_link(other)?, "{} in their target", differ());
    } else {
        ensure!(fs::read(one)? == fs::read(other)?, "{} in their content", differ());
    }
    Ok(())
}

fn listed(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_found() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let (one, other) = (scratch.path().join("one"), scratch.path().join("other"));
        let compared = || same(&one, &other, &|| Ok(())).map_err(|error| error.to_string());
        for tree in [&one, &other] {
            fs::create_dir_all(tree.join("dir")).expect("made");
            fs::write(tree.join("dir/file"), b"text").expect("written");
            std::os::unix::fs::symlink("dir", tree.join("link")).expect("linked");
        }
        compared().expect("the same");
        fs::write(other.join("dir/file"), b"TEXT").expect("written");
        assert!(compared().expect_err("differs").ends_with("in their content"));
        fs::remove_file(other.join("dir/file")).expect("removed");
        assert!(compared().expect_err("differs").ends_with("in their names"));
        fs::create_dir(other.join("dir/file")).expect("made");
        assert!(compared().expect_err("differs").ends_with("in kind or mode"));
    }
}
