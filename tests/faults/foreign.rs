//! Upper directories that the kernel's overlayfs wrote, and that it goes on writing.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::stage::{Stage, picture};
use crate::support::{MountOptions, Mounted, Succeed, seeds, unmount_beneath};

/// A template, and a private directory whose upper both file systems take turns to write.
struct Turns {
    stage: Stage,
    name: &'static str,
}

impl Turns {
    fn new() -> Self {
        let stage = Stage::new("foreign");
        for part in ["a/upper", "a-work"] {
            fs::create_dir_all(stage.scratch.path().join("private").join(part)).unwrap();
        }
        Self { stage, name: "a" }
    }

    /// The template as plain files, for the kernel: what it was imported from.
    fn lower(&self) -> PathBuf {
        self.stage.scratch.path().join("source")
    }

    /// Runs `change` on a kernel overlayfs over the template; returns what it shows afterwards.
    fn kernel(&self, change: impl FnOnce(&Path)) -> String {
        let mountpoint = self.stage.scratch.mountpoint("kernel");
        let private = self.stage.scratch.path().join("private");
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,metacopy=on,index=off,xino=off",
            self.lower().display(),
            private.join("a/upper").display(),
            private.join("a-work").display(),
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&mountpoint).succeed();
        change(&mountpoint);
        let seen = contents(&mountpoint);
        unmount_beneath(&mountpoint);
        seen
    }

    fn mount(&self, passthrough: bool) -> Mounted {
        let options =
            MountOptions::private(&self.stage.private(self.name)).passthrough(passthrough);
        self.stage.store.mount("base", &self.stage.scratch.mountpoint("mica"), &options)
    }

    /// Runs `change` on a root of Mica's; returns what it shows before and afterwards.
    fn mica(&self, passthrough: bool, change: impl FnOnce(&Path)) -> (String, String) {
        let root = self.mount(passthrough);
        let before = contents(root.path());
        change(root.path());
        let after = contents(root.path());
        root.unmount();
        (before, after)
    }
}

/// What [`picture`] shows, without link counts: the kernel's overlayfs has its own idea of them.
fn contents(top: &Path) -> String {
    let lines = picture(top);
    let without = |line: &str| {
        let mut fields: Vec<&str> = line.split(' ').collect();
        fields.remove(5);
        fields.join(" ")
    };
    lines.lines().map(without).collect::<Vec<_>>().join("\n")
}

fn chmod(path: PathBuf, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn append(path: PathBuf, bytes: &[u8]) {
    fs::File::options().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

/// Every mark that the kernel's overlayfs leaves, on files and directories of every kind.
fn every_mark(top: &Path) {
    let at = |path: &str| top.join(path);
    // Metadata-only copies, in place, renamed in their directory, moved to another, linked.
    chmod(at("etc/conf"), 0o600);
    chmod(at("usr/bin/tool"), 0o700);
    fs::rename(at("usr/bin/tool"), at("usr/bin/renamed")).unwrap();
    chmod(at("usr/bin/other"), 0o700);
    fs::rename(at("usr/bin/other"), at("srv/other")).unwrap();
    fs::hard_link(at("srv/other"), at("srv/other2")).unwrap();
    chmod(at("srv/large"), 0o600);
    // One name of a file with two: here they part.
    chmod(at("srv/one"), 0o640);
    // Directories moved, moved again, moved out of a moved one; what was theirs goes along.
    fs::rename(at("srv/deep"), at("srv/deeper")).unwrap();
    fs::rename(at("srv/deeper/er"), at("etc/er")).unwrap();
    fs::create_dir(at("srv/deep")).unwrap();
    fs::write(at("srv/deep/file"), b"not the old one\n").unwrap();
    fs::rename(at("etc/er"), at("srv/deep/er")).unwrap();
    chmod(at("srv/deep/er/file"), 0o600);
    // Opaque: removed and made anew.
    fs::remove_dir(at("srv/empty")).unwrap();
    fs::create_dir(at("srv/empty")).unwrap();
    // Whiteouts, and another type under an old name.
    fs::remove_file(at("etc/link")).unwrap();
    fs::create_dir(at("etc/link")).unwrap();
    fs::write(at("etc/link/inside"), b"inside\n").unwrap();
    // Content.
    append(at("etc/fine"), b"appended\n");
    fs::write(at("etc/new"), b"new\n").unwrap();
    symlink("conf", at("etc/symlink")).unwrap();
    Command::new("mkfifo").arg(at("etc/fifo")).succeed();
    // An overlayfs of the container's own escapes its marks.
    for (name, value) in [("trusted.overlay.opaque", "y"), ("trusted.overlay.redirect", "/x")] {
        let mut setfattr = Command::new("setfattr");
        setfattr.args(["-n", name, "-v", value]).arg(at("srv/deep")).succeed();
    }
}

#[test]
fn an_upper_that_the_kernel_wrote_reads_the_same() {
    for passthrough in [true, false] {
        let turns = Turns::new();
        let kernel = turns.kernel(every_mark);
        let (mica, _) = turns.mica(passthrough, |root| {
            // Nothing of the kernel's marks shows, and the container's own ones do.
            let mut getfattr = Command::new("getfattr");
            let shown = getfattr.args(["-d", "-m", "-", "-R", "."]).current_dir(root).succeed();
            let marks: Vec<&str> = shown.lines().filter(|line| line.contains("trusted.")).collect();
            assert_eq!(marks.len(), 2, "{shown}");
            // The names that parted stay apart: writing one does not write the other.
            append(root.join("srv/one"), b"one\n");
            assert_eq!(fs::read(root.join("etc/two")).unwrap(), b"linked\n");
            append(root.join("etc/two"), b"two\n");
            assert_eq!(fs::read(root.join("srv/one")).unwrap(), b"linked\none\n");
            // Two names of one metadata-only copy are one file.
            append(root.join("srv/other"), b"more\n");
            let both = ["srv/other", "srv/other2"].map(|name| fs::read(root.join(name)).unwrap());
            assert_eq!(both[0], both[1]);
        });
        assert_eq!(mica, kernel);
    }
}

/// One random change; what is impossible is not done.
fn step(root: &Path, random: &mut fastrand::Rng) {
    let places = ["etc", "srv", "usr/bin", "srv/deep", "srv/deep/er", "srv/empty", "new", "new/er"];
    let names = ["conf", "fine", "one", "two", "file", "tool", "other", "link", "er", "deep", "x"];
    let pick = |random: &mut fastrand::Rng| {
        let place = root.join(places[random.usize(..places.len())]);
        if random.u8(..6) == 0 { place } else { place.join(names[random.usize(..names.len())]) }
    };
    let (one, two) = (pick(random), pick(random));
    let mode = fs::Permissions::from_mode(0o700 | random.u32(..0o100));
    // Any of these may meet the wrong type, or nothing: that is part of the game.
    let done = match random.u8(..13) {
        0 => fs::write(&one, format!("{}", random.u32(..))),
        1 => fs::File::options().append(true).open(&one).and_then(|mut f| f.write_all(b"+")),
        2 | 3 => fs::set_permissions(&one, mode),
        4 | 5 => fs::rename(&one, &two),
        6 => fs::remove_file(&one),
        7 => fs::remove_dir(&one),
        8 => fs::remove_dir_all(&one),
        9 => fs::create_dir(&one),
        10 => fs::hard_link(&one, &two),
        11 => symlink("conf", &one),
        _ => renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).map_err(Into::into),
    };
    drop(done);
}

#[test]
fn the_kernel_and_mica_take_turns_on_one_upper() {
    let turns = match std::env::var("MICA_TEST_COUNTS").as_deref() {
        Ok("long") => 300,
        Ok("quick") => 2,
        _ => 8,
    };
    for seed in seeds(turns) {
        let turns = Turns::new();
        let mut random = fastrand::Rng::with_seed(seed);
        // What is empty has no owner yet; Mica would give it the time of the template's root.
        let mut last = turns.kernel(|root| fs::create_dir(root.join("new")).unwrap());
        for turn in 0..3 {
            let passthrough = random.bool();
            let (before, after) = turns.mica(passthrough, |root| {
                (0..random.u8(..20)).for_each(|_| step(root, &mut random));
            });
            assert_eq!(before, last, "seed {seed}: Mica reads turn {turn} of the kernel otherwise");
            let seen = turns.kernel(|_| {});
            assert_eq!(seen, after, "seed {seed}: the kernel reads turn {turn} of Mica otherwise");
            last = turns.kernel(|root| {
                (0..random.u8(..20)).for_each(|_| step(root, &mut random));
            });
        }
    }
}
