//! A root that is not mounted, for the cases that need one, and the input they are told by.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use mica::fs::FileSystem;
use mica::host::HostError;
use mica::layer::{
    LayerBuilder, LayerPath, Layers, Metadata, NewContent, NewNode, Stack, Timestamp,
    default_shared_paths,
};
use mica::object::{ObjectReader, Objects};
use mica::private::PrivateLayer;
use mica::union::{SharedSet, Union};

/// A store with one template.
pub(crate) struct Fixture {
    store: PathBuf,
    pub(crate) stack: Stack,
}

/// A store with one template of all that can be shared; made once, left to the temporary directory.
pub(crate) fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let store = fresh_directory("store");
        let objects = Objects::open_with_locks(&store, no_immutable()).expect("objects");
        let layers = Layers::open(&store).expect("layers");
        let staging = objects.begin().expect("staging");
        let mut builder = LayerBuilder::new();
        let at = |path: &str| LayerPath::parse(path.as_bytes()).expect("a path");
        let node = |mode, content| NewNode {
            metadata: Metadata { mode, uid: 0, gid: 0, mtime: Timestamp { secs: 9, nanos: 9 } },
            xattrs: Vec::new(),
            content,
        };
        for dir in ["usr", "usr/deep", "usr/tool", "deep", "deep/usr", "new"] {
            builder.put(&at(dir), node(0o755, NewContent::Directory)).expect("directory");
        }
        for file in ["usr/tool/one", "usr/one", "one", "deep/tool", "usr/deep/one"] {
            let put = staging.put_bytes(file.repeat(300).as_bytes()).expect("object");
            let (object, size, data_blocks) = (put.id, put.len_bytes, put.data_blocks);
            let content = NewContent::Regular { object, size, data_blocks };
            builder.put(&at(file), node(0o4755, content)).expect("file");
        }
        for link in ["usr/tool/tool", "deep/usr/one"] {
            builder.hard_link(&at(link), &at("one")).expect("link");
        }
        let symlink = NewContent::Symlink(b"usr/one".as_slice().into());
        builder.put(&at("tool"), node(0o777, symlink)).expect("symlink");
        staging.publish().expect("published");
        let bytes = builder.finish().expect("a layer");
        let layer = layers.publish(staging.dir(), bytes).expect("layer");
        staging.finish().expect("finished");
        Fixture { store, stack: Stack::new(vec![layer]) }
    })
}

fn no_immutable() -> mica::object::Locks {
    mica::object::Locks { readonly_mount: false, immutable: false }
}

/// A new directory.
pub(crate) fn fresh_directory(what: &str) -> PathBuf {
    let base = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    for number in 0u64.. {
        let path = base.join(format!("operations-{what}-{}-{number}", std::process::id()));
        if std::fs::create_dir_all(&base).is_ok() && std::fs::create_dir(&path).is_ok() {
            return path;
        }
    }
    unreachable!("numbers do not end")
}

/// The root that the template and the private directory make.
///
/// # Errors
/// Whatever is wrong with the private directory.
pub(crate) fn open(fixture: &Fixture, private: &Path) -> Result<Arc<FileSystem>, Box<HostError>> {
    let layers = Layers::open(&fixture.store).expect("layers");
    let tree = layers.tree(&fixture.stack).expect("tree");
    let shared = SharedSet::resolve(&tree, &default_shared_paths()).expect("shared");
    let private = PrivateLayer::open(private, &fixture.stack).map_err(HostError::from)?;
    let objects = ObjectReader::open_with_locks(&fixture.store, no_immutable()).expect("objects");
    let fs =
        FileSystem::new(Union::new(tree, objects, Some(private), shared).map_err(HostError::from)?);
    // Unmounted, nothing passes through; what is decided is decided as if it did.
    fs.allow_passthrough();
    Ok(fs)
}

/// Takes numbers off the front of the input; zeros when it is used up.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Bytes<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }
}
