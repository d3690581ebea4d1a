use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::layer::{FileName, LayerBuilder, LayerPath, NewContent, NewNode};
use crate::object::ObjectId;

fn file() -> NewNode {
    let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default() };
    let content = NewContent::Regular { object: ObjectId::of(b"x"), size: 1, data_blocks: 8 };
    NewNode { metadata, xattrs: vec![((*b"user.x").into(), (*b"y").into())], content }
}

fn small() -> Vec<u8> {
    let mut layer = LayerBuilder::new();
    layer.put(&LayerPath::parse(b"a/b").expect("path"), file()).expect("put");
    layer
        .hard_link(&LayerPath::parse(b"c").expect("path"), &LayerPath::parse(b"a/b").expect("path"))
        .expect("link");
    layer.finish().expect("finish")
}

#[test]
fn every_flipped_bit_and_every_lost_byte_is_found() {
    let good = small();
    Manifest::from_bytes(good.clone()).and_then(|m| m.validate()).expect("valid");
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            let found = Manifest::from_bytes(bad).and_then(|m| m.validate());
            assert!(found.is_err(), "bit {bit} of byte {at}");
        }
        assert!(Manifest::from_bytes(good[..at].to_vec()).is_err(), "{at} bytes");
    }
    let mut longer = good;
    longer.push(0);
    assert!(matches!(Manifest::from_bytes(longer), Err(ManifestError::Truncated { .. })));
}

#[test]
fn other_files_newer_versions_and_unknown_features_are_told_apart() {
    let change = |at: usize, value: u8| {
        let mut bytes = small();
        bytes[at] = value;
        seal(&mut bytes);
        Manifest::from_bytes(bytes)
    };
    assert!(matches!(change(0, b'x'), Err(ManifestError::NotAManifest)));
    assert!(matches!(change(8, 2), Err(ManifestError::Version { found: 2 })));
    assert!(matches!(change(12, 3), Err(ManifestError::Header { .. })));
    assert!(matches!(change(32, 1), Err(ManifestError::Features { unknown: 1 })));
    assert!(matches!(change(39, 128), Err(ManifestError::Features { .. })));
    let optional = change(16, 1).expect("compatible features may be ignored");
    assert_eq!(optional.features(), (1, 0));
    let optional = change(24, 2).expect("a reader may ignore these");
    assert_eq!(optional.features(), (0, 2));
    assert!(matches!(Manifest::from_bytes(Vec::new()), Err(ManifestError::NotAManifest)));
}

#[test]
fn a_section_that_this_version_does_not_know_is_passed_over() {
    let mut bytes = small();
    // One more row in the section table moves all sections by its length.
    let (table, row) = (128, 32);
    let count = bytes[48];
    let end = table + row * usize::from(count);
    let mut extra = [0; 32];
    extra[0] = 60;
    extra[4] = 1;
    let body = bytes.len() + row;
    extra[8..16].copy_from_slice(&(body as u64).to_le_bytes());
    bytes.splice(end..end, extra);
    bytes[48] = count + 1;
    for index in 0..usize::from(count) {
        let at = table + row * index + 8;
        let field: [u8; 8] = bytes[at..at + 8].try_into().expect("eight bytes");
        let moved = u64::from_le_bytes(field) + row as u64;
        bytes[at..at + 8].copy_from_slice(&moved.to_le_bytes());
    }
    seal(&mut bytes);
    let manifest = Manifest::from_bytes(bytes).expect("open");
    manifest.validate().expect("valid");
    assert_eq!(manifest.len(), 3);
}

#[test]
fn a_mapped_manifest_is_the_same_as_one_in_memory() {
    use std::io::Write;
    let bytes = small();
    let mut file = tempfile::tempfile().expect("file");
    assert!(matches!(Manifest::open(&file), Err(ManifestError::Truncated { found: 0, .. })));
    file.write_all(&bytes).expect("written");
    let mapped = Manifest::open(&file).expect("open");
    drop(file);
    mapped.validate().expect("valid");
    assert_eq!(mapped.as_bytes(), bytes);
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    // Few byte values, so that names share beginnings, and the extremes of the order.
    let byte = prop::sample::select(vec![1_u8, b'.', b'a', b'b', 0x7f, 0x80, 0xff]);
    prop::collection::vec(byte, 1..8)
        .prop_filter("dots are no names", |name| crate::layer::name::check_name(name).is_ok())
}

proptest! {
    #[test]
    fn names_are_found_and_listed_in_byte_order(
        names in prop::collection::btree_set(name(), 0..60),
        others in prop::collection::vec(name(), 20),
    ) {
        let mut layer = LayerBuilder::new();
        for name in names.iter().rev() {
            let name = FileName::new(name).expect("name");
            layer.put(&LayerPath::root().join(name), file()).expect("put");
        }
        let manifest = Manifest::from_bytes(layer.finish().expect("finish")).expect("open");
        manifest.validate().expect("valid");
        let root = manifest.root().expect("root");
        let listed: Vec<_> =
            manifest.entries(&root).map(|entry| entry.expect("entry").name.to_vec()).collect();
        prop_assert_eq!(&listed, &names.iter().cloned().collect::<Vec<_>>());
        for (index, name) in (0..).zip(&names) {
            let found = manifest.lookup(&root, name).expect("lookup").expect("found");
            prop_assert_eq!(found.index, index);
            prop_assert_eq!(manifest.entry(&root, index).expect("entry"), Some(found));
        }
        for other in others.iter().filter(|other| !names.contains(*other)) {
            prop_assert_eq!(manifest.lookup(&root, other).expect("lookup"), None);
        }
        let distinct: BTreeSet<_> = listed.into_iter().collect();
        prop_assert_eq!(distinct.len(), names.len());
    }
}
