//! What does the object store cost beside writing the same bytes as plain files?
//!
//! `hash`: digesting content in memory. `import`: 2,000 files of 1 to 24 KiB, put and published
//! on two threads, beside the same files written plainly and one `syncfs`, and beside the same
//! import again, when all of it is there. `open`: one object by its digest.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::AsFd;
use std::path::Path;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mica::object::{ObjectId, ObjectReader, Objects};

const FILES: u64 = 2000;
const THREADS: usize = 2;

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn contents() -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..FILES).map(|seed| pattern(random.usize(1 << 10..24 << 10), seed)).collect()
}

/// Calls `each` with every item, on all threads.
fn on_threads<T: Sync>(items: &[T], each: impl Fn(usize, &T) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let each = &each;
            scope.spawn(move || {
                for (index, item) in items.iter().enumerate().skip(thread).step_by(THREADS) {
                    each(index, item);
                }
            });
        }
    });
}

fn import(store: &Path, contents: &[Vec<u8>]) {
    let staging = Objects::open(store).expect("store").begin().expect("import");
    on_threads(contents, |_, content| {
        black_box(staging.put_bytes(content).expect("put"));
    });
    staging.publish().expect("publish");
    staging.finish().expect("finish");
}

fn write_plainly(dir: &Path, contents: &[Vec<u8>]) {
    on_threads(contents, |index, content| {
        fs::write(dir.join(index.to_string()), content).expect("written");
    });
    let dir = File::open(dir).expect("opened");
    rustix::fs::syncfs(dir.as_fd()).expect("synced");
}

fn empty(store: &Path) {
    let objects = Objects::open(store).expect("store");
    objects.begin_sweep(false).expect("sweep").run(&|_| false).expect("swept");
}

/// A directory on a disk, not on tmpfs: beside the build.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn hash(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash");
    for len in [4 << 10, 64 << 10, 1 << 20, 4 << 20] {
        let content = pattern(len, 1);
        group.throughput(Throughput::Bytes(u64::try_from(len).expect("a length")));
        group.bench_function(format!("{} KiB", len >> 10), |bencher| {
            bencher.iter(|| ObjectId::of(black_box(&content)));
        });
    }
    group.finish();
}

fn publish(criterion: &mut Criterion) {
    let contents = contents();
    let bytes: usize = contents.iter().map(Vec::len).sum();
    let mut group = criterion.benchmark_group("import");
    group.sample_size(10).throughput(Throughput::Bytes(u64::try_from(bytes).expect("a length")));
    group.bench_function("plain files and syncfs", |bencher| {
        bencher.iter_batched(
            scratch,
            |dir| {
                write_plainly(dir.path(), &contents);
                dir
            },
            BatchSize::PerIteration,
        );
    });
    let store = scratch();
    group.bench_function("objects, all new", |bencher| {
        bencher.iter_batched(
            || empty(store.path()),
            |()| import(store.path(), &contents),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("objects, all there", |bencher| {
        bencher.iter(|| import(store.path(), &contents));
    });
    group.finish();

    let reader = ObjectReader::open(store.path()).expect("reader");
    let ids: Vec<ObjectId> = contents.iter().map(|content| ObjectId::of(content)).collect();
    let mut next = ids.iter().cycle();
    criterion.bench_function("open", |bencher| {
        bencher.iter(|| reader.open_object(next.next().expect("endless")).expect("opened"));
    });
    empty(store.path());
}

criterion_group!(benches, hash, publish);
criterion_main!(benches);
