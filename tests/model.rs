//! The in-memory model of a POSIX file system, held against ext4 and then against `mica::fs`.

// The modules are shared with the oracle, which uses more of them.
#![allow(dead_code)]
// What goes wrong in the harness itself fails the test; most operations concern few matches.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

#[path = "oracle/compare.rs"]
mod compare;
#[path = "oracle/drive.rs"]
mod drive;
#[path = "oracle/generate.rs"]
mod generate;
#[path = "oracle/host.rs"]
mod host;
#[path = "oracle/layers.rs"]
mod layers;
#[path = "oracle/memory.rs"]
mod memory;
#[path = "oracle/operation.rs"]
mod operation;
#[path = "oracle/raw.rs"]
mod raw;
#[path = "oracle/root.rs"]
mod root;
#[path = "oracle/stage.rs"]
mod stage;
mod support;
#[path = "oracle/vfs.rs"]
mod vfs;
#[path = "oracle/world.rs"]
mod world;

use drive::{Pair, Stage, explore, report, shorten};
use generate::Profile;
use host::HostTree;
use layers::{Layer, random_stack};
use memory::Memory;
use support::Scratch;
use vfs::Vfs;

/// Nothing to remount.
struct Unmounted {
    _scratch: Scratch,
}

impl Stage for Unmounted {
    fn remount(&mut self) {}
}

fn model_beside_a_directory(layers: &[Layer]) -> Pair {
    let scratch = Scratch::new("model");
    let reference = scratch.path().join("reference");
    stage::merged(layers, &reference);
    let mut reference = HostTree::new(reference);
    let model = Memory::copy_of(&mut reference);
    Pair {
        reference: Box::new(reference),
        subject: Box::new(Vfs::new(model)),
        stage: Box::new(Unmounted { _scratch: scratch }),
    }
}

#[test]
fn model_is_a_plain_directory() {
    support::require_root();
    let fixed = std::env::var("MICA_ORACLE_SEED").ok().map(|text| text.parse().unwrap());
    let seeds = fixed.map_or_else(|| vec![fastrand::u64(0..1_000_000_000); 1], |seed| vec![seed]);
    for seed in seeds {
        println!("MICA_ORACLE_SEED={seed}");
        let layers = random_stack(seed, 3);
        let mut pair = model_beside_a_directory(&layers);
        if let Err(failure) = explore(&mut pair, seed, 4000, Profile::UNMOUNTED) {
            drop(pair);
            let short = shorten(&failure, &mut || model_beside_a_directory(&layers));
            panic!("seed {seed}, shortened:\n{}", report(&short));
        }
    }
}
