//! `mica revert` while the power fails: at rest and on a mounted root, at every step.
//!
//! A step is a system call that changes something (`cuts.rs`). The process that reverts is killed
//! when it is about to make it, and the disk that the store and the private directory are on stops
//! at once; what a remount finds there is judged. Steps are further apart than in `cuts.rs`.

use std::process::Command;

use serde_json::Value;

use crate::cuts::{Traced, changed, changed_in, copy, cut, is_between, stride};
use crate::stage::Stage;
use crate::support::{
    Disk, DiskFormat, LogFlush, MountOptions, Scratch, Snapshot, Step, Succeed, assert_same,
    shut_down, snapshot, unmount_beneath,
};

/// A stage on a disk of its own, which can lose its power.
struct Bench {
    // Gone before the directory with its image is.
    disk: Option<Disk>,
    stage: Stage,
    before: Snapshot,
    after: Snapshot,
    steps: usize,
}

impl Bench {
    fn new(name: &str, format: DiskFormat) -> Self {
        let scratch = Scratch::new(name);
        let (image, at) = (scratch.path().join("disk.img"), scratch.mountpoint("disk"));
        let disk = Disk::create(&image, &at, format, 512 << 20);
        let (stage, before, after) = changed_in(Stage::at(scratch, at));
        Self { disk: Some(disk), stage, before, after, steps: 0 }
    }

    /// Makes the changes anew, all of them durable.
    fn change(&self) {
        copy(&self.stage.private("master"), &self.stage.private("ct"));
        let disk = self.disk.as_ref().unwrap();
        Command::new("sync").arg("-f").arg(disk.path()).succeed();
    }

    /// Stops the disk; `end` ends what still uses it.
    fn fail(&mut self, end: impl FnOnce()) -> LogFlush {
        self.steps += 1;
        let log = if self.steps.is_multiple_of(3) { LogFlush::Lost } else { LogFlush::Flushed };
        let disk = self.disk.take().unwrap();
        let (image, at) = (disk.image().to_owned(), disk.path().to_owned());
        shut_down(&at, log).unwrap();
        end();
        disk.detach();
        self.disk = Some(Disk::attach(&image, &at));
        log
    }

    /// Every path is what it was or the template's, all the template's if the revert had
    /// come to its end; and the next revert does the rest.
    fn judge(&self, step: Step, log: LogFlush, through: bool) {
        let private = self.stage.private("ct");
        let left = changed(&self.stage, &private);
        let kinds: Vec<&Value> = left.as_array().unwrap().iter().map(|one| &one["kind"]).collect();
        assert!(kinds.iter().all(|kind| *kind != "damaged"), "{step:?}, {log:?}: {left:#}");
        assert!(!through || kinds.is_empty(), "{step:?}, {log:?}: it came back: {left:#}");
        let options = MountOptions::private(&private);
        let mountpoint = self.stage.scratch.mountpoint("ct");
        let root = self.stage.store.mount("base", &mountpoint, &options);
        is_between(&snapshot(root.path()), &self.before, &self.after, step);
        self.stage.store.mica(["revert", "ct", "/"]).succeed();
        assert_eq!(changed(&self.stage, &private), Value::Array(Vec::new()), "{step:?}, {log:?}");
        assert_same(&snapshot(root.path()), &self.after);
        root.unmount();
    }
}

fn at_rest(name: &str, format: DiskFormat) {
    let mut bench = Bench::new(name, format);
    let private = bench.stage.private("ct");
    Step::each(3 * stride(), |step| {
        bench.change();
        let through = cut(&bench.stage, &["revert", "/"], &private, step);
        let log = bench.fail(|| ());
        bench.judge(step, log, through);
        through
    });
}

#[test]
fn a_power_cut_in_a_revert_at_rest_leaves_each_path_as_it_was_or_the_templates() {
    at_rest("powerrest", DiskFormat::Ext4);
}

#[test]
fn a_power_cut_in_a_revert_at_rest_on_xfs_leaves_each_path_as_it_was_or_the_templates() {
    at_rest("powerxfs", DiskFormat::Xfs);
}

#[test]
fn a_power_cut_in_a_revert_of_a_mounted_root_leaves_each_path_as_it_was_or_the_templates() {
    let mut bench = Bench::new("powerlive", DiskFormat::Ext4);
    let options = MountOptions::private(&bench.stage.private("ct"));
    let mountpoint = bench.stage.scratch.mountpoint("ct");
    Step::each(3 * stride(), |step| {
        bench.change();
        let root = bench.stage.store.serve("base", &mountpoint, &options);
        let traced = Traced::of(&bench.stage, &mountpoint, step);
        let done = bench.stage.store.mica(["revert"]).arg(&mountpoint).arg("/").capture();
        let through = done.status.success();
        let log = bench.fail(|| {
            traced.end();
            root.kill();
            unmount_beneath(&mountpoint);
        });
        bench.judge(step, log, through);
        through
    });
}
