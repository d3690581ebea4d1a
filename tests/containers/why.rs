//! `mica why`: the layer, the template and the object behind a path, and what a copy costs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::stage::{Stage, script};
use crate::support::{MountOptions, Succeed};

#[test]
fn each_path_is_traced_to_its_layer_and_template() {
    let stage = Stage::new("why");
    let above = stage.scratch.directory("above");
    script(&above, "mkdir etc; echo upper >etc/added; echo over >etc/empty");
    let mut import = stage.store.mica(["template", "import", "app", "--on", "base"]);
    import.arg(&above).succeed();
    let at = stage.scratch.mountpoint("ct");
    let options = MountOptions::private(&stage.private("ct"));
    let root = stage.store.mount("app", &at, &options);

    let untouched = stage.json(["why", "ct", "/etc/conf"]);
    assert_eq!(untouched["state"], "shared");
    assert_eq!(untouched["source"]["templates"], serde_json::json!(["base:latest"]));
    assert_eq!(untouched["source"]["position"], 1);
    let template = stage.json(["template", "show", "app"]);
    let layers = template.to_string();
    assert!(layers.contains(untouched["source"]["layer"].as_str().unwrap()), "{layers}");
    // The object named is the content that the root shows.
    let object = untouched["source"]["side"]["object"].as_str().unwrap();
    let stored = stage.store.path().join("objects").join(&object[..2]).join(&object[2..]);
    assert_eq!(fs::read(stored).unwrap(), fs::read(at.join("etc/conf")).unwrap());
    for path in ["etc/added", "etc/empty"] {
        let upper = stage.json(["why", "ct", path]);
        assert_eq!(upper["source"]["templates"], serde_json::json!(["app:latest"]), "{path}");
        assert_eq!(upper["source"]["position"], 2);
    }
    root.unmount();
}

#[test]
fn a_private_copy_says_since_when_how_much_and_whether_it_is_needed() {
    let stage = Stage::new("whyprivate");
    let root = stage.mount("ct");
    let before = std::time::SystemTime::now();
    script(
        root.path(),
        "cp etc/conf /tmp/kept.$$; echo x >>etc/conf; cat /tmp/kept.$$ >etc/conf; rm /tmp/kept.$$
         cp etc/conf etc/copy; echo unique >etc/new; chmod 600 etc/owned; rm etc/link
         mv srv/data srv/moved; echo y >>srv/one",
    );
    let conf = stage.json(["why", "ct", "/etc/conf"]);
    assert_eq!(conf["state"], "private");
    assert_eq!(conf["private"]["content"]["as_template"], true, "{conf}");
    let held = fs::metadata(stage.private("ct").join("upper/etc/conf")).unwrap();
    assert_eq!(conf["private"]["disk_bytes"], held.blocks() * 512);
    let since = conf["private"]["since"].as_str().unwrap();
    let since = Command::new("date").args(["+%s", "-d", since]).succeed();
    let began = before.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(since.trim().parse::<u64>().unwrap() >= began);
    let state = |path: &str| stage.json(["why", "ct", path]);
    assert_eq!(state("etc/copy")["state"], "added");
    assert_eq!(state("etc/copy")["private"]["content"]["in_store"], true);
    assert_eq!(state("etc/new")["private"]["content"]["in_store"], false);
    assert_eq!(state("etc/owned")["state"], "metadata");
    assert_eq!(state("etc/owned")["private"]["content"], serde_json::Value::Null);
    assert_eq!(state("etc/link")["state"], "removed");
    // One name was written to, the file was changed under all of them.
    assert_eq!(state("etc/three")["state"], "private");
    assert_eq!(state("srv/moved")["moved_from"]["path"], "/srv/data");
    assert_eq!(state("srv/moved/deep/file")["state"], "shared");
    assert_eq!(state("etc")["changes_below"], 6);
    let told = stage.store.mica(["why", "ct", "/etc/conf"]).succeed();
    assert!(told.contains("identical to the template's again"), "{told}");
    let told = stage.store.mica(["why", "ct", "/etc/nothing"]).refuse();
    assert!(told.contains("root ct has no /etc/nothing"), "{told}");
}

#[test]
fn a_path_through_a_link_is_the_one_that_a_program_inside_would_reach() {
    let stage = Stage::new("whylink");
    let root = stage.mount("ct");
    script(root.path(), "ln -s /etc settings; ln -s settings/conf.d below; echo x >>etc/conf.d/b");
    let why = stage.json(["why", "ct", "/below/b"]);
    assert_eq!(
        (why["path"].as_str(), why["state"].as_str()),
        (Some("/etc/conf.d/b"), Some("private"))
    );
    // The last one is what was asked for.
    assert_eq!(stage.json(["why", "ct", "/settings"])["path"], "/settings");
    assert_eq!(stage.json(["why", "ct", "/settings/conf"])["state"], "shared");
    let said = stage.store.mica(["why", "ct", "/settings/nothing"]).refuse();
    assert!(said.contains("/settings/nothing"), "{said}");
    let changed = stage.json(["diff", "ct", "/below"]);
    let paths: Vec<&str> = changed["changes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["path"].as_str())
        .collect();
    assert!(paths.contains(&"/below") && paths.contains(&"/etc/conf.d/b"), "{changed:#}");
    stage.store.mica(["revert", "ct", "/below/b"]).succeed();
    assert_eq!(fs::read(root.path().join("etc/conf.d/b")).unwrap(), b"b\n");
    assert!(root.path().join("below").is_symlink());
    root.unmount();
}
