//! The totals of a run, held against du(1) and find(1).

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{MountOptions, Scratch, Succeed, require_root};
use crate::{alone, assert_nothing_left, bench, template};

/// Bytes and inodes by du(1).
fn du(path: &Path) -> (u64, u64) {
    let number = |options: &[&str]| -> u64 {
        let said = Command::new("du").args(options).arg(path).succeed();
        said.split_whitespace().next().unwrap().parse().unwrap()
    };
    (number(&["-s", "--block-size=1"]), number(&["-s", "--inodes"]))
}

#[test]
fn disk_space_is_what_du_counts() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new("bench-du");
    let store = template(&scratch);
    let (dir, out) = (scratch.directory("runs"), scratch.path().join("out"));
    let mut command = bench(&store, &dir, &["savings", "--quick", "--containers", "3"]);
    command.args(["--template", "small:1", "--json", "--out"]).arg(&out);
    let results: Value = serde_json::from_str(&command.succeed()).unwrap();
    assert_nothing_left(&dir);

    // The same by hand.
    let export = scratch.path().join("export");
    store.mica(["template", "export", "small:1"]).arg(&export).succeed();
    let (bytes, inodes) = du(&export);
    let facts = &results["templates"][0];
    assert_eq!((facts["bytes"].as_u64(), facts["inodes"].as_u64()), (Some(bytes), Some(inodes)));
    let case = &results["savings"][0];
    let point = |who: &str, roots: u64| -> (u64, u64) {
        let points = case["points"].as_array().unwrap();
        let found = points
            .iter()
            .find(|point| point["contender"] == who && point["roots"].as_u64() == Some(roots));
        let found = found.unwrap();
        (found["bytes"].as_u64().unwrap(), found["inodes"].as_u64().unwrap())
    };
    // Three copies, and the directory that they lie in.
    let place = 4096 * 4;
    let (copies, copied_inodes) = point("full copies", 3);
    assert!((3 * bytes..=3 * bytes + place).contains(&copies), "{copies} of 3 × {bytes}");
    assert_eq!(copied_inodes, 3 * inodes + 1);

    // A store with this template and three roots, mounted once.
    let own = crate::support::Store::at(&scratch.path().join("own"));
    own.import("tree", &export);
    let privates = scratch.directory("privates");
    for number in 1..=3 {
        let at = scratch.mountpoint(&number.to_string());
        let private = privates.join(number.to_string());
        fs::create_dir(&private).unwrap();
        own.mount("tree", &at, &MountOptions::private(&private)).unmount();
    }
    let (store_bytes, store_inodes) = du(own.path());
    let (private_bytes, private_inodes) = du(&privates);
    let (mica, mica_inodes) = point("mica", 3);
    let by_hand = store_bytes + private_bytes;
    assert!(mica.abs_diff(by_hand) <= place, "{mica} and {by_hand}");
    assert_eq!(mica_inodes, store_inodes + private_inodes);

    // Every distinct content once: the two texts that are alike count once.
    let list = "find \"$0\" -type f -size +0 -exec sha256sum {} + | sort | \
                while read -r digest path; do
                    [ \"$digest\" = \"$last\" ] || stat -c '%b' \"$path\"; last=$digest
                done | awk '{ sum += $1 } END { print sum * 512 }'";
    let ideal = Command::new("sh").args(["-c", list]).arg(&export).succeed();
    let told = case["ideal"][0][1].as_u64().unwrap();
    assert_eq!(told, ideal.trim().parse::<u64>().unwrap());
}
