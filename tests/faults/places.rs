//! Directories that cannot be used, and roots in each other's way.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::stage::{Stage, errno, picture, refused};
use crate::support::{MountOptions, Succeed, is_mountpoint};

#[test]
fn a_private_directory_that_is_mounted_elsewhere_is_refused() {
    let stage = Stage::new("places");
    let root = stage.mount("a");
    fs::write(root.path().join("etc/new"), b"new\n").unwrap();
    let elsewhere = stage.scratch.mountpoint("elsewhere");
    let mut second =
        stage.store.mount_command("base", &elsewhere, &MountOptions::private(&stage.private("a")));
    let place = root.path().to_string_lossy().into_owned();
    refused(&mut second, &["private/a is in use", "root \"a\"", &place, "unmount"]);
    assert!(!is_mountpoint(&elsewhere));
    // Under another name of the same directory too.
    let alias = stage.scratch.path().join("alias");
    std::os::unix::fs::symlink(stage.private("a"), &alias).unwrap();
    let mut third = stage.store.mount_command("base", &elsewhere, &MountOptions::private(&alias));
    refused(&mut third, &["in use"]);
    // And from another store, which knows nothing of the root: the directory's lock says it.
    let copy = crate::support::Store::at(&stage.scratch.path().join("store2"));
    copy.import("base", &stage.scratch.path().join("source"));
    let mut foreign = copy.mount_command("base", &elsewhere, &MountOptions::private(&alias));
    refused(&mut foreign, &["private/a", "in use by another root", "unmount"]);
    assert_eq!(fs::read(root.path().join("etc/new")).unwrap(), b"new\n");
    root.unmount();
}

#[test]
fn a_foreign_directory_as_private_is_refused_and_left_alone() {
    let stage = Stage::new("places");
    let private = stage.private("a");
    fs::create_dir_all(&private).unwrap();
    fs::write(private.join("letter"), b"dear\n").unwrap();
    let before = picture(&private);
    refused(&mut stage.mount_command("a"), &["private/a", "not empty", "name an empty"]);
    assert_eq!(picture(&private), before);
    assert!(!is_mountpoint(&stage.scratch.mountpoint("a")));
    assert!(stage.roots().is_empty(), "a refused root was registered");
    // A file, and something that cannot be a directory.
    let mountpoint = stage.scratch.mountpoint("a");
    for wrong in [private.join("letter"), private.join("letter/under")] {
        let options = MountOptions::private(&wrong);
        refused(&mut stage.store.mount_command("base", &mountpoint, &options), &["letter"]);
    }
    // The directory of a fresh disk is no foreign one.
    fs::remove_file(private.join("letter")).unwrap();
    fs::create_dir(private.join("lost+found")).unwrap();
    stage.mount("a").unmount();
    stage.mount("a").unmount();
    assert!(private.join("lost+found").is_dir());
}

#[test]
fn a_private_directory_with_a_damaged_record_is_named() {
    let stage = Stage::new("places");
    stage.mount("a").unmount();
    let record = stage.private("a").join("mica.json");
    let good = fs::read(&record).unwrap();
    for damage in [&b""[..], &good[..20], b"{\"format\": 9, \"stack\": []}"] {
        fs::write(&record, damage).unwrap();
        refused(&mut stage.mount_command("a"), &["private/a/mica.json", "damaged"]);
    }
    fs::write(&record, &good).unwrap();
    stage.mount("a").unmount();
}

#[test]
fn a_private_directory_inside_its_own_mountpoint_is_refused() {
    let stage = Stage::new("places");
    let mountpoint = stage.scratch.mountpoint("a");
    let options = MountOptions::private(&mountpoint.join("inside"));
    let mut mount = stage.store.mount_command("base", &mountpoint, &options);
    refused(&mut mount, &["a/inside", "inside the mountpoint", "name another"]);
    assert!(!mountpoint.join("inside").exists());
}

#[test]
fn a_mountpoint_that_is_not_empty_is_refused() {
    let stage = Stage::new("places");
    let mountpoint = stage.scratch.mountpoint("a");
    fs::write(mountpoint.join("letter"), b"dear\n").unwrap();
    refused(&mut stage.mount_command("a"), &["mountpoint", "not empty", "name an empty"]);
    assert!(!stage.private("a").exists(), "a refused mount left a private directory");
    fs::remove_file(mountpoint.join("letter")).unwrap();
    let root = stage.mount("a");
    // A root is not mounted over another by accident.
    let options = MountOptions::private(&stage.private("b"));
    let mut second = stage.store.mount_command("base", &mountpoint, &options);
    refused(&mut second, &["base:latest", "mounted at", "already", "unmount"]);
    root.unmount();
    // A file is no place to mount on.
    let file = mountpoint.join("file");
    fs::write(&file, b"").unwrap();
    let mut third = stage.store.mount_command("base", &file, &MountOptions::read_only());
    refused(&mut third, &["a/file", "directory"]);
}

#[test]
fn of_two_mounts_racing_for_one_private_directory_one_wins() {
    let stage = Stage::new("places");
    for round in 0..5 {
        let commands: Vec<Command> = (0..4)
            .map(|racer| {
                let mountpoint = stage.scratch.mountpoint(&format!("racer{racer}"));
                let options = MountOptions::private(&stage.private("a"));
                stage.store.mount_command("base", &mountpoint, &options)
            })
            .collect();
        let racers: Vec<_> = commands
            .into_iter()
            .map(|mut command| thread::spawn(move || command.capture()))
            .collect();
        let outputs: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
        let won = outputs.iter().filter(|output| output.status.success()).count();
        assert_eq!(won, 1, "round {round}: {outputs:?}");
        for lost in outputs.iter().filter(|output| !output.status.success()) {
            let said = String::from_utf8_lossy(&lost.stderr);
            assert!(said.contains("in use") && said.trim_end().lines().count() == 1, "{said}");
        }
        let mounted: Vec<_> = (0..4)
            .map(|racer| stage.scratch.mountpoint(&format!("racer{racer}")))
            .filter(|mountpoint| is_mountpoint(mountpoint))
            .collect();
        assert_eq!(mounted.len(), 1);
        let file = mounted[0].join("etc/rounds");
        let mut rounds = fs::read(&file).unwrap_or_default();
        assert_eq!(rounds.len(), round);
        rounds.push(b'x');
        fs::write(&file, &rounds).unwrap();
        stage.mica(["umount"]).arg(&mounted[0]).succeed();
        assert_eq!(stage.roots().len(), 1);
    }
}

#[test]
fn of_two_mounts_racing_for_one_mountpoint_one_wins() {
    let stage = Stage::new("places");
    let mountpoint = stage.scratch.mountpoint("shared");
    for round in 0..5 {
        let racers: Vec<_> = (0..3)
            .map(|racer| {
                let options = MountOptions::private(&stage.private(&format!("p{racer}")));
                let mut command = stage.store.mount_command("base", &mountpoint, &options);
                thread::spawn(move || command.capture())
            })
            .collect();
        let outputs: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
        let won = outputs.iter().filter(|output| output.status.success()).count();
        assert_eq!(won, 1, "round {round}: {outputs:?}");
        assert_eq!(mounts_at(&mountpoint), 1, "one root was mounted over another");
        stage.mica(["umount"]).arg(&mountpoint).succeed();
        assert!(!is_mountpoint(&mountpoint));
    }
}

fn mounts_at(mountpoint: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let place = mountpoint.to_str().unwrap();
    table.lines().filter(|line| line.split(' ').nth(4) == Some(place)).count()
}

#[test]
fn a_used_root_is_not_unmounted_and_its_users_are_named() {
    let stage = Stage::new("places");
    let root = stage.mount("a");
    let mut user = Command::new("cat")
        .current_dir(root.path().join("srv"))
        .stdin(std::process::Stdio::piped())
        .start();
    let place = root.path().to_string_lossy().into_owned();
    let who = format!("cat ({})", user.id());
    refused(&mut stage.mica(["umount", "a"]), &[&place, "in use", &who, "--lazy"]);
    let plain = rustix::mount::unmount(root.path(), rustix::mount::UnmountFlags::empty());
    assert_eq!(plain, Err(rustix::io::Errno::BUSY));
    assert_eq!(fs::read(root.path().join("etc/conf")).unwrap(), b"key=value\n");
    // Lazily it goes at once, and its user keeps what it has.
    stage.mica(["umount", "--lazy", "a"]).succeed();
    assert!(!is_mountpoint(root.path()));
    let through = format!("/proc/{}/cwd/deep/file", user.id());
    assert_eq!(fs::read(through).unwrap(), b"deep\n");
    refused(&mut stage.mount_command("a"), &["in use"]);
    drop(user.stdin.take());
    user.wait().unwrap();
}

#[test]
fn what_is_not_mounted_is_not_unmounted() {
    let stage = Stage::new("places");
    stage.mount("a").unmount();
    refused(&mut stage.mica(["umount", "a"]), &["\"a\"", "not mounted"]);
    refused(&mut stage.mica(["umount", "b"]), &["\"b\""]);
    refused(&mut stage.mica(["umount", "/proc"]), &["/proc"]);
    assert_eq!(errno(fs::read("/proc/self/nothing")), libc::ENOENT);
}
