use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};

use super::*;
use crate::layer::{
    LayerBuilder, LayerPath, Metadata, NewContent, NewNode, Provenance, RunConfig, Template,
    TemplateKind, Timestamp,
};
use crate::object::Objects;

/// A store with layers, whose objects need not exist.
struct TestStore {
    dir: tempfile::TempDir,
}

impl TestStore {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn catalog(&self) -> Catalog {
        Catalog::open(self.path()).unwrap()
    }

    /// One that never waits for an index that is in use.
    fn impatient(&self) -> Catalog {
        Catalog { patience: Duration::ZERO, ..self.catalog() }
    }

    /// A layer with one file for each of `contents`.
    fn layer(&self, contents: impl IntoIterator<Item = u64>) -> LayerId {
        let mut builder = LayerBuilder::new();
        for content in contents {
            let metadata =
                Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp { secs: 0, nanos: 0 } };
            let regular =
                NewContent::Regular { object: object(content), size: content, data_blocks: 8 };
            let path = LayerPath::parse(format!("file{content}").as_bytes()).unwrap();
            let node = NewNode { metadata, xattrs: Vec::new(), content: regular };
            builder.put(&path, node).unwrap();
        }
        let staging = Objects::open(self.path()).unwrap().begin().unwrap();
        let layers = Layers::open(self.path()).unwrap();
        layers.publish(staging.dir(), builder.finish().unwrap()).unwrap()
    }

    fn template(&self, name: &str, stack: Stack) {
        let template = Template {
            name: name.parse().unwrap(),
            kind: TemplateKind::Os,
            stack,
            config: RunConfig::default(),
            shared_paths: Vec::new(),
            provenance: Provenance::now("a test".to_owned(), None),
        };
        Layers::open(self.path()).unwrap().templates().put(&template, false).unwrap();
    }

    fn index(&self) -> PathBuf {
        self.path().join("index")
    }

    /// Keeps the index in use until dropped.
    fn occupy(&self) -> std::os::fd::OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, self.index(), flags, Mode::empty()).unwrap();
        flock(&dir, FlockOperation::LockExclusive).unwrap();
        dir
    }

    /// Everything the catalog can say about contents 0 to 40.
    fn all_answers(&self, catalog: &Catalog) -> (Vec<Holders>, Sizes) {
        let roots: Vec<(String, Stack)> = Layers::open(self.path())
            .unwrap()
            .templates()
            .list()
            .unwrap()
            .into_iter()
            .map(|listed| listed.template.unwrap())
            .map(|template| (format!("root of {}", template.name), template.stack))
            .collect();
        let holders = (0..40).map(|n| catalog.who_has(&object(n), &roots).unwrap()).collect();
        (holders, catalog.sizes().unwrap())
    }
}

fn object(content: u64) -> ObjectId {
    ObjectId::of(&content.to_le_bytes())
}

/// Three layers, two templates: the second is the first with a layer on top.
fn furnished() -> (TestStore, [LayerId; 3]) {
    let store = TestStore::new();
    let layers = [store.layer(0..20), store.layer(10..30), store.layer([5, 35])];
    let below = Stack::new(vec![layers[0]]);
    store.template("below:1", below.clone());
    store.template("above:1", below.extended(layers[1]));
    (store, layers)
}

#[test]
fn holders_are_the_layers_and_what_stands_on_them() {
    let (store, layers) = furnished();
    let root = ("web1".to_owned(), Stack::new(vec![layers[0], layers[1]]));
    let holders = store.catalog().who_has(&object(25), &[root]).unwrap();
    assert_eq!(holders.layers, BTreeSet::from([layers[1]]));
    assert_eq!(holders.templates, ["above:1".parse().unwrap()]);
    assert_eq!(holders.roots, ["web1"]);
    let holders = store.catalog().who_has(&object(5), &[]).unwrap();
    assert_eq!(holders.layers, BTreeSet::from([layers[0], layers[2]]));
    assert_eq!(holders.templates.len(), 2);
    assert_eq!(store.catalog().who_has(&object(99), &[]).unwrap(), Holders::default());
}

#[test]
fn sizes_tell_shared_and_exclusive_bytes_apart() {
    let (store, layers) = furnished();
    let sizes = store.catalog().sizes().unwrap();
    let third = LayerSize { objects: 2, bytes: 40, exclusive_objects: 1, exclusive_bytes: 35 };
    assert_eq!(sizes.layers[&layers[2]], third);
    let second = LayerSize { objects: 20, bytes: 390, exclusive_objects: 10, exclusive_bytes: 245 };
    assert_eq!(sizes.layers[&layers[1]], second);
    assert!(sizes.unreadable.is_empty());
}

#[test]
fn every_answer_is_the_same_without_the_index() {
    let (store, _) = furnished();
    let indexed = store.all_answers(&store.catalog());
    let occupied = store.occupy();
    assert_eq!(store.all_answers(&store.impatient()), indexed, "from the manifests");
    assert!(!store.impatient().rebuild().unwrap());
    drop(occupied);
    fs::remove_dir_all(store.index()).unwrap();
    assert_eq!(store.all_answers(&store.catalog()), indexed, "from a new index");
    assert!(store.catalog().rebuild().unwrap());
    assert_eq!(store.all_answers(&store.impatient()), indexed);
}

#[test]
fn a_stale_index_catches_up_with_layers_that_came_and_went() {
    let (store, layers) = furnished();
    store.all_answers(&store.catalog());
    let new = store.layer(20..40);
    fs::remove_file(store.path().join("layers").join(layers[1].to_string())).unwrap();
    let holders = store.catalog().who_has(&object(25), &[]).unwrap();
    assert_eq!(holders.layers, BTreeSet::from([new]));
    let indexed = store.all_answers(&store.catalog());
    let _occupied = store.occupy();
    assert_eq!(store.all_answers(&store.impatient()), indexed);
}

#[test]
fn a_damaged_layer_is_named_and_the_others_answer() {
    let (store, layers) = furnished();
    let path = store.path().join("layers").join(layers[1].to_string());
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"no manifest").unwrap();
    let indexed = store.all_answers(&store.catalog());
    assert_eq!(indexed.1.unreadable, BTreeSet::from([layers[1]]));
    assert_eq!(indexed.0[5].layers, BTreeSet::from([layers[0], layers[2]]));
    let _occupied = store.occupy();
    assert_eq!(store.all_answers(&store.impatient()), indexed);
}

#[test]
fn an_index_with_any_file_damaged_is_built_again() {
    let (store, _) = furnished();
    let expected = store.all_answers(&store.catalog());
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..12 {
        let mut files = Vec::new();
        let mut dirs = vec![store.index().join("db")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { dirs.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        let file = &files[round % files.len()];
        let mut bytes = fs::read(file).unwrap();
        match round % 3 {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes.iter_mut().for_each(|byte| *byte ^= random.u8(1..)),
            _ => {
                for _ in 0..64.min(bytes.len()) {
                    let at = random.usize(..bytes.len());
                    bytes[at] ^= random.u8(1..);
                }
            }
        }
        fs::write(file, bytes).unwrap();
        assert_eq!(store.all_answers(&store.catalog()), expected, "round {round}: {file:?}");
    }
}

#[test]
fn an_index_of_another_format_is_built_again() {
    let (store, _) = furnished();
    let expected = store.all_answers(&store.catalog());
    let db = sled::open(store.index().join("db")).unwrap();
    db.insert("format", "mica-index-0").unwrap();
    drop(db);
    assert_eq!(store.all_answers(&store.catalog()), expected);
}

#[test]
fn twenty_writers_and_readers_agree_while_the_index_is_deleted_under_them() {
    let (store, _) = furnished();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..20)
            .map(|worker| {
                let store = &store;
                scope.spawn(move || {
                    let contents = 100 * worker..100 * worker + 50;
                    let layer = store.layer(contents.clone());
                    let catalog = store.catalog();
                    catalog.record_layer(&layer).unwrap();
                    for content in contents.step_by(17) {
                        let holders = catalog.who_has(&object(content), &[]).unwrap();
                        assert!(holders.layers.contains(&layer), "{content}: {holders:?}");
                    }
                    assert_eq!(catalog.sizes().unwrap().layers[&layer].objects, 50);
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Whatever of it is there at the moment.
                let _deleted = fs::remove_dir_all(store.index());
                std::thread::yield_now();
            }
        });
        let failed = workers.into_iter().map(|w| w.join()).filter(Result::is_err).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0);
    });
    let indexed = store.all_answers(&store.catalog());
    let _occupied = store.occupy();
    assert_eq!(store.all_answers(&store.impatient()), indexed);
}
