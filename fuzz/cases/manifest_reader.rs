//! Any bytes as a manifest: an error or a value from every function, never a panic, and never
//! more work than the file is long.

use mica::layer::manifest::seal;
use mica::layer::{
    EntryKind, FileKind, Inode, LayerBuilder, LayerPath, Manifest, Metadata, NewContent, NewNode,
    Timestamp, TreeIno, merge, read_node,
};

/// Names looked at in one directory: damaged directories may each claim all names.
const ENTRIES: usize = 64;

/// Reads `bytes` in every way there is, as they are and with their digests made right.
pub(crate) fn run(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::from_bytes(bytes.to_vec()) {
        read(&manifest);
    }
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    if let Ok(manifest) = Manifest::from_bytes(sealed) {
        read(&manifest);
    }
}

fn read(manifest: &Manifest) {
    let valid = manifest.validate().is_ok();
    for object in manifest.objects() {
        std::hint::black_box(object);
    }
    let numbers = (1..=manifest.len()).chain([manifest.len().saturating_add(1), u32::MAX]);
    for ino in numbers.filter_map(TreeIno::new) {
        let inode = manifest.inode(ino);
        assert!(inode.is_ok() || !valid || ino.get() > manifest.len());
        let origin = manifest.origin(ino);
        if let Ok(Some(origin)) = origin {
            let back = manifest.by_origin(origin);
            assert!(back == Some(ino) || !valid);
        }
        if let Ok(inode) = inode {
            let whole = read_inode(manifest, &inode);
            assert!(whole.is_some() || !valid, "{inode:?} was validated and cannot be read");
        }
    }
    let missing = LayerPath::parse(b"usr/bin/missing").expect("a path");
    assert!(manifest.resolve(&missing).is_ok() || !valid);
    if manifest.is_tree() {
        let merged = merge(Some(manifest), &small_layer());
        check_merge(merged.ok(), valid);
    } else {
        let merged = merge(None, manifest);
        check_merge(merged.ok(), valid);
        if valid {
            // Others may order their pools as they like; what is built here is canonical.
            let rebuilt = rebuild(manifest).expect("what was validated can be built");
            let rebuilt = Manifest::from_bytes(rebuilt).expect("what was built can be read");
            rebuilt.validate().expect("what was built is valid");
            assert!(rebuild(&rebuilt).is_some_and(|again| again == rebuilt.as_bytes()));
        }
    }
}

fn check_merge(merged: Option<Vec<u8>>, valid: bool) {
    assert!(merged.is_some() || !valid, "what was validated cannot be merged");
    let Some(tree) = merged.map(|bytes| Manifest::from_bytes(bytes).expect("a merge can be read"))
    else {
        return;
    };
    assert!(tree.validate().is_ok() || !valid);
}

/// None if anything in it cannot be read.
fn read_inode(manifest: &Manifest, inode: &Inode) -> Option<()> {
    let name = manifest.name(inode).ok();
    let path = manifest.path(inode).ok();
    let links = manifest.links(inode.ino).ok().map(Iterator::count);
    let object = manifest.object(inode).ok();
    let target = manifest.symlink_target(inode).ok();
    let xattrs = manifest.xattrs(inode).ok().map(|xattrs| xattrs.collect::<Result<Vec<_>, _>>());
    let found = manifest.xattr(inode, b"user.missing").ok();
    let mut entries = Some(());
    for entry in manifest.entries(inode).take(ENTRIES) {
        let looked = entry.and_then(|entry| manifest.lookup(inode, entry.name));
        entries = entries.filter(|()| matches!(looked, Ok(Some(_))));
    }
    let beyond = manifest.entry(inode, u32::MAX).ok();
    let missing = manifest.lookup(inode, b"\xff\xff").ok();
    name.and(path).and(links).and(object)?;
    target.and(xattrs?.ok()).and(found).and(entries).and(beyond).and(missing).map(|_| ())
}

fn small_layer() -> Manifest {
    let mut layer = LayerBuilder::new();
    let at = |text: &[u8]| LayerPath::parse(text).expect("a path");
    let metadata = Metadata { mode: 0o600, uid: 1, gid: 2, mtime: Timestamp::default() };
    let fifo = NewNode { metadata, xattrs: Vec::new(), content: NewContent::Fifo };
    layer.put(&at(b"usr/new"), fifo).expect("put");
    layer.whiteout(&at(b"etc"));
    layer.opaque(&at(b"var"));
    Manifest::from_bytes(layer.finish().expect("finish")).expect("open")
}

/// Takes a layer apart and puts it together again.
fn rebuild(layer: &Manifest) -> Option<Vec<u8>> {
    let mut builder = LayerBuilder::new();
    let mut first: Vec<Option<LayerPath>> = vec![None; layer.len() as usize + 1];
    first[1] = Some(LayerPath::root());
    for ino in (1..=layer.len()).filter_map(TreeIno::new) {
        let inode = layer.inode(ino).ok()?;
        let at = LayerPath::parse(&layer.path(&inode).ok()?).ok()?;
        if !inode.implicit {
            builder.put(&at, read_node(layer, &inode).ok()?).ok()?;
        } else if !at.is_root() {
            // Only what is below makes it; something may have to go again.
            let below = at.join(mica::layer::FileName::new(b"below").ok()?);
            builder.whiteout(&below);
            builder.remove(&below);
        }
        if inode.opaque {
            builder.opaque(&at);
        }
        first[ino.get() as usize] = Some(at);
    }
    for ino in (1..=layer.len()).filter_map(TreeIno::new) {
        let dir = layer.inode(ino).ok()?;
        if dir.kind != FileKind::Directory {
            continue;
        }
        let path = first[ino.get() as usize].clone()?;
        for entry in layer.entries(&dir) {
            let entry = entry.ok()?;
            let at = path.join(mica::layer::FileName::new(entry.name).ok()?);
            match (entry.kind, entry.ino) {
                (EntryKind::Whiteout, _) => builder.whiteout(&at),
                (EntryKind::Inode(_), Some(ino)) => {
                    let target = first[ino.get() as usize].as_ref()?;
                    if *target != at {
                        builder.hard_link(&at, target).ok()?;
                    }
                }
                (EntryKind::Inode(_), None) => return None,
            }
        }
    }
    builder.finish().ok()
}
