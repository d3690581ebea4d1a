//! Archives that mean harm by what they mean, or by how much work they make: each is refused with
//! one sentence or taken for what it says, soon, and leaves nothing that was staged.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use mica::object::ObjectId;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::archives::{Archive, nothing_is_left};
use crate::stage::{Stage, refused};
use crate::support::{MountOptions, Succeed};

/// Far more than any of these takes, and far less than the work that they would make.
const SOON: Duration = Duration::from_secs(60);

/// Imports what has to be refused.
fn is_refused(stage: &Stage, bytes: &[u8], word: &str, arguments: &[&str]) {
    let began = Instant::now();
    let file = stage.scratch.path().join("evil.tar");
    fs::write(&file, bytes).unwrap();
    let mut import = stage.mica(["template", "import", "evil"]);
    refused(import.args(arguments).arg(&file), &["evil.tar", word]);
    nothing_is_left(stage, "evil");
    assert!(began.elapsed() < SOON, "{:?} for {word}", began.elapsed());
}

fn ended(archive: &Archive) -> Vec<u8> {
    [archive.0.as_slice(), &[0; 1024]].concat()
}

/// A long name for the next member, or with `K` a long target.
fn long(archive: &mut Archive, kind: u8, name: &[u8]) {
    archive.member(b"././@LongLink", kind, b"", &[name, b"\0"].concat());
}

/// `a/a/a…`, so many times.
fn deep(times: usize) -> Vec<u8> {
    vec![&b"a"[..]; times].join(&b'/')
}

#[test]
fn names_of_whiteouts_that_name_nothing_are_refused_and_all_others_hide_what_they_name() {
    let stage = Stage::new("hostile");
    for name in [&b".wh."[..], b".wh..", b".wh...", b"etc/.wh."] {
        is_refused(
            &stage,
            &ended(Archive::default().file(name, b"")),
            "whiteout",
            &["--on", "base"],
        );
    }
    let mut archive = Archive::default();
    archive.file(b".wh..wh.", b"").file(b".wh..wh..", b"").file(b".wh.usr/x", b"x\n");
    archive.file(b"etc/.wh.conf", b"").file(b"none/.wh.none", b"");
    let file = archive.write(&stage.scratch.path().join("odd.tar"));
    stage.mica(["template", "import", "odd", "--on", "base"]).arg(&file).succeed();
    let at = stage.scratch.mountpoint("odd");
    let root = stage.store.mount("odd", &at, &MountOptions::read_only());
    let mut names: Vec<_> =
        fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".wh.usr", "etc", "srv", "usr"]);
    assert!(!root.path().join("etc/conf").exists() && root.path().join("etc/fine").exists());
    root.unmount();
    stage.check();
}

#[test]
fn attributes_that_are_marks_of_a_private_layer_are_only_attributes_of_a_template() {
    let stage = Stage::new("hostile");
    let object = ObjectId::of(b"fine\n").to_string();
    let mut archive = Archive::default();
    archive.pax(&[(b"SCHILY.xattr.trusted.overlay.opaque", b"y")]).member(b"dir", b'5', b"", b"");
    archive.file(b"dir/file", b"x\n");
    let marks: [(&[u8], &[u8]); 3] = [
        (b"SCHILY.xattr.trusted.mica.object", object.as_bytes()),
        (b"SCHILY.xattr.trusted.overlay.metacopy", b""),
        (b"SCHILY.xattr.trusted.overlay.redirect", b"/etc/shadow"),
    ];
    archive.pax(&marks).file(b"file", b"own\n");
    let file = archive.write(&stage.scratch.path().join("marks.tar"));
    stage.mica(["template", "import", "marks"]).arg(&file).succeed();
    let (at, private) = (stage.scratch.mountpoint("marks"), stage.private("marks"));
    for round in 0..2 {
        let root = stage.store.mount("marks", &at, &MountOptions::private(&private));
        assert_eq!(fs::read(root.path().join("file")).unwrap(), b"own\n");
        assert_eq!(fs::read(root.path().join("dir/file")).unwrap(), b"x\n");
        // Copied up with its attributes, it is read again after a mount.
        fs::set_permissions(
            root.path().join("file"),
            fs::metadata(root.path()).unwrap().permissions(),
        )
        .unwrap();
        fs::write(root.path().join(format!("dir/new{round}")), b"x").unwrap();
        root.unmount();
    }
    stage.check();
}

#[test]
fn maps_of_sparse_members_that_lie_are_refused() {
    let stage = Stage::new("hostile");
    for (map, word) in [
        (&b"2\n0\n10\n5\n10\n"[..], "overlap"),
        (b"1\n90\n20\n", "leave the file"),
        (b"1\n-5\n20\n", "not a list of numbers"),
        (b"1\n18446744073709551615\n20\n", "leave the file"),
        (b"99999999999999\n0\n20\n", "not a list of numbers"),
        (b"1\n0\n19\n", "add up"),
    ] {
        let mut archive = Archive::default();
        archive.sparse_of(b"lie", 100, map, &[7; 20]);
        is_refused(&stage, &ended(&archive), word, &[]);
    }
    stage.check();
}

#[test]
fn links_to_later_names_and_devices_that_no_kernel_has_are_refused() {
    let stage = Stage::new("hostile");
    let archive = |kind, target: &[u8]| {
        let mut archive = Archive::default();
        archive.member(b"dir", b'5', b"", b"").member(b"link", kind, target, b"");
        ended(archive.file(b"later", b"x\n"))
    };
    is_refused(&stage, &archive(b'1', b"later"), "not there", &[]);
    is_refused(&stage, &archive(b'1', b"link"), "not there", &[]);
    is_refused(&stage, &archive(b'1', b"dir"), "is a directory", &[]);
    let mut device = archive(b'3', b"");
    device[1024 - 512 + 329..1024 - 512 + 336].copy_from_slice(b"7777777");
    let header = &mut device[512..1024];
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    is_refused(&stage, &device, "device number", &[]);
    stage.check();
}

#[test]
fn a_name_may_be_one_kind_of_file_after_the_other() {
    let stage = Stage::new("hostile");
    let mut archive = Archive::default();
    archive.file(b"it", b"x\n").member(b"other", b'1', b"it", b"");
    archive.member(b"it", b'5', b"", b"").file(b"it/below", b"x\n");
    archive.member(b"it", b'2', b"/etc", b"").member(b"it", b'6', b"", b"");
    archive.member(b"it", b'5', b"", b"").file(b"it/last", b"last\n");
    let file = archive.write(&stage.scratch.path().join("kinds.tar"));
    stage.mica(["template", "import", "kinds"]).arg(&file).succeed();
    let at = stage.scratch.mountpoint("kinds");
    let root = stage.store.mount("kinds", &at, &MountOptions::read_only());
    assert_eq!(fs::read(root.path().join("it/last")).unwrap(), b"last\n");
    assert!(!root.path().join("it/below").exists());
    assert_eq!(fs::metadata(root.path().join("other")).unwrap().nlink(), 1);
    root.unmount();
    stage.check();
}

#[test]
fn small_archives_that_make_much_of_themselves_are_refused_soon() {
    let stage = Stage::new("hostile");
    // Thousands of directories for each name.
    let mut archive = Archive::default();
    for top in 0..40 {
        long(&mut archive, b'L', &[format!("top{top}/").as_bytes(), &deep(16_000)].concat());
        archive.file(b"x", b"");
    }
    is_refused(&stage, &ended(&archive), "directories that it does not have", &[]);
    // A link that leads through the one before it, and down from there.
    let mut links = Archive::default();
    for link in 0..30_usize {
        let below = format!("l{}/", link.wrapping_sub(1));
        let target = if link == 0 { deep(2040) } else { [below.as_bytes(), &deep(2030)].concat() };
        long(&mut links, b'K', &target);
        links.member(format!("l{link}").as_bytes(), b'2', b"x", b"");
    }
    is_refused(&stage, &ended(links.clone().file(b"l29/x", b"")), "16384 directories deep", &[]);
    for number in 0..2000 {
        links.file(format!("l{}/x{number}", 6 + number % 2).as_bytes(), b"");
    }
    is_refused(&stage, &ended(&links), "too many links", &[]);
    // What every member gets.
    let records: Vec<(Vec<u8>, Vec<u8>)> = (0..2)
        .map(|number| (format!("SCHILY.xattr.user.n{number}").into_bytes(), vec![b'v'; 60_000]))
        .collect();
    let records: Vec<(&[u8], &[u8])> =
        records.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect();
    let mut global = Archive::default();
    global.pax_of(b'g', &records).file(b"x", b"");
    is_refused(&stage, &ended(&global), "64 KiB", &[]);
    // More attributes than a file can have.
    let names: Vec<Vec<u8>> =
        (0..400_000).map(|number| format!("SCHILY.xattr.user.{number}").into_bytes()).collect();
    let records: Vec<(&[u8], &[u8])> =
        names.iter().map(|name| (name.as_slice(), &b"v"[..])).collect();
    let mut many = Archive::default();
    many.pax(&records).file(b"x", b"");
    is_refused(&stage, &ended(&many), "extended attributes", &[]);
    stage.check();
}

/// An OCI layout as an archive: the index, and blobs under their digests.
fn layout(index: &[u8], blobs: &[&[u8]]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.file(b"oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).file(b"index.json", index);
    for blob in blobs {
        archive.file(format!("blobs/sha256/{}", digest(blob)).as_bytes(), blob);
    }
    ended(&archive)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn descriptor(kind: &str, bytes: &[u8]) -> serde_json::Value {
    let digest = format!("sha256:{}", digest(bytes));
    json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest,
            "size": bytes.len() })
}

fn index_of(manifests: &[serde_json::Value]) -> Vec<u8> {
    json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes()
}

#[test]
fn images_whose_documents_lead_in_circles_or_nest_without_end_are_refused() {
    let stage = Stage::new("hostile");
    // Indices in indices; by a false digest, an index in itself.
    let mut blobs = vec![index_of(&[])];
    for _ in 0..20 {
        let last = blobs.last().unwrap();
        blobs.push(index_of(&[descriptor("index.v1+json", last)]));
    }
    let all: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    is_refused(&stage, &layout(&blobs[20], &all), "nests too deeply", &[]);
    let zeros = "0".repeat(64);
    let itself = index_of(&[json!({ "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": format!("sha256:{zeros}"), "size": 3 })]);
    let mut archive = Archive::default();
    archive.file(b"oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).file(b"index.json", &itself);
    archive.file(format!("blobs/sha256/{zeros}").as_bytes(), &itself);
    is_refused(&stage, &ended(&archive), "damaged", &[]);
    // Deeper than any stack.
    let nested = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let unknown = [br#"{"schemaVersion":2,"manifests":[],"x":"#, &nested[..], b"}"].concat();
    is_refused(&stage, &layout(&nested, &[]), "malformed", &[]);
    is_refused(&stage, &layout(&unknown, &[]), "image", &[]);
    let mut docker = Archive::default();
    docker.file(b"manifest.json", &nested);
    is_refused(&stage, &ended(&docker), "malformed", &[]);
    // The same small layer, more often than anything stacks.
    let layer = ended(Archive::default().file(b"x", b"x\n"));
    let ids = vec![format!("sha256:{}", digest(&layer)); 5000];
    let config = json!({ "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = config.to_string().into_bytes();
    let manifest = json!({ "schemaVersion": 2, "config": descriptor("config.v1+json", &config),
        "layers": vec![descriptor("layer.v1.tar", &layer); 5000] });
    let manifest = manifest.to_string().into_bytes();
    let index = index_of(&[descriptor("manifest.v1+json", &manifest)]);
    is_refused(&stage, &layout(&index, &[&manifest, &config, &layer]), "5000 layers", &[]);
    stage.check();
}
