//! The store as a whole, on the host file system of the temporary directory.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::*;

/// A store in a temporary directory, whose objects can be removed at the end.
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

    fn open(&self) -> Objects {
        Objects::open(self.path()).unwrap()
    }

    fn object(&self, id: &ObjectId) -> PathBuf {
        self.path().join("objects").join(id.path())
    }

    fn put(&self, content: &[u8]) -> ObjectId {
        let staging = self.open().begin().unwrap();
        let id = staging.put_bytes(content).unwrap().id;
        staging.publish().unwrap();
        staging.finish().unwrap();
        id
    }

    fn listing(&self) -> HashSet<ObjectId> {
        self.open().iter().map(|stored| stored.unwrap().id).collect()
    }

    fn imports(&self) -> usize {
        fs::read_dir(self.path().join("staging")).unwrap().count()
    }

    /// Replaces what an object's name stands for, as a power cut or a bad disk may.
    fn damage(&self, id: &ObjectId, content: &[u8]) {
        let path = self.object(id);
        crate::sys::flags::set_immutable(File::open(&path).unwrap().as_fd(), false).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, content).unwrap();
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        let objects = self.open();
        for stored in objects.iter() {
            objects.shared.mark_immutable(&stored.unwrap().id, false).unwrap();
        }
    }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

#[test]
fn published_content_is_read_back_under_its_digest() {
    let store = TestStore::new();
    let contents = [Vec::new(), b"x".to_vec(), pattern(4096, 1), pattern(5 << 20, 2)];
    let staging = store.open().begin().unwrap();
    for content in &contents {
        let put = staging.put_bytes(content).unwrap();
        assert_eq!(put.id, ObjectId::of(content));
        assert_eq!(put.len_bytes, u64::try_from(content.len()).unwrap());
        assert!(!put.hit);
        assert!(staging.put_bytes(content).unwrap().hit, "the second time it is known");
    }
    assert_eq!(staging.publish().unwrap().objects, 4);
    assert_eq!(staging.publish().unwrap(), Published::default());
    staging.finish().unwrap();
    assert_eq!(store.imports(), 0);

    let reader = ObjectReader::open(store.path()).unwrap();
    for content in &contents {
        let id = ObjectId::of(content);
        let file = reader.open_object(&id).unwrap();
        let mut back = vec![0; content.len() + 1];
        assert_eq!(file.read_at(&mut back, 0).unwrap(), content.len());
        assert_eq!(&back[..content.len()], content);
        let metadata = fs::metadata(store.object(&id)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o444);
        assert_eq!(metadata.nlink(), 1);
    }
}

#[test]
fn every_way_to_put_gives_the_same_object() {
    let store = TestStore::new();
    let big = (9 << 20) + 4097;
    for (seed, len) in [(1, 0), (2, 100), (3, 4 << 20), (4, (4 << 20) + 1), (5, big)] {
        let mut content = pattern(len, seed);
        if len > 1 << 20 {
            content[8192..800_000].fill(0);
            let end = len - 5000;
            content[end..].fill(0);
        }
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&content, 0).unwrap();
        let len = u64::try_from(len).unwrap();
        let mut puts = Vec::new();
        for way in 0..4 {
            let staging = store.open().begin().unwrap();
            puts.push(match way {
                0 => staging.put_bytes(&content).unwrap(),
                1 => staging.put_reader(&mut content.as_slice(), Some(len)).unwrap(),
                2 => staging.put_reader(&mut content.as_slice(), None).unwrap(),
                _ => staging.put_file(source.as_fd(), len).unwrap(),
            });
            let names = fs::read_dir(staging.path()).unwrap().map(|name| name.unwrap().path());
            let path = names.into_iter().find(|path| !path.ends_with("pins")).unwrap();
            if len > 1 << 20 {
                assert!(
                    fs::metadata(&path).unwrap().blocks() < len / 512 - 1000,
                    "zeros are holes"
                );
            }
            assert!(fs::read(path).unwrap() == content);
        }
        assert!(puts.iter().all(|put| *put == puts[0]), "{puts:?}");
    }
}

#[test]
fn what_nothing_refers_to_is_swept_and_the_rest_stays() {
    let store = TestStore::new();
    let (keep, drop) = (store.put(b"keep"), store.put(b"drop"));
    let dry = store.open().begin_sweep(true).unwrap().run(&|id| *id == keep).unwrap();
    assert_eq!(store.listing(), HashSet::from([keep, drop]));
    let swept = store.open().begin_sweep(false).unwrap().run(&|id| *id == keep).unwrap();
    assert_eq!(swept, dry);
    assert_eq!((swept.objects, swept.kept, swept.pinned), (1, 1, 0));
    assert_eq!(store.listing(), HashSet::from([keep]));
}

#[test]
fn an_empty_file_under_the_name_of_an_object_is_no_hit_and_is_replaced() {
    let store = TestStore::new();
    let id = store.put(b"content");
    store.damage(&id, b"");
    assert!(!store.open().contains(&id).unwrap());
    let staging = store.open().begin().unwrap();
    assert!(!staging.pin(&id).unwrap());
    assert!(!staging.put_bytes(b"content").unwrap().hit);
    assert_eq!(staging.publish().unwrap().repaired, 1);
    assert_eq!(store.open().verify(&id).unwrap(), Verdict::Whole { len_bytes: 7, immutable: true });
}

#[test]
fn a_running_import_keeps_what_it_found_and_what_it_published() {
    let store = TestStore::new();
    let found = store.put(b"found");
    let lost = store.put(b"nobody needs this");
    let staging = store.open().begin().unwrap();
    assert!(staging.put_bytes(b"found").unwrap().hit);
    let published = staging.put_bytes(b"published").unwrap().id;
    let staged = staging.put_bytes(b"published after the sweep");
    let swept = store.open().begin_sweep(false).unwrap().run(&|_| false).unwrap();
    assert_eq!((swept.objects, swept.pinned, swept.imports), (1, 1, 0));
    staging.publish().unwrap();
    let swept = store.open().begin_sweep(false).unwrap().run(&|_| false).unwrap();
    assert_eq!((swept.objects, swept.pinned), (0, 3));
    assert_eq!(store.listing(), HashSet::from([found, published, staged.unwrap().id]));
    assert!(!store.open().contains(&lost).unwrap());
    drop(staging);
    let swept = store.open().begin_sweep(false).unwrap().run(&|_| false).unwrap();
    assert_eq!((swept.objects, swept.kept), (3, 0));
}

#[test]
fn an_import_that_ends_between_mark_and_sweep_keeps_its_objects() {
    let store = TestStore::new();
    let old = store.put(b"old");
    let early = store.open().begin().unwrap();
    let sweep = store.open().begin_sweep(false).unwrap();
    // The mark happens here, and sees none of the two templates that come now.
    let late = store.open().begin().unwrap();
    let new = late.put_bytes(b"new").unwrap().id;
    assert!(early.put_bytes(b"old").unwrap().hit);
    let mut others = Vec::new();
    for staging in [early, late] {
        staging.publish().unwrap();
        // What keeps a layer lies there too, and has to outlive the collection as well.
        others.push(staging.path().join("layer-link"));
        fs::write(&others[others.len() - 1], b"").unwrap();
        staging.finish().unwrap();
    }
    assert!(others.iter().all(|other| other.exists()));
    assert_eq!(store.open().sweep_staging().unwrap(), 0, "not while a collection runs");
    let swept = sweep.run(&|_| false).unwrap();
    assert_eq!((swept.objects, swept.pinned), (0, 2));
    assert_eq!(store.listing(), HashSet::from([old, new]));
    assert_eq!(store.open().sweep_staging().unwrap(), 2);
    assert_eq!(store.imports(), 0);
}

#[test]
fn an_object_that_lost_its_immutable_flag_gets_it_back_on_a_hit() {
    let store = TestStore::new();
    let id = store.put(b"content");
    let objects = store.open();
    objects.shared.mark_immutable(&id, false).unwrap();
    assert_eq!(objects.verify(&id).unwrap(), Verdict::Whole { len_bytes: 7, immutable: false });
    assert_eq!(store.put(b"content"), id);
    assert_eq!(objects.verify(&id).unwrap(), Verdict::Whole { len_bytes: 7, immutable: true });
}

#[test]
fn verify_tells_whole_missing_and_altered_apart() {
    let store = TestStore::new();
    let id = store.put(b"content");
    let objects = store.open();
    assert_eq!(objects.verify(&ObjectId::of(b"other")).unwrap(), Verdict::Missing);
    store.damage(&id, b"c0ntent");
    let found = ObjectId::of(b"c0ntent");
    assert_eq!(objects.verify(&id).unwrap(), Verdict::Altered { found, len_bytes: 7 });
}

#[test]
fn publishing_goes_on_where_an_earlier_call_failed() {
    let store = TestStore::new();
    let staging = store.open().begin().unwrap();
    let ids: Vec<_> = (0..3).map(|n| staging.put_bytes(&pattern(9, n)).unwrap().id).collect();
    // As if the call had ended after the first rename, and before its flag.
    fs::create_dir(store.object(&ids[0]).parent().unwrap()).unwrap();
    fs::rename(staging.path().join("0"), store.object(&ids[0])).unwrap();
    let published = staging.publish().unwrap();
    assert_eq!((published.objects, published.already), (2, 1));
    for id in ids {
        let whole = Verdict::Whole { len_bytes: 9, immutable: true };
        assert_eq!(store.open().verify(&id).unwrap(), whole);
    }
}

#[test]
fn a_large_import_is_published_on_several_threads() {
    let store = TestStore::new();
    let staging = store.open().begin().unwrap();
    for seed in 0..600 {
        staging.put_bytes(&pattern(16, seed)).unwrap();
    }
    let published = staging.publish().unwrap();
    assert_eq!((published.objects, published.bytes), (600, 9600));
    assert_eq!(store.listing().len(), 600);
}

/// Tries to get at an object's content for writing, knowing its path.
fn attack_by_path(path: &Path) -> Vec<Errno> {
    let open = |flags| openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).err();
    let linked = path.with_extension("linked");
    [
        open(OFlags::RDWR),
        open(OFlags::WRONLY | OFlags::TRUNC),
        open(OFlags::WRONLY | OFlags::APPEND),
        rustix::fs::link(path, linked).err(),
        rustix::fs::unlink(path).err(),
        rustix::fs::rename(path, path.with_extension("renamed")).err(),
        rustix::fs::chmod(path, Mode::from_raw_mode(0o644)).err(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Needs root: without it the mode alone would refuse.
#[test]
fn the_immutable_flag_alone_stops_writes_by_path() {
    let store = TestStore::new();
    let id = store.put(b"content");
    assert_eq!(attack_by_path(&store.object(&id)), vec![Errno::PERM; 7]);
}

/// Needs root.
#[test]
fn the_readonly_mount_alone_stops_writes_through_a_reader() {
    let store = TestStore::new();
    let locks = Locks { immutable: false, ..Locks::ALL };
    let staging = Objects::open_with_locks(store.path(), locks).unwrap().begin().unwrap();
    let id = staging.put_bytes(b"content").unwrap().id;
    staging.publish().unwrap();

    let reopen = |reader: &ObjectReader| {
        use std::os::fd::AsRawFd;
        let file = reader.open_object(&id).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        openat(CWD, path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).err()
    };
    let reader = ObjectReader::open_with_locks(store.path(), locks).unwrap();
    assert_eq!(reader.locks(), locks);
    assert_eq!(reopen(&reader), Some(Errno::ROFS));
    // The control: with no lock left the same attack succeeds.
    let none = Locks { readonly_mount: false, immutable: false };
    assert_eq!(reopen(&ObjectReader::open_with_locks(store.path(), none).unwrap()), None);
}

/// Needs root, to have something to give up. Capabilities belong to a thread.
#[test]
fn without_capabilities_the_store_works_with_fewer_locks_and_says_so() {
    let store = TestStore::new();
    let worker = || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_ADMIN | CapabilitySet::LINUX_IMMUTABLE);
        set_capabilities(None, sets).unwrap();
        let id = store.put(b"content");
        let verdict = store.open().verify(&id).unwrap();
        assert_eq!(verdict, Verdict::Whole { len_bytes: 7, immutable: false });
        let reader = ObjectReader::open(store.path()).unwrap();
        assert!(!reader.locks().readonly_mount);
        assert_eq!(reader.open_object(&id).unwrap().len().unwrap(), 7);
    };
    std::thread::scope(|scope| scope.spawn(worker).join().unwrap());
}

#[test]
fn a_reader_tells_missing_objects_and_foreign_ones_apart() {
    let store = TestStore::new();
    let id = store.put(b"content");
    let reader = ObjectReader::open(store.path()).unwrap();
    let other = ObjectId::of(b"other");
    assert!(matches!(reader.open_object(&other), Err(ObjectError::Missing(id)) if id == other));
    store.damage(&id, b"");
    fs::remove_file(store.object(&id)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", store.object(&id)).unwrap();
    assert!(matches!(reader.open_object(&id), Err(ObjectError::Damaged(_))));
    fs::remove_file(store.object(&id)).unwrap();
}

struct Failing(usize);

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let read = buffer.len().min(self.0);
        buffer[..read].fill(1);
        self.0 -= read;
        Ok(read)
    }
}

#[test]
fn a_source_that_fails_leaves_nothing_staged() {
    let store = TestStore::new();
    let staging = store.open().begin().unwrap();
    for len in [0, 100, 9 << 20] {
        let error = staging.put_reader(&mut Failing(len), None).unwrap_err();
        assert!(matches!(error, ObjectError::Source(_)), "{error:?}");
    }
    assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 1, "only the pins");
}

#[test]
fn many_threads_that_put_the_same_content_make_one_object_of_each() {
    let store = TestStore::new();
    let staging = store.open().begin().unwrap();
    let misses = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for seed in 0..50 {
                    let put = staging.put_bytes(&pattern(2000, seed)).unwrap();
                    misses.fetch_add(usize::from(!put.hit), Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| staging.publish().unwrap());
    });
    staging.publish().unwrap();
    assert_eq!(misses.into_inner(), 50);
    assert_eq!(store.listing().len(), 50);
    assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 1, "only the pins");
}

#[test]
fn imports_and_sweeps_that_race_never_lose_a_pinned_object() {
    let store = TestStore::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let importers: Vec<_> = (0..4)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..12 {
                        let staging = store.open().begin().unwrap();
                        // Most of it is what the others put too, or the sweep has just removed.
                        let ids: Vec<_> = (0..10)
                            .map(|n| staging.put_bytes(&pattern(100, (n * round + thread) % 23)))
                            .map(|put| put.unwrap().id)
                            .collect();
                        staging.publish().unwrap();
                        for id in ids {
                            assert!(store.open().contains(&id).unwrap());
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.open().begin_sweep(false).unwrap().run(&|_| false).unwrap();
            }
        });
        let failed = importers.into_iter().map(|importer| importer.join()).any(|r| r.is_err());
        done.store(true, Ordering::Relaxed);
        assert!(!failed);
    });
}

#[test]
fn a_file_that_changes_while_it_is_put_is_what_was_read() {
    let store = TestStore::new();
    let source = tempfile::tempfile().unwrap();
    let len = 24 << 20;
    source.write_all_at(&pattern(len, 1), 0).unwrap();
    let staging = store.open().begin().unwrap();
    let done = AtomicBool::new(false);
    let put = std::thread::scope(|scope| {
        scope.spawn(|| {
            for seed in (0_u8..=255).cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                source.write_all_at(&[seed; 64], u64::from(seed) << 16).unwrap();
            }
        });
        let put = staging.put_file(source.as_fd(), u64::try_from(len).unwrap());
        done.store(true, Ordering::Relaxed);
        put.unwrap()
    });
    staging.publish().unwrap();
    let verdict = store.open().verify(&put.id).unwrap();
    assert!(matches!(verdict, Verdict::Whole { .. }), "{verdict:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A model of the whole store: a set of contents, of which some are referred to.
    #[test]
    fn the_store_is_a_set_of_contents(
        imports in proptest::collection::vec(
            (proptest::collection::vec((0_u64..12, 0_usize..9000), 1..6), any::<bool>()), 1..6),
        live in proptest::collection::hash_set(0_u64..12, 0..12),
    ) {
        let store = TestStore::new();
        let mut model = HashSet::new();
        let mut alive = HashSet::new();
        for (contents, publish) in imports {
            let staging = store.open().begin().unwrap();
            let mut here = HashSet::new();
            for (seed, len) in contents {
                let content = pattern(len, seed);
                let put = staging.put_reader(&mut content.as_slice(), None).unwrap();
                prop_assert_eq!(put.id, ObjectId::of(&content));
                prop_assert_eq!(put.hit, model.contains(&put.id) || here.contains(&put.id));
                here.insert(put.id);
                if live.contains(&seed) {
                    alive.insert(put.id);
                }
            }
            if publish {
                staging.publish().unwrap();
                model.extend(here);
            }
        }
        prop_assert_eq!(store.listing(), model.clone());
        store.open().begin_sweep(false).unwrap().run(&|id| alive.contains(id)).unwrap();
        model.retain(|id| alive.contains(id));
        prop_assert_eq!(store.listing(), model);
    }

    #[test]
    fn any_bytes_as_pins_are_read_or_ignored(bytes: Vec<u8>) {
        let store = TestStore::new();
        let id = store.put(b"content");
        let staging = store.open().begin().unwrap();
        fs::write(staging.path().join("pins"), &bytes).unwrap();
        store.open().begin_sweep(false).unwrap().run(&|_| false).unwrap();
        prop_assert!(!store.open().contains(&id).unwrap());
    }
}

const CRASH_STORE: &str = "MICA_TEST_CRASH_STORE";
const CRASH_POINT: &str = "MICA_TEST_CRASH_POINT";

/// Kills this process if it is the child of a crash test that wants to die here.
pub(super) fn die_at(point: &'static str) {
    use std::sync::OnceLock;
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| std::env::var(CRASH_POINT).ok());
    if wanted.as_deref() == Some(point) {
        kill_process(getpid(), Signal::KILL).unwrap();
    }
}

/// Not a test by itself: what the child of the crash tests does.
#[test]
fn crash_child() {
    let Ok(path) = std::env::var(CRASH_STORE) else { return };
    let objects = Objects::open(Path::new(&path)).unwrap();
    let staging = objects.begin().unwrap();
    for seed in 0..10 {
        staging.put_bytes(&pattern(3000, seed)).unwrap();
    }
    staging.put_reader(&mut pattern(6 << 20, 99).as_slice(), None).unwrap();
    staging.publish().unwrap();
    staging.finish().unwrap();
    objects.begin_sweep(false).unwrap().run(&|_| false).unwrap();
}

#[test]
fn killed_at_any_step_an_import_leaves_whole_objects_and_what_can_be_swept() {
    let points = [
        "directory made",
        "staged",
        "hit pinned",
        "pinned",
        "content durable",
        "first renamed",
        "renamed",
        "published",
        "directory emptied",
        "unlocked for removal",
    ];
    for point in points {
        let store = TestStore::new();
        store.put(&pattern(3000, 3));
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "object::tests::crash_child"])
            .env(CRASH_STORE, store.path())
            .env(CRASH_POINT, point)
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(9), "{point}: {status}");

        let objects = store.open();
        let check = || {
            for stored in objects.iter() {
                let verdict = objects.verify(&stored.unwrap().id).unwrap();
                assert!(matches!(verdict, Verdict::Whole { .. }), "{point}: {verdict:?}");
            }
        };
        check();
        let dead = usize::from(point != "unlocked for removal");
        assert_eq!(store.imports(), dead, "{point}");
        let swept = objects.begin_sweep(false).unwrap().run(&|_| false).unwrap();
        assert_eq!(usize::try_from(swept.imports).unwrap(), dead, "{point}");
        assert_eq!((store.imports(), store.listing().len()), (0, 0), "{point}");

        // The same import again, on what the crash left.
        let staging = objects.begin().unwrap();
        for seed in 0..10 {
            staging.put_bytes(&pattern(3000, seed)).unwrap();
        }
        staging.publish().unwrap();
        assert_eq!(store.listing().len(), 10, "{point}");
        check();
    }
}

#[test]
fn a_pin_is_read_once_however_often_the_pins_are_reread() {
    let store = TestStore::new();
    let staging = store.open().begin().unwrap();
    let shared = &store.open().shared;
    let mut pinned = pins::Pinned::ignoring(HashSet::<CString>::new());
    for seed in 0..3 {
        let id = staging.put_bytes(&pattern(10, seed)).unwrap().id;
        staging.publish().unwrap();
        pinned.refresh(shared.staging.as_fd()).unwrap();
        assert!(pinned.contains(&id));
    }
}
