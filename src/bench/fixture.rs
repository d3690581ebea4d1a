//! What is measured on: trees with the shape of a distribution's, made from a seed.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{BenchError, Result};

/// Files in one directory of the big tree; Debian's /usr has 7.
const FILES: usize = 10;
/// Such directories in one package.
const DIRECTORIES: usize = 100;
/// Different contents in the big tree.
const CONTENTS: usize = 1000;

/// Names of a tree, relative to its top.
#[derive(Debug, Default)]
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
pub(super) fn tree(top: &Path, first: usize, packages: usize) -> Result<Names> {
    let mut names = Names::default();
    let contents: Vec<Vec<u8>> =
        (0..CONTENTS).zip(0..).map(|(at, seed)| noise(64 + at * 37 % 3900, seed)).collect();
    let mut next = contents.iter().cycle();
    for package in first..first + packages {
        let package = PathBuf::from(format!("usr/share/package-{package:03}"));
        names.directories.push(package.clone());
        for part in 0..DIRECTORIES {
            let dir = package.join(format!("part-{part:02}"));
            directories(&top.join(&dir))?;
            for file in 0..FILES {
                let path = dir.join(format!("component-{file}.conf"));
                let content = next.next().map_or(&[][..], Vec::as_slice);
                fs::write(top.join(&path), content).map_err(BenchError::at("write", &path))?;
                names.files.push(path);
            }
            names.directories.push(dir);
        }
    }
    Ok(names)
}

/// Packages of a tree of so many files.
pub(super) fn packages(files: usize) -> usize {
    (files / (FILES * DIRECTORIES)).max(1)
}

/// Writes `content` as `path` below `top`.
pub(super) fn file(top: &Path, path: &str, content: &[u8]) -> Result<()> {
    let path = top.join(path);
    directories(path.parent().unwrap_or(top))?;
    fs::write(&path, content).map_err(BenchError::at("write", &path))
}

/// Makes a directory with all above it.
pub(super) fn directories(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(BenchError::at("make", path))
}

/// A length as an offset in a file.
pub(super) fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// The length of something that is to lie in memory.
pub(super) fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
