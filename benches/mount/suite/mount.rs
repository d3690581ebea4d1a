//! How long a mount takes: within a process, and as the whole command.

use std::path::{Path, PathBuf};

use mica::fs::FileSystem;
use mica::fuse::{Mount, MountOptions as FuseOptions};
use mica::layer::{Layers, Stack, default_shared_paths};
use mica::object::ObjectReader;
use mica::private::PrivateLayer;
use mica::union::{SharedSet, Union};
use rustix::mount::MountFlags;

use super::contender::{self, Overlay, Place};
use super::measure::{Work, interleave, seconds};
use super::report::{Report, Row, Target, Unit};
use super::support::{MountOptions, Store, Succeed, is_mountpoint};
use super::{Sizes, fixture};

/// Tree, union and mount(2), timed; then unmounts.
fn in_process(store: &Path, stack: &Stack, private: &Path, mountpoint: &Path) -> f64 {
    let mut mount = None;
    let mount_it = || {
        let layers = Layers::open(store).expect("the store opens");
        let tree = layers.tree(stack).expect("the tree is merged");
        let shared = SharedSet::resolve(&tree, &default_shared_paths()).expect("a whole tree");
        let private = PrivateLayer::open(private, stack).expect("a new private layer");
        let objects = ObjectReader::open(store).expect("the store opens");
        let union = Union::new(tree, objects, Some(private), shared).expect("a root");
        let options = FuseOptions {
            mountpoint: mountpoint.to_owned(),
            source: "bench".to_owned(),
            flags: MountFlags::empty(),
            passthrough: true,
            threads: 4,
        };
        mount = Some(Mount::new(FileSystem::new(union), &options).expect("it mounts"));
    };
    let measured = seconds(mount_it);
    let mount = mount.expect("it was mounted");
    let unmounter = mount.unmounter();
    let server = std::thread::spawn(move || mount.run());
    unmounter.unmount().expect("nobody uses it");
    server.join().expect("no panic").expect("it ends with its mount");
    measured
}

/// The whole of `mica mount`, timed; then unmounts.
fn command(store: &Store, private: &Path, mountpoint: &Path) -> f64 {
    let mut command = store.mount_command("tree", mountpoint, &MountOptions::private(private));
    let measured = seconds(|| command.succeed());
    store.mica(["umount"]).arg(mountpoint).succeed();
    measured
}

/// The whole of `fuse-overlayfs`, timed; then unmounts.
fn fuse_overlayfs(lowers: &[PathBuf], private: &Path, mountpoint: &Path) -> f64 {
    let mut command = contender::fuse_overlayfs(lowers, private, mountpoint);
    let measured = seconds(|| {
        let status = command.status().expect("fuse-overlayfs starts");
        assert!(status.success(), "fuse-overlayfs did not mount");
    });
    assert!(is_mountpoint(mountpoint), "fuse-overlayfs returned before it was mounted");
    rustix::mount::unmount(mountpoint, rustix::mount::UnmountFlags::NOFOLLOW)
        .expect("nobody uses it");
    measured
}

/// Mounts of a merged tree from one layer and from many.
pub(super) fn mount(sizes: &Sizes, report: &mut Report) {
    for layers in [1, sizes.layers] {
        let place = Place::new("mount");
        let share = fixture::packages(sizes.tree_files) / layers;
        let lowers: Vec<PathBuf> = (0..layers)
            .map(|layer| {
                let lower = place.directory("l");
                fixture::tree(&lower, layer * share, share);
                lower
            })
            .collect();
        let path = place.path("store");
        let store = fixture::stacked(&path, &lowers);
        fixture::settle(&path);
        let template = "tree".parse().expect("a template name");
        let opened = Layers::open(&path).expect("the store opens");
        let stack = opened.templates().get(&template).expect("it was imported").stack;
        assert_eq!(stack.layers().len(), layers);

        let (private, at) = (|| place.directory("private"), || place.mountpoint("m"));
        let mut works = vec![
            Work::new("overlayfs, mount(2)", || {
                let (private, at) = (private(), at());
                let mut mounted = None;
                let measured = seconds(|| mounted = Some(Overlay::mount(&lowers, &private, &at)));
                drop(mounted);
                measured * 1e3
            }),
            Work::new("mica", || in_process(&path, &stack, &private(), &at()) * 1e3),
            Work::new("mica mount, command", || command(&store, &private(), &at()) * 1e3),
        ];
        if !contender::fuse_overlayfs_version().is_empty() {
            let work = || fuse_overlayfs(&lowers, &private(), &at()) * 1e3;
            works.push(Work::new("fuse-overlayfs, command", work));
        }
        let series = interleave(works, 2, sizes.rounds);
        let files = layers * share * 1000;
        let what = format!("mount of {files} files, tree merged, {layers} layer(s)");
        let row = Row::new(&what, Unit::Milliseconds, Target::AtMost(10.0), series.clone());
        report.row(&row.note("mica: tree, union, mount(2) and the kernel's INIT in one process"));
        let only = series.into_iter().filter(|series| series.name == "mica mount, command");
        let what = format!("{what}, the whole command");
        let row = Row::new(what, Unit::Milliseconds, Target::AtMost(10.0), only.collect());
        report.row(&row.about("mica mount, command"));
    }
}
