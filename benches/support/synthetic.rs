//! A store as large hosts have it, made without importing anything.
//!
//! Templates of one layer each that share most contents, objects that are empty files under
//! the right names, roots at rest with a few hundred changes. Manifests, trees, records and
//! private directories are what Mica itself would have written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use mica::layer::{
    LayerBuilder, LayerPath, Layers, Metadata, NewContent, NewNode, Provenance, RunConfig, Stack,
    Template, TemplateKind, Timestamp, default_shared_paths,
};
use mica::object::{ObjectId, Objects};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) templates: u64,
    /// In each template.
    pub(crate) files: u64,
    pub(crate) roots: u64,
    /// In each root.
    pub(crate) changes: u64,
}

/// One file in so many is of its template alone.
const OWN: u64 = 20;
/// Files in one directory.
const IN_DIRECTORY: u64 = 50;

/// The made store.
pub(crate) struct Synthetic {
    pub(crate) store: PathBuf,
}

impl Synthetic {
    /// Makes the store and the private directories below `scratch`.
    pub(crate) fn make(scratch: &Path, sizes: Sizes) -> Self {
        let store = scratch.join("store");
        mica::host::Store::open_or_create(&store).expect("a store can be made");
        let objects = Objects::open(&store).expect("a store");
        let layers = Layers::open(&store).expect("a store");
        let staging = objects.begin().expect("a staging directory");
        let mut stacks = Vec::new();
        for number in 0..sizes.templates {
            let layer = layer(number, sizes.files);
            let layer = layers.publish(staging.dir(), layer).expect("a valid layer");
            let stack = Stack::new(vec![layer]);
            let tree = layers.tree(&stack).expect("it merges");
            for object in tree.objects() {
                let hex = object.id.to_string();
                let directory = store.join("objects").join(&hex[..2]);
                // Most are there already, from the templates before.
                let _there = fs::create_dir(&directory);
                fs::File::create(directory.join(&hex[2..])).expect("an object");
            }
            let template = Template {
                name: format!("debian:{number}").parse().expect("a name"),
                kind: TemplateKind::Os,
                stack: stack.clone(),
                config: RunConfig::default(),
                shared_paths: default_shared_paths(),
                provenance: Provenance::now("synthetic".to_owned(), None),
            };
            layers.templates().put(&template, false).expect("written");
            stacks.push((template.name.to_string(), stack));
        }
        staging.finish().expect("finished");
        for number in 0..sizes.roots {
            let (template, stack) =
                stacks.iter().cycle().nth(index(number % sizes.templates)).expect("one at least");
            let private = scratch.join(format!("private/{number}"));
            change(&private, number, sizes.changes);
            let layers: Vec<String> = stack.layers().iter().map(ToString::to_string).collect();
            let private_record = json!({ "format": 1, "stack": layers, "adopted": true });
            fs::write(private.join("mica.json"), private_record.to_string()).expect("written");
            let record = json!({
                "format": 1, "id": format!("{number:016x}"), "name": format!("root{number}"),
                "template": template, "stack": layers, "private": private, "created": 0,
            });
            let path = store.join(format!("roots/{number:016x}.json"));
            fs::write(path, record.to_string()).expect("written");
        }
        Self { store }
    }
}

/// The content of file `file` of template `template`.
pub(crate) fn content(template: u64, file: u64) -> ObjectId {
    let own = file % OWN == template % OWN;
    ObjectId::of(format!("{file} of {}", if own { template + 1 } else { 0 }).as_bytes())
}

/// Where file `file` lies: most of them under /usr, some under /etc, /var and /srv.
pub(crate) fn path(file: u64) -> String {
    let directory = file / IN_DIRECTORY;
    let top = match directory % 20 {
        0 => "etc",
        1 | 2 => "var/lib",
        3 => "srv",
        _ => "usr/share",
    };
    match file {
        7 => "usr/lib/x86_64-linux-gnu/libssl.so.3".to_owned(),
        _ => format!("{top}/package{}/part{directory}/file-{file}.conf", directory / 10),
    }
}

fn layer(template: u64, files: u64) -> Vec<u8> {
    let mut builder = LayerBuilder::new();
    let mtime = Timestamp { secs: 1_700_000_000, nanos: 0 };
    let node = |content| NewNode {
        metadata: Metadata { mode: 0o644, uid: 0, gid: 0, mtime },
        xattrs: Vec::new(),
        content,
    };
    let at = |path: &str| LayerPath::parse(path.as_bytes()).expect("a path");
    builder.put(&at("lib"), node(NewContent::Symlink(b"usr/lib"[..].into()))).expect("put");
    for file in 0..files {
        let object = content(template, file);
        // The objects are empty files; what the manifests say of their length is free.
        let content = NewContent::Regular { object, size: 1000 + file, data_blocks: 8 };
        builder.put(&at(&path(file)), node(content)).expect("put");
    }
    builder.finish().expect("it fits the format")
}

/// A private layer: new and changed files, whiteouts, most of them in a few directories.
fn change(private: &Path, root: u64, changes: u64) {
    for part in
        ["work", "index", "upper/etc/own", "upper/var/lib/own", "upper/var/log", "upper/root"]
    {
        fs::create_dir_all(private.join(part)).expect("made");
    }
    for number in 0..changes {
        let place = ["etc/own", "var/lib/own", "var/log", "root"][index(number % 4)];
        let path = private.join(format!("upper/{place}/changed-{number}"));
        match number % 10 {
            0 => symlink("/etc/hosts", path).expect("linked"),
            // Half of the files are the same in all roots.
            odd if odd % 2 == 1 => {
                fs::write(path, format!("{number} everywhere")).expect("written")
            }
            _ => fs::write(path, format!("{number} of {root}")).expect("written"),
        }
    }
    let whiteout = private.join("upper/etc/package0");
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, whiteout, FileType::CharacterDevice, mode, 0).expect("root may make devices");
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a small number")
}
