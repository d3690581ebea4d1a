//! How long a mount takes: within a process, and as the whole command.

use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use crate::bench::contender::{self, Overlay, Stock, TEMPLATE, is_mountpoint};
use crate::bench::error::{BenchError, Result};
use crate::bench::fixture;
use crate::bench::measure::{Work, interleave, seconds};
use crate::bench::place::settle;
use crate::bench::row::{Row, Target, Unit};
use crate::bench::run::{run, silently};
use crate::bench::session::Session;
use crate::fs::FileSystem;
use crate::fuse::{Mount, MountOptions as FuseOptions};
use crate::host::HostError;
use crate::layer::{Layers, Stack, default_shared_paths};
use crate::object::ObjectReader;
use crate::private::PrivateLayer;
use crate::union::{SharedSet, Union};

/// Tree, union and mount(2), timed; then unmounts.
fn in_process(store: &Path, stack: &Stack, private: &Path, mountpoint: &Path) -> Result<f64> {
    let mount_it = || -> Result<Mount, HostError> {
        let layers = Layers::open(store)?;
        let tree = layers.tree(stack)?;
        let shared = SharedSet::resolve(&tree, &default_shared_paths())?;
        let private = PrivateLayer::open(private, stack)?;
        let objects = ObjectReader::open(store)?;
        let union = Union::new(tree, objects, Some(private), shared)?;
        let options = FuseOptions {
            mountpoint: mountpoint.to_owned(),
            source: "bench".to_owned(),
            flags: MountFlags::empty(),
            passthrough: true,
            threads: 4,
        };
        Ok(Mount::new(FileSystem::new(union), &options)?)
    };
    let mut mount = None;
    let measured = seconds(|| {
        mount = Some(mount_it()?);
        Ok(())
    })?;
    if let Some(mount) = mount {
        let unmounter = mount.unmounter();
        let server = std::thread::spawn(move || mount.run());
        unmounter.unmount()?;
        // A server that panicked has nothing more to say than that.
        let ended =
            server.join().map_err(|_| BenchError::Died("the server panicked".to_owned()))?;
        ended.map_err(HostError::from)?;
    }
    Ok(measured)
}

/// The whole of `mica mount`, timed; then unmounts.
fn command(stock: &Stock, private: &Path, mountpoint: &Path) -> Result<f64> {
    let mut command = stock.mica(["mount", "--quiet", TEMPLATE]);
    command.arg(mountpoint).arg("--private").arg(private);
    let measured = seconds(|| run(&mut command))?;
    run(stock.mica(["umount"]).arg(mountpoint))?;
    Ok(measured)
}

/// The whole of `fuse-overlayfs`, timed; then unmounts.
fn fuse_overlayfs(lowers: &[PathBuf], private: &Path, mountpoint: &Path) -> Result<f64> {
    let mut command = contender::fuse_overlayfs(lowers, private, mountpoint)?;
    let measured = seconds(|| silently(&mut command))?;
    if is_mountpoint(mountpoint) {
        rustix::mount::unmount(mountpoint, rustix::mount::UnmountFlags::NOFOLLOW)?;
    }
    Ok(measured)
}

/// Mounts of a merged tree from one layer and from many.
pub(super) fn mount(session: &mut Session<'_>) -> Result<()> {
    let sizes = session.sizes;
    for layers in [1, sizes.layers] {
        let place = session.place("mount")?;
        let share = fixture::packages(sizes.tree_files) / layers;
        let stock = Stock::at(place.path("store"), &session.settings.program);
        let mut lowers = Vec::new();
        for layer in 0..layers {
            let lower = place.directory("l")?;
            fixture::tree(&lower, layer * share, share)?;
            stock.import(TEMPLATE, &lower, (layer > 0).then_some(TEMPLATE))?;
            lowers.push(lower);
        }
        settle(place.top())?;
        let stack = stock.stack(TEMPLATE)?;

        let (private, at) = (|| place.directory("private"), || place.directory("m"));
        let mut works = vec![
            Work::new("overlayfs, mount(2)", || {
                let (private, at) = (private()?, at()?);
                let mut mounted = None;
                let measured = seconds(|| {
                    mounted = Some(Overlay::mount(&lowers, &private, &at)?);
                    Ok(())
                })?;
                drop(mounted);
                Ok(measured * 1e3)
            }),
            Work::new("mica", || Ok(in_process(stock.path(), &stack, &private()?, &at()?)? * 1e3)),
            Work::new("mica mount, command", || Ok(command(&stock, &private()?, &at()?)? * 1e3)),
        ];
        if !contender::fuse_overlayfs_version().is_empty() {
            let work = || Ok(fuse_overlayfs(&lowers, &private()?, &at()?)? * 1e3);
            works.push(Work::new("fuse-overlayfs, command", work));
        }
        let series = interleave(works, 2, sizes.rounds)?;
        let files = layers * share * 1000;
        let what = format!("mount of {files} files, tree merged, {layers} layer(s)");
        let target = Some(Target::AtMost(10.0));
        let row = Row::new(&what, Unit::Milliseconds, target, series.clone());
        session.row(row.note("mica: tree, union, mount(2) and the kernel's INIT in one process"));
        let keep = |name: &str| name.ends_with(", command");
        let only = series.into_iter().filter(|series| keep(&series.name)).collect();
        let row = Row::new(format!("{what}, the whole command"), Unit::Milliseconds, target, only);
        session.row(row.about("mica mount, command").beside("fuse-overlayfs, command"));
    }
    Ok(())
}
