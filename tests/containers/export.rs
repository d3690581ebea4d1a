//! `mica template export`: what comes out is what the root shows, to tools that are not ours.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::stage::{Stage, script};
use crate::support::{Snapshot, Succeed, assert_same, snapshot};

/// What differs between file systems and says nothing of a file.
fn comparable(mut tree: Snapshot) -> Snapshot {
    for described in tree.values_mut() {
        described.xattrs.remove(&b"security.selinux"[..]);
    }
    tree
}

fn stack(stage: &Stage, template: &str) -> Value {
    let path = stage.store.path().join(format!("templates/{template}/latest.json"));
    let text = fs::read(path).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["stack"].clone()
}

fn sha256(path: &Path) -> String {
    let told = Command::new("sha256sum").arg(path).succeed();
    told.split(' ').next().unwrap().to_owned()
}

/// Two layers more, that add, change, hide and make opaque.
fn import_layers(stage: &Stage) {
    let one = stage.scratch.directory("one");
    script(
        &one,
        "mkdir -p etc/conf.d srv; echo second >etc/conf; : >etc/.wh.link; : >srv/.wh.two
         echo new >etc/conf.d/new; : >etc/conf.d/.wh..wh..opq; ln etc/conf etc/conf.hard
         setfattr -n user.a%c -v 'x=y' etc/conf; setcap cap_net_raw+ep etc/conf.d/new
         chown 3000000:4000000 srv; touch -d @-5.25 etc/conf.d/new",
    );
    let mut import = stage.store.mica(["template", "import", "middle", "--on", "base"]);
    import.arg(&one).succeed();
    let two = stage.scratch.directory("two");
    let long = "d".repeat(120);
    script(
        &two,
        &format!(
            "mkdir -p usr/{long}/{long} etc; echo deep >usr/{long}/{long}/{long}; : >etc/.wh.conf.d
         ln -s {long}/{long}/{long} usr/link"
        ),
    );
    let mut import = stage.store.mica(["template", "import", "top", "--on", "middle"]);
    import.arg(&two).succeed();
}

#[test]
fn a_directory_holds_what_the_root_shows() {
    let stage = Stage::new("exportdir");
    import_layers(&stage);
    for template in ["base", "top"] {
        let target = stage.scratch.path().join(template);
        stage.store.mica(["template", "export", template]).arg(&target).succeed();
        assert_same(&comparable(snapshot(&target)), &comparable(stage.shown(template)));
        let again = stage.store.mica(["template", "export", template]).arg(&target).refuse();
        assert!(again.contains("exists already") && again.contains("--replace"), "{again}");
    }
    let target = stage.scratch.path().join("base");
    fs::write(target.join("left"), b"over").unwrap();
    stage.store.mica(["template", "export", "base", "--replace"]).arg(&target).succeed();
    assert!(!target.join("left").exists());
    let left: Vec<_> = fs::read_dir(stage.scratch.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("mica-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn gnu_tar_makes_the_root_of_the_archive() {
    let stage = Stage::new("exporttar");
    import_layers(&stage);
    for (template, ending) in [("base", "tar"), ("top", "tar.gz"), ("middle", "tar.zst")] {
        let archive = stage.scratch.path().join(format!("{template}.{ending}"));
        stage.store.mica(["template", "export", template]).arg(&archive).succeed();
        let target = stage.scratch.directory(&format!("{template}-out"));
        let mut tar = Command::new("tar");
        tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"]).arg(&archive);
        tar.arg("-C").arg(&target).succeed();
        assert_same(&comparable(snapshot(&target)), &comparable(stage.shown(template)));
        // The same bytes again, also through a pipe.
        let mut stream = stage.store.mica(["template", "export", template, "-"]);
        match ending {
            "tar.gz" => stream.args(["--compress", "gzip"]),
            "tar.zst" => stream.args(["--compress", "zstd"]),
            _ => stream.args(["--compress", "none"]),
        };
        let copy = stage.scratch.path().join("copy");
        assert!(stream.stdout(fs::File::create(&copy).unwrap()).start().wait().unwrap().success());
        assert_eq!(sha256(&archive), sha256(&copy), "{template}");
    }
    // Holes are not written: a megabyte of them costs nothing.
    let sparse = fs::metadata(stage.scratch.path().join("base-out/var/log/sparse")).unwrap();
    assert_eq!(sparse.len(), (1 << 20) + 3);
    assert!(sparse.blocks() * 512 <= 8192, "{}", sparse.blocks());
    assert!(fs::metadata(stage.scratch.path().join("base.tar")).unwrap().len() < 100_000);
    // A name that is no PAX keyword.
    let odd = stage.scratch.directory("odd");
    script(&odd, "touch f; setfattr -n user.a=b%3Dc%25d%e -v 1 f");
    stage.store.import("odd", &odd);
    let (archive, out) = (stage.scratch.path().join("odd.tar"), stage.scratch.directory("odd-out"));
    stage.store.mica(["template", "export", "odd"]).arg(&archive).succeed();
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(&archive)
        .arg("-C")
        .arg(&out)
        .succeed();
    assert_same(&comparable(snapshot(&out)), &comparable(snapshot(&odd)));
    stage.store.mica(["template", "import", "odd2"]).arg(&archive).succeed();
    assert_eq!(stack(&stage, "odd2"), stack(&stage, "odd"));
    // And back: one layer that is the very same.
    let mut import = stage.store.mica(["template", "import", "again"]);
    import.arg(stage.scratch.path().join("base.tar")).succeed();
    assert_eq!(stack(&stage, "again"), stack(&stage, "base"));
}

#[test]
fn skopeo_and_umoci_open_the_image_and_it_comes_back_as_the_same_layers() {
    let stage = Stage::new("exportoci");
    import_layers(&stage);
    let layout = stage.scratch.path().join("layout");
    let place = |name: &str| format!("oci:{}{name}", layout.display());
    let report = stage.json(["template", "export", "top", &place(":v1")]);
    let inspected = Command::new("skopeo").args(["inspect", &place(":v1")]).succeed();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 3);
    let config = Command::new("skopeo").args(["inspect", "--config", &place(":v1")]).succeed();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], report["diff_ids"]);
    // Of what is in the blobs, by tools that hash for themselves.
    for (blob, diff_id) in inspected["Layers"]
        .as_array()
        .unwrap()
        .iter()
        .zip(config["rootfs"]["diff_ids"].as_array().unwrap())
    {
        let blob = layout.join("blobs").join(blob.as_str().unwrap().replacen(':', "/", 1));
        assert_eq!(sha256(&blob), blob.file_name().unwrap().to_str().unwrap());
        let plain = stage.scratch.path().join("plain");
        let unzip = Command::new("gzip")
            .arg("-dc")
            .stdin(fs::File::open(&blob).unwrap())
            .stdout(fs::File::create(&plain).unwrap())
            .status();
        assert!(unzip.unwrap().success());
        assert_eq!(format!("sha256:{}", sha256(&plain)), diff_id.as_str().unwrap());
    }
    let bundle = stage.scratch.path().join("bundle");
    let image = format!("{}:v1", layout.display());
    Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle).succeed();
    let mut unpacked = comparable(snapshot(&bundle.join("rootfs")));
    let mut shown = comparable(stage.shown("top"));
    // What an undescribed directory has is the unpacker's to choose.
    for tree in [&mut unpacked, &mut shown] {
        for described in tree.values_mut() {
            described.nlink = 0;
        }
    }
    assert_same(&unpacked, &shown);
    // Every form of compression comes back as the same layers.
    for (name, how) in [("gz", "gzip"), ("zst", "zstd"), ("plain", "none")] {
        let to = place(&format!(":{name}"));
        stage.store.mica(["template", "export", "top", &to, "--compress", how]).succeed();
        let mut import = stage.store.mica(["template", "import", name, "--image", name]);
        import.arg(&layout).succeed();
        assert_eq!(stack(&stage, name), stack(&stage, "top"), "{how}");
    }
    // The same bytes again, and the same name is not there twice.
    let again = stage.json(["template", "export", "top", &place(":v1")]);
    assert_eq!(again["manifest"], report["manifest"]);
    let listed = Command::new("umoci").args(["ls", "--layout"]).arg(&layout).succeed();
    let mut names: Vec<&str> = listed.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["gz", "plain", "v1", "zst"]);
}

#[test]
fn an_image_runs_as_it_was_configured() {
    let stage = Stage::new("exportconfig");
    let layout = stage.scratch.path().join("layout");
    let place = format!("oci:{}:v1", layout.display());
    stage.store.mica(["template", "export", "base", &place]).succeed();
    let image = format!("{}:v1", layout.display());
    Command::new("umoci")
        .args(["config", "--image", &image, "--config.user", "7:8"])
        .args(["--config.env", "A=b", "--config.entrypoint", "/bin/tool", "--config.cmd", "x"])
        .args(["--config.workingdir", "/srv", "--config.label", "one=1", "--config.label", "two=2"])
        .args(["--config.exposedports", "80/tcp", "--config.volume", "/data"])
        .args(["--config.stopsignal", "SIGUSR1"])
        .succeed();
    let mut import = stage.store.mica(["template", "import", "run"]);
    import.arg(&layout).succeed();
    let back = stage.scratch.path().join("back");
    let place = format!("oci:{}", back.display());
    stage.store.mica(["template", "export", "run", &place]).succeed();
    let config = |at: &str| -> Value {
        let told = Command::new("skopeo").args(["inspect", "--config", at]).succeed();
        serde_json::from_str::<Value>(&told).unwrap()["config"].clone()
    };
    let original = config(&format!("oci:{}:v1", layout.display()));
    assert_eq!(config(&format!("{place}:latest")), original);
    assert_eq!(original["StopSignal"], "SIGUSR1");
}

#[test]
fn what_cannot_be_written_is_told_and_nothing_is_left() {
    let stage = Stage::new("exportbad");
    let odd = stage.scratch.directory("odd");
    script(&odd, "echo x >.wh.x; python3 -c \"import socket; socket.socket(1).bind('s')\"");
    stage.store.import("odd", &odd);
    let layout = stage.scratch.path().join("layout");
    let told = stage
        .store
        .mica(["template", "export", "odd", &format!("oci:{}", layout.display())])
        .refuse();
    assert!(told.contains("/.wh.x") && told.contains("whiteouts"), "{told}");
    assert!(!layout.join("index.json").exists());
    let archive = stage.scratch.path().join("odd.tar");
    let mut export = stage.store.mica(["template", "export", "odd"]);
    let output = export.arg(&archive).capture();
    assert!(output.status.success());
    let note = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(note.contains("1 socket"), "{note}");
    // A missing object: the archive does not get its name.
    let object = fs::read_dir(stage.store.path().join("objects"))
        .unwrap()
        .flat_map(|fan| fs::read_dir(fan.unwrap().path()).unwrap())
        .map(|entry| entry.unwrap().path())
        .find(|path| fs::read(path).unwrap() == b"deep\n")
        .unwrap();
    Command::new("chattr").args(["-f", "-i"]).arg(&object).capture();
    fs::remove_file(&object).unwrap();
    let archive = stage.scratch.path().join("base.tar");
    let told = stage.store.mica(["template", "export", "base"]).arg(&archive).refuse();
    assert!(told.contains("/srv/data/deep/file"), "{told}");
    let left: Vec<_> = fs::read_dir(stage.scratch.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("base.tar"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_reader_that_had_enough_is_no_news() {
    let stage = Stage::new("exportpipe");
    let big = stage.scratch.directory("big");
    script(&big, "head -c 4000000 /dev/urandom >big");
    stage.store.import("big", &big);
    let mut export = stage
        .store
        .mica(["template", "export", "big", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .start();
    drop(export.stdout.take());
    let output = export.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nothing_of_the_place_gets_into_a_directory_and_what_is_dangerous_is_told() {
    let stage = Stage::new("exportplace");
    let place = stage.scratch.directory("place");
    // New files here inherit a group and rights that the template knows nothing of.
    script(&place, "chgrp 5 .; chmod 2775 .; setfacl -m d:u:77:rwx,d:g::rwx .");
    let target = place.join("out");
    let mut export = stage.store.mica(["template", "export", "base"]);
    let done = export.arg(&target).capture();
    assert!(done.status.success());
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(told.contains("1 device and 1 program with set-id bits or capabilities"), "{told}");
    assert_same(&comparable(snapshot(&target)), &comparable(stage.shown("base")));
    let acls = Command::new("getfacl").args(["-R", "-n", "-p"]).arg(&target).succeed();
    assert!(!acls.contains("user:77"), "{acls}");
    let mut export = stage.store.mica(["template", "export", "base", "--replace", "--json"]);
    let told: Value = serde_json::from_str(&export.arg(&target).succeed()).unwrap();
    assert_eq!((&told["devices"], &told["privileged"]), (&1.into(), &1.into()));
}

#[test]
fn a_layout_from_elsewhere_cannot_send_an_image_elsewhere() {
    let stage = Stage::new("exportlinks");
    let elsewhere = stage.scratch.directory("elsewhere");
    fs::write(elsewhere.join("precious"), "precious").unwrap();
    for (name, hostile) in [
        ("blobs", "ln -s ../elsewhere blobs"),
        ("sha256", "mkdir blobs; ln -s ../../elsewhere blobs/sha256"),
        ("index", "mkdir -p blobs/sha256; ln -s ../elsewhere/precious index.json"),
    ] {
        let layout = stage.scratch.directory(name);
        script(&layout, "echo '{\"imageLayoutVersion\":\"1.0.0\"}' >oci-layout");
        script(&layout, hostile);
        let mut export = stage.store.mica(["template", "export", "base"]);
        let told = export.arg(&layout).refuse();
        assert!(told.contains("name another place"), "{told}");
        let there: Vec<_> = fs::read_dir(&elsewhere).unwrap().collect();
        assert_eq!(there.len(), 1, "{name}: {there:?}");
        assert_eq!(fs::read(elsewhere.join("precious")).unwrap(), b"precious");
    }
}

/// What `find` lists below `dir`, with the sizes of files.
fn listed(dir: &Path) -> String {
    Command::new("find").arg(dir).args(["-printf", "%P %s %i\n"]).succeed()
}

#[test]
fn an_export_never_takes_the_place_of_a_store_a_mount_a_root_or_a_device() {
    let stage = Stage::new("exportprecious");
    let root = stage.mount("ct");
    script(root.path(), "echo mine >etc/mine");
    let disk = stage.scratch.directory("disks/disk");
    Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&disk).succeed();
    fs::write(disk.join("precious"), "precious").unwrap();
    script(
        stage.scratch.path(),
        "mkdir -p around; mkfifo pipe; mknod null c 1 3; ln -s store link",
    );
    let before = listed(stage.scratch.path());
    let private = stage.private("ct");
    let store = stage.store.path();
    for (target, told) in [
        (store.to_owned(), "the store is there"),
        (store.join("objects"), "the store is there"),
        (store.join("new"), "the store is there"),
        (stage.scratch.path().to_owned(), "the store is there"),
        (private.clone(), "root ct keeps its changes there"),
        (private.join("upper/etc"), "root ct keeps its changes there"),
        (root.path().to_owned(), "is a mountpoint"),
        (stage.scratch.path().join("around/../disks"), "disks/disk is a mountpoint"),
        (disk.clone(), "is a mountpoint"),
        (stage.scratch.path().join("pipe"), "a device, a pipe or a socket"),
        (stage.scratch.path().join("null"), "a device, a pipe or a socket"),
        (stage.scratch.path().join("around/.."), "has no name of its own"),
        ("/".into(), "has no name of its own"),
    ] {
        let mut export = stage.store.mica(["template", "export", "base", "--replace"]);
        let refused = export.args(["--format", "dir"]).arg(&target).refuse();
        assert!(refused.contains(told), "{}: {refused}", target.display());
    }
    for target in [store.join("layout"), stage.scratch.path().join("link")] {
        let place = format!("oci:{}", target.display());
        let refused = stage.store.mica(["template", "export", "base", &place]).refuse();
        assert!(refused.contains("the store is there"), "{refused}");
    }
    assert_eq!(listed(stage.scratch.path()), before);
    // An image is added to what is there: a disk of its own is a good place for it.
    fs::remove_file(disk.join("precious")).unwrap();
    let place = format!("oci:{}", disk.display());
    stage.store.mica(["template", "export", "base", &place]).succeed();
    Command::new("umount").arg(&disk).succeed();
}

#[test]
fn what_is_replaced_goes_only_when_the_new_is_whole() {
    let stage = Stage::new("exportswap");
    let top = stage.scratch.directory("top");
    script(&top, "mkdir -p full/of; echo old >full/of/it; echo old >file.tar; ln -s full link");
    for name in ["full", "file.tar", "link"] {
        stage.store.mica(["template", "export", "base"]).arg(top.join(name)).refuse();
        let mut export = stage.store.mica(["template", "export", "base", "--replace"]);
        export.arg(top.join(name)).succeed();
    }
    assert_eq!(fs::read(top.join("full/etc/owned")).unwrap(), b"owned\n");
    assert!(!top.join("full/of").exists() && !top.join("link").is_symlink());
    let listed = script(&top, "tar -tf file.tar | wc -l; ls -A");
    assert!(listed.ends_with("file.tar\nfull\nlink\n"), "{listed}");
}

#[test]
fn a_damaged_object_is_told_wherever_its_content_is_asked_for() {
    let stage = Stage::new("exportdamage");
    let root = stage.mount("ct");
    script(root.path(), "echo mine >>srv/data/deep/file");
    let id = stage.json(["template", "files", "base", "/srv/data/deep/file"])[0]["object"].clone();
    let id = id.as_str().unwrap();
    let object = stage.store.path().join("objects").join(&id[..2]).join(&id[2..]);
    let place = |name: &str| stage.scratch.path().join(format!("out/{name}"));
    stage.scratch.directory("out");
    for damage in ["", "dee", "deep\nand more\n", "DEEP\n"] {
        Command::new("chattr").args(["-f", "-i"]).arg(&object).capture();
        fs::write(&object, damage).unwrap();
        let oci = format!("oci:{}", place("layout").display());
        let (dir, tar) = (place("dir"), place("base.tar"));
        for arguments in [
            &["template", "cat", "base", "/srv/data/deep/file"][..],
            &["template", "cat", "base", "/srv/data/deep/file", "--json"],
            &["template", "export", "base", dir.to_str().unwrap()],
            &["template", "export", "base", tar.to_str().unwrap()],
            &["template", "export", "base", &oci],
            &["diff", "ct", "--content"],
        ] {
            let output = stage.store.mica(arguments.iter().copied()).capture();
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{damage:?} {arguments:?}: {told}");
            assert!(told.contains(id) && told.contains("check --fix"), "{arguments:?}: {told}");
        }
        assert!(!dir.exists() && !tar.exists() && !place("layout/index.json").exists());
    }
}
