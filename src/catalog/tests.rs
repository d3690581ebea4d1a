use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};

use super::*;
use crate::layer::LayerId;
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

    /// The files with each of contents 0 to 40, and all names, of each template by its table.
    fn tables(&self, catalog: &Catalog) -> Vec<Tabled> {
        let layers = Layers::open(self.path()).unwrap();
        let listed = layers.templates().list().unwrap();
        let stacks = listed.into_iter().map(|listed| listed.template.unwrap().stack);
        let answers = stacks.map(|stack| {
            // A damaged layer has none.
            let Ok(tree) = layers.tree(&stack) else { return Default::default() };
            let mut table = catalog.table(&stack.id(), &tree).unwrap();
            let ask = |table: &mut Table| {
                let mut files = Vec::new();
                for content in 0..40 {
                    let Some(index) = tree.object_index(&object(content)) else { continue };
                    for ino in table.files_with(index)? {
                        files.push(tree.path(&tree.inode(ino).unwrap()).unwrap());
                    }
                }
                let mut names = Vec::new();
                for at in 0..table.name_count() {
                    let (dir, index) = table.name(at)?;
                    let dir = tree.inode(dir).map_err(|_| TableDamaged)?;
                    let entry = tree.entry(&dir, index).unwrap().ok_or(TableDamaged)?;
                    names.push(entry.name.to_vec());
                }
                Ok((files, names))
            };
            ask(&mut table).unwrap_or_else(|TableDamaged| {
                ask(&mut catalog.new_table(&stack.id(), &tree).unwrap()).unwrap()
            })
        });
        answers.collect()
    }

    /// Everything the catalog can say about contents 0 to 40.
    fn all_answers(&self, catalog: &Catalog) -> Answers {
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
        (holders, catalog.sizes().unwrap(), self.tables(catalog))
    }
}

/// Who holds what, what layers weigh, and what the tables say.
type Answers = (Vec<Holders>, Sizes, Vec<Tabled>);

/// Files by their contents, and names, of one stack.
type Tabled = (Vec<Vec<u8>>, Vec<Vec<u8>>);

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
    let session = store.catalog().session().unwrap();
    assert_eq!(store.all_answers(&store.impatient()), indexed, "from the manifests");
    drop(session);
    let occupied = store.occupy();
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

/// What a walk of a private layer might have found.
fn found(store: &TestStore) -> BTreeMap<RootKey, (Glance, Vec<Kept>)> {
    let path = store.path().as_os_str().as_encoded_bytes().len() as u64;
    let kept = |root: u8, file: u64| Kept {
        path: format!("etc/{file}").into_bytes(),
        identity: Identity { dev: 1, ino: file, size: path, ..Identity::default() },
        held: match file % 3 {
            0 => Held::Private(None),
            1 => Held::Private(Some(object(file))),
            _ => Held::Object(object(file + u64::from(root))),
        },
    };
    let root = |root: u8| {
        let glance = Glance { stamp: [root; 16], files: 200, unhashed: 70, changed: 0, moved: 0 };
        ([root; 8], (glance, (0..300).map(|file| kept(root, file)).collect()))
    };
    (1..4).map(root).collect()
}

#[test]
fn private_layers_are_remembered_until_the_index_is_lost() {
    let (store, _) = furnished();
    let found = found(&store);
    let known: BTreeSet<RootKey> = found.keys().copied().collect();
    let session = store.catalog().session().unwrap();
    assert!(session.glances().unwrap().is_empty());
    session.remember(&found, &known).unwrap();
    drop(session);
    let session = store.catalog().session().unwrap();
    for (root, (glance, kept)) in &found {
        assert_eq!(session.glances().unwrap()[root], *glance);
        assert_eq!(session.kept(root).unwrap(), *kept);
    }
    // Content 1 is held by all; content 5 by the metadata of the first alone.
    let holders = |content: u64| -> Vec<RootKey> {
        let holders = session.holders(&BTreeSet::from([object(content)])).unwrap();
        holders.into_iter().map(|(_, root)| root).collect()
    };
    assert_eq!(holders(1), [[1; 8], [2; 8], [3; 8]]);
    assert_eq!(holders(3), [[1; 8]]);
    // A root that is forgotten, or holds other things now, is not among the holders.
    let now = BTreeMap::from([([2; 8], (Glance::default(), Vec::new()))]);
    session.remember(&now, &BTreeSet::from([[1; 8], [2; 8]])).unwrap();
    assert_eq!(holders(1), [[1; 8]]);
    assert_eq!(session.glances().unwrap().len(), 2);
    drop(session);
    fs::remove_dir_all(store.index()).unwrap();
    assert!(store.catalog().session().unwrap().glances().unwrap().is_empty());
}

#[test]
fn a_database_in_use_is_waited_for_and_then_done_without() {
    let (store, _) = furnished();
    let session = store.catalog().session().unwrap();
    assert!(store.impatient().session().is_none());
    drop(session);
    assert!(store.catalog().session().is_some());
}

#[test]
fn an_index_with_any_file_damaged_is_built_again() {
    let (store, _) = furnished();
    let expected = store.all_answers(&store.catalog());
    let found = found(&store);
    let known: BTreeSet<RootKey> = found.keys().copied().collect();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..24 {
        store.catalog().session().unwrap().remember(&found, &known).unwrap();
        let mut files = Vec::new();
        let mut dirs = vec![store.index()];
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
        // What it still says of private layers is what was remembered; what it cannot say is gone.
        if let Some(session) = store.catalog().session()
            && let Ok(glances) = session.glances()
        {
            for (root, glance) in glances {
                assert_eq!(glance, found[&root].0, "round {round}: {file:?}");
                let kept = session.kept(&root).unwrap_or_default();
                assert!(kept.is_empty() || kept == found[&root].1, "round {round}: {file:?}");
            }
        }
    }
}

#[test]
fn an_index_of_another_format_is_built_again() {
    let (store, _) = furnished();
    drop(store.catalog().session());
    // sled lets go of its own lock a moment after it was closed.
    let db = loop {
        match sled::open(store.index().join("db")) {
            Err(sled::Error::Io(_)) => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    db.insert("format", "mica-index-1").unwrap();
    drop(db);
    assert!(store.catalog().session().unwrap().glances().unwrap().is_empty());
}

#[test]
fn tables_of_stacks_that_are_gone_go_too() {
    let (store, _) = furnished();
    store.all_answers(&store.catalog());
    let tables = || fs::read_dir(store.index().join("trees")).unwrap().count();
    assert_eq!(tables(), 2);
    store.catalog().prune(&HashSet::new());
    assert_eq!(tables(), 0);
    assert!(store.catalog().rebuild().unwrap());
    assert_eq!(tables(), 2);
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
                    catalog.record_stack(&Stack::new(vec![layer])).unwrap();
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

/// Parts of sled's file that nothing lies in: whoever opens it writes each again.
fn blank_parts(index: &Path) -> usize {
    let file = fs::read(index.join("db/db")).unwrap();
    file.chunks(512 * 1024).filter(|part| part.iter().all(|byte| *byte == 0)).count()
}

#[test]
fn what_was_written_over_is_not_written_again_by_every_question() {
    let store = TestStore::new();
    let catalog = store.catalog();
    let roots: BTreeSet<RootKey> = (0..150_u64).map(u64::to_be_bytes).collect();
    let kept = |round: u64, root: &RootKey| -> Vec<Kept> {
        let file = |number: u64| Kept {
            path: format!("var/lib/some/file-{number}").into_bytes(),
            identity: Identity { ino: number, ..Identity::default() },
            held: Held::Private(Some(object(
                round * 1_000_000 + u64::from(root[7]) * 1000 + number,
            ))),
        };
        (0..300).map(file).collect()
    };
    let glance = |round: u64| Glance {
        files: 300,
        stamp: [u8::try_from(round).unwrap(); 16],
        ..Glance::default()
    };
    for round in 0..8 {
        let session = catalog.session().unwrap();
        let found: BTreeMap<RootKey, (Glance, Vec<Kept>)> =
            roots.iter().map(|root| (*root, (glance(round), kept(round, root)))).collect();
        session.remember(&found, &roots).unwrap();
    }
    // A question that changes nothing.
    let session = catalog.session().unwrap();
    assert_eq!(session.glances().unwrap().len(), roots.len());
    for root in &roots {
        assert_eq!(session.glances().unwrap()[root], glance(7));
        assert_eq!(session.kept(root).unwrap(), kept(7, root));
    }
    assert_eq!(session.check(&roots, false).unwrap(), Derived::Right);
    drop(session);
    let blank = blank_parts(&store.index());
    assert!(blank <= 4, "{blank} parts");
    let left: Vec<_> =
        fs::read_dir(store.index()).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert!(!left.contains(&"db.new".into()), "{left:?}");
}
