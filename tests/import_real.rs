//! Import of what other programs make: a Debian root by mmdebstrap, images by umoci and skopeo,
//! compared with what GNU tar and umoci unpack from the same.
//!
//! Needs root and, for the Debian root, the package mirror that apt on this machine uses.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use mica::layer::import::{Choice, ImportOptions, Source};
use support::{Scratch, Snapshot, Succeed, Workshop, assert_same, debian, require_root, snapshot};

fn setup(name: &str) -> (Scratch, Workshop) {
    require_root();
    let scratch = Scratch::new(name);
    let workshop = Workshop::new(&scratch.directory("store"));
    (scratch, workshop)
}

#[test]
fn a_debian_root_is_what_tar_unpacks() {
    let (scratch, workshop) = setup("debian");
    let archive = debian("minbase", "python3-minimal");
    let root = scratch.directory("root");
    Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf"])
        .arg(&archive)
        .arg("-C")
        .arg(&root)
        .succeed();
    let unpacked = snapshot(&root);
    assert!(unpacked.len() > 5000, "{} names", unpacked.len());

    let imported = workshop.import_path(&archive);
    let out = scratch.path().join("out");
    assert_same(&unpacked, &workshop.checkout(&imported.layers, &out));
    // The same tree from a directory is the same layer, to the byte.
    let again = workshop.import_path(&root);
    assert!(again.layers == imported.layers, "the directory gave another layer than the archive");
    let again = workshop.import_path(&out);
    assert!(again.layers == imported.layers, "the checkout gave another layer than the archive");
}

fn umoci(layout: &Path, verb: &[&str], tag: &str, rest: &[&Path]) {
    let image = format!("{}:{tag}", layout.display());
    Command::new("umoci").args(verb).args(["--image", &image]).args(rest).succeed();
}

/// Makes an image of three layers that add, change, replace, delete and link; returns its layout
/// and what umoci unpacks from it.
fn image(scratch: &Scratch) -> (PathBuf, Snapshot) {
    let layout = scratch.path().join("layout");
    Command::new("umoci").args(["init", "--layout"]).arg(&layout).succeed();
    umoci(&layout, &["new"], "one", &[]);
    let bundle = scratch.path().join("bundle");
    umoci(&layout, &["unpack"], "one", &[&bundle]);
    let root = bundle.join("rootfs");
    let at = |name: &str| root.join(name);
    let write = |name: &str, text: &str| fs::write(root.join(name), text).expect("write");

    for dir in ["etc/conf.d", "usr/lib", "opt/app/cache", "srv", "was-dir/x"] {
        fs::create_dir_all(at(dir)).expect("mkdir");
    }
    symlink("usr/lib", at("lib")).expect("symlink");
    for file in [
        "etc/passwd",
        "etc/motd",
        "etc/conf.d/a",
        "usr/lib/libc",
        "opt/app/cache/1",
        "srv/a",
        "was-file",
        "was-dir/x/y",
    ] {
        write(file, file);
    }
    fs::hard_link(at("srv/a"), at("srv/b")).expect("link");
    Command::new("setfattr").args(["-n", "user.note", "-v", "v"]).arg(at("etc/passwd")).succeed();
    Command::new("setcap").arg("cap_net_raw+ep").arg(at("usr/lib/libc")).succeed();
    Command::new("mkfifo").arg(at("srv/fifo")).succeed();
    umoci(&layout, &["repack", "--refresh-bundle"], "two", &[&bundle]);

    fs::remove_file(at("etc/motd")).expect("rm");
    fs::remove_dir_all(at("opt/app")).expect("rm");
    fs::create_dir_all(at("opt/app/new")).expect("mkdir");
    write("opt/app/new/file", "new");
    fs::remove_dir_all(at("was-dir")).expect("rm");
    write("was-dir", "a file");
    fs::remove_file(at("was-file")).expect("rm");
    fs::create_dir(at("was-file")).expect("mkdir");
    write("was-file/inside", "x");
    write("lib/libnew", "through a link");
    write("etc/passwd", "changed");
    umoci(&layout, &["repack", "--refresh-bundle"], "three", &[&bundle]);

    fs::remove_file(at("srv/a")).expect("rm");
    fs::remove_dir_all(at("etc/conf.d")).expect("rm");
    write("etc/motd", "back again");
    umoci(&layout, &["repack", "--refresh-bundle"], "four", &[&bundle]);
    let unpacked = scratch.path().join("unpacked");
    umoci(&layout, &["unpack"], "four", &[&unpacked]);
    (layout, snapshot(&unpacked.join("rootfs")))
}

#[test]
fn an_image_by_umoci_is_what_umoci_unpacks_in_every_packaging() {
    let (scratch, workshop) = setup("umoci");
    let (layout, unpacked) = image(&scratch);
    let choice = Choice { reference: Some("four".to_owned()), platform: None };
    let options = ImportOptions { choice, ..Default::default() };
    let source = Source::open(&layout).expect("open");
    let imported = workshop.import_with(source, &options).expect("import");
    assert_eq!(imported.layers.len(), 3);
    assert_same(&unpacked, &workshop.checkout(&imported.layers, &scratch.path().join("out")));

    let from = format!("oci:{}:four", layout.display());
    for (number, (arguments, target, suffix)) in [
        (&[][..], "oci-archive", ":four"),
        (&[], "docker-archive", ":example.org/test:four"),
        (&["--dest-compress", "--dest-compress-format", "zstd"], "oci", ":four"),
        (&["--dest-compress"], "docker-archive", ":test:four"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = scratch.path().join(format!("copy-{number}"));
        let to = format!("{target}:{}{suffix}", path.display());
        Command::new("skopeo").args(["copy", "-q"]).args(arguments).args([&from, &to]).succeed();
        let again = workshop.import_path(&path);
        assert!(again.layers == imported.layers, "{to} gave other layers");
        assert_eq!(again.config, imported.config, "{to}");
    }
    workshop.assert_clean();
}
