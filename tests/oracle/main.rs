//! The oracle: random histories run at once on a subject and on a plain directory of the host,
//! which says what a POSIX file system does. Every difference is a fault or a sentence in
//! docs/SEMANTICS.md.
//!
//! `MICA_ORACLE_SEED` runs one seed, `MICA_ORACLE_STEPS` sets the steps of a run.

// The modules are shared with tests/model.rs, which uses more of some.
#![allow(dead_code)]
// What goes wrong in the harness itself fails the test; most operations concern few matches.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod compare;
mod drive;
mod format;
mod generate;
mod host;
mod layers;
mod operation;
mod raw;
mod root;
mod stage;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::rc::Rc;

use compare::{Comparer, Tolerance};
use drive::{Failure, Pair, explore, report, shorten};
use format::Overlaid;
use generate::Profile;
use host::HostTree;
use layers::{Layer, Node, random_stack, set_mtime, write_tar};
use stage::MicaTemplate;
use support::{Scratch, Succeed};
use world::World;

/// A number that the environment fixes.
fn fixed(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs the seeds that the environment asks for, or `count` fresh ones.
fn explore_seeds<F: FnMut() -> Pair>(
    count: u64,
    steps: usize,
    mut prepare: impl FnMut(Vec<Layer>) -> F,
) {
    let steps = fixed("MICA_ORACLE_STEPS").map_or(steps, |n| usize::try_from(n).unwrap());
    let seeds: Vec<u64> = match fixed("MICA_ORACLE_SEED") {
        Some(seed) => vec![seed],
        None => (0..count).map(|_| fastrand::u64(0..1_000_000_000)).collect(),
    };
    for seed in seeds {
        println!("MICA_ORACLE_SEED={seed} MICA_ORACLE_STEPS={steps}");
        let mut fresh = prepare(random_stack(seed, 3));
        match explore(&mut fresh(), seed, steps, Profile::MOUNTED) {
            Ok(succeeded) => println!("{succeeded} of {steps} steps succeeded"),
            Err(failure) => {
                println!(
                    "found after {} steps: {}",
                    failure.parting.steps, failure.parting.difference.what
                );
                let short: Failure = shorten(&failure, &mut fresh);
                panic!("seed {seed}, shortened:\n{}", report(&short));
            }
        }
    }
}

#[test]
fn a_second_plain_directory_never_differs() {
    support::require_root();
    explore_seeds(2, 2000, |layers| move || stage::plain(&layers));
}

#[test]
fn mica_root_with_passthrough_is_a_plain_directory() {
    support::require_root();
    explore_seeds(2, 3000, |layers| {
        let template = MicaTemplate::import(&layers);
        move || template.root(true)
    });
}

#[test]
fn mica_root_without_passthrough_is_a_plain_directory() {
    support::require_root();
    explore_seeds(2, 3000, |layers| {
        let template = MicaTemplate::import(&layers);
        move || template.root(false)
    });
}

/// The comparer can fail: the kernel's overlayfs, which is no POSIX file system and says so, parts
/// from the plain directory in every run.
#[test]
fn kernel_overlayfs_is_always_found_out() {
    support::require_root();
    for seed in 1..=3 {
        let layers = random_stack(seed, 3);
        let options = "index=on,redirect_dir=on,metacopy=on,xino=on";
        let mut pair = stage::overlay(&layers, options);
        let failure = explore(&mut pair, seed, 3000, Profile::MOUNTED).unwrap_err();
        println!("seed {seed}: {}", failure.parting.difference.what);
        assert!(failure.parting.steps > 0, "the worlds did not begin equal");
    }
}

/// The format oracle: what a root showed, the kernel's overlayfs shows too, when it has the
/// root's private layer over a checkout of the template.
#[test]
fn kernel_overlayfs_reads_a_private_layer() {
    support::require_root();
    let seed = fixed("MICA_ORACLE_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000_000));
    println!("MICA_ORACLE_SEED={seed}");
    let layers = random_stack(seed, 3);
    let template = MicaTemplate::import(&layers);
    let scratch = Rc::new(Scratch::new("oracle-format"));
    let epoch = host::now_secs() - 1;
    let mut pair = template.root_in(Rc::clone(&scratch), true);
    if let Err(failure) = explore(&mut pair, seed, 1500, Profile::MOUNTED) {
        panic!("the root itself parted: {}", failure.parting.difference.what);
    }
    drop(pair);
    let (lower, upper) = (scratch.path().join("lower"), scratch.path().join("private/upper"));
    stage::merged(&layers, &lower);
    let mountpoint = scratch.mountpoint("overlay");
    let work = scratch.directory("overlay-work");
    stage::mount_overlay(&lower, &upper, &work, &mountpoint, "redirect_dir=on,metacopy=on");
    let tolerance = Tolerance { own_numbers: true, ..Tolerance::default() };
    let mut wanted = HostTree::since(scratch.path().join("reference"), epoch);
    let mut found = Overlaid(HostTree::since(mountpoint, epoch));
    let compared = Comparer::new(tolerance).tree(&mut wanted, &mut found);
    found.close_all();
    compared.unwrap_or_else(|difference| panic!("{}", difference.what));
}

/// A private entry whose data is an object: a root reads it, and the kernel's overlayfs answers
/// EIO rather than zeros.
#[test]
fn an_entry_that_refers_to_an_object_is_eio_under_overlayfs() {
    support::require_root();
    let layers = random_stack(1, 1);
    let template = MicaTemplate::import(&layers);
    let scratch = Rc::new(Scratch::new("oracle-object"));
    drop(template.root_in(Rc::clone(&scratch), true));
    let content = layers[0].entries.iter().find_map(|entry| match &entry.node {
        Node::Regular(content) if content.size > 0 => Some(content.bytes()),
        _ => None,
    });
    let content = content.expect("a template has a file");
    let upper = scratch.path().join("private/upper");
    let entry = upper.join("refers");
    std::fs::File::create_new(&entry).unwrap().set_len(content.len() as u64).unwrap();
    let mark = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(&entry, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    mark("trusted.overlay.metacopy", b"");
    // No name has 256 bytes, so no layer below has this path.
    mark("trusted.overlay.redirect", format!("/{}", "x".repeat(256)).as_bytes());
    mark("trusted.mica.object", mica::object::ObjectId::of(&content).digest().as_bytes());
    let pair = template.root_in(Rc::clone(&scratch), true);
    let seen = std::fs::read(scratch.mountpoint("subject").join("refers")).unwrap();
    drop(pair);
    assert!(seen == content, "the root reads something else than the object");

    let lower = scratch.path().join("lower");
    stage::merged(&layers, &lower);
    let (mountpoint, work) = (scratch.mountpoint("overlay"), scratch.directory("overlay-work"));
    stage::mount_overlay(&lower, &upper, &work, &mountpoint, "redirect_dir=on,metacopy=on");
    let refused = std::fs::read(mountpoint.join("refers")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EIO), "{refused}");
}

/// The archives say what the merge was made from: tar(1) unpacks the lowest to the same tree.
#[test]
fn archives_unpack_to_the_merge() {
    support::require_root();
    for seed in 1..=5 {
        let scratch = Scratch::new("oracle-tar");
        let layers = random_stack(seed, 1);
        let (merged, unpacked) = (scratch.path().join("merged"), scratch.directory("unpacked"));
        stage::merged(&layers, &merged);
        let archive = scratch.path().join("layer.tar");
        write_tar(&layers[0], std::fs::File::create_new(&archive).unwrap());
        let mut tar = std::process::Command::new("tar");
        tar.args(["--extract", "--numeric-owner", "--same-permissions", "--same-owner"]);
        tar.args(["--xattrs", "--xattrs-include=*", "--delay-directory-restore", "--directory"]);
        tar.arg(&unpacked).arg("--file").arg(&archive).succeed();
        set_mtime(&unpacked, (0, 0));
        let mut comparer = Comparer::new(Tolerance::default());
        let mut wanted = HostTree::new(merged);
        let mut found = HostTree::new(unpacked);
        comparer.tree(&mut wanted, &mut found).unwrap();
    }
}

/// Runs in the child processes that serve roots; by itself it does nothing.
#[test]
fn serves_a_root_for_another_test() {
    root::serve_if_asked();
}
