//! What does a cold lookup cost, and what does making a tree cost?
//!
//! 100,000 files in 1,000 directories. `lookup`: a name to its decoded inode, in random order;
//! `stat`: a number to its inode; `list`: one directory of 100. `open`: the header and section
//! table of a mapped file, the part of a mount that is ours. `build`: paths to the bytes of a
//! layer. `merge`: one layer of all files; the same files spread over 20 layers.

use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mica::layer::{
    FileKind, LayerBuilder, LayerPath, Manifest, Metadata, NewContent, NewNode, Timestamp, TreeIno,
    merge,
};
use mica::object::ObjectId;

const DIRECTORIES: u32 = 1000;
const FILES: u32 = 100;
const TOTAL: u32 = DIRECTORIES * FILES;

fn paths() -> Vec<LayerPath> {
    let path = |number: u32| {
        let (dir, file) = (number % DIRECTORIES, number / DIRECTORIES);
        let path = format!("usr/share/package-{}/part-{}/file-{file}.py", dir / 10, dir % 10);
        LayerPath::parse(path.as_bytes()).expect("path")
    };
    (0..TOTAL).map(path).collect()
}

fn build<'a>(paths: impl IntoIterator<Item = (u32, &'a LayerPath)>) -> Vec<u8> {
    let mut layer = LayerBuilder::new();
    for (number, path) in paths {
        let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default() };
        let object = ObjectId::of(&number.to_le_bytes());
        let content =
            NewContent::Regular { object, size: number.into(), data_blocks: number.into() };
        layer.put(path, NewNode { metadata, xattrs: Vec::new(), content }).expect("put");
    }
    layer.finish().expect("finish")
}

fn numbered(paths: &[LayerPath]) -> impl Iterator<Item = (u32, &LayerPath)> {
    (0..).zip(paths)
}

fn tree(layers: &[Manifest]) -> Manifest {
    let mut tree = None;
    for layer in layers {
        let bytes = merge(tree.as_ref(), layer).expect("merge");
        tree = Some(Manifest::from_bytes(bytes).expect("open"));
    }
    tree.expect("a layer")
}

fn layers(paths: &[LayerPath], count: u32) -> Vec<Manifest> {
    let one = |layer| {
        let bytes = build(numbered(paths).filter(|(number, _)| number % count == layer));
        Manifest::from_bytes(bytes).expect("open")
    };
    (0..count).map(one).collect()
}

fn read(criterion: &mut Criterion) {
    let paths = paths();
    let tree = tree(&layers(&paths, 1));
    let mut wanted: Vec<(TreeIno, Vec<u8>)> = Vec::new();
    let mut listed = BTreeMap::new();
    for number in (1..=tree.len()).filter_map(TreeIno::new) {
        let inode = tree.inode(number).expect("inode");
        if inode.kind == FileKind::Regular {
            wanted.push((inode.parent, tree.name(&inode).expect("name").to_vec()));
            listed.insert(inode.parent, ());
        }
    }
    fastrand::Rng::with_seed(1).shuffle(&mut wanted);
    let listed: Vec<TreeIno> = listed.into_keys().collect();

    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Elements(1));
    let mut next = wanted.iter().cycle();
    group.bench_function("lookup", |bencher| {
        bencher.iter(|| {
            let (dir, name) = next.next().expect("cycle");
            let dir = tree.inode(*dir).expect("inode");
            let entry = tree.lookup(&dir, name).expect("lookup").expect("found");
            black_box(tree.inode(entry.ino.expect("no whiteout")).expect("inode"))
        });
    });
    let mut next = wanted.iter().cycle();
    group.bench_function("lookup of a missing name", |bencher| {
        bencher.iter(|| {
            let (dir, _) = next.next().expect("cycle");
            let dir = tree.inode(*dir).expect("inode");
            black_box(tree.lookup(&dir, b"file-x").expect("lookup"))
        });
    });
    let mut random = fastrand::Rng::with_seed(2);
    group.bench_function("stat", |bencher| {
        bencher.iter(|| {
            let ino = TreeIno::new(random.u32(1..=TOTAL)).expect("not 0");
            black_box(tree.inode(ino).expect("inode"))
        });
    });
    let mut next = listed.iter().cycle();
    group.bench_function("list of 100 with inodes", |bencher| {
        bencher.iter(|| {
            let dir = tree.inode(*next.next().expect("cycle")).expect("inode");
            for entry in tree.entries(&dir) {
                let entry = entry.expect("entry");
                black_box(tree.inode(entry.ino.expect("no whiteout")).expect("inode"));
            }
        });
    });
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(tree.as_bytes()).expect("written");
    let open = |file: &File| Manifest::open(file).expect("open");
    group.bench_function("open", |bencher| bencher.iter(|| black_box(open(&file))));
    group.finish();
}

fn make(criterion: &mut Criterion) {
    let paths = paths();
    let mut group = criterion.benchmark_group("make");
    group.sample_size(10).throughput(Throughput::Elements(TOTAL.into()));
    group.bench_function("build", |bencher| {
        bencher.iter_batched(|| (), |()| build(numbered(&paths)), BatchSize::PerIteration);
    });
    for count in [1, 20] {
        let layers = layers(&paths, count);
        group.bench_function(format!("merge of {count}"), |bencher| {
            bencher.iter_batched(|| (), |()| tree(&layers), BatchSize::PerIteration);
        });
    }
    let tree = tree(&layers(&paths, 1));
    group.bench_function("validate", |bencher| bencher.iter(|| tree.validate().expect("valid")));
    group.finish();
}

criterion_group!(benches, read, make);
criterion_main!(benches);
