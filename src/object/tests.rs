//! The store as a whole, on the host file system of the temporary directory.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

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
