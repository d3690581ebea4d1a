//! Damaged stores: manifests, trees, objects, versions.

use std::fs;
use std::path::PathBuf;

use rustix::mount::UnmountFlags;

use crate::stage::{LARGE_BYTES, Stage, errno, flip, loosen, picture, refused};
use crate::support::Succeed;

/// The only file in a directory of the store.
fn only(stage: &Stage, directory: &str) -> PathBuf {
    let names = fs::read_dir(stage.store.path().join(directory)).unwrap();
    let files: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.into_iter().next().unwrap()
}

fn cut(path: &PathBuf, len_bytes: u64) {
    loosen(path);
    fs::File::options().write(true).open(path).unwrap().set_len(len_bytes).unwrap();
}

#[test]
fn a_damaged_tree_is_made_again_by_the_next_mount() {
    let stage = Stage::new("damage");
    let tree = only(&stage, "trees");
    let good = fs::read(&tree).unwrap();
    let before = {
        let root = stage.mount("a");
        picture(root.path())
    };
    let len = good.len();
    for damage in [&b""[..], &good[..40], &good[..len / 2], &good[..len - 1], &[7; 4096]] {
        loosen(&tree);
        fs::remove_file(&tree).unwrap();
        fs::write(&tree, damage).unwrap();
        let root = stage.mount("a");
        assert_eq!(picture(root.path()), before);
        root.unmount();
        assert!(fs::read(&tree).unwrap() == good, "the tree was not stored again");
    }
    fs::remove_file(&tree).unwrap();
    stage.mount("a").unmount();
    assert!(fs::read(&tree).unwrap() == good);
}

#[test]
fn a_check_finds_a_tree_with_one_altered_byte_and_makes_it_again_if_told() {
    let stage = Stage::new("damage");
    let tree = only(&stage, "trees");
    let good = fs::read(&tree).unwrap();
    let end = u64::try_from(good.len()).unwrap();
    for offset in [end / 3, end / 2, end - 9] {
        flip(&tree, offset);
        refused(&mut stage.mica(["store", "check"]), &["the tree of", "--fix"]);
        assert!(fs::read(&tree).unwrap() != good, "a check alone changed something");
        stage.mica(["store", "check", "--fix"]).succeed();
        stage.check();
        assert!(fs::read(&tree).unwrap() == good, "offset {offset} was not made good");
    }
}

#[test]
fn a_damaged_layer_is_named_and_a_new_import_restores_it() {
    let stage = Stage::new("damage");
    let (layer, tree) = (only(&stage, "layers"), only(&stage, "trees"));
    let good = fs::read(&layer).unwrap();
    let digest = layer.file_name().unwrap().to_str().unwrap().to_owned();
    for damage in [&b""[..], &good[..100], &good[..good.len() / 2]] {
        loosen(&layer);
        fs::remove_file(&layer).unwrap();
        fs::write(&layer, damage).unwrap();
        refused(&mut stage.mica(["store", "check"]), &[]);
        // The tree needs no layer as long as it is there.
        stage.mount("a").unmount();
        fs::remove_file(&tree).unwrap();
        refused(&mut stage.mount_command("a"), &["layer", &digest, "import", "--replace"]);
        let mut again = stage.mica(["template", "import", "base", "--replace"]);
        again.arg(stage.scratch.path().join("source")).succeed();
        assert!(fs::read(&layer).unwrap() == good);
        stage.mount("a").unmount();
        stage.check();
    }
    flip(&layer, u64::try_from(good.len() / 2).unwrap());
    fs::remove_file(&tree).unwrap();
    refused(&mut stage.mount_command("a"), &["layer", &digest, "altered", "--replace"]);
    fs::remove_file(&layer).unwrap();
    refused(&mut stage.mount_command("a"), &["layer", &digest, "missing", "--replace"]);
}

#[test]
fn a_missing_object_fails_its_file_alone_and_is_named_in_the_log() {
    let stage = Stage::new("damage");
    let object = stage.object(b"key=value\n");
    let program = stage.object(b"#!/bin/sh\necho tool\n");
    let linked = stage.object(b"linked\n");
    let kept: Vec<Vec<u8>> =
        [&object, &program, &linked].map(|path| fs::read(path).unwrap()).into();
    for path in [&object, &program, &linked] {
        loosen(path);
        fs::remove_file(path).unwrap();
    }
    let root = stage.mount("a");
    let at = |path: &str| root.path().join(path);
    // Read, run, write, truncate: nothing can come of any of them but EIO.
    assert_eq!(errno(fs::read(at("etc/conf"))), libc::EIO);
    assert_eq!(errno(fs::read(at("usr/bin/tool"))), libc::EIO);
    assert_eq!(errno(fs::read(at("etc/two"))), libc::EIO);
    assert_eq!(errno(fs::File::options().append(true).open(at("etc/conf"))), libc::EIO);
    assert_eq!(errno(fs::File::options().write(true).open(at("usr/bin/tool"))), libc::EIO);
    assert_eq!(fs::metadata(at("etc/conf")).unwrap().len(), 10);
    // All the rest works, and so does everything that needs no content.
    assert_eq!(fs::read(at("etc/fine")).unwrap(), b"fine\n");
    assert_eq!(fs::read(at("srv/large")).unwrap().len(), LARGE_BYTES);
    fs::rename(at("etc/conf"), at("etc/conf2")).unwrap();
    fs::hard_link(at("srv/one"), at("srv/three")).unwrap();
    assert_eq!(errno(fs::read(at("etc/conf2"))), libc::EIO);
    let log = stage.log("a");
    for path in ["/etc/conf", "/usr/bin/tool", "/etc/two"] {
        assert!(log.contains(path), "no {path} in the log: {log}");
    }
    let id = object.file_name().unwrap().to_str().unwrap();
    assert!(log.contains(id), "no {id} in the log: {log}");
    // Truncating needs nothing of the old content.
    fs::write(at("etc/conf2"), b"anew\n").unwrap();
    assert_eq!(fs::read(at("etc/conf2")).unwrap(), b"anew\n");
    // Put back, it is there again for who opens it next.
    for (path, content) in [&object, &program, &linked].into_iter().zip(&kept) {
        fs::write(path, content).unwrap();
    }
    assert_eq!(fs::read(at("usr/bin/tool")).unwrap(), kept[1]);
    assert_eq!(fs::read(at("etc/two")).unwrap(), b"linked\n");
    root.unmount();
}

#[test]
fn an_object_of_another_length_fails_its_file_and_is_restored_by_an_import() {
    for passthrough in ["", "--no-passthrough"] {
        let stage = Stage::new("damage");
        let short = stage.object(b"#!/bin/sh\necho tool\n");
        let long = stage.object(b"key=value\n");
        cut(&short, 3);
        cut(&long, 30);
        let mut mount = stage.mount_command("a");
        if !passthrough.is_empty() {
            mount.arg(passthrough);
        }
        mount.succeed();
        let at = |path: &str| stage.scratch.mountpoint("a").join(path);
        for path in ["usr/bin/tool", "etc/conf"] {
            assert_eq!(errno(fs::read(at(path))), libc::EIO, "{path}");
            assert_eq!(errno(fs::File::options().append(true).open(at(path))), libc::EIO);
            let log = stage.log("a");
            assert!(log.contains(path), "no {path} in the log: {log}");
        }
        assert_eq!(fs::read(at("usr/bin/other")).unwrap(), b"#!/bin/sh\necho other\n");
        stage.mica(["store", "check", "--rehash"]).refuse();
        let mut again = stage.mica(["template", "import", "base", "--replace"]);
        again.arg(stage.scratch.path().join("source")).succeed();
        stage.check();
        assert_eq!(fs::read(at("etc/conf")).unwrap(), b"key=value\n");
        rustix::mount::unmount(stage.scratch.mountpoint("a"), UnmountFlags::empty()).unwrap();
    }
}

#[test]
fn a_check_names_an_object_whose_bytes_were_altered() {
    let stage = Stage::new("damage");
    let object = stage.object(b"key=value\n");
    flip(&object, 3);
    let output = stage.mica(["store", "check", "--rehash"]).capture();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let id = mica::object::ObjectId::of(b"key=value\n").to_string();
    assert!(said.contains(&id) && said.contains("altered"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_store_of_an_unknown_version_is_refused_by_every_verb_and_untouched() {
    let stage = Stage::new("damage");
    let meta = stage.store.path().join("meta.json");
    let text = fs::read_to_string(&meta).unwrap().replace("\"format\": 1", "\"format\": 2");
    fs::write(&meta, &text).unwrap();
    let source = stage.scratch.path().join("source");
    let words = ["store", "format 2", "use the version that made it"];
    refused(stage.mica(["template", "import", "more"]).arg(&source), &words);
    for verb in [
        &["template", "list"][..],
        &["template", "delete", "base"],
        &["store", "gc"],
        &["store", "check"],
        &["store", "destroy", "--yes"],
        &["mount"],
    ] {
        refused(&mut stage.mica(verb.iter().copied()), &words);
    }
    refused(&mut stage.mount_command("a"), &words);
    assert_eq!(fs::read_to_string(&meta).unwrap(), text);
    assert!(!stage.private("a").exists(), "a refused mount left a private directory");
}
