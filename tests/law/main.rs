//! The one law: no descriptor, backing id or path through which an object could be written.
//!
//! Every attack has a shared file of its own; afterwards each object still hashes to its name and
//! a second root of the template reads what the template holds. The three locks (types, the
//! read-only mount of the objects, the immutable flag) are switched off in turn; a peer that
//! breaks the law shows that the test would see it. Needs root, /dev/fuse and passthrough.

// What goes wrong in the harness itself fails the test.
#![allow(clippy::unwrap_used)]

mod peer;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mica::layer::{Layers, Stack, TemplateName};
use mica::object::{Locks, ObjectReader, Objects, Verdict};
use mica::private::PrivateLayer;
use mica::union::{SharedSet, Union};
use support::library::Root;
use support::{MountOptions, Scratch, Store, Succeed, require_root, while_nobody_starts};

/// What a tenant may try on shared file `$v`, with another shared file `$o` to take from. Each
/// runs in a shell of its own, as root, in the root directory; many are refused, none may matter.
const ATTACKS: &[&str] = &[
    "echo x >> $v",
    "echo x > $v",
    "exec 3<$v; exec 4<>$v; echo x >&4; cat <&3",
    "exec 3<$v; echo x > /proc/self/fd/3",
    "exec 3<$v; echo x >> /dev/fd/3; truncate -s 1 /proc/self/fd/3",
    "truncate -s 0 $v",
    "truncate -s 1000000 $v",
    "exec 3<$v; truncate -s 5 $v; cat <&3",
    "dd if=/dev/zero of=$v bs=1 count=100 conv=notrunc",
    "dd if=/dev/zero of=$v bs=4096 count=1 conv=notrunc oflag=direct",
    "xfs_io -c 'pwrite -S 0x61 0 5000' $v",
    "xfs_io -d -c 'pwrite -S 0x61 0 4096' $v",
    "xfs_io -c 'mmap -rw 0 4096' -c 'mwrite -S 0x61 0 4096' -c 'msync -s' $v",
    "exec 3<$v; xfs_io -c 'mmap -rw 0 4096' -c 'mwrite -S 0x61 0 4096' $v; cat <&3",
    "xfs_io -r -c 'mmap -r 0 4096' -c 'mread 0 16' $v; xfs_io -c 'pwrite 0 10' $v",
    "xfs_io -c 'fpunch 0 4096' $v",
    "xfs_io -c 'fzero 0 4096' $v",
    "xfs_io -c 'fcollapse 0 4096' $v",
    "xfs_io -c 'finsert 0 4096' $v",
    "xfs_io -c 'falloc 0 1000000' $v",
    "xfs_io -c 'copy_range $o' $v",
    "xfs_io -c 'reflink $o' $v",
    "xfs_io -c 'dedupe $o 0 0 4096' $v",
    "cp --reflink=always $o $v",
    "cp $o $v",
    "cp --remove-destination $o $v",
    "ln $v usr/link; echo x >> usr/link; echo x > $v",
    "exec 3<$v; ln $v usr/link2; truncate -s 3 usr/link2; echo x >> $v",
    "exec 3<$v; mv $v usr/moved; echo x >> usr/moved; mv usr/moved $v; cat <&3",
    "exec 3<>$v; rm $v; echo x >&3",
    "exec 3<$v; rm $v; echo x > /proc/self/fd/3; echo new > $v",
    "mv $o $v; echo x >> $v",
    "chmod 6777 $v; echo x >> $v",
    "chown nobody $v; setpriv --reuid nobody --clear-groups sh -c \"echo x >> $v\"",
    "setcap cap_dac_override,cap_sys_admin+ep $v; echo x >> $v",
    "setfattr -n trusted.overlay.metacopy -v y $v; echo x >> $v",
    "setfattr -n trusted.mica.object -v 0x00 $v; setfattr -n trusted.mica.origin -v x $v; echo x >> $v",
    "chattr -i $v; chattr +a $v; echo x >> $v",
    "mkdir usr/bound; mount --bind usr usr/bound; echo x >> usr/bound/${v#usr/}; umount usr/bound",
    "mount -o remount,rw .; echo x >> $v",
    "sed -i s/victim/attacker/ $v; echo x >> $v",
    "exec 3<$v 4<$v 5<$v; for i in 1 2 3; do echo $i >> $v; : > $v; done; cat <&3 <&4 <&5",
    "(while echo x >> $v; do :; done) 2>/dev/null & sleep 0.1; for i in 1 2 3; do cat $v; : > $v; done; kill %1",
    "mkdir usr/o usr/w usr/m; mount -t overlay o -o lowerdir=usr,upperdir=usr/o,workdir=usr/w usr/m; echo x >> usr/m/${v#usr/}; umount usr/m",
];

/// Makes a tree with one file for each attack and imports it as `law:1`.
fn store(scratch: &Scratch) -> Store {
    let tree = scratch.directory("tree");
    for dir in ["usr", "etc"] {
        fs::create_dir(tree.join(dir)).unwrap();
    }
    for index in 0..ATTACKS.len() {
        let text = format!("victim {index}\n").repeat(1000);
        fs::write(tree.join(format!("usr/v{index}")), &text).unwrap();
        fs::write(tree.join(format!("etc/v{index}")), format!("etc {text}")).unwrap();
        fs::write(tree.join(format!("usr/o{index}")), format!("other {text}")).unwrap();
        fs::write(tree.join(format!("etc/o{index}")), format!("etc other {text}")).unwrap();
    }
    let id = tree.join("usr/id");
    fs::copy("/usr/bin/id", &id).unwrap();
    fs::set_permissions(&id, fs::Permissions::from_mode(0o4777)).unwrap();
    for copy in ["id-write", "id-truncate", "id-open", "id-map"] {
        fs::copy(&id, tree.join("usr").join(copy)).unwrap();
        fs::set_permissions(tree.join("usr").join(copy), fs::Permissions::from_mode(0o4777))
            .unwrap();
    }
    let store = Store::at(&scratch.directory("store"));
    store.import("law:1", &tree);
    store
}

/// Runs every attack in `root`, on shared files opened in both ways.
fn attack(root: &Path) {
    for directory in ["usr", "etc"] {
        for (index, attack) in ATTACKS.iter().enumerate() {
            let script = format!("v={directory}/v{index}; o={directory}/o{index}; {attack}");
            // Refusals are welcome; what matters is looked at afterwards.
            let ended = Command::new("bash")
                .args(["-c", &script])
                .current_dir(root)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .start()
                .wait()
                .unwrap();
            assert_ne!(ended.code(), Some(127), "the shell lacks a command of: {attack}");
        }
    }
}

/// Every object hashes to its name, and there are as many as before.
fn objects_are_whole(store: &Path, count: usize) {
    let objects = Objects::open(store).unwrap();
    let mut seen = 0;
    for stored in objects.iter() {
        let stored = stored.unwrap();
        let verdict = objects.verify(&stored.id).unwrap();
        assert!(matches!(verdict, Verdict::Whole { .. }), "object {} is {verdict:?}", stored.id);
        seen += 1;
    }
    assert_eq!(seen, count, "objects appeared or vanished");
}

fn count_objects(store: &Path) -> usize {
    Objects::open(store).unwrap().iter().count()
}

/// A bystander's root reads what was imported.
fn bystander_reads_the_template(scratch: &Scratch, root: &Path) {
    let compared =
        Command::new("diff").arg("-r").args([&scratch.path().join("tree"), root]).capture();
    let told = String::from_utf8_lossy(&compared.stdout);
    assert!(compared.status.success(), "the bystander's root differs: {told}");
}

/// Takes the immutable flag from every object, as a mistaken administrator would.
fn drop_immutable_flags(store: &Path) {
    let objects = store.join("objects");
    Command::new("chattr").args(["-R", "-i"]).arg(&objects).succeed();
}

fn attack_mounted(name: &str, passthrough: bool, immutable: bool) {
    require_root();
    let scratch = Scratch::new(name);
    let store = store(&scratch);
    let count = count_objects(store.path());
    if !immutable {
        drop_immutable_flags(store.path());
    }
    let options = |private: &str| {
        MountOptions::private(&scratch.path().join(private)).passthrough(passthrough)
    };
    let tenant = store.mount("law:1", &scratch.mountpoint("tenant"), &options("tenant.p"));
    let bystander = store.mount("law:1", &scratch.mountpoint("other"), &options("other.p"));
    attack(tenant.path());
    bystander_reads_the_template(&scratch, bystander.path());
    objects_are_whole(store.path(), count);
    drop((tenant, bystander));
}

#[test]
fn no_attack_reaches_an_object_through_passthrough() {
    attack_mounted("law", true, true);
}

#[test]
fn no_attack_reaches_an_object_without_passthrough() {
    attack_mounted("law-cached", false, true);
}

#[test]
fn no_attack_reaches_an_object_without_the_immutable_flag() {
    attack_mounted("law-mutable", true, false);
}

fn stack_of(store: &Path) -> (Layers, Stack) {
    let layers = Layers::open(store).unwrap();
    let stack = layers.templates().get(&"law:1".parse::<TemplateName>().unwrap()).unwrap().stack;
    (layers, stack)
}

#[test]
fn no_attack_reaches_an_object_without_the_read_only_mount() {
    require_root();
    let scratch = Scratch::new("law-plain");
    let store = store(&scratch);
    let count = count_objects(store.path());
    let (layers, stack) = stack_of(store.path());
    let root = |name: &str| {
        let tree = layers.tree(&stack).unwrap();
        let shared = SharedSet::resolve(&tree, &["/usr".to_owned()]).unwrap();
        let private = PrivateLayer::open(&scratch.path().join(name), &stack).unwrap();
        let locks = Locks { readonly_mount: false, immutable: true };
        let reader = ObjectReader::open_with_locks(store.path(), locks).unwrap();
        assert!(!reader.locks().readonly_mount);
        let union = Union::new(tree, reader, Some(private), shared).unwrap();
        Root::serve(mica::fs::FileSystem::new(union), &scratch.mountpoint(name), true, 4)
    };
    let (tenant, bystander) = (root("tenant"), root("other"));
    attack(&tenant.mountpoint);
    bystander_reads_the_template(&scratch, &bystander.mountpoint);
    objects_are_whole(store.path(), count);
}

/// An object of `store` as a path, and the reader that `locks` give.
fn exposed(store: &Store, locks: Locks) -> (ObjectReader, mica::object::ObjectId) {
    let objects = Objects::open(store.path()).unwrap();
    let id = objects.iter().map(|stored| stored.unwrap()).find(|o| o.len_bytes > 4096).unwrap().id;
    (ObjectReader::open_with_locks(store.path(), locks).unwrap(), id)
}

/// A peer answers a write-open with an object's backing id: what happens to the object?
fn peer_writes(name: &str, locks: Locks) -> bool {
    require_root();
    let scratch = Scratch::new(name);
    let store = store(&scratch);
    if !locks.immutable {
        drop_immutable_flags(store.path());
    }
    let (reader, id) = exposed(&store, locks);
    let object = reader.open_object(&id).unwrap();
    let mountpoint = scratch.mountpoint("peer");
    let served = peer::serve(object, &mountpoint);
    // Refused or not: the object tells.
    let _refused = Command::new("bash")
        .args(["-c", "echo overwritten 1<>file"])
        .current_dir(&mountpoint)
        .stderr(Stdio::null())
        .start()
        .wait()
        .unwrap();
    drop(served);
    let verdict = Objects::open(store.path()).unwrap().verify(&id).unwrap();
    !matches!(verdict, Verdict::Whole { .. })
}

#[test]
fn the_read_only_mount_alone_keeps_a_broken_peer_from_writing() {
    assert!(!peer_writes("peer-mount", Locks { readonly_mount: true, immutable: false }));
}

#[test]
fn the_immutable_flag_alone_keeps_a_broken_peer_from_writing() {
    assert!(!peer_writes("peer-flag", Locks { readonly_mount: false, immutable: true }));
}

#[test]
fn without_any_lock_a_broken_peer_writes_so_the_test_would_see_it() {
    assert!(peer_writes("peer-none", Locks { readonly_mount: false, immutable: false }));
}

#[test]
fn two_roots_that_race_on_one_file_never_share_a_write() {
    require_root();
    let scratch = Scratch::new("law-race");
    let store = store(&scratch);
    let count = count_objects(store.path());
    let mounts: Vec<_> = ["one", "two"]
        .iter()
        .map(|name| {
            let options = MountOptions::private(&scratch.path().join(format!("{name}.p")));
            store.mount("law:1", &scratch.mountpoint(name), &options)
        })
        .collect();
    let script = r#"for i in $(seq 0 30); do
        for j in 1 2 3; do cat usr/v$i; done & cat usr/v$i > /dev/null
        echo "$1" >> usr/v$i; wait
    done"#;
    let racers: Vec<_> = mounts
        .iter()
        .zip(["one", "two"])
        .map(|(mount, word)| {
            Command::new("bash")
                .args(["-c", script, "racer", word])
                .current_dir(mount.path())
                .stdout(Stdio::null())
                .start()
        })
        .collect();
    for mut racer in racers {
        assert!(racer.wait().unwrap().success());
    }
    for (mount, word) in mounts.iter().zip(["one", "two"]) {
        for index in 0..=30 {
            let text = fs::read_to_string(mount.path().join(format!("usr/v{index}"))).unwrap();
            let own = format!("victim {index}\n").repeat(1000) + word + "\n";
            // A thousand lines are no help to whoever reads a failure.
            let end = text.get(text.len().saturating_sub(40)..);
            assert!(text == own, "usr/v{index} of root {word} ends with {end:?}");
        }
    }
    objects_are_whole(store.path(), count);
}

/// Changes the program `$p` as nobody and runs it as nobody, without a stat in between: prints
/// the effective user id it ran with.
fn change_and_run(dir: &Path, program: &str, change: &str) -> String {
    let script = format!("p=./{program}; {change}; exec $p -u");
    let output =
        Command::new("bash").args(["-c", &script]).current_dir(dir).uid(65534).gid(65534).capture();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

const CHANGES: [(&str, &str); 4] = [
    ("id-write", "echo >> $p"),
    ("id-truncate", "truncate -s +1 $p"),
    ("id-open", "cat /usr/bin/id > $p"),
    // A mapping strips nothing on any Linux file system; here as there.
    ("id-map", "xfs_io -c 'mmap -rw 0 4096' -c 'mread 0 1' -c 'mwrite -S 0 4000 1' $p >/dev/null"),
];

fn set_id_bits_go_as_on_ext4(passthrough: bool) {
    require_root();
    let scratch = Scratch::new("law-setuid");
    let store = store(&scratch);
    let plain = scratch.mountpoint("plain");
    let options = MountOptions::private(&scratch.path().join("p")).passthrough(passthrough);
    let root = store.mount("law:1", &scratch.mountpoint("root"), &options);
    let ids = |dir: &Path| -> Vec<String> {
        CHANGES.iter().map(|(program, change)| change_and_run(dir, program, change)).collect()
    };
    let usr: PathBuf = root.path().join("usr");
    assert_eq!(fs::metadata(usr.join("id")).unwrap().mode() & 0o7777, 0o4777);
    assert_eq!(change_and_run(&usr, "id", ":"), "0", "untouched it is set-uid");
    for (program, _) in CHANGES {
        let (id, copy) = (scratch.path().join("tree/usr/id"), plain.join(program));
        while_nobody_starts(|| fs::copy(id, copy).unwrap());
        fs::set_permissions(plain.join(program), fs::Permissions::from_mode(0o4777)).unwrap();
    }
    let (found, wanted) = (ids(&usr), ids(&plain));
    assert_eq!(found, wanted, "effective user ids after {CHANGES:?}");
    assert_eq!(found[..3], ["65534", "65534", "65534"], "never root");
}

#[test]
fn a_program_that_nobody_changed_never_runs_as_root_with_passthrough() {
    set_id_bits_go_as_on_ext4(true);
}

#[test]
fn a_program_that_nobody_changed_never_runs_as_root_without_passthrough() {
    set_id_bits_go_as_on_ext4(false);
}
