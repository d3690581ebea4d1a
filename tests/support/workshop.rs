//! Imports into a scratch store, straight through the library, and what comes out again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use mica::layer::checkout::checkout;
use mica::layer::import::{
    ImportError, ImportOptions, Imported, Note, Progress, Silent, Source, import,
};
use mica::layer::{Manifest, merge};
use mica::object::{ObjectReader, Objects};

use super::snapshot::{Snapshot, snapshot};

/// A store without templates.
pub(crate) struct Workshop {
    path: PathBuf,
    objects: Objects,
}

/// Keeps what an import said, and sums up.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) notes: Mutex<Vec<Note>>,
    /// Files stored, and how many of them were known.
    pub(crate) stored: Mutex<(u64, u64)>,
}

impl Progress for Heard {
    fn note(&self, note: &Note) {
        self.notes.lock().expect("lock").push(note.clone());
    }

    fn stored(&self, _bytes: u64, hit: bool) {
        let mut stored = self.stored.lock().expect("lock");
        stored.0 += 1;
        stored.1 += u64::from(hit);
    }
}

impl Workshop {
    pub(crate) fn new(path: &Path) -> Self {
        let objects = Objects::open(path).expect("a store can be made");
        Self { path: path.to_owned(), objects }
    }

    /// Imports with nothing special and publishes.
    pub(crate) fn import(&self, source: Source) -> Imported {
        self.import_with(source, &ImportOptions::default()).expect("the import succeeds")
    }

    pub(crate) fn import_path(&self, path: &Path) -> Imported {
        self.import(Source::open(path).expect("the source can be opened"))
    }

    pub(crate) fn import_with(
        &self,
        source: Source,
        options: &ImportOptions<'_>,
    ) -> Result<Imported, ImportError> {
        self.import_heard(source, options, &Silent)
    }

    pub(crate) fn import_heard(
        &self,
        source: Source,
        options: &ImportOptions<'_>,
        progress: &dyn Progress,
    ) -> Result<Imported, ImportError> {
        let staging = self.objects.begin().expect("an import can begin");
        let imported = import(source, &staging, options, progress)?;
        staging.publish().expect("publish");
        staging.finish().expect("finish");
        for layer in &imported.layers {
            let layer = Manifest::from_bytes(layer.clone()).expect("a manifest");
            layer.validate().expect("the manifest is sound");
        }
        Ok(imported)
    }

    /// Fails the test if an import left anything staged.
    pub(crate) fn assert_clean(&self) {
        let staged = fs::read_dir(self.path.join("staging")).expect("staging is there");
        // The file by which imports and sweeps lock each other out stays.
        let left: Vec<_> = staged
            .map(|entry| entry.expect("entry"))
            .filter(|entry| entry.file_type().expect("type").is_dir())
            .map(|entry| entry.path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// The tree of some layers, lowest first.
    pub(crate) fn tree(layers: &[Vec<u8>]) -> Manifest {
        let mut tree: Option<Manifest> = None;
        for layer in layers {
            let layer = Manifest::from_bytes(layer.clone()).expect("a manifest");
            let merged = merge(tree.as_ref(), &layer).expect("layers merge");
            tree = Some(Manifest::from_bytes(merged).expect("a tree"));
        }
        tree.expect("there is a layer")
    }

    /// Writes the tree of some layers into the new directory `target`.
    pub(crate) fn checkout(&self, layers: &[Vec<u8>], target: &Path) -> Snapshot {
        fs::create_dir(target).expect("a directory can be made");
        let objects = ObjectReader::open(&self.path).expect("objects can be opened");
        let dir = File::open(target).expect("the directory can be opened");
        checkout(&Self::tree(layers), &objects, dir.into(), &AtomicBool::new(false))
            .expect("the tree can be checked out");
        snapshot(target)
    }
}
