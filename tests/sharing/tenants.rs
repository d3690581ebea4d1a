//! Nothing of one tenant's shows to another, and everybody shares as far as it may.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::stage::{Stage, bytes};
use crate::support::{Succeed, library};

/// What tells whether a secret is held elsewhere is whether it was shared.
#[test]
fn a_secret_that_two_containers_hold_alike_stays_private() {
    let stage = Stage::new("tenants-secret");
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    let secret = bytes(1, 20_000);
    let places = [
        ("usr/lib/secret", 0o600),
        ("usr/lib/group", 0o640),
        ("srv/readable", 0o644),
        ("usr/lib/closed/inside", 0o644),
        ("usr/lib/public", 0o644),
    ];
    for root in [&one, &two] {
        fs::create_dir(root.path().join("usr/lib/closed")).unwrap();
        let closed = fs::Permissions::from_mode(0o700);
        fs::set_permissions(root.path().join("usr/lib/closed"), closed).unwrap();
        for (at, (path, mode)) in places.iter().enumerate() {
            let path = root.path().join(path);
            let mut content = secret.clone();
            content[0] = at.try_into().unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
    }
    let done = stage.reshare(&["--all"]);
    assert_eq!(done["files"], 2, "only what everybody may read among the programs: {done:#}");
    for (path, _) in places {
        assert_eq!(stage.is_reference("one", path), path == "usr/lib/public", "{path}");
    }
    // Nor by way of an object that others have already.
    let third = stage.mount("third");
    fs::write(third.path().join("usr/lib/copy"), fs::read(one.path().join(places[4].0)).unwrap())
        .unwrap();
    let hidden = fs::Permissions::from_mode(0o600);
    fs::set_permissions(third.path().join("usr/lib/copy"), hidden).unwrap();
    assert_eq!(stage.reshare(&["--all"])["files"], 0);
    // What a template has is no secret.
    fs::copy(third.path().join("usr/lib/data"), third.path().join("srv/data")).unwrap();
    let hidden = fs::Permissions::from_mode(0o600);
    fs::set_permissions(third.path().join("srv/data"), hidden).unwrap();
    assert_eq!(stage.reshare(&["--all"])["files"], 1);
    stage.check();
}

#[test]
fn each_root_shares_as_far_as_its_policy_says_and_a_mount_does_not_forget_it() {
    let stage = Stage::new("tenants-policy");
    let names = ["off", "templates", "one", "two"];
    let roots = names.map(|name| stage.mount(name));
    stage.store.mica(["store", "reshare", "off", "--policy", "off"]).succeed();
    stage.store.mica(["store", "reshare", "templates", "--policy", "templates"]).succeed();
    for root in &roots {
        library::run(
            root.path(),
            "cp usr/lib/data usr/lib/copy; seq 100000 > usr/lib/new; seq 100 > usr/lib/small",
        );
    }
    let done = stage.reshare(&["--all"]);
    let shared = |name, path| stage.is_reference(name, path);
    assert_eq!(done["files"], 5, "{done:#}");
    assert!(!shared("off", "usr/lib/copy") && !shared("off", "usr/lib/new"));
    assert!(shared("templates", "usr/lib/copy") && !shared("templates", "usr/lib/new"));
    assert!(shared("one", "usr/lib/copy") && shared("two", "usr/lib/new"));
    for root in roots {
        root.unmount();
    }
    assert_eq!(stage.reshare(&["--all"])["files"], 0, "the policy outlives the mount");
    stage.store.mica(["store", "reshare", "off", "--policy", "all"]).succeed();
    assert_eq!(stage.reshare(&["--all"])["files"], 2);
    stage.check();
}

#[test]
fn excluded_and_young_files_are_left_alone_and_everything_else_is_not() {
    let stage = Stage::new("tenants-exclude");
    let root = stage.mount("one");
    library::run(
        root.path(),
        "cp usr/lib/data usr/lib/copy; mkdir usr/lib/scratch; cp usr/lib/data usr/lib/scratch/a
         ln usr/lib/copy usr/lib/link; cp usr/lib/data usr/lib/plain",
    );
    let done = stage.reshare(&["--all", "--min-age", "1h"]);
    assert_eq!(done["files"], 0);
    assert_eq!(done["skipped"]["young"], 2, "{done:#}");
    let done = stage.reshare(&["--all", "--exclude", "/usr/lib/scratch"]);
    assert_eq!(done["files"], 1, "{done:#}");
    let skipped = &done["skipped"];
    assert_eq!((&skipped["excluded"], &skipped["linked"]), (&json!(1), &json!(2)), "{done:#}");
    assert!(stage.is_reference("one", "usr/lib/plain"));
}

/// Objects that only private files refer to are kept by a collection, also while the root's disk
/// is away, and until the root is forgotten.
#[test]
fn a_collection_keeps_what_only_private_files_refer_to() {
    let stage = Stage::new("tenants-collect");
    let content = bytes(7, 50_000);
    for name in ["one", "two"] {
        let root = stage.mount(name);
        fs::write(root.path().join("usr/lib/new"), &content).unwrap();
        root.unmount();
    }
    assert_eq!(stage.reshare(&["--all"])["files"], 2);
    let collect = || -> serde_json::Value {
        serde_json::from_str(&stage.store.mica(["store", "gc", "--json"]).succeed()).unwrap()
    };
    assert_eq!(collect()["objects"], 0);
    let usage = stage.store.mica(["store", "df", "--json"]).succeed();
    let usage: serde_json::Value = serde_json::from_str(&usage).unwrap();
    assert_eq!(usage["disk"]["unreferenced_bytes"], 0, "{usage:#}");
    for name in ["one", "two"] {
        fs::rename(stage.private(name), stage.scratch.path().join(name)).unwrap();
    }
    assert_eq!(collect()["objects"], 0, "the disk may come back");
    fs::rename(stage.scratch.path().join("one"), stage.private("one")).unwrap();
    let root = stage.mount("one");
    assert!(fs::read(root.path().join("usr/lib/new")).unwrap() == content);
    root.unmount();
    stage.store.mica(["store", "forget", "--force", "one"]).succeed();
    // A copy under another name brings its references along.
    fs::rename(stage.private("one"), stage.private("copy")).unwrap();
    stage.store.mica(["store", "forget", "two"]).succeed();
    let root = stage.mount("copy");
    assert_eq!(collect()["objects"], 0);
    assert!(fs::read(root.path().join("usr/lib/new")).unwrap() == content);
    root.unmount();
    stage.store.mica(["store", "forget", "--force", "copy"]).succeed();
    assert_eq!(collect()["objects"], 1, "nobody refers to it any more");
    stage.check();
}
