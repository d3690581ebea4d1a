//! An image of several layers by umoci: what each layer did, beside what umoci unpacks of each.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{Desk, du, shell};
use crate::support::{Described, Snapshot, Succeed, snapshot};

fn umoci(layout: &Path, verb: &[&str], tag: &str, rest: &[&Path]) {
    let image = format!("{}:{tag}", layout.display());
    Command::new("umoci").args(verb).args(["--image", &image]).args(rest).succeed();
}

const TAGS: [&str; 3] = ["two", "three", "four"];

/// Makes an image of three layers that add, change, replace, delete and link; answers with its
/// layout. `TAGS` are its parts, unpacked each.
fn image(desk: &Desk) -> PathBuf {
    let scratch = &desk.scratch;
    let layout = scratch.path().join("layout");
    Command::new("umoci").args(["init", "--layout"]).arg(&layout).succeed();
    umoci(&layout, &["new"], "one", &[]);
    let bundle = scratch.path().join("bundle");
    umoci(&layout, &["unpack"], "one", &[&bundle]);
    let root = bundle.join("rootfs");
    shell(
        &root,
        "mkdir -p etc/conf.d usr/lib opt/app/cache srv was-dir/x; ln -s usr/lib lib
         for file in etc/passwd etc/motd etc/conf.d/a usr/lib/libc opt/app/cache/1 srv/a was-file was-dir/x/y
         do echo $file content >$file; done
         ln srv/a srv/b; mkfifo srv/fifo; chmod 4755 usr/lib/libc; setcap cap_net_raw+ep srv/a",
    );
    umoci(&layout, &["repack", "--refresh-bundle"], "two", &[&bundle]);
    shell(
        &root,
        "rm -r etc/motd opt/app was-dir was-file; mkdir -p opt/app/new was-file
         echo new >opt/app/new/file; echo a file >was-dir; echo inside >was-file/inside
         echo through a link >lib/libnew; echo changed >etc/passwd; chmod 600 etc/conf.d/a",
    );
    umoci(&layout, &["repack", "--refresh-bundle"], "three", &[&bundle]);
    shell(&root, "rm -r srv/a etc/conf.d; echo back again >etc/motd; touch usr/lib/libc");
    umoci(&layout, &["repack", "--refresh-bundle"], "four", &[&bundle]);
    symlink("nowhere", root.join("later")).unwrap();
    for tag in TAGS {
        umoci(&layout, &["unpack"], tag, &[&scratch.path().join(tag)]);
    }
    layout
}

/// What `diff` of a template calls a difference: all but times and numbers of links.
fn differ(one: &Described, other: &Described) -> bool {
    (one.kind, one.mode, one.owner, one.rdev) != (other.kind, other.mode, other.owner, other.rdev)
        || one.content != other.content
        || one.target != other.target
        || one.xattrs != other.xattrs
}

/// Names added, changed and deleted.
fn counts(old: &Snapshot, new: &Snapshot) -> [usize; 3] {
    let added = new.keys().filter(|name| !old.contains_key(*name)).count();
    let deleted = old.keys().filter(|name| !new.contains_key(*name)).count();
    let changed =
        old.iter().filter(|(name, one)| new.get(*name).is_some_and(|other| differ(one, other)));
    [added, changed.count(), deleted]
}

#[test]
fn each_layer_did_what_umoci_makes_of_it() {
    let desk = Desk::new();
    let layout = image(&desk);
    let mut import = desk.mica(["template", "import", "image", "--image", "four"]);
    import.arg(&layout).succeed();
    let history = desk.json(["template", "history", "image"]);
    let rows = history["layers"].as_array().unwrap();

    // As many layers as umoci and skopeo see.
    let of_layout = format!("{}:four", layout.display());
    let stat = Command::new("umoci").args(["stat", "--json", "--image", &of_layout]).succeed();
    let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
    let with_content = stat["history"].as_array().unwrap().iter();
    let with_content = with_content.filter(|one| one["empty_layer"] != true);
    assert_eq!(rows.len(), with_content.count());
    let inspected = Command::new("skopeo").arg("inspect").arg(format!("oci:{of_layout}")).succeed();
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(rows.len(), inspected["Layers"].as_array().unwrap().len());
    let shown = desk.json(["template", "show", "image"]);
    assert_eq!(shown["template"]["config"]["architecture"], inspected["Architecture"]);
    assert_eq!(shown["template"]["provenance"]["source_digest"], inspected["Digest"]);

    let roots = TAGS.map(|tag| desk.scratch.path().join(tag).join("rootfs"));
    let empty = desk.scratch.directory("empty");
    let mut below = snapshot(&empty);
    let mut size_below = 0;
    for (number, (row, root)) in rows.iter().zip(&roots).enumerate() {
        let here = snapshot(root);
        let mut expected = counts(&below, &here);
        if number == 0 {
            // The empty directory is this host's, the root of an image nobody's before.
            below.insert(".".to_owned(), here["."].clone());
            expected = counts(&below, &here);
        }
        let told = ["added", "changed", "deleted"].map(|what| row[what].as_u64().unwrap());
        assert_eq!(told.map(|count| usize::try_from(count).unwrap()), expected, "{row}");
        assert_eq!(row["number"], number + 1);
        // Bytes: what is there now is what was there, without what is hidden, and the new.
        let bytes = |what: &str| row[what].as_u64().unwrap();
        let now = du(root);
        let kept = size_below + bytes("added_bytes") + bytes("changed_bytes");
        // One of two names of a file goes in the last layer: its content stays.
        let linked = if number == 2 { bytes_of("srv/a") } else { 0 };
        assert_eq!(now + bytes("hidden_bytes"), kept + linked, "{row}");
        (below, size_below) = (here, now);
    }
    whiteouts_are_shown(&desk, rows);
}

/// Length of a file that [`image`] makes.
fn bytes_of(file: &str) -> u64 {
    u64::try_from(format!("{file} content\n").len()).unwrap()
}

fn whiteouts_are_shown(desk: &Desk, rows: &[serde_json::Value]) {
    let digest = rows[2]["layer"].as_str().unwrap();
    let shown = desk.json(["layer", "show", &digest[..12]]);
    assert_eq!(shown["whiteouts"], 2);
    assert_eq!(shown["templates"], serde_json::json!(["image:latest"]));
    let expected = "/\n├── etc/\n│   ├── conf.d (removed)\n│   └── motd\n";
    let drawn = desk.mica(["layer", "tree", digest]).succeed();
    assert!(drawn.starts_with(expected), "{drawn}");
    assert_eq!(desk.mica(["template", "tree", "image", "--layer", "3"]).succeed(), drawn);
    let gone = desk.mica(["template", "files", digest, "--type", "w", "-q"]).succeed();
    assert_eq!(gone, "/etc/conf.d\n/srv/a\n");
    let with_caps = desk.mica(["template", "files", "image", "--caps", "-q"]).succeed();
    assert_eq!(with_caps, "/srv/b\n");
    let newest = desk.mica(["template", "files", "image", "--layer", "2", "--type", "f", "-q"]);
    let newest = { newest }.succeed();
    assert_eq!(
        newest,
        "/etc/passwd\n/opt/app/new/file\n/usr/lib/libnew\n/was-dir\n/was-file/inside\n"
    );
    // Two layers as they are, beside each other.
    let lower = rows[0]["layer"].as_str().unwrap();
    let answer = desk.json(["template", "diff", lower, digest]);
    assert!(answer["totals"]["deleted"].as_u64().unwrap() > 5, "{answer}");
    fs::metadata(desk.store.path().join("trees")).unwrap();
}
