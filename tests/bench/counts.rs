//! The totals of a run, held against what is counted by hand: du(1), sha256sum(1), /proc.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{MountOptions, Scratch, Store, Succeed};

/// Bytes and inodes by du(1).
fn du(path: &Path) -> (u64, u64) {
    let number = |options: &[&str]| -> u64 {
        let said = Command::new("du").args(options).arg(path).succeed();
        said.split_whitespace().next().unwrap().parse().unwrap()
    };
    (number(&["-s", "--block-size=1"]), number(&["-s", "--inodes"]))
}

/// The same roots as in a run of two containers, made by hand and counted by du(1).
pub(crate) fn disk_space_is_what_du_counts(scratch: &Scratch, store: &Store, results: &Value) {
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
    // The copies, and the directory that they lie in.
    let place = 4096 * 4;
    let (copies, copied_inodes) = point("full copies", 2);
    assert!((2 * bytes..=2 * bytes + place).contains(&copies), "{copies} of 2 × {bytes}");
    assert_eq!(copied_inodes, 2 * inodes + 1);

    // A store with this template and two roots, mounted once.
    let own = Store::at(&scratch.path().join("own"));
    own.import("tree", &export);
    let privates = scratch.directory("privates");
    for number in 1..=2 {
        let at = scratch.mountpoint(&number.to_string());
        let private = privates.join(number.to_string());
        fs::create_dir(&private).unwrap();
        own.mount("tree", &at, &MountOptions::private(&private)).unmount();
    }
    let (store_bytes, store_inodes) = du(own.path());
    let (private_bytes, private_inodes) = du(&privates);
    let (mica, mica_inodes) = point("mica", 2);
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

/// Numbers of /proc/PID/smaps_rollup of a process, in bytes.
fn rollup(pid: u32, fields: &[&str]) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &&str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    };
    fields.iter().map(field).sum()
}

/// Two containers like those of a run, made by hand, and what /proc says of their processes.
pub(crate) fn memory_is_what_proc_counts(scratch: &Scratch, store: &Store, results: &Value) {
    let contenders = results["memory"][0]["contenders"].as_array().unwrap();
    let mica = contenders.iter().find(|of| of["contender"] == "mica").unwrap();
    let told = |name: &str| mica[name].as_u64().unwrap();
    let (mut shells, mut pss, mut private, mut mapped) = (Vec::new(), 0, 0, 0);
    let mut roots = Vec::new();
    for number in 1..=2 {
        let at = scratch.mountpoint(&format!("by-hand-{number}"));
        let changes = scratch.directory(&format!("by-hand-{number}-private"));
        roots.push(store.mount("small:1", &at, &MountOptions::private(&changes)));
        let mut shell = Command::new("chroot");
        shell.arg(&at).args(["sh", "-c", crate::SHELL]).env_clear();
        shell.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = shell.start();
        let mut line = String::new();
        BufReader::new(shell.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        shells.push(shell);
    }
    for shell in &shells {
        pss += rollup(shell.id(), &["Pss:"]);
    }
    for number in 1..=roots.len() {
        let told = store.mica(["info", &format!("by-hand-{number}-private"), "--json"]).succeed();
        let told: Value = serde_json::from_str(&told).unwrap();
        let server = u32::try_from(told["pid"].as_u64().unwrap()).unwrap();
        private += rollup(server, &["Private_Dirty:"]);
        mapped += rollup(server, &["Private_Dirty:", "Private_Clean:", "Shared_Clean:"]);
    }
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let of_machine = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    };
    for mut shell in shells {
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
    // What others on this machine map as well moves the shares a little; units, a process that is
    // left out or counted twice would move them by a factor.
    let ratio = told("pss_bytes") as f64 / pss as f64;
    assert!((0.6..1.6).contains(&ratio), "shells: {} told and {pss} by hand", told("pss_bytes"));
    // Pages of the program are private only as long as no other process of Mica's runs, which
    // another test may start at any time: between what is written to and all that is mapped.
    let (least, most) = (private as f64 * 0.6, mapped as f64 * 1.6);
    let servers = told("servers_private_bytes");
    assert!((least..most).contains(&(servers as f64)), "{servers} told, {least} to {most} by hand");
    // What all containers have is a part of what the machine has in use, and of its own kind.
    let all = told("cgroups_bytes") + told("servers_cgroup_bytes");
    assert!(all > private, "{all} in cgroups, and {private} alone private to the mount processes");
    assert!(all < of_machine("MemTotal:") - of_machine("MemFree:"), "{all}: {meminfo}");
    let anonymous = told("servers_cgroup_bytes") - told("servers_cache_bytes");
    assert!(anonymous < of_machine("MemTotal:") - of_machine("MemAvailable:"), "{meminfo}");
}
