//! What does the mount process spend on a request, without the kernel's part of it?
//!
//! 100,000 files in 1,000 directories, unmounted. `lookup` finds names in random order,
//! `attributes` stats numbers, `list` reads one directory of 100 with everybody's attributes:
//! each for what nobody changed, and for a directory in which the container changed a tenth.
//! `open` opens and closes a shared file for reading. The host's own stat(2) and readdir of as
//! many names stand beside them as a yardstick.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mica::fs::{Caller, FileSystem, OpenRequest};
use mica::layer::{
    LayerBuilder, LayerPath, Layers, Metadata, NewContent, NewNode, Stack, Timestamp,
    default_shared_paths,
};
use mica::object::{ObjectReader, Objects};
use mica::private::PrivateLayer;
use mica::union::{Change, NodeId, SharedSet, Union};

const DIRECTORIES: u32 = 1000;
const FILES: u32 = 100;
/// The directory in which things were changed.
const CHANGED: u32 = 7;
const WHO: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

fn directory(number: u32) -> String {
    format!("usr/share/part-{number}")
}

fn name(number: u32) -> String {
    format!("component-{number}.conf")
}

fn store(path: &Path) -> Stack {
    let objects = Objects::open(path).expect("store");
    let layers = Layers::open(path).expect("store");
    let staging = objects.begin().expect("import");
    let put = staging.put_bytes(&[7; 4096]).expect("put");
    let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default() };
    let mut builder = LayerBuilder::new();
    for (dir, file) in (0..DIRECTORIES).flat_map(|dir| (0..FILES).map(move |file| (dir, file))) {
        let path = format!("{}/{}", directory(dir), name(file));
        let path = LayerPath::parse(path.as_bytes()).expect("path");
        let (object, size, data_blocks) = (put.id, put.len_bytes, put.data_blocks);
        let content = NewContent::Regular { object, size, data_blocks };
        builder.put(&path, NewNode { metadata, xattrs: Vec::new(), content }).expect("put");
    }
    staging.publish().expect("publish");
    let layer = layers.publish(staging.dir(), builder.finish().expect("manifest")).expect("layer");
    staging.finish().expect("finish");
    Stack::new(vec![layer])
}

fn root(scratch: &Path) -> Arc<FileSystem> {
    let path = scratch.join("store");
    fs::create_dir(&path).expect("a directory");
    let stack = store(&path);
    let tree = Layers::open(&path).and_then(|layers| layers.tree(&stack)).expect("tree");
    let shared = SharedSet::resolve(&tree, &default_shared_paths()).expect("paths");
    let private = PrivateLayer::open(&scratch.join("private"), &stack).expect("private layer");
    let objects = ObjectReader::open(&path).expect("objects");
    FileSystem::new(Union::new(tree, objects, Some(private), shared).expect("union"))
}

fn find(fs: &FileSystem, path: &str) -> NodeId {
    path.split('/').fold(NodeId::ROOT, |dir, name| {
        fs.lookup(dir, name.as_bytes()).expect("lookup").expect("it is there").id
    })
}

fn list(fs: &FileSystem, dir: NodeId) -> u64 {
    let mut sum = 0;
    fs.list(dir, 0, &mut |entry| {
        sum += entry.attributes.ino;
        false
    })
    .expect("list");
    sum
}

fn requests(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let fs = root(scratch.path());
    let changed = find(&fs, &directory(CHANGED));
    for file in (0..FILES).step_by(10) {
        let id = find(&fs, &format!("{}/{}", directory(CHANGED), name(file)));
        fs.change(id, &Change { mode: Some(0o600), ..Change::default() }).expect("chmod");
    }
    let untouched: Vec<NodeId> = (0..DIRECTORIES)
        .filter(|number| *number != CHANGED)
        .map(|number| find(&fs, &directory(number)))
        .collect();
    let names: Vec<String> = (0..FILES).map(name).collect();
    let mut random = fastrand::Rng::with_seed(1);

    let mut group = criterion.benchmark_group("lookup");
    group.bench_function("untouched", |bencher| {
        bencher.iter(|| {
            let (dir, name) = (random.usize(..untouched.len()), random.usize(..names.len()));
            black_box(fs.lookup(untouched[dir], names[name].as_bytes()).expect("lookup"))
        });
    });
    group.bench_function("beside changed files", |bencher| {
        bencher.iter(|| {
            let name = 1 + random.usize(..9) + 10 * random.usize(..10);
            black_box(fs.lookup(changed, names[name].as_bytes()).expect("lookup"))
        });
    });
    group.bench_function("a changed file", |bencher| {
        bencher.iter(|| {
            let name = 10 * random.usize(..10);
            black_box(fs.lookup(changed, names[name].as_bytes()).expect("lookup"))
        });
    });
    group.bench_function("no such name", |bencher| {
        bencher.iter(|| {
            let dir = random.usize(..untouched.len());
            black_box(fs.lookup(untouched[dir], b"component.none").expect("lookup"))
        });
    });
    group.finish();

    let some = find(&fs, &format!("{}/{}", directory(1), name(1)));
    let private = find(&fs, &format!("{}/{}", directory(CHANGED), name(0)));
    let mut group = criterion.benchmark_group("attributes");
    group.bench_function("untouched", |b| b.iter(|| fs.attributes(some).expect("attributes")));
    group.bench_function("changed", |b| b.iter(|| fs.attributes(private).expect("attributes")));
    let plain = scratch.path().join("private/mica.json");
    group.bench_function("stat(2) of a plain file", |bencher| {
        bencher.iter(|| rustix::fs::stat(black_box(&plain)).expect("stat"));
    });
    group.finish();

    let plain = scratch.path().join("plain");
    fs::create_dir(&plain).expect("a directory");
    for name in &names {
        fs::write(plain.join(name), b"").expect("a file");
    }
    let mut group = criterion.benchmark_group("list 100");
    group.throughput(Throughput::Elements(FILES.into()));
    group.bench_function("untouched", |b| b.iter(|| list(&fs, untouched[0])));
    group.bench_function("a tenth changed", |b| b.iter(|| list(&fs, changed)));
    group.bench_function("readdir and stat(2) of plain files", |bencher| {
        bencher.iter(|| {
            fs::read_dir(&plain)
                .expect("listed")
                .map(|entry| entry.and_then(|entry| entry.metadata()).expect("stat").len())
                .sum::<u64>()
        });
    });
    group.finish();

    let read = OpenRequest { write: false, truncate: false, execute: false, durable: false };
    let mut group = criterion.benchmark_group("open and close");
    for (mode, passthrough) in [("coherent", false), ("shared", true)] {
        if passthrough {
            fs.allow_passthrough();
        }
        group.bench_function(mode, |bencher| {
            bencher.iter(|| {
                let opened = fs.open(some, read, WHO).expect("open");
                fs.close(opened.handle).expect("close");
            });
        });
    }
    group.finish();
    Objects::open(&scratch.path().join("store"))
        .and_then(|objects| objects.begin_sweep(false)?.run(&|_| false))
        .expect("immutable objects are removed");
}

criterion_group!(benches, requests);
criterion_main!(benches);
