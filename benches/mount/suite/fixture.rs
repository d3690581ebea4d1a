//! What is measured on: trees with the shape of a distribution's, made from a seed.

use std::fs;
use std::path::{Path, PathBuf};

use super::support::{Store, Succeed};

/// Files in one directory of the big tree; Debian's /usr has 7.
const FILES: usize = 10;
/// Such directories in one package.
const DIRECTORIES: usize = 100;
/// Different contents in the big tree.
const CONTENTS: u64 = 1000;

/// Names of a tree, relative to its top.
#[derive(Default)]
pub(super) struct Names {
    /// All regular files.
    pub(super) files: Vec<PathBuf>,
    /// All directories below `usr/share`, parents first.
    pub(super) directories: Vec<PathBuf>,
}

/// Bytes that do not compress, the same for the same seed.
pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Makes a tree of `packages` × 1,000 small files under `usr/share`, from package `first` on.
pub(super) fn tree(top: &Path, first: usize, packages: usize) -> Names {
    let mut names = Names::default();
    let contents: Vec<Vec<u8>> = (0..CONTENTS)
        .map(|seed| noise(64 + usize::try_from(seed * 37 % 3900).expect("small"), seed))
        .collect();
    let mut next = contents.iter().cycle();
    for package in first..first + packages {
        let package = PathBuf::from(format!("usr/share/package-{package:03}"));
        names.directories.push(package.clone());
        for part in 0..DIRECTORIES {
            let dir = package.join(format!("part-{part:02}"));
            fs::create_dir_all(top.join(&dir)).expect("a directory can be made");
            for file in 0..FILES {
                let path = dir.join(format!("component-{file}.conf"));
                let content = next.next().expect("a cycle has no end");
                fs::write(top.join(&path), content).expect("a file can be written");
                names.files.push(path);
            }
            names.directories.push(dir);
        }
    }
    names
}

/// Packages of a tree of so many files.
pub(super) fn packages(files: usize) -> usize {
    (files / (FILES * DIRECTORIES)).max(1)
}

/// Writes `content` as `path` below `top`.
pub(super) fn file(top: &Path, path: &str, content: &[u8]) {
    let path = top.join(path);
    fs::create_dir_all(path.parent().expect("a path below the top")).expect("a directory");
    fs::write(path, content).expect("a file can be written");
}

/// A store with one template, `tree`, of `lower`.
pub(super) fn store_of(path: &Path, lower: &Path) -> Store {
    let store = Store::at(path);
    store.import("tree", lower);
    store
}

/// A store with a template `tree` of as many layers as `lowers`, lowest first.
pub(super) fn stacked(path: &Path, lowers: &[PathBuf]) -> Store {
    let store = Store::at(path);
    for (at, lower) in lowers.iter().enumerate() {
        let mut import = store.mica(["template", "import", "tree"]);
        import.arg(lower);
        if at > 0 {
            import.args(["--on", "tree", "--replace"]);
        }
        import.succeed();
    }
    store
}

/// Makes the dirty pages below `path` clean, so that nobody's figures pay for them.
pub(super) fn settle(path: &Path) {
    let dir = fs::File::open(path).expect("a directory of ours");
    rustix::fs::syncfs(dir).expect("the disk takes it");
}
