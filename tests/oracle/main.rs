//! The oracle: random histories run at once on a subject and on a plain directory of the host,
//! which says what a POSIX file system does. Every difference is a fault or a sentence in
//! docs/SEMANTICS.md.
//!
//! `MICA_TEST_SEED` runs one seed, `random` fresh ones; `MICA_ORACLE_STEPS` sets the steps of a history.

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
use drive::{Failure, Pair, Parting, explore, replay, report, shorten};
use format::Overlaid;
use generate::Profile;
use host::HostTree;
use layers::{Layer, Node, large_directory, random_stack, set_mtime, write_tar};
use operation::{NodeKind, Operation, Place, RenameHow, Step, Target, Who};
use stage::{Crowd, MicaTemplate};
use support::{Scratch, Succeed, seed, seeds};
use world::{LISTINGS, World};

/// A number that the environment fixes.
fn fixed(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Histories of a test, and steps of a history.
fn counts() -> (usize, usize) {
    let (histories, steps) = match std::env::var("MICA_TEST_COUNTS").as_deref() {
        Ok("quick") => (1, 1500),
        Ok("long") => (100, 20_000),
        _ => (3, 4000),
    };
    let steps = fixed("MICA_ORACLE_STEPS").map_or(steps, |steps| usize::try_from(steps).unwrap());
    (histories, steps)
}

/// Runs the histories of a test.
fn explore_seeds<F: FnMut() -> Pair>(mut prepare: impl FnMut(Vec<Layer>) -> F) {
    let (histories, steps) = counts();
    for seed in seeds(histories) {
        let mut fresh = prepare(random_stack(seed, 3));
        match explore(&mut fresh(), seed, steps, Profile::MOUNTED) {
            Ok(succeeded) => println!("{succeeded} of {steps} steps succeeded"),
            Err(failure) => {
                let Parting { steps, difference } = &failure.parting;
                println!("found after {steps} steps: {}", difference.what);
                let short: Failure = shorten(&failure, &mut fresh);
                panic!("seed {seed}, shortened:\n{}", report(&short));
            }
        }
    }
}

#[test]
fn a_second_plain_directory_never_differs() {
    support::require_root();
    explore_seeds(|layers| move || stage::plain(&layers));
}

#[test]
fn mica_root_with_passthrough_is_a_plain_directory() {
    support::require_root();
    explore_seeds(|layers| {
        let template = MicaTemplate::import(&layers);
        move || template.root(true)
    });
}

#[test]
fn mica_root_without_passthrough_is_a_plain_directory() {
    support::require_root();
    explore_seeds(|layers| {
        let template = MicaTemplate::import(&layers);
        move || template.root(false)
    });
}

/// Several histories at once in one root, each in a directory of its own, and then the whole.
fn crowd_is_a_plain_directory(passthrough: bool) {
    support::require_root();
    const PARTS: u64 = 4;
    let (_, steps) = counts();
    let seed = seed();
    let stacks: Vec<_> = (0..PARTS).map(|part| random_stack(seed + part, 3)).collect();
    let crowd = Crowd::gather(&stacks, passthrough);
    let profile = Profile { remount: false, ..Profile::MOUNTED };
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..PARTS)
            .map(|part| {
                let crowd = &crowd;
                scope.spawn(move || {
                    let index = usize::try_from(part).unwrap();
                    let parted = explore(&mut crowd.part(index), seed + part, steps, profile);
                    // There is no shortening: the other parts are part of it.
                    parted.map_err(|failure| report(&failure))
                })
            })
            .collect();
        for part in parts {
            if let Err(report) = part.join().unwrap() {
                panic!("seed {seed}:\n{report}");
            }
        }
    });
    replay(&mut crowd.whole(), &[]).unwrap_or_else(|parting| panic!("{}", parting.difference.what));
}

#[test]
fn crowded_root_with_passthrough_is_a_plain_directory() {
    crowd_is_a_plain_directory(true);
}

#[test]
fn crowded_root_without_passthrough_is_a_plain_directory() {
    crowd_is_a_plain_directory(false);
}

/// Listings of a directory that takes many requests to read, while names come, go and move.
#[test]
fn large_directory_is_listed_whole_while_it_changes() {
    support::require_root();
    let directory = Place::new("srv");
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let template = MicaTemplate::import(&large_directory(&directory, 3000));
    let mut name = || directory.join(format!("file{}", random.usize(0..4000)).as_bytes());
    let mut choice = fastrand::Rng::with_seed(seed + 1);
    let mut steps: Vec<Operation> = Vec::new();
    for slot in 0..LISTINGS {
        steps.push(Operation::OpenListing { slot, place: directory.clone() });
    }
    for _ in 0..1500 {
        let slot = choice.usize(0..LISTINGS);
        steps.push(match choice.u32(0..10) {
            0..=3 => Operation::ListSome { slot, seek: choice.bool() },
            4 | 5 => Operation::Unlink { place: name() },
            6 => Operation::Rename { from: name(), to: name(), how: RenameHow::Replace },
            7 => Operation::Rename { from: name(), to: name(), how: RenameHow::Exchange },
            8 => Operation::Chmod { target: Target::Name(name()), mode: 0o600 },
            _ => Operation::MakeNode { place: name(), kind: NodeKind::Regular, mode: 0o644 },
        });
    }
    for slot in 0..LISTINGS {
        steps.push(Operation::ListRest { slot });
    }
    steps.push(Operation::EmptyWhileListing { place: directory });
    let steps: Vec<Step> =
        steps.into_iter().map(|operation| Step { who: Who::Root, umask: 0, operation }).collect();
    if let Err(parting) = replay(&mut template.root(true), &steps) {
        panic!("seed {seed}, after {} steps: {}", parting.steps, parting.difference.what);
    }
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
    let seed = seed();
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
