//! The stages: a plain directory, the kernel's overlayfs, and a mica root, each beside a plain
//! directory that holds the merge of the same layers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mica::layer::{Stack, default_shared_paths};
use mica::object::Locks;
use rustix::fs::Mode;

use crate::compare::Tolerance;
use crate::drive::{Pair, Stage};
use crate::host::{HostTree, now_secs};
use crate::layers::{Layer, set_mtime, unpack};
use crate::operation::Place;
use crate::root::{RootSpec, ServedRoot, import_stack};
use crate::support::{Scratch, Succeed};

/// Unpacks `layers` one after another onto a new directory.
pub(crate) fn merged(layers: &[Layer], directory: &Path) {
    fs::create_dir(directory).unwrap();
    rustix::fs::chmod(directory, Mode::from_raw_mode(0o755)).unwrap();
    let mut times = BTreeMap::from([(Place::root(), (0, 0))]);
    for layer in layers {
        unpack(layer, directory, &mut times);
    }
}

/// A second plain directory: it must never differ.
pub(crate) fn plain(layers: &[Layer]) -> Pair {
    let scratch = Scratch::new("oracle-plain");
    let (reference, subject) = (scratch.path().join("reference"), scratch.path().join("subject"));
    merged(layers, &reference);
    merged(layers, &subject);
    Pair {
        reference: Box::new(HostTree::new(reference)),
        subject: Box::new(HostTree::new(subject)),
        stage: Box::new(PlainStage { _scratch: scratch }),
    }
}

struct PlainStage {
    _scratch: Scratch,
}

impl Stage for PlainStage {
    fn remount(&mut self) {}
}

/// The kernel's overlayfs over a checkout of the merge.
pub(crate) fn overlay(layers: &[Layer], options: &str) -> Pair {
    let scratch = Scratch::new("oracle-overlay");
    let reference = scratch.path().join("reference");
    merged(layers, &reference);
    merged(layers, &scratch.path().join("lower"));
    set_mtime(&scratch.directory("upper"), (0, 0));
    scratch.directory("work");
    let mountpoint = scratch.mountpoint("subject");
    let stage =
        OverlayStage { scratch, mountpoint: mountpoint.clone(), options: options.to_owned() };
    stage.mount();
    Pair {
        reference: Box::new(HostTree::new(reference)),
        subject: Box::new(HostTree::new(mountpoint)),
        stage: Box::new(stage),
    }
}

struct OverlayStage {
    scratch: Scratch,
    mountpoint: PathBuf,
    options: String,
}

impl OverlayStage {
    fn mount(&self) {
        mount_overlay(
            &self.scratch.path().join("lower"),
            &self.scratch.path().join("upper"),
            &self.scratch.path().join("work"),
            &self.mountpoint,
            &self.options,
        );
    }
}

impl Stage for OverlayStage {
    fn remount(&mut self) {
        std::process::Command::new("umount").arg(&self.mountpoint).succeed();
        self.mount();
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance { directory_links: true, ..Tolerance::default() }
    }
}

/// Layers imported one on another, for any number of roots.
pub(crate) struct MicaTemplate {
    layers: Vec<Layer>,
    stack: Stack,
    scratch: Scratch,
}

impl MicaTemplate {
    /// Imports `layers` into a store of their own.
    pub(crate) fn import(layers: &[Layer]) -> Self {
        let scratch = Scratch::new("oracle-store");
        let stack = import_stack(scratch.path(), layers, Locks::ALL);
        Self { layers: layers.to_vec(), stack, scratch }
    }

    /// A fresh root beside a fresh directory.
    pub(crate) fn root(&self, passthrough: bool) -> Pair {
        self.root_in(Rc::new(Scratch::new("oracle-mica")), passthrough)
    }

    /// The same in a scratch directory that outlives it: `reference` and `private` are in there,
    /// and go on as an earlier root left them.
    pub(crate) fn root_in(&self, scratch: Rc<Scratch>, passthrough: bool) -> Pair {
        let reference = scratch.path().join("reference");
        if !reference.exists() {
            merged(&self.layers, &reference);
        }
        let root = ServedRoot::start(&RootSpec {
            store: self.scratch.path().to_owned(),
            stack: self.stack.clone(),
            private: Some(scratch.path().join("private")),
            mountpoint: scratch.mountpoint("subject"),
            passthrough,
            readonly_mount: true,
            shared_paths: default_shared_paths(),
        });
        Pair {
            reference: Box::new(HostTree::new(reference)),
            subject: Box::new(HostTree::new(root.path())),
            stage: Box::new(MicaStage { root, passthrough, _scratch: scratch }),
        }
    }
}

/// One root, changed by several histories at once, each in a directory of its own.
pub(crate) struct Crowd {
    root: ServedRoot,
    reference: PathBuf,
    tops: Vec<String>,
    passthrough: bool,
    epoch_secs: i64,
    _scratch: Scratch,
}

impl Crowd {
    /// Mounts `stacks`, each under a directory of its own; all have as many layers.
    pub(crate) fn gather(stacks: &[Vec<Layer>], passthrough: bool) -> Self {
        let scratch = Scratch::new("oracle-crowd");
        let tops: Vec<String> = (0..stacks.len()).map(|index| format!("t{index}")).collect();
        let layers: Vec<Layer> = (0..stacks[0].len())
            .map(|level| {
                let parts = stacks.iter().zip(&tops);
                Layer::side_by_side(parts.map(|(stack, top)| (Place::new(top), &stack[level])))
            })
            .collect();
        let (reference, store) = (scratch.path().join("reference"), scratch.path().join("store"));
        merged(&layers, &reference);
        let root = ServedRoot::start(&RootSpec {
            stack: import_stack(&store, &layers, Locks::ALL),
            store,
            private: Some(scratch.path().join("private")),
            mountpoint: scratch.mountpoint("subject"),
            passthrough,
            readonly_mount: true,
            shared_paths: tops.iter().map(|top| format!("/{top}/usr")).collect(),
        });
        let epoch_secs = now_secs() - 1;
        Self { root, reference, tops, passthrough, epoch_secs, _scratch: scratch }
    }

    /// The part of one history. Made by the thread that uses it.
    pub(crate) fn part(&self, index: usize) -> Pair {
        let top = &self.tops[index];
        Pair {
            reference: Box::new(HostTree::new(self.reference.join(top))),
            subject: Box::new(HostTree::new(self.root.path().join(top))),
            stage: Box::new(PartStage { passthrough: self.passthrough }),
        }
    }

    /// Everything together.
    pub(crate) fn whole(self) -> Pair {
        let Self { root, reference, passthrough, epoch_secs, _scratch, .. } = self;
        Pair {
            reference: Box::new(HostTree::since(reference, epoch_secs)),
            subject: Box::new(HostTree::since(root.path(), epoch_secs)),
            stage: Box::new(MicaStage { root, passthrough, _scratch: Rc::new(_scratch) }),
        }
    }
}

struct PartStage {
    passthrough: bool,
}

impl Stage for PartStage {
    fn remount(&mut self) {}

    fn tolerance(&self) -> Tolerance {
        mica_tolerance(self.passthrough)
    }

    fn shared_directories(&self) -> Vec<Place> {
        mica_shared(self.passthrough)
    }
}

fn mica_tolerance(passthrough: bool) -> Tolerance {
    // An inode that got a new number at copy-up lists as that (docs/SEMANTICS.md).
    let internal_numbers = passthrough.then_some((1 << 61, 1 << 62));
    Tolerance { internal_numbers, lazy_maps: !passthrough, ..Tolerance::default() }
}

fn mica_shared(passthrough: bool) -> Vec<Place> {
    if passthrough { vec![Place::new("usr")] } else { Vec::new() }
}

struct MicaStage {
    root: ServedRoot,
    passthrough: bool,
    _scratch: Rc<Scratch>,
}

impl Stage for MicaStage {
    fn remount(&mut self) {
        self.root.remount();
    }

    fn tolerance(&self) -> Tolerance {
        mica_tolerance(self.passthrough)
    }

    fn shared_directories(&self) -> Vec<Place> {
        mica_shared(self.passthrough)
    }
}

/// Mounts the kernel's overlayfs.
pub(crate) fn mount_overlay(
    lower: &Path,
    upper: &Path,
    work: &Path,
    mountpoint: &Path,
    options: &str,
) {
    let options = format!(
        "lowerdir={},upperdir={},workdir={},{options}",
        lower.display(),
        upper.display(),
        work.display()
    );
    std::process::Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(mountpoint)
        .succeed();
}
