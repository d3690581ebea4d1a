//! Files with several names: shared where they lie, all names at once.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use crate::stage::{Stage, bytes, told};
use crate::support::Succeed;

const NAMES: [&str; 2] = ["usr/lib/one", "usr/lib/two"];

#[test]
fn a_file_that_the_template_has_under_several_names_is_shared_under_all_of_them() {
    let stage = Stage::new("names");
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    for root in [&one, &two] {
        let path = root.path().join(NAMES[0]);
        fs::write(&path, bytes(1, 70_000)).unwrap();
        Command::new("setfattr").args(["-n", "user.colour", "-v", "blue"]).arg(&path).succeed();
        Command::new("setcap").arg("cap_net_raw+ep").arg(&path).succeed();
        Command::new("touch").args(["-d", "2021-02-03T04:05:06.123456789"]).arg(&path).succeed();
    }
    let before = NAMES.map(|name| told(&one.path().join(name)));
    // Who has it open, or mapped, under whichever name, keeps it as it is.
    let open = File::open(one.path().join(NAMES[1])).unwrap();
    let done = stage.reshare(&["--all"]);
    assert_eq!((&done["files"], &done["skipped"]["in_use"]), (&1.into(), &1.into()), "{done:#}");
    drop(open);
    let done = stage.reshare(&["--all"]);
    assert_eq!((&done["files"], &done["skipped"]["linked"]), (&1.into(), &0.into()), "{done:#}");
    for (name, before) in NAMES.iter().zip(&before) {
        for root in ["one", "two"] {
            assert!(stage.is_reference(root, name), "{name} of {root}");
            assert!(fs::metadata(stage.upper(root, name)).unwrap().blocks() <= 8);
        }
        assert!(fs::read(one.path().join(name)).unwrap() == bytes(1, 70_000));
        assert_eq!(&told(&one.path().join(name)), before);
    }
    stage.store.mica(["store", "gc"]).succeed();
    stage.check();
    // A reader beside a writer through the other name: the reader keeps what it had, and everybody
    // else finds what was written under both.
    let reader = File::open(one.path().join(NAMES[0])).unwrap();
    let writer = File::options().write(true).open(one.path().join(NAMES[1])).unwrap();
    writer.write_all_at(b"MINE", 10).unwrap();
    drop(writer);
    let mut wanted = bytes(1, 70_000);
    let mut seen = vec![0; wanted.len()];
    reader.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == wanted);
    wanted[10..14].copy_from_slice(b"MINE");
    for name in NAMES {
        assert!(fs::read(one.path().join(name)).unwrap() == wanted, "{name}");
        assert!(fs::read(two.path().join(name)).unwrap() == bytes(1, 70_000), "{name}");
    }
    drop(reader);
    one.unmount();
    two.unmount();
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    for name in NAMES {
        assert!(fs::read(one.path().join(name)).unwrap() == wanted, "{name}");
        assert!(fs::read(two.path().join(name)).unwrap() == bytes(1, 70_000), "{name}");
        assert_eq!(fs::metadata(one.path().join(name)).unwrap().nlink(), 2);
    }
    // At rest it goes the same way.
    fs::write(one.path().join(NAMES[1]), bytes(1, 70_000)).unwrap();
    one.unmount();
    assert_eq!(stage.reshare(&["one"])["files"], 1);
    assert!(stage.is_reference("one", NAMES[0]));
    two.unmount();
    stage.check();
}

#[test]
fn a_file_with_a_name_that_nobody_knows_is_left_alone() {
    let stage = Stage::new("names-unknown");
    let (one, two) = (stage.mount("one"), stage.mount("two"));
    for root in [&one, &two] {
        // Another link of a template's file, and a file born with two names.
        fs::write(root.path().join(NAMES[0]), bytes(1, 70_000)).unwrap();
        fs::hard_link(root.path().join(NAMES[1]), root.path().join("usr/lib/three")).unwrap();
        fs::write(root.path().join("usr/lib/born"), bytes(2, 70_000)).unwrap();
        fs::hard_link(root.path().join("usr/lib/born"), root.path().join("usr/lib/bred")).unwrap();
    }
    let done = stage.reshare(&["--all"]);
    assert_eq!(done["files"], 0, "{done:#}");
    assert_eq!(done["skipped"]["linked"], 2 + 4, "{done:#}");
    // With that name gone all are known.
    fs::remove_file(one.path().join("usr/lib/three")).unwrap();
    fs::remove_file(two.path().join("usr/lib/three")).unwrap();
    assert_eq!(stage.reshare(&["--all"])["files"], 2);
    // Also when the template's other name was removed.
    fs::write(one.path().join(NAMES[1]), bytes(1, 70_000)).unwrap();
    fs::remove_file(one.path().join(NAMES[0])).unwrap();
    assert_eq!(stage.reshare(&["--all"])["files"], 1);
    assert!(fs::read(one.path().join(NAMES[1])).unwrap() == bytes(1, 70_000));
    stage.check();
}
