//! Who pays for the pages of a template.

use std::fs;

use mica::container::cgroup::Controller;
use mica::host::footprint::drop_cached;

use crate::group::{Group, Parent};
use crate::support::{MountOptions, Scratch, Store};

const MIB: u64 = 1024 * 1024;

fn file_bytes(group: &Group) -> u64 {
    group.usage().unwrap().memory_file_bytes.unwrap()
}

#[test]
fn who_warms_a_template_pays_for_it_and_no_container_does() {
    let parent = Parent::here();
    assert!(parent.layout.with(Controller::Memory).is_some(), "this host counts memory");
    let scratch = Scratch::new("cells");
    let tree = scratch.directory("tree");
    fs::create_dir(tree.join("usr")).unwrap();
    let bytes: Vec<u8> = (0..16 * MIB).map(|at| (at / 7 % 251) as u8).collect();
    fs::write(tree.join("usr/library"), &bytes).unwrap();
    fs::write(tree.join("usr/again"), &bytes).unwrap();
    fs::write(tree.join("usr/small"), b"text").unwrap();
    let store = Store::at(&scratch.path().join("store"));
    store.import("t:1", &tree);
    let private = scratch.path().join("private");
    let options = MountOptions::private(&private);
    let mounted = store.mount("t:1", &scratch.mountpoint("root"), &options);
    let objects = store.path().join("objects");
    let read = |group: &Group| {
        let file = mounted.path().join("usr/library");
        let mut running = group.run(&format!("exec cat {} >/dev/null", file.display()));
        assert!(running.0.wait().unwrap().success());
    };

    // Without it the first to read pays for all that come after.
    drop_cached(&objects).unwrap();
    let first = parent.group("first");
    read(&first);
    // A host short of memory takes pages back at any time.
    assert!(file_bytes(&first) >= 15 * MIB, "{}", file_bytes(&first));

    drop_cached(&objects).unwrap();
    let (payer, second) = (parent.group("payer"), parent.group("second"));
    let warm = |group: &Group| {
        let mica = env!("CARGO_BIN_EXE_mica");
        let store = store.path().display();
        let mut running =
            group.run(&format!("exec {mica} --store {store} template warm t:1 --json"));
        assert!(running.0.wait().unwrap().success());
        let said = std::io::read_to_string(running.0.stdout.take().unwrap()).unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        ["objects", "bytes", "cached_before_bytes"].map(|member| said[member].as_u64().unwrap())
    };
    let [found, bytes, before] = warm(&payer);
    assert_eq!((found, bytes), (2, 16 * MIB + 4), "each content once");
    assert!(before < MIB, "{before}");
    assert!(file_bytes(&payer) >= 15 * MIB, "{}", file_bytes(&payer));
    read(&second);
    assert!(file_bytes(&second) < MIB, "{}", file_bytes(&second));
    let [_, _, before] = warm(&second);
    assert!((bytes - MIB..=bytes).contains(&before), "{before} of {bytes} are there");
}
