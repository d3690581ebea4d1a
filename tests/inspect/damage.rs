//! Damage: told beside what is whole, and put back from where it came from.

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use mica::object::ObjectId;

use crate::shell::Desk;
use crate::support::{MountOptions, Succeed};

/// Takes the immutable flag away, as whoever damages a store must.
fn loosen(path: &Path) {
    // Not every file system has the flag.
    let _gone = Command::new("chattr").arg("-i").arg(path).capture();
}

/// Changes one byte in place.
fn flip(path: &Path) {
    loosen(path);
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

fn object(desk: &Desk, content: &str) -> PathBuf {
    let id = ObjectId::of(content.as_bytes()).to_string();
    desk.store.path().join("objects").join(&id[..2]).join(&id[2..])
}

/// Templates `base` and `more`, which is a layer on that, from directories of these names; and
/// `other`, which has nothing to do with them.
fn three() -> (Desk, PathBuf, PathBuf) {
    let desk = Desk::new();
    let base = desk.tree("base", &[("etc/a", "precious a"), ("etc/b", "precious b"), ("c", "c")]);
    let more = desk.tree("more", &[("etc/d", "precious d"), ("etc/.wh.a", "")]);
    desk.store.import("base", &base);
    desk.mica(["template", "import", "more", "--on", "base"]).arg(&more).succeed();
    desk.store.import("other", &desk.tree("other", &[("o", "other")]));
    (desk, base, more)
}

fn layers(desk: &Desk, template: &str) -> Vec<String> {
    let digests = desk.mica(["template", "history", template, "-q"]).succeed();
    digests.lines().map(str::to_owned).collect()
}

#[test]
fn a_damaged_layer_is_told_beside_the_whole_ones() {
    let (desk, ..) = three();
    let [lower, upper] = layers(&desk, "more").try_into().unwrap();
    flip(&desk.store.path().join("layers").join(&upper));
    let listed = desk.json(["layer", "list"]);
    let of = |id: &str| {
        let all = listed.as_array().unwrap();
        all.iter().find(|one| one["layer"] == id).unwrap().clone()
    };
    assert!(of(&upper)["damage"].as_str().unwrap().contains(&upper), "{listed}");
    assert_eq!(of(&upper)["size_bytes"], serde_json::Value::Null);
    assert!(of(&lower)["damage"].is_null());
    assert_eq!(of(&lower)["size_bytes"], 21);
    assert_eq!(listed.as_array().unwrap().len(), 3);
    let output = desk.mica(["layer", "list"]).capture();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("damaged") && table.contains("other:latest"), "{table}");
    let history = desk.json(["template", "history", "more"]);
    assert_eq!(history["layers"][0]["added"], 4, "{history}");
    assert!(history["layers"][1]["damage"].as_str().unwrap().contains(&upper), "{history}");
    // One that is gone altogether, from the list of templates too.
    fs::remove_file(desk.store.path().join("layers").join(&upper)).unwrap();
    let listed = desk.json(["template", "list"]);
    let damages: Vec<bool> =
        listed.as_array().unwrap().iter().map(|one| one["damage"].is_string()).collect();
    assert_eq!(damages, [false, true, false], "{listed}");
    let output = desk.mica(["template", "list"]).capture();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("missing") && said.contains("more:latest"), "{said}");
    let shown = desk.mica(["layer", "show", &upper[..20]]).capture();
    assert_eq!(shown.status.code(), Some(2));
}

#[test]
fn a_check_finds_what_is_missing_or_altered_and_puts_it_back() {
    let (desk, base, _) = three();
    let whole = desk.mica(["template", "check"]).capture();
    assert_eq!(whole.status.code(), Some(0));
    let (altered, missing) = (object(&desk, "precious a"), object(&desk, "precious b"));
    flip(&altered);
    loosen(&missing);
    fs::remove_file(&missing).unwrap();
    // Somebody has the altered one open, as a running program has its text.
    let mut holder = fs::File::open(&altered).unwrap();
    let mut before = Vec::new();
    holder.read_to_end(&mut before).unwrap();

    let found = desk.mica(["template", "check", "base"]).capture();
    assert_eq!(found.status.code(), Some(1));
    let said = String::from_utf8(found.stderr).unwrap();
    assert!(said.contains("missing") && said.contains("altered"), "{said}");
    assert_eq!(desk.mica(["template", "check", "oth*"]).capture().status.code(), Some(0));

    let mut dry = desk.mica(["template", "check", "base", "--dry-run", "--json", "--fix"]);
    let dry = dry.arg(&base).capture();
    assert_eq!(dry.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!(answer["fixed"], serde_json::json!({"objects": 2, "bytes": 20, "layers": 0}));
    assert!(!missing.exists());

    let mut fix = desk.mica(["template", "check", "base", "--json", "--fix"]);
    let fixed = fix.arg(&base).capture();
    assert_eq!(fixed.status.code(), Some(0), "{fixed:?}");
    let answer: serde_json::Value = serde_json::from_slice(&fixed.stdout).unwrap();
    assert_eq!(answer["fixed"], serde_json::json!({"objects": 2, "bytes": 20, "layers": 0}));
    assert_eq!(fs::read_to_string(&altered).unwrap(), "precious a");
    assert_eq!(fs::read_to_string(&missing).unwrap(), "precious b");
    // It was replaced and never written to: the one that was open is what it was.
    holder.rewind().unwrap();
    let mut after = Vec::new();
    holder.read_to_end(&mut after).unwrap();
    assert_eq!(after, before);
    for path in [&altered, &missing] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o444);
        // Immutable again, where the host can.
        assert!(fs::File::options().append(true).open(path).is_err(), "{path:?} can be written");
    }
    assert!(desk.mica(["store", "check", "--rehash"]).succeed().starts_with("whole: 3 templates"));
    // Nothing that was not wanted came along.
    assert_eq!(desk.json(["store", "gc", "--dry-run"])["objects"], 0);
}

#[test]
fn a_source_that_has_other_content_puts_nothing_back() {
    let (desk, ..) = three();
    flip(&object(&desk, "precious a"));
    let stranger = desk.tree("stranger", &[("etc/a", "other by far"), ("etc/a2", "more")]);
    let mut fix = desk.mica(["template", "check", "base", "--fix"]);
    let output = fix.arg(&stranger).capture();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("0 objects"));
    assert_eq!(desk.json(["store", "gc", "--dry-run"])["objects"], 0, "a stranger's file was kept");
    let mut fix = desk.mica(["template", "check", "base", "--fix", "/nowhere"]);
    let output = fix.capture();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nowhere"));
}

#[test]
fn a_layer_is_put_back_with_its_objects_also_one_on_top_of_others() {
    let (desk, base, more) = three();
    let [lower, upper] = layers(&desk, "more").try_into().unwrap();
    let at = |id: &str| desk.store.path().join("layers").join(id);
    let good = [&lower, &upper].map(|id| fs::read(at(id)).unwrap());
    flip(&at(&upper));
    flip(&at(&lower));
    for content in ["precious d", "precious a"] {
        loosen(&object(&desk, content));
        fs::remove_file(object(&desk, content)).unwrap();
    }
    let mut fix = desk.mica(["template", "check", "more", "--fix"]);
    assert_eq!(fix.arg(&base).capture().status.code(), Some(1), "the upper layer is not in base");
    let mut fix = desk.mica(["template", "check", "more", "--fix"]);
    let fixed = fix.arg(&more).capture();
    assert_eq!(fixed.status.code(), Some(0), "{fixed:?}");
    assert!(good == [&lower, &upper].map(|id| fs::read(at(id)).unwrap()));
    // From a whole store it can be used.
    let mountpoint = desk.scratch.mountpoint("root");
    let root = desk.store.mount("more", &mountpoint, &MountOptions::read_only());
    assert_eq!(fs::read_to_string(root.path().join("etc/d")).unwrap(), "precious d");
    assert!(!root.path().join("etc/a").exists());
    root.unmount();
    let whole = desk.mica(["template", "check"]).capture();
    assert_eq!(whole.status.code(), Some(0));
}

#[test]
fn a_flipped_byte_anywhere_in_a_layer_or_tree_is_noticed_or_mended() {
    let (desk, ..) = three();
    let [_, upper] = layers(&desk, "more").try_into().unwrap();
    let shown = desk.mica(["layer", "tree", &upper]).succeed();
    let merged = desk.mica(["template", "files", "more", "--json"]).succeed();
    let layer = desk.store.path().join("layers").join(&upper);
    let stack = desk.json(["template", "show", "more"])["stack_id"].as_str().unwrap().to_owned();
    let tree = desk.store.path().join("trees").join(stack);
    let good = [fs::read(&layer).unwrap(), fs::read(&tree).unwrap()];
    for part in 0..40 {
        for (path, good) in [&layer, &tree].into_iter().zip(&good) {
            let mut bad = good.clone();
            let at = bad.len() * part / 40;
            bad[at] ^= 0x20;
            fs::remove_file(path).unwrap();
            fs::write(path, bad).unwrap();
        }
        let output = desk.mica(["layer", "tree", &upper]).capture();
        assert_eq!(output.status.code(), Some(2), "byte {part}/40 of the layer passed for whole");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&upper) && said.contains("--replace"), "{said}");
        // The tree is made of layers, and the upper one cannot be used.
        let output = desk.mica(["template", "files", "more", "-q"]).capture();
        assert_eq!(output.status.code(), Some(2), "byte {part}/40 of the tree passed for whole");
        fs::write(&layer, &good[0]).unwrap();
        assert_eq!(desk.mica(["template", "files", "more", "--json"]).succeed(), merged);
        assert_eq!(desk.mica(["layer", "tree", &upper]).succeed(), shown);
        assert!(fs::read(&tree).unwrap() == good[1], "the tree was not made again");
    }
}

#[test]
fn a_damaged_template_is_told_beside_the_whole_ones() {
    let (desk, ..) = three();
    fs::write(desk.store.path().join("templates/other/latest.json"), b"{").unwrap();
    let listed = desk.json(["template", "list"]);
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 3);
    assert!(listed[2]["path"].as_str().unwrap().ends_with("other/latest.json"));
    assert!(listed[2]["damage"].as_str().unwrap().contains("damaged"), "{listed:?}");
    let output = desk.mica(["template", "list"]).capture();
    assert!(String::from_utf8(output.stdout).unwrap().contains("more:latest"));
    assert!(String::from_utf8(output.stderr).unwrap().contains("other/latest.json"));
    assert_eq!(desk.mica(["template", "show", "other"]).capture().status.code(), Some(2));
    let checked = desk.mica(["template", "check"]).capture();
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8(checked.stdout).unwrap().starts_with("damaged: 3 templates"));
}
