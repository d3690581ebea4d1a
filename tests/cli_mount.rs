//! Roots through the `mica` command and through mount(8): their whole life, and every refusal.
//!
//! Needs root and /dev/fuse.

mod support;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use support::{
    MountOptions, PATIENCE, Scratch, Store, Succeed, is_mountpoint, require_root,
    while_nobody_starts,
};

/// A store with the template `base:1`, and places for roots of it.
struct Desk {
    scratch: Scratch,
    store: Store,
}

impl Desk {
    fn new() -> Self {
        require_root();
        let scratch = Scratch::new("cli-mount");
        let store = Store::at(&scratch.path().join("store"));
        let desk = Self { scratch, store };
        desk.import("base:1", "the first");
        desk
    }

    /// A template with a text, a program and a link; `version` is what the text says.
    fn import(&self, template: &str, version: &str) {
        let tree = self.scratch.directory(&format!("tree {template} {version}"));
        for directory in ["etc", "usr/bin", "mnt", "tmp"] {
            fs::create_dir_all(tree.join(directory)).expect("made");
        }
        fs::write(tree.join("etc/version"), version).expect("written");
        let program = tree.join("usr/bin/hello");
        fs::write(&program, "#!/bin/sh\necho hello\n").expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
        symlink("usr/bin", tree.join("bin")).expect("linked");
        self.mica(["template", "import", "--replace", template]).arg(&tree).succeed();
    }

    fn private(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.mountpoint(name)
    }

    fn mica<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        self.store.mica(arguments)
    }

    /// The command that mounts a root, saying all it has to say.
    fn mount(&self, template: &str, place: &Path, private: &Path) -> Command {
        let mut command = self.mica(["mount", template]);
        command.arg(place).arg("--private").arg(private);
        command
    }

    fn json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Value {
        let text = self.mica(arguments).arg("--json").succeed();
        serde_json::from_str(&text).expect("JSON")
    }

    /// The mount process of a root, as something to wait for.
    fn process(&self, root: &str) -> (Pid, rustix::fd::OwnedFd) {
        let pid = self.json(["info", root])["pid"].as_i64().expect("a pid");
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
        (pid, pidfd_open(pid, PidfdFlags::empty()).expect("it lives"))
    }
}

/// Waits until a process has ended.
fn ended(process: &rustix::fd::OwnedFd) {
    let patience = Timespec::try_from(PATIENCE).expect("some minutes");
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&patience)).expect("polled"), 1, "the process lives on");
}

/// One sentence: one line that starts with the program's name and has no error number.
fn sentence(text: &str) -> &str {
    let line = text.trim_end();
    assert!(line.starts_with("mica: "), "{line:?}");
    assert!(!line.contains('\n') && !line.contains("os error"), "{line:?}");
    line
}

/// The options of a mount, as the mount table has them.
fn options_of(place: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mounts").expect("proc is mounted");
    let line = table.lines().find(|line| line.split(' ').nth(1) == place.to_str());
    let line = line.unwrap_or_else(|| panic!("{} is not mounted", place.display()));
    line.split(' ').nth(3).expect("options").split(',').map(str::to_owned).collect()
}

#[test]
fn a_root_keeps_its_changes_and_no_other_sees_them() {
    let desk = Desk::new();
    let (one, two) = (desk.at("one"), desk.at("two"));
    let options = |name: &str| MountOptions::private(&desk.private(name));
    let first = desk.store.mount("base:1", &one, &options("p1"));
    let second = desk.store.mount("base:1", &two, &options("p2"));
    fs::write(one.join("etc/version"), "changed").expect("written");
    fs::remove_file(one.join("usr/bin/hello")).expect("removed");
    fs::write(one.join("new"), "file").expect("written");
    assert_eq!(fs::read_to_string(two.join("etc/version")).expect("read"), "the first");
    assert!(two.join("usr/bin/hello").exists() && !two.join("new").exists());
    first.unmount();
    assert!(fs::read_dir(&one).expect("listed").next().is_none());
    let again = desk.store.mount("base:1", &one, &options("p1"));
    assert_eq!(fs::read_to_string(one.join("etc/version")).expect("read"), "changed");
    assert!(one.join("new").exists() && !one.join("usr/bin/hello").exists());
    let ran = Command::new(two.join("bin/hello")).succeed();
    assert_eq!(ran, "hello\n");
    again.unmount();
    second.unmount();
}

#[test]
fn a_background_mount_lets_go_of_its_caller() {
    let desk = Desk::new();
    let place = desk.at("one");
    // Had it kept our pipes this would never return: they are read to their end.
    let output = desk.mount("base:1", &place, &desk.private("p")).capture();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let (pid, _) = desk.process("p");
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).expect("lives");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    let (session, terminal) = (fields[3], fields[4]);
    assert_eq!((session, terminal), (pid.as_raw_nonzero().to_string().as_str(), "0"));
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    assert_eq!(fs::read_link(process.join("cwd")).expect("a link"), Path::new("/"));
    let stderr = fs::read_link(process.join("fd/2")).expect("a link");
    assert!(stderr.starts_with(desk.store.path().join("roots")), "{stderr:?}");
    desk.mica(["umount", "p"]).succeed();
}

#[test]
fn status_and_statistics_tell_what_happened() {
    let desk = Desk::new();
    let place = desk.at("one");
    let root = desk.store.mount("base:1", &place, &MountOptions::private(&desk.private("web1")));
    fs::write(place.join("etc/version"), "changed").expect("written");
    let info = desk.json(["info", place.to_str().expect("text")]);
    assert_eq!((info["name"].as_str(), info["mounted"].as_bool()), (Some("web1"), Some(true)));
    assert_eq!(info["status"]["mountpoint"].as_str(), place.to_str());
    assert_eq!(info["status"]["read_only"], false);
    assert!(info["statistics"]["requests"]["open"].as_u64() > Some(0), "{info}");
    let listed = desk.json(["mount"]);
    assert_eq!(listed.as_array().expect("a list").len(), 1);
    assert!(desk.mica(["mount"]).succeed().contains("web1"));
    let socket = info["control"].as_str().expect("a path");
    assert_eq!(fs::metadata(socket).expect("there").mode() & 0o777, 0o600);
    root.unmount();
    let info = desk.json(["info", "web1"]);
    assert_eq!((info["mounted"].as_bool(), &info["status"]), (Some(false), &Value::Null));
    assert!(!Path::new(socket).exists());
}

#[test]
fn without_a_private_directory_a_root_is_read_only_and_leaves_no_record() {
    let desk = Desk::new();
    let place = desk.at("ro");
    let root = desk.store.mount("base:1", &place, &MountOptions::read_only());
    let refused = fs::write(place.join("new"), "x").expect_err("read-only");
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert!(options_of(&place).contains(&"ro".to_owned()));
    let refused = desk.mica(["template", "delete", "base:1"]).refuse();
    assert!(sentence(&refused).contains("1 root (ro)"), "{refused}");
    root.unmount();
    assert_eq!(desk.json(["mount"]), Value::Array(Vec::new()));
    desk.mica(["template", "delete", "base:1"]).succeed();
}

#[test]
fn a_template_is_not_deleted_and_its_layers_not_collected_under_a_root() {
    let desk = Desk::new();
    let place = desk.at("one");
    let root = desk.store.mount("base:1", &place, &MountOptions::private(&desk.private("web1")));
    root.unmount();
    let refused = desk.mica(["template", "delete", "base:1"]).refuse();
    assert!(sentence(&refused).contains("used by 1 root (web1)"), "{refused}");
    desk.import("base:1", "the second");
    assert_eq!(desk.json(["store", "gc"])["objects"], 0);
    let kept = desk.mica(["store", "forget", "web1"]).refuse();
    assert!(sentence(&kept).contains("still exists"), "{kept}");
    fs::remove_dir_all(desk.private("web1")).expect("removed");
    assert!(desk.mica(["store", "check"]).capture().status.success());
    desk.mica(["store", "forget", "web1"]).succeed();
    assert_eq!(desk.json(["store", "gc"])["objects"], 1);
}

#[test]
fn a_root_stays_on_its_stack_when_the_tag_moves_and_that_is_said_once() {
    let desk = Desk::new();
    let (place, private) = (desk.at("one"), desk.private("web1"));
    let options = MountOptions::private(&private);
    desk.store.mount("base:1", &place, &options).unmount();
    desk.import("base:1", "the second");
    for expected in [true, false] {
        let output = desk.mount("base:1", &place, &private).capture();
        assert!(output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains("names another stack"), expected, "{said:?}");
        assert_eq!(fs::read_to_string(place.join("etc/version")).expect("read"), "the first");
        desk.mica(["umount", "web1"]).succeed();
    }
    // A new root is made from what the tag names now.
    let other = desk.store.mount("base:1", &place, &MountOptions::private(&desk.private("web2")));
    assert_eq!(fs::read_to_string(place.join("etc/version")).expect("read"), "the second");
    other.unmount();
}

#[test]
fn a_private_directory_belongs_to_one_root_at_a_time_and_to_one_template() {
    let desk = Desk::new();
    desk.import("other:1", "something else");
    let (place, private) = (desk.at("one"), desk.private("web1"));
    let root = desk.store.mount("base:1", &place, &MountOptions::private(&private));
    let elsewhere = desk.mount("base:1", &desk.at("two"), &private).refuse();
    assert!(sentence(&elsewhere).contains("is in use: root \"web1\" is mounted at"), "{elsewhere}");
    // Another store does not know this root; the lock on the directory tells it all the same.
    let stranger = Store::at(&desk.scratch.path().join("stranger"));
    stranger.import("base:1", &desk.scratch.path().join("tree base:1 the first"));
    let command =
        stranger.mount_command("base:1", &desk.at("two"), &MountOptions::private(&private));
    let locked = { command }.refuse();
    assert!(sentence(&locked).contains("in use"), "{locked}");
    assert_eq!(
        fs::read_dir(stranger.path().join("roots"))
            .expect("there")
            .filter(|entry| {
                entry
                    .as_ref()
                    .is_ok_and(|entry| entry.path().extension().is_some_and(|e| e == "json"))
            })
            .count(),
        0,
        "a failed mount leaves no record"
    );
    root.unmount();
    let other = desk.mount("other:1", &place, &private).refuse();
    assert!(sentence(&other).contains("of template base:1"), "{other}");
    let letters = desk.scratch.directory("letters");
    fs::write(letters.join("letter"), "dear").expect("written");
    let foreign = desk.mount("base:1", &place, &letters).refuse();
    assert!(sentence(&foreign).contains("not empty"), "{foreign}");
    assert_eq!(fs::read_dir(&letters).expect("listed").count(), 1);
    let inside = desk.mount("base:1", &place, &place.join("private")).refuse();
    assert!(sentence(&inside).contains("inside the mountpoint"), "{inside}");
}

#[test]
fn a_private_directory_may_be_moved_and_its_root_goes_along() {
    let desk = Desk::new();
    let place = desk.at("one");
    let root = desk.store.mount("base:1", &place, &MountOptions::private(&desk.private("old")));
    fs::write(place.join("mine"), "kept").expect("written");
    root.unmount();
    desk.import("base:1", "the second");
    fs::rename(desk.private("old"), desk.private("new")).expect("moved");
    let root = desk.store.mount("base:1", &place, &MountOptions::private(&desk.private("new")));
    assert_eq!(fs::read_to_string(place.join("mine")).expect("read"), "kept");
    assert_eq!(fs::read_to_string(place.join("etc/version")).expect("read"), "the first");
    root.unmount();
    let roots = desk.json(["mount"]);
    assert_eq!(roots.as_array().expect("a list").len(), 1, "{roots}");
}

#[test]
fn a_used_mountpoint_is_refused() {
    let desk = Desk::new();
    let place = desk.at("one");
    let root = desk.store.mount("base:1", &place, &MountOptions::private(&desk.private("web1")));
    let taken = desk.mount("base:1", &place, &desk.private("web2")).refuse();
    assert!(sentence(&taken).contains("is mounted at"), "{taken}");
    root.unmount();
    fs::write(place.join("letter"), "dear").expect("written");
    let full = desk.mount("base:1", &place, &desk.private("web2")).refuse();
    assert!(sentence(&full).contains("is not empty"), "{full}");
    let unknown = desk.mount("bsae:1", &desk.at("two"), &desk.private("web2")).refuse();
    assert!(sentence(&unknown).contains("did you mean \"base:1\"?"), "{unknown}");
    let swapped = desk.mica(["mount", "/mnt", "base:1"]).refuse();
    assert!(sentence(&swapped).contains("mica mount base:1 /mnt"), "{swapped}");
    assert!(!desk.private("web2").exists(), "a refused mount makes nothing");
}

#[test]
fn a_dead_mount_is_cleared_away_by_the_next_one() {
    let desk = Desk::new();
    let (place, private) = (desk.at("one"), desk.private("web1"));
    let dead = desk.store.serve("base:1", &place, &MountOptions::private(&private));
    fs::write(place.join("mine"), "kept").expect("written");
    File::open(place.join("mine")).and_then(|file| file.sync_all()).expect("on the disk");
    dead.kill();
    let gone = fs::metadata(&place).expect_err("nobody serves it");
    assert_eq!(gone.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()));
    assert_eq!(desk.json(["mount"])[0]["mounted"], false);
    let root = desk.store.mount("base:1", &place, &MountOptions::private(&private));
    assert_eq!(fs::read_to_string(place.join("mine")).expect("read"), "kept");
    root.unmount();
    assert!(!is_mountpoint(&place), "nothing dead lies beneath");
}

#[test]
fn umount_clears_a_dead_mount() {
    let desk = Desk::new();
    let place = desk.at("one");
    let options = MountOptions::private(&desk.private("web1"));
    let dead = desk.store.serve("base:1", &place, &options);
    dead.kill();
    desk.mica(["umount"]).arg(&place).succeed();
    assert!(!is_mountpoint(&place));
    let refused = desk.mica(["umount", "web1"]).refuse();
    assert!(sentence(&refused).contains("not mounted"), "{refused}");
    desk.store.mount("base:1", &place, &options).unmount();
}

#[test]
fn plain_umount_ends_the_process_and_frees_the_private_directory() {
    let desk = Desk::new();
    let place = desk.at("one");
    let options = MountOptions::private(&desk.private("web1"));
    let root = desk.store.mount("base:1", &place, &options);
    let (_, process) = desk.process("web1");
    Command::new("umount").arg(&place).succeed();
    ended(&process);
    let info = desk.json(["info", "web1"]);
    assert_eq!((&info["mountpoint"], info["mounted"].as_bool()), (&Value::Null, Some(false)));
    drop(root);
    desk.store.mount("base:1", &place, &options).unmount();
}

#[test]
fn what_follows_plain_umount_at_once_waits_for_the_process() {
    let desk = Desk::new();
    let place = desk.at("one");
    for round in 0..8 {
        let (options, wanted) = if round % 2 == 0 {
            (MountOptions::private(&desk.private("web1")), "web1")
        } else {
            (MountOptions::read_only(), "one")
        };
        let root = desk.store.mount("base:1", &place, &options);
        Command::new("umount").arg(&place).succeed();
        // Nobody waits here: the process is still ending.
        desk.mica(["template", "delete", "--dry-run", "base:1"]).capture();
        let again = desk.store.mount("base:1", &place, &options);
        assert_eq!(desk.json(["info", wanted])["mounted"], true);
        Command::new("umount").arg(&place).succeed();
        drop((root, again));
    }
    fs::remove_dir_all(desk.private("web1")).expect("free");
    desk.mica(["store", "forget", "web1"]).succeed();
    desk.mica(["template", "delete", "base:1"]).succeed();
}

#[test]
fn a_busy_root_stays_and_names_who_keeps_it_and_lazily_goes_with_them() {
    let desk = Desk::new();
    let place = desk.at("one");
    let _root = desk.store.mount("base:1", &place, &MountOptions::private(&desk.private("web1")));
    let (_, process) = desk.process("web1");
    let mut user = Command::new("cat").current_dir(&place).stdin(Stdio::piped()).start();
    let busy = desk.mica(["umount", "web1"]).refuse();
    assert!(sentence(&busy).contains(&format!("cat ({})", user.id())), "{busy}");
    assert!(is_mountpoint(&place));
    let file = File::open(place.join("etc/version")).expect("opens");
    let lazy = desk.mica(["umount", "--lazy", "--quiet", "web1"]);
    let waiting = { lazy }.start();
    // It leaves the tree at once; the process ends with its last user.
    let table = File::open("/proc/self/mountinfo").expect("proc is mounted");
    while is_mountpoint(&place) {
        let mut changed = [PollFd::new(&table, PollFlags::PRI)];
        poll(&mut changed, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 })).expect("polled");
    }
    assert_eq!(io::read_to_string(&file).expect("still served"), "the first");
    drop((file, user.stdin.take()));
    user.wait().expect("cat ends");
    ended(&process);
    assert!({ waiting }.wait().expect("mica ends").success());
}

#[test]
fn a_signal_unmounts_a_foreground_root_and_ends_it_well() {
    let desk = Desk::new();
    let place = desk.at("one");
    let supervisor = desk.scratch.path().join("notify");
    let notified = UnixDatagram::bind(&supervisor).expect("bound");
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = desk.mount("base:1", &place, &desk.private("web1"));
        command.env("NOTIFY_SOCKET", &supervisor);
        let mut server =
            { command.arg("--foreground").stderr(Stdio::null()) }.stdout(Stdio::piped()).start();
        let mut line = String::new();
        let stdout = server.stdout.take().expect("piped");
        io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line).expect("it says so");
        assert!(is_mountpoint(&place), "{line}");
        let mut message = [0; 64];
        let len = notified.recv(&mut message).expect("the supervisor is told");
        assert_eq!(&message[..len], b"READY=1");
        let pid = i32::try_from(server.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it lives");
        assert!(server.wait().expect("it ends").success());
        assert!(!is_mountpoint(&place));
        assert_eq!(desk.json(["info", "web1"])["mounted"], false);
    }
}

#[test]
fn generic_options_are_honoured() {
    let desk = Desk::new();
    let (place, private) = (desk.at("one"), desk.private("web1"));
    let mut command = desk.mount("base:1", &place, &private);
    command.args(["-o", "noexec,nosuid,nodev,noatime,x-test=1,_netdev,defaults"]).succeed();
    let options = options_of(&place);
    for expected in ["rw", "noexec", "nosuid", "nodev", "noatime"] {
        assert!(options.contains(&expected.to_owned()), "{options:?}");
    }
    let ran = Command::new(place.join("bin/hello")).output().expect_err("noexec");
    assert_eq!(ran.kind(), io::ErrorKind::PermissionDenied);
    desk.mica(["umount", "--all"]).succeed();
    desk.mount("base:1", &place, &private).args(["-o", "ro"]).succeed();
    assert!(fs::write(place.join("new"), "x").is_err());
    desk.mica(["umount", "--all"]).succeed();
    let refused = desk.mount("base:1", &place, &private).args(["-o", "turbo"]).refuse();
    assert!(sentence(&refused).contains("\"turbo\""), "{refused}");
}

#[test]
fn without_passthrough_a_root_works_and_says_so() {
    let desk = Desk::new();
    let place = desk.at("one");
    let options = MountOptions::private(&desk.private("web1")).passthrough(false);
    let root = desk.store.mount("base:1", &place, &options);
    assert_eq!(desk.json(["info", "web1"])["status"]["passthrough"], false);
    assert_eq!(Command::new(place.join("bin/hello")).succeed(), "hello\n");
    root.unmount();
}

/// Runs a shell script in a mount namespace where mount(8) finds Mica as its helper.
fn in_helper_namespace(desk: &Desk, script: &str) -> Command {
    let helpers = desk.scratch.directory("helpers");
    let helper = helpers.join("mount.fuse.mica");
    if !helper.exists() {
        symlink(env!("CARGO_BIN_EXE_mica"), &helper).expect("linked");
    }
    // A read-only overlay puts the helper beside what is there, for this namespace only.
    let overlay = format!(
        "set -e; mount -t overlay -o lowerdir=/usr/sbin:{} helpers /usr/sbin",
        helpers.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{overlay}\n{script}")]);
    command.env("MICA_STORE", desk.store.path());
    command
}

#[test]
fn mount_8_and_fstab_mount_a_root_in_silence() {
    let desk = Desk::new();
    let (place, private) = (desk.at("one"), desk.private("web1"));
    let (place, private) = (place.display(), private.display());
    let fstab = desk.scratch.path().join("fstab");
    let line = format!(
        "base:1 {place} fuse.mica private={private},store={},rw,relatime,noexec,nodev,\
         fsname=web,_netdev,nofail,x-systemd.requires=x,defaults 0 0\n",
        desk.store.path().display()
    );
    fs::write(&fstab, line).expect("written");
    let script = format!(
        "mount -t fuse.mica base:1 {place} -o private={private},noatime
         cat {place}/etc/version; echo mine > {place}/mine
         findmnt -n -o SOURCE,FSTYPE,OPTIONS {place}
         umount {place}
         mount -T {} {place}
         cat {place}/mine
         findmnt -n -o SOURCE,FSTYPE,OPTIONS {place}
         umount {place}",
        fstab.display()
    );
    let output = in_helper_namespace(&desk, &script).capture();
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && wrong.is_empty(), "{said}\n{wrong}");
    assert!(said.starts_with("the firstbase:1"), "{said}");
    assert!(said.contains("noatime") && said.contains("mine\nweb"), "{said}");
    assert!(said.contains("noexec") && said.contains("fuse.mica"), "{said}");
}

#[test]
fn mount_8_tells_one_sentence_and_fails_when_mica_does() {
    let desk = Desk::new();
    let script = format!("mount -t fuse.mica no-such:1 {}", desk.at("one").display());
    let output = in_helper_namespace(&desk, &script).capture();
    assert_eq!(output.status.code(), Some(32));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("there is no template \"no-such:1\""), "{said}");
}

#[test]
fn a_mountpoint_that_is_made_is_nobody_elses_to_write_in() {
    let desk = Desk::new();
    let place = desk.scratch.path().join("made/deep/here");
    desk.mount("base:1", &place, &desk.private("web1")).succeed();
    desk.mica(["umount", "web1"]).succeed();
    for made in ["made", "made/deep", "made/deep/here"] {
        let mode =
            fs::metadata(desk.scratch.path().join(made)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{made}");
    }
}

#[test]
fn what_a_host_lacks_is_one_sentence() {
    let desk = Desk::new();
    // The program where everybody may run it.
    let program = desk.scratch.mountpoint("bin").join("mica");
    while_nobody_starts(|| fs::copy(env!("CARGO_BIN_EXE_mica"), &program)).expect("copied");
    let place = desk.at("one");
    let mut nobody = Command::new(&program);
    nobody.args(["--store", "/nowhere", "mount", "base:1"]).arg(&place).uid(65_534).gid(65_534);
    let refused = nobody.refuse();
    assert!(sentence(&refused).contains("needs root"), "{refused}");
    let script = format!(
        "mount -t tmpfs none /dev; exec {} --store {} mount base:1 {}",
        program.display(),
        desk.store.path().display(),
        place.display()
    );
    let refused = Command::new("unshare").args(["--mount", "sh", "-c", &script]).refuse();
    assert!(sentence(&refused).contains("there is no /dev/fuse"), "{refused}");
    let doctor = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            &format!("mount -t tmpfs none /dev; {} doctor", program.display()),
        ])
        .env("MICA_STORE", desk.store.path())
        .capture();
    assert_eq!(doctor.status.code(), Some(1), "{doctor:?}");
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("fuse (required): modprobe fuse"), "{said}");
}

#[test]
fn doctor_tries_things_and_leaves_nothing() {
    let desk = Desk::new();
    let before = fs::read_dir(desk.store.path()).expect("there").count();
    let report = desk.json(["doctor"]);
    let findings = report["findings"].as_array().expect("a list");
    let works = |name: &str| {
        let finding = findings.iter().find(|finding| finding["capability"] == name);
        finding.unwrap_or_else(|| panic!("no {name}"))["works"].as_bool().expect("yes or no")
    };
    for needed in ["root", "fuse", "mount", "trusted-xattrs", "whiteouts", "read-only-mount"] {
        assert!(works(needed), "{report}");
    }
    for finding in findings {
        assert_eq!(finding["works"] == false, finding["remedy"].is_string(), "{finding}");
    }
    assert_eq!(fs::read_dir(desk.store.path()).expect("there").count(), before);
}

#[test]
fn a_mounted_store_is_not_destroyed_and_an_unmounted_one_is() {
    let desk = Desk::new();
    let root =
        desk.store.mount("base:1", &desk.at("one"), &MountOptions::private(&desk.private("web1")));
    let refused = desk.mica(["store", "destroy", "--yes"]).refuse();
    assert!(sentence(&refused).contains("serves mounted roots (web1)"), "{refused}");
    root.unmount();
    let output = desk.mica(["store", "destroy", "--yes"]).capture();
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("has lost its template"), "{said}");
    assert!(!desk.store.path().exists());
}

#[test]
fn ten_roots_come_and_go_at_once() {
    let desk = Desk::new();
    std::thread::scope(|scope| {
        for number in 0..10 {
            let desk = &desk;
            scope.spawn(move || {
                let place = desk.at(&format!("at{number}"));
                let options = MountOptions::private(&desk.private(&format!("web{number}")));
                for round in 0..2 {
                    let root = desk.store.mount("base:1", &place, &options);
                    let file = place.join("etc/version");
                    let before =
                        if round == 0 { "the first".to_owned() } else { number.to_string() };
                    assert_eq!(fs::read_to_string(&file).expect("read"), before);
                    fs::write(&file, number.to_string()).expect("written");
                    root.unmount();
                }
            });
        }
    });
    let roots = desk.json(["mount"]);
    let names: std::collections::BTreeSet<&str> =
        roots.as_array().expect("a list").iter().filter_map(|root| root["name"].as_str()).collect();
    assert_eq!(names.len(), 10, "{roots}");
}
