//! Any bytes as an archive of a tree: an error or a sound layer, never a panic, and no more
//! memory than the limits allow.

use std::io::Cursor;
use std::num::NonZeroUsize;

use mica::layer::import::{Format, ImportOptions, Limits, Silent, Source, try_import};
use mica::layer::{LayerBuilder, LayerPath, Manifest, Metadata, NewContent, NewNode, merge};

/// Imports `bytes` as they are, and with the checksum of every header made right; alone, and on
/// another layer.
pub(crate) fn run(bytes: &[u8]) {
    let lower = lower();
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    for bytes in [bytes, &sealed] {
        import(bytes, None);
        import(bytes, Some(&lower));
    }
}

fn import(bytes: &[u8], on: Option<&Manifest>) {
    let options = ImportOptions {
        on,
        format: Format::Tree,
        threads: NonZeroUsize::MIN,
        limits: Limits {
            file_bytes: 1 << 20,
            nodes: 10_000,
            spool_bytes: 1 << 20,
            hole_bytes: 1 << 20,
        },
        ..Default::default()
    };
    let source = Source::stream("input".to_owned(), Cursor::new(bytes.to_vec()));
    match try_import(source, &options, &Silent) {
        Ok(imported) => {
            for layer in imported.layers {
                let layer = Manifest::from_bytes(layer).expect("an import makes manifests");
                layer.validate().expect("an import makes sound manifests");
                let tree = merge(on, &layer).expect("a layer merges");
                let tree = Manifest::from_bytes(tree).expect("a merge makes trees");
                tree.validate().expect("a merge makes sound trees");
            }
        }
        Err(error) => {
            std::hint::black_box(error.to_string());
        }
    }
}

/// A tree below with what layers refer to: a directory, a link, a file with two names.
fn lower() -> Manifest {
    let metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: Default::default() };
    let node = |content| NewNode { metadata, xattrs: Vec::new(), content };
    let path = |text: &str| LayerPath::parse(text.as_bytes()).expect("a path");
    let mut builder = LayerBuilder::new();
    builder.put(&path("d/s"), node(NewContent::Symlink(b"../d"[..].into()))).expect("put");
    builder.put(&path("a"), node(NewContent::Fifo)).expect("put");
    builder.hard_link(&path("d/b"), &path("a")).expect("link");
    let layer = Manifest::from_bytes(builder.finish().expect("finish")).expect("a layer");
    Manifest::from_bytes(merge(None, &layer).expect("merge")).expect("a tree")
}

/// Gives every block the checksum of a header. Content changes with it, which harms nothing.
pub(crate) fn seal(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
