use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::*;
use crate::layer::{LayerBuilder, LayerPath, Metadata, NewContent, NewNode, Timestamp};
use crate::object::ObjectId;

struct Scratch {
    dir: tempfile::TempDir,
    staging: PathBuf,
    layers: Layers,
}

fn scratch() -> Scratch {
    let dir = tempfile::tempdir().expect("scratch");
    let staging = dir.path().join("staging-1");
    std::fs::create_dir(&staging).expect("staging");
    let layers = Layers::open(dir.path()).expect("open");
    Scratch { dir, staging, layers }
}

impl Scratch {
    fn publish(&self, bytes: Vec<u8>) -> Result<LayerId, LayersError> {
        self.layers.publish(File::open(&self.staging).expect("staging").as_fd(), bytes)
    }

    fn end_import(&self) {
        std::fs::remove_dir_all(&self.staging).expect("staging");
        std::fs::create_dir(&self.staging).expect("staging");
    }

    fn layer_file(&self, id: &LayerId) -> PathBuf {
        self.dir.path().join("layers").join(id.to_string())
    }

    fn tree_file(&self, stack: &Stack) -> PathBuf {
        self.dir.path().join("trees").join(stack.id().to_string())
    }
}

fn layer_with(name: &str) -> Vec<u8> {
    let mut builder = LayerBuilder::new();
    let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default() };
    let object = ObjectId::of(name.as_bytes());
    let content = NewContent::Regular { object, size: name.len() as u64, data_blocks: 8 };
    let path = LayerPath::parse(name.as_bytes()).expect("path");
    builder.put(&path, NewNode { metadata, xattrs: Vec::new(), content }).expect("put");
    builder.finish().expect("finish")
}

fn replace(path: &PathBuf, bytes: &[u8]) {
    std::fs::remove_file(path).expect("remove");
    std::fs::write(path, bytes).expect("write");
}

#[test]
fn a_published_layer_is_loaded_and_published_once() {
    let scratch = scratch();
    let bytes = layer_with("a");
    let id = scratch.publish(bytes.clone()).expect("publish");
    assert_eq!(scratch.publish(bytes.clone()).expect("again"), id);
    assert_eq!(scratch.layers.load_verified(&id).expect("load").as_bytes(), bytes);
    assert_eq!(
        scratch.layers.layers().expect("list"),
        [Stored { id, len_bytes: bytes.len() as u64 }]
    );
    let missing = LayerId::of(b"other");
    assert!(matches!(scratch.layers.load(&missing), Err(LayersError::NoLayer(_))));
    assert!(matches!(scratch.publish(b"junk".to_vec()), Err(LayersError::Invalid(_))));
}

#[test]
fn a_damaged_layer_is_refused_and_mended_by_publishing_it_again() {
    let scratch = scratch();
    let bytes = layer_with("a");
    let id = scratch.publish(bytes.clone()).expect("publish");
    let file = scratch.layer_file(&id);
    replace(&file, &bytes[..bytes.len() - 1]);
    assert!(matches!(scratch.layers.load(&id), Err(LayersError::Damaged { .. })));
    replace(&file, &layer_with("b"));
    assert!(matches!(scratch.layers.load_verified(&id), Err(LayersError::Altered(_))));
    scratch.end_import();
    assert_eq!(scratch.publish(bytes).expect("publish"), id);
    scratch.layers.load_verified(&id).expect("mended");
}

#[test]
fn a_tree_comes_back_when_it_is_missing_or_damaged() {
    let scratch = scratch();
    let ids: Vec<_> =
        ["a", "b"].iter().map(|name| scratch.publish(layer_with(name)).expect("publish")).collect();
    let stack = Stack::new(ids);
    let tree = scratch.layers.tree(&stack).expect("merge");
    let good = tree.as_bytes().to_vec();
    let file = scratch.tree_file(&stack);
    assert_eq!(std::fs::read(&file).expect("stored"), good);

    std::fs::remove_file(&file).expect("remove");
    assert_eq!(scratch.layers.tree(&stack).expect("again").as_bytes(), good);
    replace(&file, &good[..good.len() / 2]);
    assert_eq!(scratch.layers.tree(&stack).expect("again").as_bytes(), good);
    // Another stack's tree under this name.
    let other = Stack::new(stack.layers()[..1].to_vec());
    replace(&file, scratch.layers.tree(&other).expect("other").as_bytes());
    assert_eq!(scratch.layers.tree(&stack).expect("again").as_bytes(), good);
    // Damage behind the header is found by the full check.
    let mut altered = good.clone();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    replace(&file, &altered);
    assert_eq!(scratch.layers.tree_verified(&stack).expect("again").as_bytes(), good);
    assert_eq!(std::fs::read(&file).expect("stored"), good);
    // A mapped tree outlives its file.
    std::fs::remove_file(&file).expect("remove");
    tree.validate().expect("still mapped");
    assert!(matches!(scratch.layers.tree(&Stack::default()), Err(LayersError::EmptyStack)));
}

#[test]
fn collection_spares_what_is_live_and_what_an_import_holds() {
    let scratch = scratch();
    let kept = scratch.publish(layer_with("kept")).expect("publish");
    let dead = scratch.publish(layer_with("dead")).expect("publish");
    scratch.end_import();
    let held = scratch.publish(layer_with("held")).expect("publish");
    assert_eq!(scratch.layers.pinned().expect("pinned"), [held]);
    let sweep = |dry_run| {
        let live = || Ok::<_, LayersError>(HashSet::from([kept]));
        let swept = scratch.layers.sweep(live, dry_run).expect("sweep");
        swept.into_iter().map(|stored| stored.id).collect::<Vec<_>>()
    };
    assert_eq!(sweep(true), [dead]);
    assert_eq!(sweep(false), [dead]);
    assert_eq!(sweep(false), []);
    scratch.layers.load_verified(&kept).expect("kept");
    scratch.layers.load_verified(&held).expect("held");
    // An import that builds upon a layer holds it too.
    scratch.end_import();
    let staging = File::open(&scratch.staging).expect("staging");
    scratch.layers.pin(staging.as_fd(), &held).expect("pin");
    assert!(matches!(scratch.layers.pin(staging.as_fd(), &dead), Err(LayersError::NoLayer(_))));
    assert_eq!(sweep(false), []);
    scratch.end_import();
    assert_eq!(sweep(false), [held]);
}

#[test]
fn trees_nobody_uses_are_collected() {
    let scratch = scratch();
    let stacks: Vec<_> = ["a", "b"]
        .iter()
        .map(|name| Stack::new(vec![scratch.publish(layer_with(name)).expect("publish")]))
        .collect();
    for stack in &stacks {
        scratch.layers.tree(stack).expect("merge");
    }
    let left = scratch.dir.path().join("trees/.x.1-1-1.staged");
    std::fs::write(&left, b"").expect("leftover");
    let swept = scratch.layers.sweep_trees(&HashSet::from([stacks[0].id()]), false).expect("sweep");
    assert_eq!(swept.iter().map(|s| s.id).collect::<Vec<_>>(), [stacks[1].id()]);
    assert!(scratch.tree_file(&stacks[0]).exists());
    assert!(!scratch.tree_file(&stacks[1]).exists() && !left.exists());
}
