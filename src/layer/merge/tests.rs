//! Random stacks against a naive model that keeps whole paths.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::layer::{
    Inode, LayerBuilder, LayerPath, Metadata, NewContent, NewNode, NewXattr, Stack, Timestamp,
};
use crate::object::ObjectId;

/// What is done to a layer that is being built.
#[derive(Clone, Debug)]
enum Op {
    Put { path: String, kind: u8, stamp: u32 },
    Link { path: String, target: String },
    LinkBelow { path: String, target: String },
    Whiteout(String),
    Opaque(String),
    Remove(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "longer-name"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (path(), 0_u8..7, 0_u32..512)
            .prop_map(|(path, kind, stamp)| Op::Put { path, kind, stamp }),
        2 => (path(), path()).prop_map(|(path, target)| Op::Link { path, target }),
        2 => (path(), path()).prop_map(|(path, target)| Op::LinkBelow { path, target }),
        3 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
        1 => Just(Op::Opaque(String::new())),
        1 => path().prop_map(Op::Remove),
    ]
}

fn layers() -> impl Strategy<Value = Vec<Vec<Op>>> {
    prop::collection::vec(prop::collection::vec(op(), 0..12), 1..6)
}

fn layer_path(path: &str) -> LayerPath {
    LayerPath::parse(path.as_bytes()).expect("test path")
}

fn new_node(kind: u8, stamp: u32) -> NewNode {
    let mtime = Timestamp { secs: i64::from(stamp) - 256, nanos: stamp };
    let metadata = Metadata { mode: stamp, uid: stamp + 1, gid: stamp + 2, mtime };
    let bytes = stamp.to_le_bytes();
    let content = match kind {
        0 => NewContent::Directory,
        1 => NewContent::Regular { object: ObjectId::of(&bytes), size: 4, data_blocks: 8 },
        2 => NewContent::Symlink(format!("to/{stamp}").into_bytes().into()),
        3 => NewContent::Fifo,
        4 => NewContent::Socket,
        5 => NewContent::CharDevice(stamp.into()),
        _ => NewContent::BlockDevice(stamp.into()),
    };
    // Few different sets, so that they are shared between inodes.
    let xattr = |index: u32| -> NewXattr {
        (format!("user.{index}").into_bytes().into(), vec![7; index as usize].into())
    };
    NewNode { metadata, xattrs: (0..stamp % 4).map(xattr).collect(), content }
}

fn implicit() -> NewNode {
    let metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() };
    NewNode { metadata, xattrs: Vec::new(), content: NewContent::Directory }
}

/// Identity of an inode: the layer that made it and a number within.
type Identity = (usize, usize);

#[derive(Clone, Debug, PartialEq)]
struct Node {
    identity: Identity,
    node: NewNode,
    described: bool,
    opaque: bool,
}

impl Node {
    fn is_directory(&self) -> bool {
        self.node.content == NewContent::Directory
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Item {
    Whiteout,
    Node(Node),
}

/// A layer, or with no whiteouts a tree, as whole paths; the root is the empty path.
#[derive(Clone, Debug)]
struct Model {
    items: BTreeMap<String, Item>,
    layer: usize,
    made: usize,
}

fn parents(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    let mut ends: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
    if !path.is_empty() {
        ends.insert(0, "");
    }
    ends.into_iter()
}

fn below<'a>(items: &'a BTreeMap<String, Item>, path: &'a str) -> Vec<String> {
    let inside = |other: &&String| {
        path.is_empty() && !other.is_empty()
            || other.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
    };
    items.keys().filter(inside).cloned().collect()
}

impl Model {
    fn new(layer: usize) -> Self {
        let mut model = Self { items: BTreeMap::new(), layer, made: 0 };
        let root = model.make(implicit(), false, false);
        model.items.insert(String::new(), root);
        model
    }

    fn make(&mut self, node: NewNode, described: bool, opaque: bool) -> Item {
        self.made += 1;
        Item::Node(Node { identity: (self.layer, self.made), node, described, opaque })
    }

    fn node(&self, path: &str) -> Option<&Node> {
        match self.items.get(path) {
            Some(Item::Node(node)) => Some(node),
            _ => None,
        }
    }

    fn clear(&mut self, path: &str) {
        for inner in below(&self.items, path) {
            self.items.remove(&inner);
        }
        self.items.remove(path);
    }

    fn make_directory(&mut self, path: &str) {
        if self.node(path).is_none_or(|node| !node.is_directory()) {
            let opaque = self.items.get(path) == Some(&Item::Whiteout);
            let directory = self.make(implicit(), false, opaque);
            self.items.insert(path.to_owned(), directory);
        }
    }

    fn make_parents(&mut self, path: &str) {
        for parent in parents(path) {
            self.make_directory(parent);
        }
    }

    fn put(&mut self, path: &str, node: NewNode) {
        self.make_parents(path);
        if node.content == NewContent::Directory {
            self.make_directory(path);
            if let Some(Item::Node(known)) = self.items.get_mut(path) {
                (known.node, known.described) = (node, true);
            }
        } else {
            self.clear(path);
            let item = self.make(node, true, false);
            self.items.insert(path.to_owned(), item);
        }
    }

    fn link(&mut self, path: &str, node: Node) {
        self.make_parents(path);
        self.clear(path);
        self.items.insert(path.to_owned(), Item::Node(node));
    }

    fn hides(&self, path: &str) -> bool {
        self.items.contains_key(path)
            || parents(path).any(|parent| match self.items.get(parent) {
                None => false,
                Some(Item::Whiteout) => true,
                Some(Item::Node(node)) => !node.is_directory() || node.opaque,
            })
    }

    /// What the upper layer makes of `self`, a tree.
    fn merge(&self, upper: &Self) -> Self {
        let mut tree = self.clone();
        for (path, item) in &upper.items {
            let Item::Node(node) = item else {
                tree.clear(path);
                continue;
            };
            let mut node = node.clone();
            if let Some(lower) = tree.node(path).cloned() {
                let both = node.is_directory() && lower.is_directory();
                if both && !node.described {
                    node.node = lower.node;
                }
                if both && (!node.opaque || path.is_empty()) {
                    node.identity = lower.identity;
                }
                if !both || node.opaque {
                    tree.clear(path);
                }
            }
            node.opaque = false;
            node.described = true;
            tree.items.insert(path.clone(), Item::Node(node));
        }
        tree
    }
}

fn names_of(tree: &Model, identity: Identity) -> Vec<String> {
    let is_it = |item: &Item| matches!(item, Item::Node(node) if node.identity == identity);
    tree.items.iter().filter(|(_, item)| is_it(item)).map(|(path, _)| path.clone()).collect()
}

/// Does the same to a builder and to a model, and checks that both take or refuse it.
fn build(ops: &[Op], layer: usize, lower: Option<(&Manifest, &Model)>) -> (Vec<u8>, Model) {
    let mut builder = LayerBuilder::new();
    let mut model = Model::new(layer);
    let mut linked: Vec<(Node, Identity)> = Vec::new();
    for op in ops {
        match op {
            Op::Put { path, kind, stamp } => {
                let node = new_node(*kind, *stamp);
                builder.put(&layer_path(path), node.clone()).expect("put");
                model.put(path, node);
            }
            Op::Link { path, target } => {
                let done = builder.hard_link(&layer_path(path), &layer_path(target));
                let node = model.node(target).filter(|node| !node.is_directory()).cloned();
                assert_eq!(done.is_ok(), node.is_some());
                // Linking a name to itself changes nothing.
                if let Some(node) = node.filter(|_| path != target) {
                    model.link(path, node);
                }
            }
            Op::LinkBelow { path, target } => {
                let Some((manifest, tree)) = lower else { continue };
                let done =
                    builder.hard_link_below(&layer_path(path), manifest, &layer_path(target));
                let found = tree.node(target).filter(|_| !model.hides(target));
                let found = found.filter(|node| !node.is_directory()).cloned();
                assert_eq!(done.is_ok(), found.is_some(), "{op:?}");
                let Some(found) = found else { continue };
                let known = linked.iter().find(|(_, from)| *from == found.identity);
                let node = match known {
                    Some((node, _)) => node.clone(),
                    None => {
                        let Item::Node(node) = model.make(found.node, true, false) else {
                            continue;
                        };
                        linked.push((node.clone(), found.identity));
                        node
                    }
                };
                model.link(path, node);
            }
            Op::Whiteout(path) => {
                builder.whiteout(&layer_path(path));
                model.make_parents(path);
                match model.items.get_mut(path) {
                    Some(Item::Node(node)) => node.opaque = node.is_directory(),
                    Some(Item::Whiteout) => {}
                    None => drop(model.items.insert(path.clone(), Item::Whiteout)),
                }
            }
            Op::Opaque(path) => {
                builder.opaque(&layer_path(path));
                model.make_parents(path);
                model.make_directory(path);
                if let Some(Item::Node(node)) = model.items.get_mut(path) {
                    node.opaque = true;
                }
            }
            Op::Remove(path) => {
                builder.remove(&layer_path(path));
                model.clear(path);
            }
        }
    }
    for (node, identity) in linked {
        for name in lower.map(|(_, tree)| names_of(tree, identity)).unwrap_or_default() {
            if !model.hides(&name) {
                model.link(&name, node.clone());
            }
        }
    }
    (builder.finish().expect("finish"), model)
}

/// The same items in another order: directories last, names backwards, every link target
/// another one.
fn rebuild(model: &Model) -> Vec<u8> {
    let mut builder = LayerBuilder::new();
    let mut first: HashMap<Identity, String> = HashMap::new();
    let (directories, others): (Vec<_>, Vec<_>) = model
        .items
        .iter()
        .rev()
        .partition(|(_, item)| matches!(item, Item::Node(node) if node.is_directory()));
    for (path, item) in others.into_iter().chain(directories) {
        let at = layer_path(path);
        match item {
            Item::Whiteout => builder.whiteout(&at),
            Item::Node(node) => {
                if let Some(target) = first.get(&node.identity) {
                    builder.hard_link(&at, &layer_path(target)).expect("link");
                } else if node.described {
                    builder.put(&at, node.node.clone()).expect("put");
                }
                if node.opaque {
                    builder.opaque(&at);
                } else if !node.described && !path.is_empty() {
                    // Made by what is in it, or by a whiteout that was removed again.
                    builder.whiteout(&layer_path(&format!("{path}/made")));
                    builder.remove(&layer_path(&format!("{path}/made")));
                }
                first.entry(node.identity).or_insert_with(|| path.clone());
            }
        }
    }
    builder.finish().expect("finish")
}

fn open(bytes: Vec<u8>) -> Manifest {
    let manifest = Manifest::from_bytes(bytes).expect("open");
    manifest.validate().expect("validate");
    manifest
}

/// All paths of a manifest by walking from the root.
fn walk(manifest: &Manifest) -> BTreeMap<String, Option<Inode>> {
    let root = manifest.root().expect("root");
    let mut found = BTreeMap::from([(String::new(), Some(root))]);
    let mut left = vec![(String::new(), root)];
    while let Some((path, dir)) = left.pop() {
        for entry in manifest.entries(&dir) {
            let entry = entry.expect("entry");
            let name = std::str::from_utf8(entry.name).expect("test name");
            let inner = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            let looked = manifest.lookup(&dir, entry.name).expect("lookup");
            assert_eq!(looked, Some(entry));
            let inode = entry.ino.map(|ino| manifest.inode(ino).expect("inode"));
            if let Some(inode) = inode.filter(|inode| inode.kind == FileKind::Directory) {
                left.push((inner.clone(), inode));
            }
            found.insert(inner, inode);
        }
        assert_eq!(manifest.lookup(&dir, b"missing").expect("lookup"), None);
        assert_eq!(manifest.lookup(&dir, b"").expect("lookup"), None);
    }
    found
}

/// Checks that a manifest says exactly what a model says; returns the numbers by identity.
fn assert_equal(manifest: &Manifest, model: &Model) -> HashMap<Identity, TreeIno> {
    let found = walk(manifest);
    assert_eq!(found.keys().collect::<Vec<_>>(), model.items.keys().collect::<Vec<_>>());
    let mut numbers = HashMap::new();
    for (path, item) in &model.items {
        match (item, &found[path]) {
            (Item::Whiteout, None) => {}
            (Item::Node(node), Some(inode)) => {
                let read = crate::layer::read_node(manifest, inode).expect("read");
                assert_eq!(read, node.node, "{path}");
                let number = numbers.entry(node.identity).or_insert(inode.ino);
                assert_eq!(*number, inode.ino, "{path} is one inode");
                let names = names_of(model, node.identity);
                let mut links: Vec<_> = manifest
                    .links(inode.ino)
                    .expect("links")
                    .map(|(dir, name)| {
                        let dir = manifest.inode(dir).expect("directory");
                        let mut path = manifest.path(&dir).expect("path");
                        if !path.is_empty() {
                            path.push(b'/');
                        }
                        path.extend_from_slice(name);
                        String::from_utf8(path).expect("test name")
                    })
                    .collect();
                links.sort();
                if !path.is_empty() {
                    assert_eq!(links, names);
                }
                assert!(inode.kind == FileKind::Directory || inode.nlink as usize == names.len());
                assert!(names.contains(
                    &String::from_utf8(manifest.path(inode).expect("path")).expect("test name")
                ));
                if !manifest.is_tree() {
                    assert_eq!(inode.implicit, !node.described, "{path}");
                    assert_eq!(inode.opaque, node.opaque, "{path}");
                }
            }
            (Item::Whiteout, Some(_)) | (Item::Node(_), None) => panic!("{path} differs"),
        }
    }
    let inodes: std::collections::HashSet<_> = numbers.values().collect();
    assert_eq!(inodes.len(), numbers.len(), "two inodes have one number");
    numbers
}

fn check_stack(layers: &[Vec<Op>]) {
    let mut below: Option<(Manifest, Model)> = None;
    let mut known: HashMap<Identity, TreeIno> = HashMap::new();
    let mut stack = Stack::default();
    for (index, ops) in layers.iter().enumerate() {
        let lower = below.as_ref().map(|(tree, model)| (tree, model));
        let (bytes, model) = build(ops, index, lower);
        assert_eq!(rebuild(&model), bytes, "the order of calls shows in the bytes");
        let layer = open(bytes);
        assert_equal(&layer, &model);
        stack = stack.extended(LayerId::new(layer.digest()));

        let lower = below.as_ref().map(|(tree, _)| tree);
        let tree = open(merge(lower, &layer).expect("merge"));
        let merged = match &below {
            Some((_, lower)) => lower.merge(&model),
            None => {
                let mut empty = Model::new(0);
                empty.items.clear();
                empty.merge(&model)
            }
        };
        let numbers = assert_equal(&tree, &merged);
        assert_eq!(tree.stack(), stack);
        // Permanence: no identity ever changes its number, and no number its identity.
        for (identity, number) in numbers {
            assert_eq!(*known.entry(identity).or_insert(number), number);
        }
        let distinct: std::collections::HashSet<_> = known.values().collect();
        assert_eq!(distinct.len(), known.len());
        if let Some(lower) = lower {
            assert!(tree.len() >= lower.len());
            assert_kept(lower, &tree);
        } else {
            assert_eq!(tree.len(), layer.len());
            let same =
                |ino| layer.inode(ino).expect("layer").kind == tree.inode(ino).expect("tree").kind;
            assert!(inos(&layer).all(same));
        }
        below = Some((tree, merged));
    }
}

/// Every number of `lower` is there in `upper` and means the same.
fn assert_kept(lower: &Manifest, upper: &Manifest) {
    for ino in inos(lower) {
        let (old, new) = (lower.inode(ino).expect("lower"), upper.inode(ino).expect("upper"));
        assert_eq!(old.kind, new.kind);
        let origin = upper.origin(ino).expect("origin").expect("tree");
        assert_eq!(lower.origin(ino).expect("origin"), Some(origin));
        assert_eq!(upper.by_origin(origin), Some(ino));
        if old.kind != FileKind::Directory {
            assert_eq!(old.metadata(), new.metadata());
            assert_eq!(
                (old.size, old.rdev, old.data_blocks),
                (new.size, new.rdev, new.data_blocks)
            );
            assert_eq!(lower.object(&old).expect("lower"), upper.object(&new).expect("upper"));
        }
        assert!(!old.is_hidden() || new.is_hidden());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn a_merged_stack_is_what_a_naive_merge_makes_of_it(layers in layers()) {
        check_stack(&layers);
    }
}
